//! Drop-ins that no decoder of the other tests uses: what they record is what candle's own compute.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use serde_json::Value;
use tracekit::log::{read, Frame};
use tracekit::nn::rnn::{Direction, GRUConfig, LSTMConfig, RNN};
use tracekit::nn::{self, Module, VarBuilder};
use tracekit::quantized::QMatMul;
use tracekit::rng::TorchRng;
use tracekit::Step;

const ROWS: usize = 3;
const WIDTH: usize = 4;

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_vec(TorchRng::seed(seed).randn_f32(count), shape, &Device::Cpu).expect("a tensor")
}

/// An input [1, rows, width], no two alike.
fn input(seed: u64) -> Tensor {
    random(seed, &[1, ROWS, WIDTH])
}

fn weights() -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    for (index, (prefix, gates, suffix)) in
        [("lstm", 4, "l0"), ("lstm", 4, "l1_reverse"), ("gru", 3, "l0")].into_iter().enumerate()
    {
        for (at, role) in ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].into_iter().enumerate() {
            let shape = if at < 2 { vec![gates * WIDTH, WIDTH] } else { vec![gates * WIDTH] };
            tensors.insert(format!("{prefix}.{role}_{suffix}"), random((10 * index + at) as u64, &shape));
        }
    }
    for (at, name) in ["plain.gate", "plain.up", "expert.gate", "expert.up"].into_iter().enumerate() {
        tensors.insert(format!("{name}.weight"), random(50 + at as u64, &[WIDTH, WIDTH]));
    }
    for (at, name) in ["norm.alpha", "last.weight", "last.bias"].into_iter().enumerate() {
        tensors.insert(name.into(), random(60 + at as u64, &[WIDTH]));
    }
    tensors.insert("act.weight".into(), random(40, &[1]));
    tensors.insert("experts.gate.weight".into(), random(41, &[2, WIDTH, WIDTH]));
    tensors
}

fn builder() -> VarBuilder<'static> {
    VarBuilder::from_tensors(weights(), DType::F32, &Device::Cpu)
}

fn matrix() -> Arc<QTensor> {
    // A block of Q8_0 has 32 numbers.
    Arc::new(QTensor::quantize(&random(42, &[WIDTH, 32]), GgmlDType::Q8_0).expect("quantised"))
}

fn wide() -> Tensor {
    random(43, &[1, ROWS, 32])
}

fn program() -> Result<()> {
    let vb = builder();
    let lstm = nn::lstm(WIDTH, WIDTH, LSTMConfig::default(), vb.pp("lstm"))?;
    let reverse = LSTMConfig { layer_idx: 1, direction: Direction::Backward, ..LSTMConfig::default() };
    let reverse = nn::lstm(WIDTH, WIDTH, reverse, vb.pp("lstm"))?;
    let gru = nn::gru(WIDTH, WIDTH, GRUConfig::default(), vb.pp("gru"))?;
    let act = nn::prelu(None, vb.pp("act"))?;
    let named = QMatMul::named("q_proj", matrix())?;
    let unnamed = QMatMul::from_arc(matrix())?;
    let two = |prefix: &str| {
        let vb = vb.pp(prefix);
        let linear = |name: &str| nn::linear_no_bias(WIDTH, WIDTH, vb.pp(name));
        Ok::<_, candle_core::Error>([linear("gate")?, linear("up")?])
    };
    let (plain, expert) = (two("plain")?, two("expert")?);
    let both = |[gate, up]: &[nn::Linear; 2], xs: &Tensor| gate.forward(xs)? + up.forward(xs)?;
    tracekit::sequence(&[1, 2, 3])?;
    tracekit::forward(0, ROWS)?;
    both(&plain, &input(7))?;
    // Rows that a router picked.
    both(&expert, &random(8, &[ROWS - 1, WIDTH]))?;
    let states = lstm.seq(&input(1))?;
    reverse.seq(&input(2))?;
    gru.seq(&input(3))?;
    act.forward(&input(4))?;
    named.forward(&wide())?;
    unnamed.forward_via_f16(&wide())?;
    let vb = nn::watched(vb);
    let get = |name: &str| vb.get(WIDTH, name);
    nn::ops::rms_norm(&input(11), &get("norm.alpha")?, 1e-6)?;
    nn::ops::layer_norm(&input(12), &get("last.weight")?, &get("last.bias")?, 1e-5)?;
    nn::ops::rms_norm(&input(11), &(get("norm.alpha")? + 1.0)?, 1e-6)?;
    let experts = vb.pp("experts.gate").get((2, WIDTH, WIDTH), "weight")?;
    let ids = Tensor::zeros(ROWS, DType::U32, &Device::Cpu)?;
    for _ in 0..2 {
        let refused = nn::moe::moe_gemm(&random(5, &[ROWS, WIDTH]), &experts, &None, &ids, &ids, 1, true);
        assert!(refused.is_err_and(|error| error.to_string().contains("cuda")));
    }
    tracekit::next_token(Step::new(4))?;
    tracekit::forward(ROWS, 1)?;
    let last = states.last().expect("a state");
    lstm.step(&random(6, &[1, WIDTH]), last)?;
    both(&plain, &random(9, &[1, WIDTH]))?;
    both(&expert, &random(10, &[1, WIDTH]))?;
    tracekit::next_token(Step::new(5))?;
    tracekit::close()?;
    Ok(())
}

/// The frames of the program's log. All tests are one process, which records once.
static FRAMES: LazyLock<Vec<Frame>> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("tracekit-drop-ins-{}.tklog", std::process::id()));
    std::env::set_var("TRACEKIT_LOG", &path);
    program().expect("runs");
    let contents = read(&path).expect("readable");
    std::fs::remove_file(&path).expect("removable");
    assert_eq!(contents.damage, None);
    contents.frames
});

/// What a site gave in a call, as float32.
fn values(call: usize, site: &str) -> Vec<f32> {
    let frame = FRAMES.iter().filter(|frame| frame.kind == "call").nth(call).expect("the call");
    let tensor = frame.tensor(site).unwrap_or_else(|| panic!("{site}"));
    tensor.data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("4 bytes"))).collect()
}

fn row(site: &str) -> Value {
    let rows = FRAMES.iter().filter(|frame| frame.kind == "sites").flat_map(|frame| frame.metadata["sites"].as_array());
    let found = rows.flatten().find(|row| row["name"] == site);
    found.unwrap_or_else(|| panic!("{site}")).clone()
}

fn flat(xs: &Tensor) -> Vec<f32> {
    xs.flatten_all().and_then(|xs| xs.to_vec1()).expect("float32")
}

fn hidden<'a>(states: impl Iterator<Item = &'a Tensor>) -> Vec<f32> {
    states.flat_map(flat).collect()
}

#[test]
fn an_lstm_gives_its_hidden_states() -> Result<()> {
    let theirs = candle_nn::lstm(WIDTH, WIDTH, LSTMConfig::default(), builder().pp("lstm"))?;
    let states = theirs.seq(&input(1))?;
    assert_eq!(values(0, "lstm:in"), flat(&input(1)));
    assert_eq!(values(0, "lstm"), hidden(states.iter().map(|state| &state.h)));
    let next = theirs.step(&random(6, &[1, WIDTH]), &states[ROWS - 1])?;
    assert_eq!(values(1, "lstm"), flat(&next.h));
    let own = row("lstm");
    assert_eq!((&own["class"], &own["parameters"]["bias_hh"]), (&"LSTM".into(), &"lstm.bias_hh_l0".into()));
    assert_eq!(row("lstm.l1_reverse")["parameters"]["weight_ih"], "lstm.weight_ih_l1_reverse");
    assert_eq!(values(0, "lstm.l1_reverse:in"), flat(&input(2)));
    Ok(())
}

#[test]
fn a_gru_gives_its_hidden_states() -> Result<()> {
    let theirs = candle_nn::gru(WIDTH, WIDTH, GRUConfig::default(), builder().pp("gru"))?;
    assert_eq!(values(0, "gru"), hidden(theirs.seq(&input(3))?.iter().map(|state| &state.h)));
    assert_eq!(row("gru")["parameters"]["weight_hh"], "gru.weight_hh_l0");
    Ok(())
}

#[test]
fn a_prelu_gives_what_candles_gives() -> Result<()> {
    let theirs = candle_nn::prelu(None, builder().pp("act"))?;
    assert_eq!((values(0, "act:in"), values(0, "act")), (flat(&input(4)), flat(&theirs.forward(&input(4))?)));
    assert_eq!(row("act")["parameters"]["weight"], "act.weight");
    Ok(())
}

#[test]
fn a_quantised_matrix_by_path_has_its_name_or_a_generated_one() -> Result<()> {
    let theirs = candle_core::quantized::QMatMul::from_arc(matrix())?;
    assert_eq!(values(0, "q_proj"), flat(&theirs.forward(&wide())?));
    assert_eq!(row("q_proj")["parameters"]["weight"], "q_proj.weight");
    assert_eq!(values(0, "unnamed.qmatmul.0"), flat(&theirs.forward_via_f16(&wide())?));
    assert_eq!(row("unnamed.qmatmul.0")["unnamed"], true);
    Ok(())
}

#[test]
fn a_norm_that_is_a_function_is_called_after_its_weight() -> Result<()> {
    let get = |name: &str| builder().get(WIDTH, name);
    let rms = candle_nn::ops::rms_norm(&input(11), &get("norm.alpha")?, 1e-6)?;
    assert_eq!((values(0, "norm:in"), values(0, "norm")), (flat(&input(11)), flat(&rms)));
    let norm = candle_nn::ops::layer_norm(&input(12), &get("last.weight")?, &get("last.bias")?, 1e-5)?;
    assert_eq!(values(0, "last"), flat(&norm));
    let (own, last) = (row("norm"), row("last"));
    assert_eq!((&own["class"], &own["parameters"]["weight"]), (&"RMSNorm".into(), &"norm.alpha".into()));
    assert_eq!((&own["attributes"]["eps"], &last["attributes"]["eps"]), (&1e-6.into(), &1e-5.into()));
    assert_eq!(last["parameters"]["bias"], "last.bias");
    // Nobody knows whose weight a sum is; no name is made up for it at each call.
    let sites =
        FRAMES.iter().filter(|frame| frame.kind == "sites").flat_map(|frame| frame.metadata["sites"].as_array());
    assert!(sites.flatten().all(|row| !row["name"].as_str().is_some_and(|name| name.starts_with("unnamed.rms"))));
    Ok(())
}

#[test]
fn a_fused_kernel_of_experts_is_called_after_its_weights() {
    assert_eq!(values(0, "experts.gate:in"), flat(&random(5, &[ROWS, WIDTH])));
}

#[test]
fn an_input_that_could_not_be_stored_in_one_call_is_its_own_in_the_next() {
    assert_eq!(row("expert.up")["input"], "expert.up:in");
    for site in ["expert.gate:in", "expert.up:in"] {
        assert!(row(site)["skipped"].as_str().is_some_and(|why| why.contains("[2, 4]")), "{site}");
        assert_eq!(values(1, site), flat(&random(10, &[1, WIDTH])), "{site}");
    }
}

#[test]
fn an_input_that_two_modules_share_is_stored_once() {
    assert_eq!(row("plain.up")["input"], "plain.gate:in");
    assert_eq!(values(1, "plain.gate:in"), flat(&random(9, &[1, WIDTH])));
    let stored = FRAMES.iter().filter(|frame| frame.kind == "call").any(|frame| frame.tensor("plain.up:in").is_some());
    assert!(!stored);
}
