//! The vectors that Python made, read from Rust; Python reads Rust's in `tests/test_vectors.py`.

use std::path::PathBuf;

use serde_json::Value;
use tracekit::log;
use tracekit::rng::TorchRng;
use tracekit::sampling::{choose, Sampling};

fn vectors(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

fn read_json(name: &str) -> Value {
    let text = std::fs::read_to_string(vectors(name)).expect("the vectors are checked in");
    serde_json::from_str(&text).expect("they are JSON")
}

fn list<'a>(case: &'a Value, key: &str) -> &'a Vec<Value> {
    case[key].as_array().unwrap_or_else(|| panic!("{key} is a list"))
}

fn bits(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().expect("hexadecimal"), 16).expect("hexadecimal")
}

#[test]
fn both_logs_hold_the_same() {
    let content = read_json("log/content.json");
    for name in ["log/python.tklog", "log/rust.tklog"] {
        let contents = log::read(&vectors(name)).expect("readable");
        assert_eq!(contents.damage, None, "{name}");
        let kinds: Vec<&str> = contents.frames.iter().map(|frame| frame.kind.as_str()).collect();
        assert_eq!(serde_json::json!(kinds), content["kinds"], "{name}");
        let note = &contents.frames[1];
        assert_eq!(Value::Object(note.metadata.clone()), content["metadata"], "{name}");
        for (tensor, hex) in content["tensors"].as_object().expect("an object") {
            let stored = note.tensor(tensor).expect("it is there");
            let own: String = stored.data.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((own.as_str(), stored.dtype.word()), (hex.as_str().unwrap_or(""), tensor.as_str()), "{name}");
        }
    }
}

#[test]
fn a_log_cut_anywhere_keeps_its_whole_frames() {
    let whole = std::fs::read(vectors("log/rust.tklog")).expect("readable");
    let path = std::env::temp_dir().join(format!("tracekit-cut-{}.tklog", std::process::id()));
    let mut most = 0;
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).expect("writable");
        let contents = log::read(&path).expect("readable");
        assert!(contents.frames.len() >= most && contents.frames.len() < 3);
        most = contents.frames.len();
    }
    std::fs::remove_file(&path).expect("removable");
    assert_eq!(most, 2);
}

#[test]
fn every_draw_is_torchs() {
    for case in list(&read_json("rng.json"), "cases") {
        let (seed, size) = (case["seed"].as_u64().expect("a seed"), case["size"].as_u64().expect("a size") as usize);
        let mut rng = TorchRng::seed(seed);
        let what = format!("seed {seed}, size {size}");
        for want in list(case, "rand_f32") {
            assert_eq!(u64::from(rng.rand_f32().to_bits()), bits(want), "rand_f32, {what}");
        }
        for want in list(case, "rand_f64") {
            assert_eq!(rng.rand_f64().to_bits(), bits(want), "rand_f64, {what}");
        }
        for want in list(case, "exponential_f32") {
            let own = rng.exponential(1.5) as f32;
            assert_eq!(u64::from(own.to_bits()), bits(want), "exponential, {what}");
        }
        for want in list(case, "bernoulli") {
            assert_eq!(Value::from(i64::from(rng.bernoulli(0.3))), *want, "bernoulli, {what}");
        }
        let probs: Vec<f32> = linspace(size);
        for (want, &p) in list(case, "bernoulli_each").iter().zip(&probs) {
            assert_eq!(Value::from(i64::from(rng.bernoulli_f32(p))), *want, "bernoulli_each, {what}");
        }
        for (key, range) in [("randint_7", 7), ("randint_2_28", 1 << 28)] {
            for want in list(case, key) {
                assert_eq!(Value::from(rng.randint(range)), *want, "{key}, {what}");
            }
        }
        assert_eq!(Value::from(rng.randperm(size)), case["randperm"], "randperm, {what}");
        assert_eq!(Value::from(rng.multinomial_one(&probs)), case["multinomial"], "multinomial, {what}");
        for want in list(case, "normal_f32") {
            let own = rng.normal() as f32;
            assert_eq!(u64::from(own.to_bits()), bits(want), "normal, {what}");
        }
        for (own, want) in rng.randn_f32(2 * size + 3).iter().zip(list(case, "randn_f32")) {
            assert_eq!(u64::from(own.to_bits()), bits(want), "randn, {what}");
        }
        for want in list(case, "uniform_f32") {
            assert_eq!(u64::from(rng.uniform_f32(-1.5, 2.7).to_bits()), bits(want), "uniform, {what}");
        }
        if let Some(state) = case["state"].as_str() {
            let own: String = rng.state().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(own, state, "state, {what}");
        }
    }
}

/// `torch.linspace(0.1, 0.9, size)` in float32: from both ends to the middle.
fn linspace(size: usize) -> Vec<f32> {
    if size == 1 {
        return vec![0.1];
    }
    let (start, end) = (0.1f32, 0.9f32);
    let step = (end - start) / (size - 1) as f32;
    let from_start = |i: usize| (f64::from(step) * i as f64 + f64::from(start)) as f32;
    let from_end = |i: usize| (f64::from(end) - f64::from(step) * (size - 1 - i) as f64) as f32;
    (0..size).map(|i| if i < size / 2 { from_start(i) } else { from_end(i) }).collect()
}

#[test]
fn survivors_and_token_are_transformers() {
    for case in list(&read_json("sampling.json"), "cases") {
        let number = |key: &str| case["settings"][key].as_f64();
        let mut settings = Sampling::greedy();
        settings.temperature = number("temperature");
        settings.top_k = number("top_k").map(|k| k as usize);
        settings.top_p = number("top_p");
        settings.min_p = number("min_p");
        settings.repetition_penalty = number("repetition_penalty");
        let logits: Vec<f32> = list(case, "logits").iter().map(|x| x.as_f64().expect("a number") as f32).collect();
        let history: Vec<u32> = list(case, "history").iter().map(|x| x.as_u64().expect("an id") as u32).collect();
        let mut rng = TorchRng::seed(case["seed"].as_u64().expect("a seed"));
        let choice = choose(&settings, &mut rng, &logits, &history);
        let ids: Vec<u32> = choice.survivors.iter().map(|&(id, _)| id).collect();
        assert_eq!(Value::from(ids), case["survivors"], "{}", case["settings"]);
        for (&(_, own), want) in choice.survivors.iter().zip(list(case, "probs")) {
            let want = want.as_f64().expect("a number") as f32;
            // torch's exponential and sum are rounded in another order: a few units of float32.
            assert!((own - want).abs() <= 4.0 * f32::EPSILON * want, "{own} {want}");
        }
        assert_eq!(Value::from(choice.token), case["token"], "{}", case["settings"]);
    }
}
