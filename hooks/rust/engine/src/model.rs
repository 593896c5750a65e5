//! A Llama / Qwen2 decoder, one sequence, with a KV cache.
//!
//! Layers are tracekit's drop-ins for candle's, so the model records itself. `faults` stands at a few seams (see
//! `faults.rs`) and does nothing unless a fault was asked for.

use candle_core::{DType, Device, Module, Result, Tensor, D};
use candle_nn::{rotary_emb, VarBuilder};
use tracekit::nn::{embedding, linear_b, rms_norm, Embedding, Linear, RmsNorm};

use crate::config::Config;
use crate::faults::Faults;
use crate::rotary::Rotary;

/// The decoder with its cache.
pub struct Model<'a> {
    embed_tokens: Embedding,
    layers: Vec<Layer<'a>>,
    norm: RmsNorm,
    lm_head: Linear,
    cached: usize,
}

impl<'a> Model<'a> {
    pub fn load(config: &Config, vb: VarBuilder, faults: &'a Faults) -> Result<Self> {
        let root = vb.pp("model");
        let embed_tokens = embedding(config.vocab_size, config.hidden_size, root.pp("embed_tokens"))?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(config, index, root.pp("layers").pp(index), faults))
            .collect::<Result<_>>()?;
        let norm = faults.norm(rms_norm(config.hidden_size, config.rms_norm_eps, root.pp("norm"))?)?;
        let lm_head = faults.linear(head(config, &vb, &embed_tokens)?)?;
        Ok(Self { embed_tokens: faults.embedding(embed_tokens)?, layers, norm, lm_head, cached: 0 })
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
        let mut hidden = self.embed_tokens.forward(&input)?;
        for layer in &mut self.layers {
            hidden = layer.forward(&hidden, self.cached, mask.as_ref())?;
        }
        self.cached += ids.len();
        let hidden = normalise(&self.norm, &hidden)?;
        let last = hidden.narrow(1, ids.len() - 1, 1)?.contiguous()?;
        tracekit::nn::part_of(&hidden, &last)?;
        let logits = self.lm_head.forward(&last)?;
        logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
    }
}

/// The logits head; its output is recorded with each step.
fn head(config: &Config, vb: &VarBuilder, embed_tokens: &Embedding) -> Result<Linear> {
    tracekit::logits_site("lm_head").map_err(|error| candle_core::Error::Msg(error.to_string()))?;
    if config.tie_word_embeddings {
        return Linear::tied("lm_head", embed_tokens.embeddings());
    }
    linear_b(config.hidden_size, config.vocab_size, false, vb.pp("lm_head"))
}

/// An RMS norm in float32, as transformers computes it whatever the dtype.
fn normalise(norm: &RmsNorm, xs: &Tensor) -> Result<Tensor> {
    match xs.dtype() {
        DType::F32 => norm.forward(xs),
        _ => norm.forward_diff(xs),
    }
}

/// SiLU in float32, as torch computes it whatever the dtype; candle would round each of its operations to 16 bits.
fn silu(xs: &Tensor) -> Result<Tensor> {
    xs.to_dtype(DType::F32)?.silu()?.to_dtype(xs.dtype())
}

/// 0 where a position may look, minus infinity where not, [rows, positions]; none for a single row, which sees all.
fn causal_mask(cached: usize, rows: usize) -> Result<Option<Tensor>> {
    if rows == 1 {
        return Ok(None);
    }
    let positions = cached + rows;
    let values: Vec<f32> = (0..rows)
        .flat_map(|row| (0..positions).map(move |at| if at > cached + row { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_vec(values, (rows, positions), &Device::Cpu).map(Some)
}

struct Layer<'a> {
    name: String,
    input_layernorm: RmsNorm,
    self_attn: Attention<'a>,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp<'a>,
    faults: &'a Faults,
}

impl<'a> Layer<'a> {
    fn load(config: &Config, index: usize, vb: VarBuilder, faults: &'a Faults) -> Result<Self> {
        let norm = |name: &str| rms_norm(config.hidden_size, config.rms_norm_eps, vb.pp(name));
        Ok(Self {
            name: vb.prefix(),
            input_layernorm: faults.norm(norm("input_layernorm")?)?,
            self_attn: Attention::load(config, index, vb.pp("self_attn"), faults)?,
            post_attention_layernorm: faults.norm(norm("post_attention_layernorm")?)?,
            mlp: Mlp::load(config, index, vb.pp("mlp"), faults)?,
            faults,
        })
    }

    fn forward(&mut self, hidden: &Tensor, cached: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let attended = self.self_attn.forward(&normalise(&self.input_layernorm, hidden)?, cached, mask)?;
        let hidden = (hidden + attended)?;
        let hidden = self.faults.input(self.post_attention_layernorm.name(), hidden)?;
        let out = (&hidden + self.mlp.forward(&normalise(&self.post_attention_layernorm, &hidden)?)?)?;
        let out = self.faults.site(&self.name, out)?;
        tracekit::tap(&self.name, &out)?;
        Ok(out)
    }
}

struct Attention<'a> {
    name: String,
    index: usize,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f64,
    rotary: Rotary,
    cache: Option<(Tensor, Tensor)>,
    faults: &'a Faults,
}

impl<'a> Attention<'a> {
    fn load(config: &Config, index: usize, vb: VarBuilder, faults: &'a Faults) -> Result<Self> {
        let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let project = |name: &str, inputs: usize, outputs: usize, bias: bool| {
            faults.linear(linear_b(inputs, outputs, bias, vb.pp(name))?)
        };
        Ok(Self {
            name: vb.prefix(),
            index,
            q_proj: project("q_proj", config.hidden_size, heads * head_dim, config.qkv_bias)?,
            k_proj: project("k_proj", config.hidden_size, kv_heads * head_dim, config.qkv_bias)?,
            v_proj: project("v_proj", config.hidden_size, kv_heads * head_dim, config.qkv_bias)?,
            o_proj: project("o_proj", heads * head_dim, config.hidden_size, config.output_bias)?,
            heads,
            kv_heads,
            head_dim,
            scale: faults.attention_scale(index, 1.0 / (head_dim as f64).sqrt()),
            rotary: faults.rotary(index, &config.rope, head_dim),
            cache: None,
            faults,
        })
    }

    fn forward(&mut self, xs: &Tensor, cached: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let rows = xs.dim(1)?;
        let split = |projected: Tensor, heads: usize| {
            projected.reshape((1, rows, heads, self.head_dim))?.transpose(1, 2)?.contiguous()
        };
        let q = split(self.q_proj.forward(xs)?, self.heads)?;
        let k = split(self.k_proj.forward(xs)?, self.kv_heads)?;
        let v = split(self.v_proj.forward(xs)?, self.kv_heads)?;
        let (cos, sin) = self.rotary.tables(cached, rows, xs.dtype())?;
        let q = rotary_emb::rope(&q, &cos, &sin)?;
        let k = rotary_emb::rope(&k, &cos, &sin)?;
        let (k, v) = self.remember(k, v)?;
        let core = self.faults.input(self.o_proj.name(), self.attend(&q, &k, &v, mask)?)?;
        let out = self.faults.site(&self.name, self.o_proj.forward(&core)?)?;
        tracekit::tap(&self.name, &out)?;
        Ok(out)
    }

    /// Appends to the cache; gives all keys and values, [1, KV heads, positions, head_dim].
    fn remember(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let (k, v) = match &self.cache {
            None => (k, v),
            Some((old_k, old_v)) => (Tensor::cat(&[old_k, &k], 2)?, Tensor::cat(&[old_v, &v], 2)?),
        };
        let (k, v) = self.faults.cache(self.index, k, v)?;
        self.cache = Some((k.clone(), v.clone()));
        Ok((k, v))
    }

    /// Grouped-query attention: the query heads of a KV head are rows of one matrix, so nothing is repeated.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (rows, positions, group) = (q.dim(2)?, k.dim(2)?, self.heads / self.kv_heads);
        let q = q.reshape((1, self.kv_heads, group * rows, self.head_dim))?;
        // transformers takes scale, mask and softmax in float32 whatever the model's dtype.
        let scores = (q.matmul(&k.transpose(2, 3)?)?.to_dtype(DType::F32)? * self.scale)?;
        let scores =
            match mask {
                None => scores,
                Some(mask) => scores
                    .reshape((self.kv_heads, group, rows, positions))?
                    .broadcast_add(mask)?
                    .reshape((1, self.kv_heads, group * rows, positions))?,
            };
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        let out = weights.matmul(v)?.reshape((1, self.heads, rows, self.head_dim))?;
        out.transpose(1, 2)?.flatten_from(D::Minus2)
    }
}

struct Mlp<'a> {
    name: String,
    index: usize,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    faults: &'a Faults,
}

impl<'a> Mlp<'a> {
    fn load(config: &Config, index: usize, vb: VarBuilder, faults: &'a Faults) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let project = |name: &str, inputs: usize, outputs: usize| {
            faults.linear(linear_b(inputs, outputs, config.mlp_bias, vb.pp(name))?)
        };
        Ok(Self {
            name: vb.prefix(),
            index,
            gate_proj: project("gate_proj", hidden, inner)?,
            up_proj: project("up_proj", hidden, inner)?,
            down_proj: project("down_proj", inner, hidden)?,
            faults,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (gate, up) = self.faults.gate_up(self.index, self.gate_proj.forward(xs)?, self.up_proj.forward(xs)?);
        let gated = self.faults.input(self.down_proj.name(), (silu(&gate)? * up)?)?;
        let out = self.faults.site(&self.name, self.down_proj.forward(&gated)?)?;
        tracekit::tap(&self.name, &out)?;
        Ok(out)
    }
}
