//! Seam: how the parts of the decoder are wired: residuals, the MLP's inside, the embeddings' and the head's values.

use candle_core::{DType, Device, Module, Result, Tensor, D};

use super::attention::swapped;
use super::weights::Change;
use super::words::Words;
use super::{here, Clock, Faults, Kind as Any, Row};
use crate::config::Config;
use crate::model::decoder::{Block, Layer};
use crate::model::mlp::{Activation, Mlp};
use crate::model::{CausalModel, Model};

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

    /// The config to load a model by, where its head is to be the embedding table.
    pub fn with_tied_head(&self, config: &Config) -> Config {
        let tied = config.tie_word_embeddings || self.has_block(Kind::TiedHead);
        Config { tie_word_embeddings: tied, ..config.clone() }
    }

    pub(super) fn plant_mlp(&self, index: usize, mlp: &mut Mlp) {
        let swap = |kind: Kind| matches!(kind, Kind::SwapGateUp { layer } if here(layer, index)).then_some(());
        if self.find_block(swap).is_some() {
            mlp.gate_up = swapped(mlp.gate_up.layers(), vec![(0, 1)]);
        }
        let other = |kind: Kind| match kind {
            Kind::Activation { is, layer } if here(layer, index) => Some(is),
            _ => None,
        };
        if let Some(activation) = self.find_block(other) {
            mlp.activation = activation;
        }
    }

    /// A layer with faults between its modules. `scales_input`: its input is the embeddings, which a fault may scale.
    pub(super) fn faulty_layer(&self, index: usize, mut inner: Box<dyn Block>, scales_input: bool) -> FaultyLayer {
        let Layer { name, self_attn, post_attention_layernorm, mlp, .. } = inner.layer();
        let at = |site: &str| self.change_at(site);
        let input_of = |module: &str| self.change_at(&format!("{module}:in"));
        let changes = Changes {
            o_proj_input: input_of(self_attn.o_proj.name()),
            attention: at(&self_attn.name),
            mlp_norm_input: input_of(post_attention_layernorm.inner.name()),
            down_proj_input: input_of(mlp.down_proj.name()),
            mlp: at(&mlp.name),
            layer: at(name),
        };
        let scale = |kind: Kind| match kind {
            Kind::EmbedScale { factor } => Some(factor),
            _ => None,
        };
        let rounds = |kind: Kind| matches!(kind, Kind::ResidualF16 { layer } if here(layer, index)).then_some(());
        let drops = |branch: Branch| self.has_block(Kind::DropResidual { layer: index, branch });
        FaultyLayer {
            embed_scale: scales_input.then(|| self.find_block(scale)).flatten(),
            is_skipped: self.has_block(Kind::SkipLayer { layer: index }),
            drops: (drops(Branch::Attention), drops(Branch::Mlp)),
            is_parallel: self.has_block(Kind::ParallelResidual { layer: index }),
            rounds_sum: self.find_block(rounds).is_some(),
            changes,
            clock: (index == 0).then(|| self.clock.clone()),
            inner,
        }
    }

    /// A model with faults after its head.
    pub fn after_head(&self, model: Model) -> Box<dyn CausalModel> {
        let scale = self.find_block(|kind| match kind {
            Kind::HeadScale { factor } => Some(factor),
            _ => None,
        });
        let softcap = self.find_block(|kind| match kind {
            Kind::FinalSoftcap { value } => Some(value),
            _ => None,
        });
        let is_f16 = self.has_block(Kind::LogitsF16);
        match scale.is_some() || softcap.is_some() || is_f16 {
            true => Box::new(FaultyLogits { model, scale, softcap, is_f16 }),
            false => Box::new(model),
        }
    }
}

/// What happens to the values of a layer before they are recorded.
#[derive(Debug)]
struct Changes {
    o_proj_input: Change,
    attention: Change,
    mlp_norm_input: Change,
    down_proj_input: Change,
    mlp: Change,
    layer: Change,
}

/// The forward pass of [`Layer`] with faults between its modules.
pub struct FaultyLayer {
    inner: Box<dyn Block>,
    embed_scale: Option<Option<f64>>,
    is_skipped: bool,
    /// Whether the input is not added: to attention's output, to the MLP's.
    drops: (bool, bool),
    is_parallel: bool,
    rounds_sum: bool,
    changes: Changes,
    /// The first layer's: its calls are counted.
    clock: Option<Clock>,
}

impl Block for FaultyLayer {
    fn forward(&mut self, before: &Tensor, cached: usize) -> Result<Tensor> {
        self.clock.iter().for_each(Clock::tick);
        let before = match self.embed_scale {
            Some(factor) => &(before * factor.unwrap_or((before.dim(D::Minus1)? as f64).sqrt()))?,
            None => before,
        };
        let Layer { name, input_layernorm, self_attn, post_attention_layernorm, mlp } = self.inner.layer();
        let changes = &self.changes;
        if self.is_skipped {
            tracekit::tap(name, before)?;
            return Ok(before.clone());
        }
        let heads = changes.o_proj_input.apply(self_attn.heads(&input_layernorm.forward(before)?, cached)?)?;
        let attended = changes.attention.apply(self_attn.o_proj.forward(&heads)?)?;
        tracekit::tap(&self_attn.name, &attended)?;
        let mut hidden = if self.drops.0 { attended } else { (before + attended)? };
        if self.rounds_sum && !self.drops.0 {
            hidden = hidden.to_dtype(DType::F16)?.to_dtype(hidden.dtype())?;
        }
        let hidden = changes.mlp_norm_input.apply(hidden)?;
        let mlp_input = if self.is_parallel { before } else { &hidden };
        let gated = changes.down_proj_input.apply(mlp.gated(&post_attention_layernorm.forward(mlp_input)?)?)?;
        let added = changes.mlp.apply(mlp.down_proj.forward(&gated)?)?;
        tracekit::tap(&mlp.name, &added)?;
        let out = changes.layer.apply(if self.drops.1 { added } else { (hidden + added)? })?;
        tracekit::tap(name, &out)?;
        Ok(out)
    }

    fn keep(&mut self, rows: usize) -> Result<()> {
        self.clock.iter().for_each(Clock::reset);
        self.inner.keep(rows)
    }

    fn layer(&mut self) -> &mut Layer {
        self.inner.layer()
    }
}

/// A model whose logits are changed after the head.
struct FaultyLogits {
    model: Model,
    scale: Option<f64>,
    softcap: Option<f64>,
    is_f16: bool,
}

impl CausalModel for FaultyLogits {
    fn forward(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let logits = self.model.forward(ids)?;
        let mut logits = Tensor::new(logits, &Device::Cpu)?;
        if let Some(factor) = self.scale {
            logits = (logits * factor)?;
        }
        if let Some(value) = self.softcap {
            logits = ((logits / value)?.tanh()? * value)?;
        }
        if self.is_f16 {
            logits = logits.to_dtype(DType::F16)?.to_dtype(DType::F32)?;
        }
        logits.to_vec1()
    }

    fn keep(&mut self, rows: usize) -> Result<()> {
        self.model.keep(rows)
    }
}
