//! The decoder layers of Llama and Qwen2 with their cache: hidden states in, hidden states behind the final norm out.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::nn::rms_norm;

use crate::attention::Attention;
use crate::attention_core::causal_mask;
use crate::config::Config;
use crate::faults::{Branch, Faults};
use crate::mlp::Mlp;
use crate::norm::{Norm, Order};
use crate::variants::{Variant, Variants};

/// The layers and the final norm, one sequence.
pub struct Decoder<'a> {
    layers: Vec<Layer<'a>>,
    norm: Norm,
    cached: usize,
}

impl<'a> Decoder<'a> {
    /// `root` holds `layers` and `norm`.
    pub fn load(config: &Config, root: &VarBuilder, faults: &'a Faults, variants: Variants) -> Result<Self> {
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(config, index, root.pp("layers").pp(index), faults, variants))
            .collect::<Result<_>>()?;
        Ok(Self { layers, norm: norm(config, root.pp("norm"), faults, variants)?, cached: 0 })
    }

    /// Positions in the cache.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Forgets all positions.
    pub fn clear(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.self_attn.clear());
        self.cached = 0;
    }

    /// `hidden` [1, rows, width] stands behind the positions in the cache, which grows by them.
    pub fn forward(&mut self, mut hidden: Tensor) -> Result<Tensor> {
        let rows = hidden.dim(1)?;
        let mask = causal_mask(self.cached, rows)?;
        for layer in &mut self.layers {
            hidden = layer.forward(&hidden, self.cached, mask.as_ref())?;
        }
        self.cached += rows;
        self.norm.forward(&hidden)
    }
}

fn norm(config: &Config, vb: VarBuilder, faults: &Faults, variants: Variants) -> Result<Norm> {
    let norm = faults.norm(rms_norm(config.hidden_size, config.rms_norm_eps, vb)?)?;
    let order = if variants.has(Variant::NormOrder) { Order::ScaleFirst } else { Order::RoundThenScale };
    let order = faults.norm_order(norm.name(), norm.weight().dtype(), order);
    Ok(Norm::new(norm, order))
}

struct Layer<'a> {
    name: String,
    index: usize,
    input_layernorm: Norm,
    self_attn: Attention<'a>,
    post_attention_layernorm: Norm,
    mlp: Mlp<'a>,
    faults: &'a Faults,
}

impl<'a> Layer<'a> {
    fn load(config: &Config, index: usize, vb: VarBuilder, faults: &'a Faults, variants: Variants) -> Result<Self> {
        let norm = |name: &str| norm(config, vb.pp(name), faults, variants);
        Ok(Self {
            name: vb.prefix(),
            index,
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(config, index, vb.pp("self_attn"), faults, variants)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(config, index, vb.pp("mlp"), faults, variants)?,
            faults,
        })
    }

    fn forward(&mut self, before: &Tensor, cached: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let faults = self.faults;
        if faults.skips_layer(self.index) {
            tracekit::tap(&self.name, before)?;
            return Ok(before.clone());
        }
        let attended = self.self_attn.forward(&self.input_layernorm.forward(before)?, cached, mask)?;
        let hidden = faults.residual(self.index, Branch::Attention, before, attended)?;
        let hidden = faults.input(self.post_attention_layernorm.name(), hidden)?;
        let mlp_input = faults.mlp_input(self.index, before, &hidden);
        let added = self.mlp.forward(&self.post_attention_layernorm.forward(mlp_input)?)?;
        let out = faults.residual(self.index, Branch::Mlp, &hidden, added)?;
        let out = faults.site(&self.name, out)?;
        tracekit::tap(&self.name, &out)?;
        Ok(out)
    }
}
