//! Which positions of the forward call the rows of a tensor are.
//!
//! A shape does not tell: [8, 16] may be eight positions, eight heads of one, or the eight rows that a router gave to an
//! expert. What is not simply one row a position is looked for, element by element, in the values that earlier sites of
//! the same call gave.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use candle_core::{Result, Tensor, TensorId};

use super::taps::bytes;
use crate::call::Axis;

/// Values of a call that are kept at hand to compare with: a decoder layer's worth, and no more memory than this.
const RECENT: usize = 12;
const RECENT_BYTES: usize = 256 << 20;
/// Terms of a residual sum whose last rows are recognised.
const MOST_TERMS: usize = 3;

/// How a tensor's elements are those of the call's positions. A leading batch of one counts as none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Layout {
    /// [rows, ...]
    Whole,
    /// [count, ...]: positions from the `first` of the call on, which the site named gave, too.
    Part { first: usize, count: usize, of: Option<String> },
    /// [heads * rows, width] or [heads, rows, width]; `by_position`: [rows * heads, width].
    Heads { heads: usize, by_position: bool },
    /// [1, channels, rows]
    Channels,
    /// [1, count, ...]: not positions of the call, but of the encoder's input.
    Encoded(usize),
    /// It cannot be said, and why.
    Nowhere(String),
}

impl Layout {
    /// [rows of the call, width] of `xs`, and which row of the call is the first.
    pub(super) fn apply(&self, xs: &Tensor, rows: usize) -> Result<(Tensor, usize)> {
        match self {
            Self::Whole | Self::Nowhere(_) => Ok((by_rows(xs, without_batch(xs).first().copied().unwrap_or(1))?, 0)),
            Self::Part { first, count, .. } => Ok((by_rows(xs, *count)?, *first)),
            Self::Heads { heads, by_position: true } => Ok((by_rows(xs, xs.elem_count() / last(xs) / heads)?, 0)),
            Self::Heads { heads, by_position: false } => {
                let by_head = xs.contiguous()?.reshape((*heads, rows, last(xs)))?;
                Ok((by_rows(&by_head.transpose(0, 1)?, rows)?, 0))
            }
            Self::Channels => Ok((by_rows(&xs.squeeze(0)?.t()?, rows)?, 0)),
            Self::Encoded(count) => Ok((by_rows(xs, *count)?, 0)),
        }
    }

    /// What the rows are.
    pub(super) fn axis(&self) -> Axis {
        match self {
            Self::Encoded(_) => Axis::Encoder,
            _ => Axis::Sequence,
        }
    }

    /// How many heads lie side by side in a row.
    pub(super) fn heads(&self) -> Option<usize> {
        match self {
            Self::Heads { heads, .. } => Some(*heads),
            _ => None,
        }
    }
}

fn by_rows(xs: &Tensor, rows: usize) -> Result<Tensor> {
    xs.contiguous()?.reshape((rows, xs.elem_count() / rows.max(1)))
}

fn last(xs: &Tensor) -> usize {
    xs.dims().last().copied().unwrap_or(1).max(1)
}

/// The dimensions, a leading batch of one dropped.
pub(super) fn without_batch(xs: &Tensor) -> &[usize] {
    let dims = xs.dims();
    if dims.len() > 2 && dims[0] == 1 {
        &dims[1..]
    } else {
        dims
    }
}

struct Recent {
    site: String,
    /// [rows, width]
    values: Tensor,
    /// Of `values`, once they were needed.
    bytes: Option<Vec<u8>>,
}

impl Recent {
    fn width(&self) -> usize {
        last(&self.values)
    }

    fn bytes(&mut self) -> Result<&[u8]> {
        if self.bytes.is_none() {
            self.bytes = Some(bytes(&self.values)?);
        }
        Ok(self.bytes.as_deref().unwrap_or_default())
    }
}

/// What the sites of the forward call in hand gave on this thread.
#[derive(Default)]
pub(super) struct Places {
    call: u64,
    recent: VecDeque<Recent>,
    layouts: HashMap<TensorId, Layout>,
}

thread_local! {
    static HERE: RefCell<Places> = RefCell::default();
}

/// Runs `act` on this thread's places in the forward call of this serial number.
pub(super) fn with_places<T>(call: u64, act: impl FnOnce(&mut Places) -> Result<T>) -> Result<T> {
    HERE.with(|here| {
        let mut places = here.borrow_mut();
        if places.call != call {
            *places = Places { call, ..Places::default() };
        }
        act(&mut places)
    })
}

impl Places {
    /// The layout that a tensor of this identity was found to have.
    pub(super) fn known(&self, identity: TensorId) -> Option<Layout> {
        self.layouts.get(&identity).cloned()
    }

    /// The tensor has this layout, whatever it is given to.
    pub(super) fn note(&mut self, identity: TensorId, layout: &Layout) {
        if *layout != Layout::Whole {
            self.layouts.insert(identity, layout.clone());
        }
    }

    /// `values`, [rows, width], are what a site gave for all positions of the call.
    pub(super) fn remember(&mut self, site: &str, values: &Tensor) {
        self.recent.push_front(Recent { site: site.to_string(), values: values.clone(), bytes: None });
        let mut room = RECENT_BYTES;
        let kept = self.recent.iter().take(RECENT).take_while(|own| {
            let size = own.values.elem_count() * own.values.dtype().size_in_bytes();
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        });
        let kept = kept.count();
        self.recent.truncate(kept);
    }

    /// Whether `values` are equal to what a site gave in this call.
    pub(super) fn gave(&mut self, site: &str, values: &Tensor) -> Result<bool> {
        let Some(recent) = self.recent.iter_mut().find(|recent| recent.site == site) else { return Ok(false) };
        let alike = recent.values.dtype() == values.dtype() && recent.values.dims() == values.dims();
        Ok(alike && recent.bytes()? == bytes(values)?)
    }

    /// The layout of `xs` in a call of `rows` positions.
    pub(super) fn find(&mut self, xs: &Tensor, rows: usize) -> Result<Layout> {
        let dims = without_batch(xs);
        let Some(&first) = dims.first() else { return Ok(Layout::Nowhere("it has no rows".into())) };
        let may_be_heads = dims.len() > 2 && dims[1] == rows;
        if first == rows && !may_be_heads {
            return Ok(Layout::Whole);
        }
        if let Some(layout) = self.heads(xs, dims, rows)? {
            return Ok(layout);
        }
        if first == rows {
            return Ok(Layout::Whole);
        }
        if first < rows && xs.elem_count() > 0 {
            if let Some(layout) = self.part(xs, first, rows)? {
                return Ok(layout);
            }
        }
        let shape = xs.dims();
        Ok(Layout::Nowhere(format!(
            "its shape {shape:?} does not have the {rows} rows of the call, and no earlier site shows which positions it holds"
        )))
    }

    /// `xs` as the heads of an earlier value, or of some columns of it, where projections are fused.
    fn heads(&mut self, xs: &Tensor, dims: &[usize], rows: usize) -> Result<Option<Layout>> {
        let width = last(xs);
        let all = xs.elem_count() / width;
        if dims.len() > 3 || rows == 0 || all % rows != 0 || all == 0 {
            return Ok(None);
        }
        let heads = all / rows;
        let own = bytes(xs)?;
        let size = width * xs.dtype().size_in_bytes();
        let flat = dims.len() == 2;
        for recent in &mut self.recent {
            if recent.values.dtype() != xs.dtype() || recent.values.dim(0)? != rows {
                continue;
            }
            let whole = recent.width();
            let line = whole * xs.dtype().size_in_bytes();
            let theirs = recent.bytes()?;
            for column in (0..(whole + 1).saturating_sub(heads * width)).step_by(width) {
                let start = column * xs.dtype().size_in_bytes();
                let is_at = |row: usize, head: usize, position: usize| {
                    let there = position * line + start + head * size;
                    own[row * size..(row + 1) * size] == theirs[there..there + size]
                };
                let all_are = |row_of: &dyn Fn(usize, usize) -> usize| {
                    (0..heads).all(|head| (0..rows).all(|position| is_at(row_of(head, position), head, position)))
                };
                let by_head = flat || dims[1] == rows;
                if by_head && all_are(&|head, position| head * rows + position) {
                    return Ok(Some(Layout::Heads { heads, by_position: false }));
                }
                let by_position = flat || dims[0] == rows;
                if by_position && all_are(&|head, position| position * heads + head) {
                    return Ok(Some(Layout::Heads { heads, by_position: true }));
                }
            }
        }
        Ok(None)
    }

    /// `xs` as `count` consecutive rows of an earlier value, or as the last rows of a sum of some: a residual stream.
    fn part(&mut self, xs: &Tensor, count: usize, rows: usize) -> Result<Option<Layout>> {
        let xs = by_rows(xs, count)?;
        let (own, width) = (bytes(&xs)?, last(&xs));
        for recent in &mut self.recent {
            if recent.values.dtype() != xs.dtype() || recent.values.dims() != [rows, width] {
                continue;
            }
            let line = own.len() / count;
            let theirs = recent.bytes()?;
            let found = (0..=rows - count).rev().find(|first| theirs[first * line..][..own.len()] == own);
            if let Some(first) = found {
                return Ok(Some(Layout::Part { first, count, of: Some(recent.site.clone()) }));
            }
        }
        let mut ends = Vec::new();
        for recent in &self.recent {
            if recent.values.dtype() == xs.dtype() && recent.values.dims() == [rows, width] {
                ends.push(recent.values.narrow(0, rows - count, count)?);
            }
        }
        let is_sum = (0..ends.len()).try_fold(false, |found, at| {
            Ok::<_, candle_core::Error>(found || is_sum(&own, &ends[at], &ends, at, MOST_TERMS - 1)?)
        })?;
        Ok(is_sum.then_some(Layout::Part { first: rows - count, count, of: None }))
    }
}

/// Whether `own` are the bytes of `sum` plus up to `more` others of `ends`, added one after the other.
fn is_sum(own: &[u8], sum: &Tensor, ends: &[Tensor], last_added: usize, more: usize) -> Result<bool> {
    for (at, other) in ends.iter().enumerate() {
        if at == last_added {
            continue;
        }
        let sum = (sum + other)?;
        if bytes(&sum)? == own || (more > 1 && is_sum(own, &sum, ends, at, more - 1)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::rng::TorchRng;

    fn random(rng: &mut TorchRng, rows: usize, width: usize) -> Tensor {
        Tensor::from_vec(rng.randn_f32(rows * width), (rows, width), &Device::Cpu).expect("a tensor")
    }

    fn find(earlier: &[&Tensor], xs: &Tensor, rows: usize) -> Layout {
        let mut places = Places::default();
        for (index, values) in earlier.iter().enumerate() {
            places.remember(&index.to_string(), values);
        }
        places.find(xs, rows).expect("compares")
    }

    #[test]
    fn heads_are_told_by_their_elements() -> Result<()> {
        let mut rng = TorchRng::seed(1);
        // As many heads as positions: the shape tells nothing.
        for (rows, heads) in [(5, 3), (4, 4), (1, 4)] {
            let (width, fused) = (8, random(&mut rng, rows, 2 * heads * 8));
            for column in [0, heads * width] {
                let q = fused.narrow(1, column, heads * width)?.contiguous()?;
                let split = q.reshape((rows, heads, width))?;
                let turned = split.transpose(0, 1)?.contiguous()?;
                for (xs, by_position) in [
                    (turned.reshape((heads * rows, width))?, false),
                    (turned.unsqueeze(0)?, false),
                    (split.reshape((heads * rows, width))?, rows > 1),
                ] {
                    let layout = find(&[&fused], &xs, rows);
                    if layout != Layout::Whole {
                        assert_eq!(layout, Layout::Heads { heads, by_position }, "{:?}", xs.dims());
                    }
                    let (values, first) = layout.apply(&xs, rows)?;
                    assert_eq!((bytes(&values)?, first), (bytes(&q)?, 0), "{layout:?}");
                }
                assert!(matches!(find(&[], &turned.reshape((heads * rows, width))?, rows), Layout::Nowhere(_)));
            }
        }
        Ok(())
    }

    #[test]
    fn the_last_rows_are_those_of_an_earlier_site_or_sum() -> Result<()> {
        let mut rng = TorchRng::seed(2);
        let [a, b, c] = [0; 3].map(|_| random(&mut rng, 6, 8));
        let end = |xs: Tensor, count: usize| xs.narrow(0, 6 - count, count)?.contiguous();
        let part = |first, count, of: Option<&str>| Layout::Part { first, count, of: of.map(str::to_string) };
        assert_eq!(find(&[&a, &b], &end(b.clone(), 2)?, 6), part(4, 2, Some("1")));
        assert_eq!(find(&[&a, &b], &a.narrow(0, 0, 1)?, 6), part(0, 1, Some("0")));
        assert_eq!(find(&[&a, &b], &end((&a + &b)?, 1)?.unsqueeze(0)?, 6), part(5, 1, None));
        assert_eq!(find(&[&a, &b, &c], &end(((&b + &c)? + &a)?, 1)?, 6), part(5, 1, None));
        // The first row of a sum, and rows that a router picked: nobody knows.
        assert!(matches!(find(&[&a, &b], &(&a + &b)?.narrow(0, 0, 1)?, 6), Layout::Nowhere(_)));
        let picked = a.index_select(&Tensor::new(&[0u32, 2], &Device::Cpu)?, 0)?;
        let Layout::Nowhere(why) = find(&[&a], &picked, 6) else { panic!("two rows apart") };
        assert!(why.contains("[2, 8] does not have the 6 rows of the call"), "{why}");
        Ok(())
    }

    #[test]
    fn a_batch_is_no_set_of_heads() -> Result<()> {
        let batch = Tensor::zeros((2, 5, 8), DType::F32, &Device::Cpu)?;
        assert!(matches!(find(&[], &batch, 5), Layout::Nowhere(_)));
        Ok(())
    }
}
