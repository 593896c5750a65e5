//! A candle port that no drop-in loop fits, recorded: prompts of two vocabularies, embeddings from two tables, a norm, a
//! sampler and a loop of its own. `docs/rust.md` goes through it.
//!
//!     TRACEKIT_LOG=/tmp/x.tklog cargo run --example own_loop --features candle
//!     tracekit show /tmp/x.tklog
//!
//! Without `TRACEKIT_LOG` it prints the same tokens and records nothing.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, D};
use serde_json::json;
use tracekit::nn::{self as candle_nn, Linear, Module, VarBuilder}; // was: candle_nn
use tracekit::rng::TorchRng;
use tracekit::sampling::Draw;
use tracekit::{SequenceStart, Step};

const TEXT: usize = 40;
/// The last one ends a generation.
const SPEECH: usize = 24;
const WIDTH: usize = 16;
const EPS: f64 = 1e-6;
const SEED: u64 = 7;

/// An RMS norm that multiplies by 1 + weight, as Gemma's: candle has no layer for it, so it is tapped by hand.
struct Norm {
    name: String,
    weight: Tensor,
}

impl Norm {
    fn new(vb: VarBuilder) -> Result<Self> {
        Ok(Self { name: vb.prefix(), weight: vb.get(WIDTH, "weight")? })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        tracekit::tap(&format!("{}:in", self.name), xs)?;
        let scale = (xs.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
        let out = xs.broadcast_div(&scale)?.broadcast_mul(&(&self.weight + 1.0)?)?;
        tracekit::tap(&self.name, &out)?;
        Ok(out)
    }
}

struct Model {
    text: Tensor,
    speech: Tensor,
    norm: Norm,
    up: Linear,
    down: Linear,
    head: Linear,
}

impl Model {
    fn new(vb: VarBuilder) -> Result<Self> {
        let linear = |from, to, name: &str| candle_nn::linear_no_bias(from, to, vb.pp(name));
        Ok(Self {
            // Tables that are only indexed: the rows that go in are tapped together, below.
            text: vb.get((TEXT, WIDTH), "text_embedding.weight")?,
            speech: vb.get((SPEECH, WIDTH), "speech_embedding.weight")?,
            norm: Norm::new(vb.pp("norm"))?,
            up: linear(WIDTH, 4 * WIDTH, "up_proj")?,
            down: linear(4 * WIDTH, WIDTH, "down_proj")?,
            // Made from a tensor: `watched` knows which one, so this is recorded as `speech_head`.
            head: Linear::new(vb.pp("speech_head").get((SPEECH, WIDTH), "weight")?, None),
        })
    }

    fn rows(&self, ids: &[Id]) -> Result<Tensor> {
        let row = |id: &Id| match *id {
            Id::Text(id) => self.text.get(id as usize),
            Id::Speech(id) => self.speech.get(id as usize),
        };
        Tensor::stack(&ids.iter().map(row).collect::<Result<Vec<_>>>()?, 0)
    }

    /// Logits behind the last of `ids`, as a vector; `state` is the running mean of what went in, in place of a cache.
    fn forward(&self, ids: &[Id], state: &mut Tensor) -> Result<Vec<f32>> {
        let xs = self.rows(ids)?;
        tracekit::tap("inputs_embeds", &xs)?;
        *state = ((&*state * 0.5)? + (xs.mean_keepdim(0)? * 0.5)?)?;
        let xs = xs.broadcast_add(state)?;
        let xs = (&xs + self.down.forward(&self.up.forward(&self.norm.forward(&xs)?)?.silu()?)?)?;
        // The head is given the last row only, and is recorded at that position.
        self.head.forward(&xs.narrow(0, ids.len() - 1, 1)?)?.flatten_all()?.to_vec1()
    }
}

/// A token of either vocabulary.
#[derive(Clone, Copy)]
enum Id {
    Text(u32),
    Speech(u32),
}

/// A sampler of the port's own: the k largest, and a linear congruential generator.
struct Sampler {
    k: usize,
    seed: u64,
    state: u64,
    drawn: u64,
}

impl Sampler {
    fn new(k: usize, seed: u64) -> Self {
        Self { k, seed, state: seed, drawn: 0 }
    }

    fn uniform(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.drawn += 1;
        (self.state >> 40) as f32 / (1u64 << 24) as f32
    }

    /// What is left to draw from, by descending probability, and the token that was drawn.
    fn draw(&mut self, logits: &[f32]) -> (Vec<(u32, f32)>, u32) {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(self.k);
        let weights: Vec<f32> = order.iter().map(|&id| (logits[id] - logits[order[0]]).exp()).collect();
        let sum: f32 = weights.iter().sum();
        let survivors: Vec<(u32, f32)> =
            order.iter().zip(&weights).map(|(&id, weight)| (id as u32, weight / sum)).collect();
        let mut left = self.uniform();
        let drawn = survivors.iter().find(|(_, p)| {
            left -= p;
            left < 0.0
        });
        let token = drawn.or(survivors.last()).map_or(0, |&(id, _)| id);
        (survivors, token)
    }

    /// Draws a token, records the step, and gives the token to go on with.
    fn next(&mut self, logits: &[f32]) -> Result<u32> {
        let offset = self.drawn;
        let (survivors, token) = self.draw(logits);
        let draw = Draw::seeded("uniform", "lcg64", token, self.seed, offset, self.drawn - offset);
        // The token of a followed trace where there is one, else this one.
        Ok(tracekit::next_token(Step::new(token).logits(logits).survivors(&survivors).draws(&[draw]))?)
    }
}

/// Speaks one text after a spoken prompt; gives the speech tokens.
fn speak(model: &Model, sampler: &mut Sampler, text: &[u32], prompt: &[u32]) -> Result<Vec<u32>> {
    let mut ids: Vec<Id> = text.iter().map(|&id| Id::Text(id)).chain(prompt.iter().map(|&id| Id::Speech(id))).collect();
    let numbers = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>();
    let inputs = [
        ("token_ids", [numbers(text), numbers(prompt)].concat()),
        // Which table each row comes from: 0 text, 1 speech.
        ("vocabulary", ids.iter().map(|id| i64::from(matches!(id, Id::Speech(_)))).collect()),
        ("speech_token_ids", numbers(prompt)),
    ];
    let sampling = json!({"do_sample": true, "top_k": sampler.k, "eos_token_id": [SPEECH - 1]});
    tracekit::sequence_with(SequenceStart::default().inputs(&inputs).sampling(sampling))?;
    let mut state = Tensor::zeros((1, WIDTH), DType::F32, &Device::Cpu)?;
    let (mut position, mut spoken) = (0, Vec::new());
    while spoken.len() < 8 {
        tracekit::forward(position, ids.len())?;
        let logits = model.forward(&ids, &mut state)?;
        position += ids.len();
        let token = sampler.next(&logits)?;
        if token as usize == SPEECH - 1 {
            tracekit::end_sequence("stop")?;
            return Ok(spoken);
        }
        spoken.push(token);
        ids = vec![Id::Speech(token)];
    }
    tracekit::end_sequence("length")?;
    Ok(spoken)
}

/// Weights that every run draws alike; a real program loads them with `VarBuilder::from_mmaped_safetensors`.
fn weights() -> Result<VarBuilder<'static>> {
    let mut rng = TorchRng::seed(0);
    let mut tensors = HashMap::new();
    let mut add = |name: &str, shape: &[usize]| -> Result<()> {
        let scale = 1.0 / (WIDTH as f32).sqrt();
        let values: Vec<f32> = rng.randn_f32(shape.iter().product()).iter().map(|x| scale * x).collect();
        tensors.insert(format!("{name}.weight"), Tensor::from_vec(values, shape, &Device::Cpu)?);
        Ok(())
    };
    add("text_embedding", &[TEXT, WIDTH])?;
    add("speech_embedding", &[SPEECH, WIDTH])?;
    add("norm", &[WIDTH])?;
    add("up_proj", &[4 * WIDTH, WIDTH])?;
    add("down_proj", &[WIDTH, 4 * WIDTH])?;
    add("speech_head", &[SPEECH, WIDTH])?;
    Ok(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
}

fn main() -> Result<()> {
    // Where the weights came from (a folder, a .safetensors or a .gguf file), and the numbers that this program computes
    // with, in config.json's words: `audit` and `config` hold one against the other.
    let description = tracekit::Description::new()
        .version("candle", "0.11")
        .checkpoint(std::env::args().nth(1))
        .model(json!({"hidden_size": WIDTH, "vocab_size": SPEECH, "rms_norm_eps": EPS}))
        .seed(SEED);
    tracekit::describe(description)?;
    let model = Model::new(candle_nn::watched(weights()?))?;
    let mut sampler = Sampler::new(5, SEED);
    for (text, prompt) in [(&[3, 1, 4, 1][..], &[5, 9][..]), (&[2, 7], &[])] {
        println!("{:?}", speak(&model, &mut sampler, text, prompt)?);
    }
    tracekit::close()?;
    Ok(())
}
