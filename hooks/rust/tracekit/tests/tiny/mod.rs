//! A tiny candle program that says nothing of its generation, and its runs in processes of their own: whether a process
//! records is decided once.

// Each test file uses its part of it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Module, Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::generation::LogitsProcessor;
use tracekit::log::{self, Frame};
use tracekit::nn::{embedding, linear_no_bias};

pub const VOCABULARY: usize = 12;
const WIDTH: usize = 4;

fn weights() -> Result<VarBuilder<'static>> {
    let mut rng = tracekit::rng::TorchRng::seed(5);
    let mut matrix = || Tensor::from_vec(rng.randn_f32(VOCABULARY * WIDTH), (VOCABULARY, WIDTH), &Device::Cpu);
    let tensors = HashMap::from([("embed.weight".into(), matrix()?), ("lm_head.weight".into(), matrix()?)]);
    Ok(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
}

/// Prompt and five generated tokens, as a program of candle-transformers' examples generates them.
pub fn generate(prompt: &[u32], seed: u64) -> Result<Vec<u32>> {
    let vb = weights()?;
    let embed = embedding(VOCABULARY, WIDTH, vb.pp("embed"))?;
    let head = linear_no_bias(WIDTH, VOCABULARY, vb.pp("lm_head"))?;
    let mut processor = LogitsProcessor::new(seed, Some(0.9), Some(0.95));
    let mut tokens = prompt.to_vec();
    let mut input = prompt.to_vec();
    for _ in 0..5 {
        let hidden = embed.forward(&Tensor::new(input.as_slice(), &Device::Cpu)?.unsqueeze(0)?)?;
        let logits = head.forward(&hidden)?;
        let token = processor.sample(&logits.i((0, input.len() - 1))?)?;
        tokens.push(token);
        input = vec![token];
    }
    Ok(tokens)
}

/// The same tokens by a program without a cache, which gives the model all of them each time. `told`: it says so.
pub fn generate_uncached(prompt: &[u32], seed: u64, told: bool) -> Result<Vec<u32>> {
    let vb = weights()?;
    let embed = embedding(VOCABULARY, WIDTH, vb.pp("embed"))?;
    let head = linear_no_bias(WIDTH, VOCABULARY, vb.pp("lm_head"))?;
    let mut processor = LogitsProcessor::new(seed, Some(0.9), Some(0.95));
    let mut tokens = prompt.to_vec();
    for _ in 0..5 {
        if told {
            tracekit::forward(0, tokens.len())?;
        }
        let hidden = embed.forward(&Tensor::new(tokens.as_slice(), &Device::Cpu)?.unsqueeze(0)?)?;
        let logits = head.forward(&hidden)?;
        tokens.push(processor.sample(&logits.i((0, tokens.len() - 1))?)?);
    }
    Ok(tokens)
}

/// Calls of a program that goes back and has another token where it had one.
pub fn go_back(prompt: &[u32]) -> Result<()> {
    let vb = weights()?;
    let embed = embedding(VOCABULARY, WIDTH, vb.pp("embed"))?;
    tracekit::sequence(prompt)?;
    for (first, ids) in [(0, prompt), (prompt.len(), &[2, 5]), (prompt.len(), &[2, 6]), (prompt.len() + 2, &[7])] {
        tracekit::forward(first, ids.len())?;
        embed.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?;
    }
    tracekit::end_sequence("done")?;
    Ok(())
}

/// Calls of a program with a cache that gets one and the same token over and over, its prompt's too.
pub fn repeat(token: u32) -> Result<()> {
    let vb = weights()?;
    let embed = embedding(VOCABULARY, WIDTH, vb.pp("embed"))?;
    for _ in 0..3 {
        embed.forward(&Tensor::new(&[token], &Device::Cpu)?.unsqueeze(0)?)?;
    }
    Ok(())
}

/// Where a log of this test goes.
pub fn log_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tracekit-{name}-{}.tklog", std::process::id()))
}

/// Runs the ignored test `recorded` of this binary as a process that records; its frames, or what it said.
pub fn record(path: &Path, environment: &[(&str, &str)]) -> std::result::Result<Vec<Frame>, String> {
    let child = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--ignored", "--exact", "recorded", "--nocapture"])
        .envs(environment.iter().copied())
        .env("TRACEKIT_LOG", path)
        .output()
        .expect("it starts");
    if !child.status.success() {
        return Err(String::from_utf8_lossy(&child.stderr).into_owned());
    }
    let contents = log::read(path).expect("readable");
    assert_eq!(contents.damage, None);
    Ok(contents.frames)
}

pub fn of_kind<'a>(frames: &'a [Frame], kind: &str) -> Vec<&'a Frame> {
    frames.iter().filter(|frame| frame.kind == kind).collect()
}

pub fn ids(frame: &Frame, name: &str) -> Vec<u32> {
    let data = &frame.tensor(name).expect("it is there").data;
    data.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes")) as u32).collect()
}

pub fn tokens(frames: &[Frame]) -> Vec<u32> {
    of_kind(frames, "step").iter().flat_map(|step| ids(step, "token")).collect()
}
