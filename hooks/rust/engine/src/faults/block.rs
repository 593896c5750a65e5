//! Seam: how the parts of the decoder are wired: residuals, the MLP's inside, the embeddings' and the head's values.

use candle_core::{DType, Result, Tensor, D};

use super::{here, Faults, Kind as Any, Row};
use crate::faults::words::Words;
use crate::mlp::Activation;

pub const TABLE: &[Row] = &[
    ("swap-gate-up[:LAYER]", "Gate and up are swapped: silu(up) * gate"),
    ("gelu[:LAYER]", "Exact GELU in place of SiLU"),
    ("gelu-tanh[:LAYER]", "GELU by a hyperbolic tangent in place of SiLU"),
    ("skip-layer[:LAYER]", "A layer, 1, is left out"),
    ("drop-residual[:LAYER[:attn|mlp]]", "In a layer, 0, the input is not added to what attention, or the MLP, gives"),
    ("parallel-residual[:LAYER]", "In a layer, 0, attention and MLP read the same input"),
    ("residual-f16[:LAYER]", "A layer's, or all layers', sum of input and attention is rounded to float16"),
    ("embed-scale[:FACTOR]", "Embeddings are scaled, by the root of their width, after the table"),
    ("tied-head", "The logits head is the embedding table in a model that has a head of its own"),
    ("head-scale[:FACTOR]", "Logits times FACTOR, 0.5, after the head"),
    ("final-softcap[:VALUE]", "Logits s become VALUE * tanh(s / VALUE); 30"),
    ("logits-f16", "Logits are rounded to float16"),
];

/// A part of a block that its input is added to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Branch {
    Attention,
    Mlp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    SwapGateUp { layer: Option<usize> },
    Activation { is: Activation, layer: Option<usize> },
    SkipLayer { layer: usize },
    DropResidual { layer: usize, branch: Branch },
    ParallelResidual { layer: usize },
    ResidualF16 { layer: Option<usize> },
    EmbedScale { factor: Option<f64> },
    TiedHead,
    HeadScale { factor: f64 },
    FinalSoftcap { value: f64 },
    LogitsF16,
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    Some(match name {
        "swap-gate-up" => Kind::SwapGateUp { layer: words.layer()? },
        "gelu" => Kind::Activation { is: Activation::Gelu, layer: words.layer()? },
        "gelu-tanh" => Kind::Activation { is: Activation::GeluTanh, layer: words.layer()? },
        "skip-layer" => Kind::SkipLayer { layer: words.count(1)? },
        "drop-residual" => Kind::DropResidual { layer: words.count(0)?, branch: branch(words.word())? },
        "parallel-residual" => Kind::ParallelResidual { layer: words.count(0)? },
        "residual-f16" => Kind::ResidualF16 { layer: words.layer()? },
        "embed-scale" => match words.number(f64::NAN)? {
            factor if factor.is_nan() => Kind::EmbedScale { factor: None },
            factor => Kind::EmbedScale { factor: Some(factor) },
        },
        "tied-head" => Kind::TiedHead,
        "head-scale" => Kind::HeadScale { factor: words.number(0.5)? },
        "final-softcap" => Kind::FinalSoftcap { value: words.positive(30.0)? },
        "logits-f16" => Kind::LogitsF16,
        _ => return None,
    })
}

fn branch(word: Option<&str>) -> Option<Branch> {
    match word {
        None | Some("attn") => Some(Branch::Attention),
        Some("mlp") => Some(Branch::Mlp),
        Some(_) => None,
    }
}

impl Faults {
    fn find_block<T>(&self, pick: impl Fn(Kind) -> Option<T>) -> Option<T> {
        self.find(|kind| match kind {
            Any::Block(kind) => pick(*kind),
            _ => None,
        })
    }

    fn has_block(&self, kind: Kind) -> bool {
        self.find_block(|found| (found == kind).then_some(())).is_some()
    }

    /// Gate and up of a gated MLP.
    pub fn gate_up(&self, index: usize, mut parts: Vec<Tensor>) -> Vec<Tensor> {
        let swap = |kind: Kind| matches!(kind, Kind::SwapGateUp { layer } if here(layer, index)).then_some(());
        if self.find_block(swap).is_some() {
            parts.swap(0, 1);
        }
        parts
    }

    /// What the gate of a layer goes through.
    pub fn activation(&self, index: usize) -> Activation {
        let other = |kind: Kind| match kind {
            Kind::Activation { is, layer } if here(layer, index) => Some(is),
            _ => None,
        };
        self.find_block(other).unwrap_or(Activation::Silu)
    }

    /// Whether a layer gives back its input.
    pub fn skips_layer(&self, index: usize) -> bool {
        self.has_block(Kind::SkipLayer { layer: index })
    }

    /// The residual sum.
    pub fn residual(&self, index: usize, branch: Branch, input: &Tensor, output: Tensor) -> Result<Tensor> {
        if self.has_block(Kind::DropResidual { layer: index, branch }) {
            return Ok(output);
        }
        let sum = (input + output)?;
        let rounds = |kind: Kind| matches!(kind, Kind::ResidualF16 { layer } if here(layer, index)).then_some(());
        match branch == Branch::Attention && self.find_block(rounds).is_some() {
            true => sum.to_dtype(DType::F16)?.to_dtype(sum.dtype()),
            false => Ok(sum),
        }
    }

    /// What the MLP's norm is given: the sum with the attention's output, not the layer's input.
    pub fn mlp_input<'a>(&self, index: usize, layer_input: &'a Tensor, sum: &'a Tensor) -> &'a Tensor {
        match self.has_block(Kind::ParallelResidual { layer: index }) {
            true => layer_input,
            false => sum,
        }
    }

    /// The embeddings, [1, rows, width], behind the table.
    pub fn embedded(&self, value: Tensor) -> Result<Tensor> {
        let scale = |kind: Kind| match kind {
            Kind::EmbedScale { factor } => Some(factor),
            _ => None,
        };
        match self.find_block(scale) {
            Some(factor) => &value * factor.unwrap_or((value.dim(D::Minus1)? as f64).sqrt()),
            None => Ok(value),
        }
    }

    /// Whether the logits head is the embedding table.
    pub fn ties_head(&self, tied: bool) -> bool {
        tied || self.has_block(Kind::TiedHead)
    }

    /// The logits, `[vocabulary]`, behind the head.
    pub fn logits(&self, mut logits: Tensor) -> Result<Tensor> {
        if let Some(factor) = self.find_block(|kind| match kind {
            Kind::HeadScale { factor } => Some(factor),
            _ => None,
        }) {
            logits = (logits * factor)?;
        }
        if let Some(value) = self.find_block(|kind| match kind {
            Kind::FinalSoftcap { value } => Some(value),
            _ => None,
        }) {
            logits = ((logits / value)?.tanh()? * value)?;
        }
        match self.has_block(Kind::LogitsF16) {
            true => logits.to_dtype(DType::F16)?.to_dtype(DType::F32),
            false => Ok(logits),
        }
    }
}
