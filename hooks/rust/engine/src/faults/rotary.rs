//! Seam: rotary embedding of a layer: its frequencies, its pairs, its positions.

use candle_core::{bail, DType, Result, Tensor};

use super::{here, Faults, Kind as Any, Row, Run};
use crate::faults::words::Words;
use crate::rope::{Rope, Scaling};
use crate::rotary::{Pairs, Rotary};

pub const TABLE: &[Row] = &[
    ("rope-f16[:LAYER]", "Cosines and sines are rounded to float16"),
    ("rope-angles-bf16[:LAYER]", "Angles are rounded to bfloat16 before their cosines and sines"),
    ("rope-scaling-off[:LAYER]", "The declared rotary scaling is dropped"),
    ("rope-linear[:FACTOR[:LAYER]]", "Positions are divided by FACTOR, 2, in place of the declared scaling"),
    ("rope-partial[:FRACTION[:LAYER]]", "The first FRACTION, 0.5, of each head is turned, the rest is not"),
    ("rope-interleaved[:LAYER]", "Neighbours are turned together where halves are meant"),
    ("rope-offset[:N[:LAYER]]", "Queries stand N, 1, positions further on than keys"),
    ("rope-decode-zero[:LAYER]", "Every decoded token stands at position 0"),
    ("rope-k-unrotated[:LAYER]", "The prefill attends keys that are not turned; the cache's are"),
];

#[derive(Debug)]
pub struct Kind {
    what: What,
    layer: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    TableF16,
    AnglesBf16,
    ScalingOff,
    Linear { factor: f64 },
    Partial { fraction: f64 },
    Interleaved,
    Offset { by: usize },
    DecodeZero,
    KeysUnturned,
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    let what = match name {
        "rope-f16" => What::TableF16,
        "rope-angles-bf16" => What::AnglesBf16,
        "rope-scaling-off" => What::ScalingOff,
        "rope-linear" => What::Linear { factor: words.positive(2.0)? },
        "rope-partial" => What::Partial { fraction: words.positive(0.5).filter(|&share| share < 1.0)? },
        "rope-interleaved" => What::Interleaved,
        "rope-offset" => What::Offset { by: words.count(1).filter(|&by| by > 0)? },
        "rope-decode-zero" => What::DecodeZero,
        "rope-k-unrotated" => What::KeysUnturned,
        _ => return None,
    };
    Some(Kind { what, layer: words.layer()? })
}

impl Kind {
    pub fn cannot_show(&self, run: &Run) -> Option<String> {
        match self.what {
            What::DecodeZero if run.limit < 2 => Some("a run of 1 new token decodes none".into()),
            // One key alone gets all of the softmax, however it is turned.
            What::KeysUnturned if run.prompt < 2 => Some("the prompt has 1 token".into()),
            _ => None,
        }
    }
}

impl Faults {
    fn find_rotary<T>(&self, index: usize, pick: impl Fn(What) -> Option<T>) -> Option<T> {
        self.find(|kind| match kind {
            Any::Rotary(Kind { what, layer }) if here(*layer, index) => pick(*what),
            _ => None,
        })
    }

    fn has_rotary(&self, index: usize, what: What) -> bool {
        self.find_rotary(index, |found| (found == what).then_some(())).is_some()
    }

    /// A layer's rotary embedding.
    pub fn rotary(&self, index: usize, rope: &Rope, head_dim: usize, plain: Rotary) -> Result<Rotary> {
        let mut used = rope.clone();
        used.theta = self.theta(index).unwrap_or(rope.theta);
        if self.has_rotary(index, What::ScalingOff) {
            used.scaling = Scaling::None;
        }
        if let Some(factor) = self.find_rotary(index, |what| match what {
            What::Linear { factor } => Some(factor),
            _ => None,
        }) {
            used.scaling = Scaling::Linear { factor };
        }
        if used.scaling == rope.scaling && self.find_rotary(index, is_scaling).is_some() {
            bail!("--fault rope-scaling-off or rope-linear: the model's scaling is {:?} already", rope.scaling);
        }
        let width = self.find_rotary(index, |what| match what {
            What::Partial { fraction } => Some((head_dim as f64 * fraction / 2.0) as usize * 2),
            _ => None,
        });
        if width == Some(0) {
            bail!("--fault rope-partial: no pair of a head of {head_dim} is left");
        }
        let mut rotary =
            if used == *rope && width.is_none() { plain } else { Rotary::new(&used, width.unwrap_or(head_dim)) };
        if self.has_rotary(index, What::TableF16) {
            rotary.table_dtype = DType::F16;
        }
        if self.has_rotary(index, What::AnglesBf16) {
            rotary.angle_dtype = DType::BF16;
        }
        if self.has_rotary(index, What::Interleaved) {
            rotary.pairs = Pairs::Neighbours;
        }
        Ok(rotary)
    }

    /// First position of the queries and of the keys of this call.
    pub fn positions(&self, index: usize, first: usize) -> (usize, usize) {
        let offset = self.find_rotary(index, |what| match what {
            What::Offset { by } => Some(by),
            _ => None,
        });
        let zero = self.has_rotary(index, What::DecodeZero) && self.step() > 0;
        let first = if zero { 0 } else { first };
        (first + offset.unwrap_or(0), first)
    }

    /// All keys as this call attends them, [1, KV heads, positions, head_dim]; `unturned` are this call's own.
    pub fn attended_keys(&self, index: usize, keys: Tensor, unturned: &Tensor) -> Result<Tensor> {
        if !self.has_rotary(index, What::KeysUnturned) || self.step() > 0 {
            return Ok(keys);
        }
        let old = keys.narrow(2, 0, keys.dim(2)? - unturned.dim(2)?)?;
        Tensor::cat(&[&old, unturned], 2)
    }
}

fn is_scaling(what: What) -> Option<()> {
    matches!(what, What::ScalingOff | What::Linear { .. }).then_some(())
}
