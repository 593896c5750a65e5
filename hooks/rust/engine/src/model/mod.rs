//! Llama and Qwen2 for one sequence, with a KV cache.
//!
//! Its layers are tracekit's drop-ins for candle's, so it records itself. What is left to say is said by three calls:
//! `tracekit::forward` before a forward call, `tracekit::tap` for the output of a module that is no layer of candle's
//! (attention, MLP, decoder layer), `tracekit::nn::part_of` where the head is given the last position alone.
//!
//! The parts of a layer that engines compute differently are traits of one method ([`Rotate`](rotary::Rotate),
//! [`Mask`](mask::Mask), [`Cache`](cache::Cache), [`Attend`](attention_core::Attend), [`Project`](projections::Project),
//! [`Block`](decoder::Block)), each with its only implementation of the model beside it. `faults/` and `variants/` put others in their
//! place after the model is loaded; nothing in here knows of them.

pub mod attention;
pub mod attention_core;
pub mod cache;
pub mod decoder;
pub mod mask;
pub mod mlp;
pub mod norm;
pub mod projections;
pub mod rotary;

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::nn::{embedding, linear_b, Embedding, Linear};

use crate::config::Config;
use decoder::Decoder;

/// Token ids in, logits out.
pub trait CausalModel {
    /// Logits of the last of `ids`, `[vocabulary]` in float32; the cache grows by all of them.
    fn forward(&mut self, ids: &[u32]) -> Result<Vec<f32>>;

    /// Forgets all positions but the first `rows`, which must be there.
    fn keep(&mut self, rows: usize) -> Result<()>;
}

/// Embedding table, decoder and logits head.
pub struct Model {
    pub embed_tokens: Embedding,
    pub decoder: Decoder,
    pub lm_head: Linear,
}

impl Model {
    /// Names are the checkpoint's: `model.embed_tokens`, `model.layers.0...`, `lm_head`.
    pub fn load(config: &Config, vb: VarBuilder) -> Result<Self> {
        let root = vb.pp("model");
        let embed_tokens = embedding(config.vocab_size, config.hidden_size, root.pp("embed_tokens"))?;
        let decoder = Decoder::load(config, &root)?;
        // Each step of the trace holds the logits; they are not stored a second time as a site.
        tracekit::logits_site("lm_head")?;
        let lm_head = match config.tie_word_embeddings {
            true => Linear::tied("lm_head", embed_tokens.embeddings())?,
            false => linear_b(config.hidden_size, config.vocab_size, false, vb.pp("lm_head"))?,
        };
        Ok(Self { embed_tokens, decoder, lm_head })
    }
}

impl CausalModel for Model {
    fn forward(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        tracekit::forward(self.decoder.cached(), ids.len())?;
        let input = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        let hidden = self.decoder.forward(self.embed_tokens.forward(&input)?)?;
        let last = hidden.narrow(1, ids.len() - 1, 1)?.to_dtype(self.lm_head.weight().dtype())?.contiguous()?;
        tracekit::nn::part_of(&hidden, &last)?;
        // Rounded to the model's dtype, also where the head is computed in a wider one.
        let logits = self.lm_head.forward(&last)?.to_dtype(hidden.dtype())?;
        logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
    }

    fn keep(&mut self, rows: usize) -> Result<()> {
        self.decoder.keep(rows)
    }
}
