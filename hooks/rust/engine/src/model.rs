//! A Llama / Qwen2 decoder, one sequence, with a KV cache.
//!
//! Layers are tracekit's drop-ins for candle's, so the model records itself. `faults` stands at a few seams (see
//! `faults/`) and does nothing unless a fault was asked for; `variants` choose among equal ways of computing.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::nn::{embedding, linear_b, rms_norm, Embedding, Linear};

use crate::attention::Attention;
use crate::attention_core::causal_mask;
use crate::config::Config;
use crate::faults::{Branch, Faults};
use crate::mlp::Mlp;
use crate::norm::{Norm, Order};
use crate::variants::{Variant, Variants};

/// The decoder with its cache.
pub struct Model<'a> {
    embed_tokens: Embedding,
    layers: Vec<Layer<'a>>,
    norm: Norm,
    lm_head: Linear,
    cached: usize,
    faults: &'a Faults,
}

impl<'a> Model<'a> {
    pub fn load(config: &Config, vb: VarBuilder, faults: &'a Faults, variants: Variants) -> Result<Self> {
        let root = vb.pp("model");
        let embed_tokens = embedding(config.vocab_size, config.hidden_size, root.pp("embed_tokens"))?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(config, index, root.pp("layers").pp(index), faults, variants))
            .collect::<Result<_>>()?;
        let norm = norm(config, root.pp("norm"), faults, variants)?;
        let lm_head = variants.linear(faults.linear(head(config, &vb, &embed_tokens, faults)?)?)?;
        let lm_head = if variants.has(Variant::UpcastHead) { upcast(&lm_head)? } else { lm_head };
        Ok(Self { embed_tokens: faults.embedding(embed_tokens)?, layers, norm, lm_head, cached: 0, faults })
    }

    /// Positions in the cache.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Logits of the last of `ids`, [vocabulary] in float32; the cache grows by all of them.
    pub fn forward(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        tracekit::forward(self.cached, ids.len()).map_err(|error| candle_core::Error::Msg(error.to_string()))?;
        let input = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        let mask = causal_mask(self.cached, ids.len())?;
        let mut hidden = self.faults.embedded(self.embed_tokens.forward(&input)?)?;
        for layer in &mut self.layers {
            hidden = layer.forward(&hidden, self.cached, mask.as_ref())?;
        }
        self.cached += ids.len();
        let hidden = self.norm.forward(&hidden)?;
        let last = hidden.narrow(1, ids.len() - 1, 1)?.to_dtype(self.lm_head.weight().dtype())?.contiguous()?;
        tracekit::nn::part_of(&hidden, &last)?;
        // In the model's dtype, also where the head is computed in a wider one.
        let logits = self.lm_head.forward(&last)?.to_dtype(hidden.dtype())?;
        self.faults.logits(logits.flatten_all()?.to_dtype(DType::F32)?)?.to_vec1()
    }
}

/// The logits head; its output is recorded with each step.
fn head(config: &Config, vb: &VarBuilder, embed_tokens: &Embedding, faults: &Faults) -> Result<Linear> {
    tracekit::logits_site("lm_head").map_err(|error| candle_core::Error::Msg(error.to_string()))?;
    if faults.ties_head(config.tie_word_embeddings) {
        return Linear::tied("lm_head", embed_tokens.embeddings());
    }
    linear_b(config.hidden_size, config.vocab_size, false, vb.pp("lm_head"))
}

fn upcast(layer: &Linear) -> Result<Linear> {
    Ok(Linear::named(layer.name(), layer.weight().to_dtype(DType::F32)?, None))
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
