//! A Llama / Qwen2 decoder, one sequence, with a KV cache.
//!
//! Layers are tracekit's drop-ins for candle's, so the model records itself. `faults` stands at a few seams (see
//! `faults/`) and does nothing unless a fault was asked for; `variants` choose among equal ways of computing.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::nn::{embedding, linear_b, Embedding, Linear};

use crate::config::Config;
use crate::decoder::Decoder;
use crate::faults::Faults;
use crate::variants::{Variant, Variants};

/// The decoder with its cache.
pub struct Model<'a> {
    embed_tokens: Embedding,
    decoder: Decoder<'a>,
    lm_head: Linear,
    faults: &'a Faults,
}

impl<'a> Model<'a> {
    pub fn load(config: &Config, vb: VarBuilder, faults: &'a Faults, variants: Variants) -> Result<Self> {
        let root = vb.pp("model");
        let embed_tokens = embedding(config.vocab_size, config.hidden_size, root.pp("embed_tokens"))?;
        let decoder = Decoder::load(config, &root, faults, variants)?;
        let lm_head = variants.linear(faults.linear(head(config, &vb, &embed_tokens, faults)?)?)?;
        let lm_head = if variants.has(Variant::UpcastHead) { upcast(&lm_head)? } else { lm_head };
        Ok(Self { embed_tokens: faults.embedding(embed_tokens)?, decoder, lm_head, faults })
    }

    /// Positions in the cache.
    pub fn cached(&self) -> usize {
        self.decoder.cached()
    }

    /// Logits of the last of `ids`, `[vocabulary]` in float32; the cache grows by all of them.
    pub fn forward(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        tracekit::forward(self.cached(), ids.len())?;
        let input = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        let hidden = self.decoder.forward(self.faults.embedded(self.embed_tokens.forward(&input)?)?)?;
        let last = hidden.narrow(1, ids.len() - 1, 1)?.to_dtype(self.lm_head.weight().dtype())?.contiguous()?;
        tracekit::nn::part_of(&hidden, &last)?;
        // In the model's dtype, also where the head is computed in a wider one.
        let logits = self.lm_head.forward(&last)?.to_dtype(hidden.dtype())?;
        self.faults.logits(logits.flatten_all()?.to_dtype(DType::F32)?)?.to_vec1()
    }
}

/// The logits head; its output is recorded with each step.
fn head(config: &Config, vb: &VarBuilder, embed_tokens: &Embedding, faults: &Faults) -> Result<Linear> {
    tracekit::logits_site("lm_head")?;
    if faults.ties_head(config.tie_word_embeddings) {
        return Linear::tied("lm_head", embed_tokens.embeddings());
    }
    linear_b(config.hidden_size, config.vocab_size, false, vb.pp("lm_head"))
}

fn upcast(layer: &Linear) -> Result<Linear> {
    Ok(Linear::named(layer.name(), layer.weight().to_dtype(DType::F32)?, None))
}
