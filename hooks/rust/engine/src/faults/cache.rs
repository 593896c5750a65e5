//! Seam: the KV cache after a call's rows went in.

use candle_core::{DType, Result, Tensor};

use super::words::Words;
use super::{here, Clock, Faults, Kind as Any, Row, Run};
use crate::model::attention::Attention;
use crate::model::cache::{Cache, KvCache};

pub const TABLE: &[Row] = &[
    ("stale-cache-row[:STEP[:LAYER]]", "At STEP, 4, of LAYER, 0, the new row holds what the row before it holds"),
    ("overwritten-cache-row[:STEP[:LAYER]]", "At STEP, 4, the new keys and values are written over the last ones"),
    ("cache-hole[:STEP[:LAYER]]", "At STEP, 1, an empty row is left before the new one, and attended from then on"),
    ("stale-request-row[:LAYER]", "The next request's first row holds what the last one of the request before holds"),
    (
        "kept-row-off-by-one[:LAYER]",
        "Of a prefix that is kept for the next request, the rows from the second on are kept",
    ),
    ("cache-f16[:LAYER]", "Keys and values are rounded to float16 as they go in"),
];

#[derive(Debug)]
pub struct Kind {
    what: What,
    step: usize,
    layer: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Stale,
    Overwritten,
    Hole,
    /// At every step.
    Rounded,
    /// Between requests.
    StaleRequest,
    KeptOff,
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    let decode = |step: usize| (step > 0).then_some(step);
    Some(match name {
        "stale-cache-row" => {
            let (step, layer) = (words.count(4)?, words.layer()?.or(Some(0)));
            Kind { what: What::Stale, step, layer }
        }
        "overwritten-cache-row" => {
            Kind { what: What::Overwritten, step: decode(words.count(4)?)?, layer: words.layer()? }
        }
        "cache-hole" => Kind { what: What::Hole, step: decode(words.count(1)?)?, layer: words.layer()? },
        "stale-request-row" => Kind { what: What::StaleRequest, step: 0, layer: words.layer()? },
        "kept-row-off-by-one" => Kind { what: What::KeptOff, step: 0, layer: words.layer()? },
        "cache-f16" => Kind { what: What::Rounded, step: 0, layer: words.layer()? },
        _ => return None,
    })
}

impl Kind {
    pub fn cannot_show(&self, run: &Run) -> Option<String> {
        run.wants_step(self.step)
    }
}

impl Faults {
    pub(super) fn plant_cache(&self, index: usize, attention: &mut Attention) {
        let hit = self.find(|kind| match kind {
            Any::Cache(Kind { what, step, layer }) if here(*layer, index) => Some((*what, *step)),
            _ => None,
        });
        if let Some((what, step)) = hit {
            let clock = self.clock.clone();
            attention.cache = Box::new(FaultyCache { inner: KvCache::default(), what, step, clock, left: None });
        }
    }
}

/// A cache that is changed after the rows of a step went in.
struct FaultyCache {
    inner: KvCache,
    what: What,
    step: usize,
    clock: Clock,
    /// Of the request before.
    left: Option<(Tensor, Tensor)>,
}

impl Cache for FaultyCache {
    fn append(&mut self, mut k: Tensor, mut v: Tensor) -> Result<(Tensor, Tensor)> {
        if let Some((old_k, old_v)) = self.left.take() {
            k = first_of(&old_k, &k)?;
            v = first_of(&old_v, &v)?;
        }
        let (k, v) = self.inner.append(k, v)?;
        let between = matches!(self.what, What::StaleRequest | What::KeptOff);
        if between || (self.step != self.clock.step() && self.what != What::Rounded) {
            return Ok((k, v));
        }
        let all = (change(self.what, k)?, change(self.what, v)?);
        self.inner = KvCache(Some(all.clone()));
        Ok(all)
    }

    fn keep(&mut self, rows: usize) -> Result<()> {
        match (self.what, self.inner.0.take()) {
            (What::StaleRequest, all) if rows == 0 => self.left = all,
            (What::KeptOff, Some((k, v))) if rows > 0 && k.dim(2)? > rows => {
                self.inner.0 = Some((k.narrow(2, 1, rows)?, v.narrow(2, 1, rows)?));
            }
            (_, all) => {
                self.inner.0 = all;
                self.inner.keep(rows)?;
            }
        }
        Ok(())
    }
}

/// New rows with the last old one in the place of the first.
fn first_of(old: &Tensor, new: &Tensor) -> Result<Tensor> {
    let last = old.narrow(2, old.dim(2)? - 1, 1)?;
    Tensor::cat(&[&last, &new.narrow(2, 1, new.dim(2)? - 1)?], 2)
}

/// All keys, or values, [1, KV heads, positions, head_dim].
fn change(what: What, rows: Tensor) -> Result<Tensor> {
    let last = rows.dim(2)? - 1;
    let new = rows.narrow(2, last, 1)?;
    match what {
        What::Rounded => rows.to_dtype(DType::F16)?.to_dtype(rows.dtype()),
        What::StaleRequest | What::KeptOff => Ok(rows),
        _ if last == 0 => Ok(rows),
        What::Stale => Tensor::cat(&[&rows.narrow(2, 0, last)?, &rows.narrow(2, last - 1, 1)?], 2),
        What::Overwritten => Tensor::cat(&[&rows.narrow(2, 0, last - 1)?, &new], 2),
        What::Hole => Tensor::cat(&[&rows.narrow(2, 0, last)?, &new.zeros_like()?, &new], 2),
    }
}
