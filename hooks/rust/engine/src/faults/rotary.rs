//! Seam: rotary embedding of a layer: its frequencies, its pairs, its positions.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::{bail, DType, Result, Tensor};

use super::words::Words;
use super::{here, Clock, Faults, Kind as Any, Row, Run};
use crate::config::Config;
use crate::model::attention::Attention;
use crate::model::attention_core::{Attend, Core};
use crate::model::rotary::{Pairs, Rotary, Rotate};
use crate::rope::{Rope, Scaling};

pub const TABLE: &[Row] = &[
    ("rope-f16[:LAYER]", "Cosines and sines are rounded to float16"),
    ("rope-frequencies-f16[:LAYER]", "Inverse frequencies are rounded to float16"),
    ("rope-angles-f16[:LAYER]", "Angles are rounded to float16 before their cosines and sines"),
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
    FrequenciesF16,
    AnglesF16,
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
        "rope-frequencies-f16" => What::FrequenciesF16,
        "rope-angles-f16" => What::AnglesF16,
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

    pub(super) fn plant_rotary(&self, index: usize, attention: &mut Attention, config: &Config) -> Result<()> {
        let plain = Rotary::new(&config.rope, config.head_dim);
        let rotary = self.other_rotary(index, &config.rope, config.head_dim)?;
        let query_offset = self.find_rotary(index, |what| match what {
            What::Offset { by } => Some(by),
            _ => None,
        });
        let decodes_at_zero = self.has_rotary(index, What::DecodeZero);
        let keys_unturned = self.has_rotary(index, What::KeysUnturned);
        let moves = query_offset.is_some() || decodes_at_zero || keys_unturned;
        if rotary.is_none() && !moves {
            return Ok(());
        }
        let unturned = Rc::default();
        attention.rotary = Box::new(FaultyRotary {
            rotary: rotary.unwrap_or(plain),
            query_offset: query_offset.unwrap_or(0),
            decodes_at_zero,
            clock: self.clock.clone(),
            unturned: Rc::clone(&unturned),
        });
        if keys_unturned {
            let inner = std::mem::replace(&mut attention.core, Box::new(Core { scale: config.attention_scale() }));
            attention.core = Box::new(UnturnedKeys { inner, clock: self.clock.clone(), unturned });
        }
        Ok(())
    }

    /// A layer's rotary embedding, where its numbers are others than the config's.
    fn other_rotary(&self, index: usize, rope: &Rope, head_dim: usize) -> Result<Option<Rotary>> {
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
        let mut rotary = Rotary::new(&used, width.unwrap_or(head_dim));
        let mut is_other = used != *rope || width.is_some();
        if self.has_rotary(index, What::TableF16) {
            (rotary.table_dtype, is_other) = (DType::F16, true);
        }
        if self.has_rotary(index, What::FrequenciesF16) {
            (rotary.frequency_dtype, is_other) = (DType::F16, true);
        }
        if self.has_rotary(index, What::AnglesF16) {
            (rotary.angle_dtype, is_other) = (DType::F16, true);
        }
        if self.has_rotary(index, What::AnglesBf16) {
            (rotary.angle_dtype, is_other) = (DType::BF16, true);
        }
        if self.has_rotary(index, What::Interleaved) {
            (rotary.pairs, is_other) = (Pairs::Neighbours, true);
        }
        Ok(is_other.then_some(rotary))
    }
}

fn is_scaling(what: What) -> Option<()> {
    matches!(what, What::ScalingOff | What::Linear { .. }).then_some(())
}

/// Rotary embedding at other positions.
struct FaultyRotary {
    rotary: Rotary,
    query_offset: usize,
    decodes_at_zero: bool,
    clock: Clock,
    /// This call's keys as they came in, for what attends them.
    unturned: Rc<RefCell<Option<Tensor>>>,
}

impl Rotate for FaultyRotary {
    fn rotate(&self, q: &Tensor, k: &Tensor, first: usize) -> Result<(Tensor, Tensor)> {
        self.unturned.replace(Some(k.clone()));
        let first = if self.decodes_at_zero && self.clock.step() > 0 { 0 } else { first };
        let (rotated_q, rotated_k) = self.rotary.rotate(q, k, first)?;
        match self.query_offset {
            0 => Ok((rotated_q, rotated_k)),
            by => Ok((self.rotary.rotate(q, k, first + by)?.0, rotated_k)),
        }
    }
}

/// The prefill attends its keys as they were before the rotation.
struct UnturnedKeys {
    inner: Box<dyn Attend>,
    clock: Clock,
    unturned: Rc<RefCell<Option<Tensor>>>,
}

impl Attend for UnturnedKeys {
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        match &*self.unturned.borrow() {
            Some(new) if self.clock.step() == 0 => {
                let old = k.narrow(2, 0, k.dim(2)? - new.dim(2)?)?;
                self.inner.attend(q, &Tensor::cat(&[&old, new], 2)?, v, mask)
            }
            _ => self.inner.attend(q, k, v, mask),
        }
    }
}
