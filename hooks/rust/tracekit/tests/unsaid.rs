//! A candle program that changed its `use` lines and says nothing else still gets a log that can be compared.

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Module, Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::generation::LogitsProcessor;
use tracekit::log::{self, Frame};
use tracekit::nn::{embedding, linear_no_bias};

const VOCABULARY: usize = 12;
const WIDTH: usize = 4;

fn weights() -> Result<VarBuilder<'static>> {
    let mut rng = tracekit::rng::TorchRng::seed(5);
    let mut matrix = || Tensor::from_vec(rng.randn_f32(VOCABULARY * WIDTH), (VOCABULARY, WIDTH), &Device::Cpu);
    let tensors = HashMap::from([("embed.weight".into(), matrix()?), ("lm_head.weight".into(), matrix()?)]);
    Ok(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
}

/// Prompt and generated tokens, as a program of candle-transformers' examples generates them.
fn generate(prompt: &[u32], count: usize) -> Result<Vec<u32>> {
    let vb = weights()?;
    let embed = embedding(VOCABULARY, WIDTH, vb.pp("embed"))?;
    let head = linear_no_bias(WIDTH, VOCABULARY, vb.pp("lm_head"))?;
    let mut processor = LogitsProcessor::new(7, Some(0.9), Some(0.95));
    let mut tokens = prompt.to_vec();
    let mut input = prompt.to_vec();
    for _ in 0..count {
        let hidden = embed.forward(&Tensor::new(input.as_slice(), &Device::Cpu)?.unsqueeze(0)?)?;
        let logits = head.forward(&hidden)?;
        let token = processor.sample(&logits.i((0, input.len() - 1))?)?;
        tokens.push(token);
        input = vec![token];
    }
    Ok(tokens)
}

fn of_kind<'a>(frames: &'a [Frame], kind: &str) -> Vec<&'a Frame> {
    frames.iter().filter(|frame| frame.kind == kind).collect()
}

fn ids(frame: &Frame, name: &str) -> Vec<u32> {
    let data = &frame.tensor(name).expect("it is there").data;
    data.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes")) as u32).collect()
}

#[test]
fn prompt_positions_and_steps_are_found_out() {
    let prompt = [3, 1, 4, 1];
    let path = std::env::temp_dir().join(format!("tracekit-unsaid-{}.tklog", std::process::id()));
    let unrecorded = generate(&prompt, 5).expect("generates");
    // Whether a process records is decided once, so the recorded run is a process of its own.
    let child = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--ignored", "--exact", "recorded_in_a_process_of_its_own"])
        .env("TRACEKIT_LOG", &path)
        .output()
        .expect("it starts");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let contents = log::read(&path).expect("readable");
    std::fs::remove_file(&path).expect("removable");
    assert_eq!(contents.damage, None);

    let open = &contents.frames[0];
    assert_eq!((&open.metadata["seed"], &open.metadata["sampling"]["temperature"]), (&7.into(), &0.9.into()));
    assert_eq!((&open.metadata["dtype"], &open.metadata["device"]), (&"float32".into(), &"cpu".into()));
    let sequences = of_kind(&contents.frames, "sequence");
    assert_eq!(sequences.len(), 1);
    assert_eq!(ids(sequences[0], "prompt/token_ids"), prompt);
    let steps = of_kind(&contents.frames, "step");
    let tokens: Vec<u32> = steps.iter().flat_map(|step| ids(step, "token")).collect();
    assert_eq!(tokens, unrecorded[4..]);
    for (index, step) in steps.iter().enumerate() {
        assert_eq!(step.metadata["position"], 3 + index);
        assert_eq!(step.metadata["draws"][0]["offset"], 2 * VOCABULARY * index);
        assert_eq!(step.metadata["draws"][0]["result"], tokens[index]);
        assert_eq!(step.tensor("logits").expect("logits").shape, [VOCABULARY]);
    }
    let calls = of_kind(&contents.frames, "call");
    let places: Vec<_> = calls.iter().map(|call| (&call.metadata["position"], &call.metadata["rows"])).collect();
    assert_eq!(places.len(), 5);
    assert_eq!((places[0], places[1]), ((&0.into(), &4.into()), (&4.into(), &1.into())));
    let rows = &of_kind(&contents.frames, "sites")[0].metadata["sites"];
    assert_eq!((&rows[1]["name"], &rows[1]["input"]), (&"lm_head".into(), &"embed".into()));
}

#[test]
#[ignore = "run by the test above, as a process that records"]
fn recorded_in_a_process_of_its_own() {
    generate(&[3, 1, 4, 1], 5).expect("generates");
    tracekit::close().expect("writable");
}
