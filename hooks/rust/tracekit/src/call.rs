//! The forward call in hand: which sites fired, whose tensors they gave, and the values that are not written yet.

use std::collections::{HashMap, HashSet};
#[cfg(feature = "candle")]
use std::sync::atomic::{AtomicU64, Ordering};

use crate::log::{Dtype, TensorRef};
use crate::recording::Tapped;

/// Which tensor a value is: candle never gives an id twice. Without candle nothing tells.
#[cfg(feature = "candle")]
pub(crate) type Identity = candle_core::TensorId;
#[cfg(not(feature = "candle"))]
pub(crate) type Identity = std::convert::Infallible;

struct Value {
    name: String,
    axis: Axis,
    dtype: Dtype,
    /// Row of the call that its first row is.
    first: usize,
    shape: [usize; 2],
    bytes: Vec<u8>,
}

/// What the rows of a value are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Axis {
    /// Positions of the sequence.
    #[default]
    Sequence,
    /// Positions of the encoder's input.
    Encoder,
}

impl Axis {
    /// Its word in a log, which has none for the sequence's own.
    pub(crate) fn word(self) -> Option<&'static str> {
        match self {
            Self::Sequence => None,
            Self::Encoder => Some("encoder"),
        }
    }
}

/// Values of one call frame.
pub(crate) struct Rows<'a> {
    pub(crate) axis: Axis,
    /// Position of the first row.
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) values: Vec<TensorRef<'a>>,
}

/// One forward call of the model over `rows` positions.
#[derive(Default)]
pub(crate) struct Call {
    /// What it computes: the encoder's part, or the sequence's.
    pub(crate) axis: Axis,
    /// Position of its first row.
    pub(crate) first: usize,
    /// `None` until its first value is there, where the program did not say `forward`.
    pub(crate) rows: Option<usize>,
    /// Token ids that it looks up, one a row, where they are seen.
    pub(crate) ids: Vec<u32>,
    /// The program said `forward`; else a site that fires again starts the next call.
    told: bool,
    /// Its number in this process, once anybody asked.
    #[cfg(feature = "candle")]
    serial: u64,
    values: Vec<Value>,
    fired: HashSet<String>,
    sources: HashMap<Identity, String>,
}

impl Call {
    /// A call that the program announced.
    pub(crate) fn told(first: usize, rows: usize) -> Self {
        Self { first, rows: Some(rows), told: true, ..Self::default() }
    }

    /// A call of the encoder that the program announced.
    pub(crate) fn encodes(rows: usize) -> Self {
        Self { axis: Axis::Encoder, ..Self::told(0, rows) }
    }

    /// The call after this one, in a program that announces none: positions add up.
    pub(crate) fn following(&self) -> Self {
        Self { first: self.end(), ..Self::default() }
    }

    /// Position behind its last row.
    pub(crate) fn end(&self) -> usize {
        self.first + self.rows.unwrap_or(0)
    }

    /// A number that no other call of this process has.
    #[cfg(feature = "candle")]
    pub(crate) fn serial(&mut self) -> u64 {
        static LAST: AtomicU64 = AtomicU64::new(0);
        if self.serial == 0 {
            self.serial = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        }
        self.serial
    }

    /// The sites of this call by the tensors that they gave.
    pub(crate) fn into_sources(self) -> HashMap<Identity, String> {
        self.sources
    }

    /// Whether the program said where it begins.
    pub(crate) fn is_told(&self) -> bool {
        self.told
    }

    /// Whether `name` firing now means that another call has begun, in a program that does not say so.
    pub(crate) fn is_over_at(&self, name: &str) -> bool {
        !self.told && self.has_fired(name)
    }

    /// Whether a site gave its value already in this call.
    pub(crate) fn has_fired(&self, name: &str) -> bool {
        self.fired.contains(name)
    }

    /// Notes that a site gave its value.
    pub(crate) fn fire(&mut self, name: &str) {
        self.fired.insert(name.to_string());
    }

    /// The site that recorded the tensor of this identity in this call.
    pub(crate) fn source(&self, identity: Option<Identity>) -> Option<&str> {
        self.sources.get(&identity?).map(String::as_str)
    }

    /// The tensor of this identity is the value of `site`.
    pub(crate) fn set_source(&mut self, identity: Option<Identity>, site: &str) {
        if let Some(identity) = identity {
            self.sources.insert(identity, site.to_string());
        }
    }

    /// Why a value of this shape is none of this call's, or `None`.
    pub(crate) fn unfit(&mut self, shape: &[usize]) -> Option<String> {
        let Some(&first) = shape.first() else { return Some("it has no rows".into()) };
        let rows = *self.rows.get_or_insert(first);
        (first != rows).then(|| format!("its shape {shape:?} does not have the {rows} rows of the call"))
    }

    /// Keeps a value of shape [rows, ...], whose first row is that row of the call; of the encoder's input, where the
    /// call is not the encoder's.
    pub(crate) fn keep(&mut self, name: &str, tapped: &Tapped<'_>, axis: Axis, first: usize, bytes: Vec<u8>) {
        let shape = [tapped.shape[0], tapped.shape[1..].iter().product()];
        self.values.push(Value { name: name.to_string(), axis, dtype: tapped.dtype, first, shape, bytes });
    }

    pub(crate) fn has_values(&self) -> bool {
        !self.values.is_empty()
    }

    /// Leaves out the first `again` rows, which were computed again: a position is as it was when it was new.
    pub(crate) fn leave_out(&mut self, again: usize) {
        self.values.retain_mut(|value| {
            let cut =
                if value.axis == Axis::Sequence { again.saturating_sub(value.first).min(value.shape[0]) } else { 0 };
            value.bytes.drain(..cut * (value.bytes.len() / value.shape[0].max(1)));
            value.first += cut;
            value.shape[0] -= cut;
            cut == 0 || value.shape[0] > 0
        });
    }

    /// What was kept since the last `forget_values`, by the positions that it holds. A head that is given the last
    /// position only has a frame of its own.
    pub(crate) fn frames(&self) -> Vec<Rows<'_>> {
        let mut frames: Vec<Rows<'_>> = Vec::new();
        for Value { name, axis, dtype, first, shape, bytes } in &self.values {
            let (axis, count) = (*axis, shape[0]);
            let first = if axis == self.axis { self.first + first } else { *first };
            let place = frames.iter().position(|own| (own.axis, own.first, own.count) == (axis, first, count));
            let at = place.unwrap_or_else(|| {
                frames.push(Rows { axis, first, count, values: Vec::new() });
                frames.len() - 1
            });
            frames[at].values.push(TensorRef { name, dtype: *dtype, shape, data: bytes });
        }
        frames
    }

    pub(crate) fn forget_values(&mut self) {
        self.values.clear();
    }
}
