//! A tiny language model in candle that records itself, from its weights to its tokens:
//!
//!     TRACEKIT_LOG=/tmp/x.tklog cargo run --example record_candle --features candle
//!     tracekit show /tmp/x.tklog
//!
//! Without `TRACEKIT_LOG` it prints the same tokens and records nothing.

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Module, Result, Tensor, D};
use candle_nn::ops::softmax;
use candle_nn::VarBuilder;
use tracekit::generation::LogitsProcessor; // was: candle_transformers::generation
use tracekit::nn::{embedding, linear_no_bias, rms_norm, Embedding, Linear, RmsNorm}; // was: candle_nn
use tracekit::rng::TorchRng;

const VOCABULARY: usize = 64;
const WIDTH: usize = 16;
const LAYERS: usize = 2;

/// One head of attention and a feed-forward pair, each behind a norm.
struct Layer {
    norm: RmsNorm,
    qkv: [Linear; 3],
    out: Linear,
    feed_norm: RmsNorm,
    up: Linear,
    down: Linear,
}

impl Layer {
    fn new(vb: VarBuilder) -> Result<Self> {
        let attention = vb.pp("self_attn");
        let projection = |name: &str| linear_no_bias(WIDTH, WIDTH, attention.pp(name));
        Ok(Self {
            norm: rms_norm(WIDTH, 1e-5, vb.pp("input_layernorm"))?,
            qkv: [projection("q_proj")?, projection("k_proj")?, projection("v_proj")?],
            out: projection("o_proj")?,
            feed_norm: rms_norm(WIDTH, 1e-5, vb.pp("post_attention_layernorm"))?,
            up: linear_no_bias(WIDTH, 4 * WIDTH, vb.pp("mlp.up_proj"))?,
            down: linear_no_bias(4 * WIDTH, WIDTH, vb.pp("mlp.down_proj"))?,
        })
    }

    /// `xs` is [1, time, width]; without a cache, each call computes all positions.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let normed = self.norm.forward(xs)?;
        let [q, k, v] = &self.qkv;
        let scores = (q.forward(&normed)?.matmul(&k.forward(&normed)?.t()?)? / (WIDTH as f64).sqrt())?;
        let mixed = softmax(&(scores + causal_mask(xs.dim(1)?)?)?, D::Minus1)?.matmul(&v.forward(&normed)?)?;
        let xs = (xs + self.out.forward(&mixed)?)?;
        let hidden = self.up.forward(&self.feed_norm.forward(&xs)?)?.silu()?;
        xs + self.down.forward(&hidden)?
    }
}

/// [1, time, time]: minus infinity where a position would look ahead.
fn causal_mask(time: usize) -> Result<Tensor> {
    let entry = |i: usize| if i % time > i / time { f32::NEG_INFINITY } else { 0.0 };
    Tensor::from_vec((0..time * time).map(entry).collect::<Vec<f32>>(), (1, time, time), &Device::Cpu)
}

struct Model {
    embed: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
}

impl Model {
    fn new(vb: VarBuilder) -> Result<Self> {
        let layer = |index: usize| Layer::new(vb.pp(format!("model.layers.{index}")));
        Ok(Self {
            embed: embedding(VOCABULARY, WIDTH, vb.pp("model.embed_tokens"))?,
            layers: (0..LAYERS).map(layer).collect::<Result<_>>()?,
            norm: rms_norm(WIDTH, 1e-5, vb.pp("model.norm"))?,
            head: linear_no_bias(WIDTH, VOCABULARY, vb.pp("lm_head"))?,
        })
    }

    /// Logits behind the last of `ids`, `[vocabulary]`.
    fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let mut xs = self.embed.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?;
        for layer in &self.layers {
            xs = layer.forward(&xs)?;
        }
        self.head.forward(&self.norm.forward(&xs)?)?.i((0, ids.len() - 1))
    }
}

/// Weights that every run draws alike; a real program loads them with `VarBuilder::from_mmaped_safetensors`.
fn weights() -> Result<VarBuilder<'static>> {
    let mut rng = TorchRng::seed(0);
    let mut tensors = HashMap::new();
    let mut add = |name: String, rows: usize, columns: usize| -> Result<()> {
        let scale = 1.0 / (columns as f32).sqrt();
        let values: Vec<f32> = rng.randn_f32(rows * columns).iter().map(|x| scale * x).collect();
        tensors.insert(name, Tensor::from_vec(values, (rows, columns), &Device::Cpu)?);
        Ok(())
    };
    add("model.embed_tokens.weight".into(), VOCABULARY, WIDTH)?;
    add("lm_head.weight".into(), VOCABULARY, WIDTH)?;
    for layer in 0..LAYERS {
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(format!("model.layers.{layer}.self_attn.{name}.weight"), WIDTH, WIDTH)?;
        }
        add(format!("model.layers.{layer}.mlp.up_proj.weight"), 4 * WIDTH, WIDTH)?;
        add(format!("model.layers.{layer}.mlp.down_proj.weight"), WIDTH, 4 * WIDTH)?;
    }
    let norms = (0..LAYERS).flat_map(|layer| {
        ["input_layernorm", "post_attention_layernorm"].map(|name| format!("model.layers.{layer}.{name}.weight"))
    });
    for name in norms.chain(["model.norm.weight".into()]) {
        tensors.insert(name, Tensor::ones(WIDTH, DType::F32, &Device::Cpu)?);
    }
    Ok(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let model = Model::new(weights()?)?;
    let mut processor = LogitsProcessor::new(42, Some(0.8), Some(0.95));
    let mut ids: Vec<u32> = vec![1, 5, 9, 2];
    tracekit::sequence(&ids)?;
    for _ in 0..12 {
        tracekit::forward(0, ids.len())?;
        let logits = model.forward(&ids)?;
        ids.push(processor.sample(&logits)?);
    }
    tracekit::end_sequence("length")?;
    tracekit::close()?;
    println!("{ids:?}");
    Ok(())
}
