//! Runs models of candle-transformers that record themselves: `scripts/candle_models.py` copies their files beside this
//! one from cargo's registry, changes their `use` lines, and builds it. Nothing of theirs is in this repository.
//!
//!     candle-models MODEL CHECKPOINT --prompt 3,1,4 --tokens 8 [--temperature 0.8 --seed 5] [--dtype bf16]
//!         [--source 1,5,9]

// What a model file defines for other programs is not called here.
#![allow(dead_code, unused_imports, clippy::all)]

mod fused_moe;
mod models;
mod utils;

pub use tracekit::{generation, quantized_nn, quantized_var_builder};

use std::sync::OnceLock;

use candle::{DType, Device, Result, Tensor};
use tracekit::generation::LogitsProcessor;
use tracekit::nn::VarBuilder;

/// Logits, [..., vocabulary], behind the last of some ids, [1, time], of which the first stands at a position.
type Forward = Box<dyn FnMut(&Tensor, usize) -> Result<Tensor>>;

/// What an encoder is given.
static SOURCE: OnceLock<Vec<u32>> = OnceLock::new();

struct Options {
    model: String,
    checkpoint: std::path::PathBuf,
    prompt: Vec<u32>,
    source: Vec<u32>,
    tokens: usize,
    temperature: Option<f64>,
    seed: u64,
    dtype: DType,
}

fn options() -> std::result::Result<Options, Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let mut next = |what: &str| words.next().ok_or(format!("say {what}"));
    let (model, checkpoint) = (next("which model")?, next("which checkpoint")?.into());
    let mut options = Options {
        model,
        checkpoint,
        prompt: vec![1],
        source: vec![],
        tokens: 8,
        temperature: None,
        seed: 0,
        dtype: DType::F32,
    };
    let ids = |word: String| word.split(',').map(str::parse).collect::<std::result::Result<Vec<u32>, _>>();
    while let Ok(word) = next("an option") {
        let value = next("the option's value")?;
        match word.as_str() {
            "--prompt" => options.prompt = ids(value)?,
            "--source" => options.source = ids(value)?,
            "--tokens" => options.tokens = value.parse()?,
            "--temperature" => options.temperature = Some(value.parse()?),
            "--seed" => options.seed = value.parse()?,
            "--dtype" => options.dtype = value.parse().map_err(|_| format!("{value}: no such dtype"))?,
            other => return Err(format!("{other}: no such option").into()),
        }
    }
    Ok(options)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let options = options()?;
    let weights = [options.checkpoint.join("model.safetensors")];
    // SAFETY: nobody writes to the file while it is mapped.
    let vb = unsafe { VarBuilder::from_mmaped_safetensors(&weights, options.dtype, &Device::Cpu)? };
    let checkpoint = options.checkpoint.display().to_string();
    tracekit::describe(tracekit::Description::new().version("candle", "0.11.1").checkpoint(checkpoint))?;
    let config = std::fs::read_to_string(options.checkpoint.join("config.json"))?;
    SOURCE.set(options.source.clone()).expect("set once");
    let mut forward = models::load(&options.model, &config, tracekit::nn::watched(vb))?;
    let mut processor = LogitsProcessor::new(options.seed, options.temperature, None);
    if options.source.is_empty() {
        tracekit::sequence(&options.prompt)?;
    } else {
        let source = options.source.iter().map(|&id| i64::from(id)).collect();
        let inputs = [("encoder_token_ids", source)];
        tracekit::sequence_with(tracekit::SequenceStart::new(&options.prompt).inputs(&inputs))?;
    }
    let (mut ids, mut position) = (options.prompt, 0);
    let mut tokens: Vec<u32> = Vec::new();
    for _ in 0..options.tokens {
        tracekit::forward(position, ids.len())?;
        let logits = forward(&Tensor::new(&ids[..], &Device::Cpu)?.unsqueeze(0)?, position)?;
        position += ids.len();
        ids = vec![processor.sample(&logits.flatten_all()?)?];
        tokens.extend(&ids);
    }
    tracekit::end_sequence("length")?;
    tracekit::close()?;
    println!("{tokens:?}");
    Ok(())
}
