//! Fails with the fault, passes without it: README.md says what it is, repro.json what is compared.
//!
//! The candidate runs once more on the cut input, and its log is read. What it holds is compared with expected.safetensors
//! or, of a layer, with what the operation gives in float64 from the input that was recorded in that very run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor, D};
use safetensors::SafeTensors;
use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_candidate_is_mended() -> Result<()> {
    let repro: Value = serde_json::from_slice(&std::fs::read(here("repro.json"))?)?;
    let log = Log::of(&repro)?;
    let check = &repro["check"];
    match word(check, "kind") {
        "site" => site(&log, check),
        "recorded" => recorded(&log, check),
        "survivors" => survivors(&log, check),
        "token" => token(&log, check),
        "draws" => draws(&log, check),
        "steps" => steps(&log),
        "prompt" => prompt(&log),
        other => Err(format!("repro.json: check {other} is not known").into()),
    }
}

fn here(name: &str) -> PathBuf {
    Path::new(HERE).join(name)
}

fn word<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_default()
}

fn count(value: &Value, name: &str) -> usize {
    value[name].as_u64().unwrap_or_default() as usize
}

// ------------------------------------------------------------------ the log

/// What the candidate recorded: frames of safetensors.
struct Log {
    frames: Vec<Vec<u8>>,
    sequence: u64,
    table: HashMap<String, Value>,
}

impl Log {
    /// Runs the candidate, or the shell command in REPRO_COMMAND, and reads its log.
    fn of(repro: &Value) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("repro-{}.tklog", std::process::id()));
        let follow = here("follow.tklog");
        let placed = |text: &str| match text {
            "{log}" => path.clone().into_os_string(),
            "{follow}" => follow.clone().into_os_string(),
            other => other.into(),
        };
        let mended = std::env::var("REPRO_COMMAND").ok();
        let line = mended.unwrap_or_else(|| word(repro, "command").to_string());
        let mut program = Command::new("sh");
        program.args(["-c", &format!("exec \"$@\" {line}"), "sh"]).current_dir(word(repro, "folder"));
        program.args(repro["recorder"].as_array().into_iter().flatten().filter_map(Value::as_str).map(placed));
        std::env::vars().filter(|(name, _)| name.starts_with("TRACEKIT_")).for_each(|(name, _)| {
            program.env_remove(name);
        });
        for (name, value) in repro["environment"].as_object().into_iter().flatten() {
            program.env(name, placed(value.as_str().unwrap_or_default()));
        }
        let done = program.env("TRACEKIT_LOG", &path).output()?;
        let bytes = std::fs::read(&path)
            .map_err(|_| format!("nothing was recorded: {}", String::from_utf8_lossy(&done.stderr)))?;
        std::fs::remove_file(&path)?;
        let mut log = Self { frames: frames(&bytes), sequence: count(repro, "sequence") as u64, table: HashMap::new() };
        for frame in &log.frames {
            for row in said(frame)?["sites"].as_array().into_iter().flatten() {
                log.table.insert(word(row, "name").to_string(), row.clone());
            }
        }
        Ok(log)
    }

    /// The sequence's frames of a kind, with what they say.
    fn each(&self, kind: &str) -> Result<Vec<(Value, SafeTensors<'_>)>> {
        let mut out = Vec::new();
        for frame in &self.frames {
            let said = said(frame)?;
            if word(&said, "kind") == kind && said["sequence"].as_u64() == Some(self.sequence) {
                out.push((said, SafeTensors::deserialize(frame)?));
            }
        }
        Ok(out)
    }

    fn step(&self, index: usize) -> Result<(Value, SafeTensors<'_>)> {
        let found = self.each("step")?.into_iter().find(|(said, _)| count(said, "step") == index);
        found.ok_or_else(|| format!("step {index} was not recorded").into())
    }

    /// The site that holds a name's values: another one's where the very tensor was passed on.
    fn resolve(&self, name: &str) -> String {
        let mut name = name.to_string();
        for _ in 0..self.table.len() + 1 {
            let row = self.table.get(&name);
            let owner = name.strip_suffix(":in").and_then(|owner| self.table.get(owner));
            let next = match row {
                Some(row) if row["recorded_as"] == "logits" => return "logits".into(),
                Some(row) => row["same_as"].as_str(),
                None => owner.and_then(|owner| owner["input"].as_str()),
            };
            match next {
                Some(next) => name = next.to_string(),
                None => break,
            }
        }
        name
    }

    /// Positions (of the logits: steps) `first` to `stop` of a site, float64 [rows, width].
    fn rows(&self, name: &str, first: usize, stop: usize) -> Result<Tensor> {
        let (name, mut found) = (self.resolve(name), HashMap::new());
        let (kind, tensor) = if name == "logits" { ("step", "logits") } else { ("call", name.as_str()) };
        for (said, tensors) in self.each(kind)? {
            let Ok(view) = tensors.tensor(tensor) else { continue };
            let rows = if kind == "step" { 1 } else { count(&said, "rows") };
            let begin = count(&said, if kind == "step" { "step" } else { "position" });
            let values = view.load(&Device::Cpu)?.to_dtype(DType::F64)?.reshape((rows, ()))?;
            for row in 0..rows {
                found.insert(begin + row, values.narrow(0, row, 1)?);
            }
        }
        let missing = |at: usize| format!("{name} was not recorded at {at}");
        let rows = (first..stop).map(|at| found.get(&at).ok_or_else(|| missing(at).into()));
        Ok(Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// Payloads of a log: each behind a head of 24 bytes, `TKL1`, 0 and its length.
fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), bytes);
    while rest.len() >= 24 && &rest[..4] == b"TKL1" {
        let length = u64::from_le_bytes(rest[8..16].try_into().expect("8 bytes")) as usize;
        let Some(payload) = rest.get(24..24 + length) else { break };
        out.push(payload.to_vec());
        rest = &rest[24 + length..];
    }
    out
}

/// A frame's metadata: `kind` is a word, the rest JSON.
fn said(frame: &[u8]) -> Result<Value> {
    let (_, header) = SafeTensors::read_metadata(frame)?;
    let words = header.metadata().clone().unwrap_or_default();
    let value = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
    Ok(Value::Object(words.into_iter().map(|(name, text)| (name, value(text))).collect()))
}

/// Tensors of a file beside this package, in float64.
fn file(name: &str) -> Result<HashMap<String, Tensor>> {
    let bytes = std::fs::read(here(name))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let load = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        Ok((name, view.load(&Device::Cpu)?.to_dtype(DType::F64)?))
    };
    tensors.tensors().into_iter().map(load).collect()
}

fn integers(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<i64>> {
    let view = tensors.tensor(name)?;
    Ok(view.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes"))).collect())
}

// ------------------------------------------------------------------ layers

/// A site against its operation, by the statistic that was beyond its limit.
fn site(log: &Log, check: &Value) -> Result<()> {
    let (first, stop) = (count(check, "first"), count(check, "stop"));
    let actual = log.rows(word(check, "site"), first, stop)?;
    let values = operation(log, check, first, stop)?;
    let bound = file("expected.safetensors")?["bound"].to_vec2()?;
    let found = statistic(check, &gap(check, &actual, &values)?, &values.to_vec2()?, &bound);
    let (site, kind, limit) = (word(check, "site"), word(check, "statistic"), number(check, "limit"));
    assert!(found <= limit, "{site}: local error, by {kind}, is {found:.3} where {limit:.3} is allowed");
    Ok(())
}

/// What is recorded less what it should be, rounded as the site is where it has 16 bits and that lies nearer.
fn gap(check: &Value, actual: &Tensor, values: &Tensor) -> Result<Vec<Vec<f64>>> {
    let narrow = match word(check, "dtype") {
        "bfloat16" => DType::BF16,
        "float16" => DType::F16,
        _ => return Ok((actual - values)?.to_vec2()?),
    };
    let rounded = values.to_dtype(narrow)?.to_dtype(DType::F64)?;
    let gaps = [(actual - values)?, (actual - rounded)?];
    let size = |gap: &Tensor| Ok(gap.sqr()?.sum_all()?.to_scalar::<f64>()?) as Result<f64>;
    let nearest = usize::from(size(&gaps[1])? < size(&gaps[0])?);
    Ok(gaps[nearest].to_vec2()?)
}

/// The site's operation in float64, [rows, width], from its recorded inputs and parameters.safetensors.
fn operation(log: &Log, check: &Value, first: usize, stop: usize) -> Result<Tensor> {
    let parameters = file("parameters.safetensors")?;
    let role = |role: &str| check["roles"][role].as_str().and_then(|name| parameters.get(name));
    let weight = || role("weight").ok_or("parameters.safetensors has no weight");
    // The logits of a step are those of the position that it reads.
    let shift = if word(check, "site") == "logits" { count(check, "first_step") } else { 0 };
    let input = |index: usize, first: usize| {
        log.rows(check["inputs"][index].as_str().unwrap_or_default(), first + shift, stop + shift)
    };
    let normed = |x: &Tensor| -> Result<Tensor> {
        let scale = ((x.sqr()?.mean_keepdim(D::Minus1)? + number(check, "eps"))?.sqrt()?.recip())?;
        Ok(x.broadcast_mul(&scale)?)
    };
    match word(check, "operation") {
        "identity" => input(0, first),
        "residual" => Ok((input(0, first)? + input(1, first)?)?),
        "gate" => Ok((active(word(check, "activation"), &input(0, first)?)? * input(1, first)?)?),
        "embedding" => Ok(weight()?.clone()),
        "linear" => {
            let product = input(0, first)?.matmul(&weight()?.t()?)?;
            Ok(role("bias").map_or(Ok(product.clone()), |bias| product.broadcast_add(bias))?)
        }
        "rms_norm" => {
            let plus_one = if check["plus_one"] == true { 1.0 } else { 0.0 };
            let (x, weight) = (input(0, first)?, (weight()? + plus_one)?);
            // A weight that is shorter than a row is that of each head.
            let heads = x.reshape(((), weight.elem_count()))?;
            Ok(normed(&heads)?.broadcast_mul(&weight)?.reshape(x.shape())?)
        }
        "layer_norm" => {
            let x = input(0, first)?;
            let values = normed(&x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?)?.broadcast_mul(weight()?)?;
            Ok(role("bias").map_or(Ok(values.clone()), |bias| values.broadcast_add(bias))?)
        }
        "attention" => {
            let frequencies = &parameters["rotary.inverse_frequencies"];
            attention(check, frequencies, &input(0, first)?, &input(1, 0)?, &input(2, 0)?, first)
        }
        other => Err(format!("repro.json: operation {other} is not known").into()),
    }
}

fn active(name: &str, x: &Tensor) -> Result<Tensor> {
    Ok(match name {
        "silu" | "swish" => x.silu()?,
        "gelu" => x.gelu_erf()?,
        "relu" => x.relu()?,
        _ => x.gelu()?,
    })
}

/// Rotary attention with grouped keys: q [rows, heads * width] of positions `first` on, k and v of all positions.
fn attention(check: &Value, frequencies: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, first: usize) -> Result<Tensor> {
    let (heads, kv_heads, width) = (count(check, "heads"), count(check, "kv_heads"), count(check, "head_dim"));
    let (rows, positions) = (q.dim(0)?, k.dim(0)?);
    let q = rotated(check, frequencies, &q.reshape((rows, heads, width))?, first)?;
    let k = rotated(check, frequencies, &k.reshape((positions, kv_heads, width))?, 0)?;
    let v = v.reshape((positions, kv_heads, width))?;
    let window = check["window"].as_u64().map_or(usize::MAX, |window| window as usize);
    let sees = |row: usize, at: usize| at <= first + row && first + row - at < window;
    let places = (0..rows).flat_map(|row| (0..positions).map(move |at| (row, at)));
    let mask = places.map(|(row, at)| if sees(row, at) { 0.0 } else { f64::NEG_INFINITY }).collect::<Vec<f64>>();
    let mask = Tensor::from_vec(mask, (rows, positions), &Device::Cpu)?;
    let mut out = Vec::new();
    for head in 0..heads {
        let of = |values: &Tensor, head: usize| values.narrow(1, head, 1)?.squeeze(1)?.contiguous();
        let kv = head / (heads / kv_heads);
        let scores = (of(&q, head)?.matmul(&of(&k, kv)?.t()?)? * number(check, "scale"))?.add(&mask)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(1)?)?.exp()?;
        out.push(weights.broadcast_div(&weights.sum_keepdim(1)?)?.matmul(&of(&v, kv)?)?);
    }
    Ok(Tensor::cat(&out, 1)?)
}

/// [rows, heads, width] turned by position: the first half of the rotated columns against the second.
fn rotated(check: &Value, frequencies: &Tensor, x: &Tensor, first: usize) -> Result<Tensor> {
    let (rows, _, width) = x.dims3()?;
    let half = count(check, "rotated") / 2;
    let at: Vec<f64> = (first..first + rows).map(|position| position as f64).collect();
    let angles = Tensor::from_vec(at, (rows, 1), &Device::Cpu)?.matmul(&frequencies.reshape((1, half))?)?;
    let cos = (angles.cos()? * number(check, "factor"))?.unsqueeze(1)?;
    let sin = (angles.sin()? * number(check, "factor"))?.unsqueeze(1)?;
    let (one, other) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let turned = [
        (one.broadcast_mul(&cos)? - other.broadcast_mul(&sin)?)?,
        (other.broadcast_mul(&cos)? + one.broadcast_mul(&sin)?)?,
        x.narrow(2, 2 * half, width - 2 * half)?,
    ];
    Ok(Tensor::cat(&turned, 2)?)
}

/// How far a site is off, in units of `bound`, what correct rounding may do: one of tracekit's statistics.
fn statistic(check: &Value, gap: &[Vec<f64>], values: &[Vec<f64>], bound: &[Vec<f64>]) -> f64 {
    let bias = number(check, "bias");
    let shared = number(check, "shared").powi(2);
    let common = shared + bias.powi(2);
    // A bias of unknown sign is no deviation.
    let beyond = |value: f64, bias: f64| (value.abs() - bias).max(0.0);
    let width = bound[0].len();
    let mut rows = Vec::new();
    let mut gains = Vec::new();
    let mut columns = vec![[0.0; 5]; width]; // squares, offsets, products, powers, weights
    for ((gap, values), bound) in gap.iter().zip(values).zip(bound) {
        let pairs: Vec<(f64, f64)> = (0..width)
            .map(|at| ((gap[at] / bound[at]).clamp(-1e15, 1e15), (values[at] / bound[at]).clamp(-1e15, 1e15)))
            .map(|(error, signal)| (if error.is_nan() { 1e15 } else { error }, signal))
            .collect();
        let sum = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>();
        let (squares, products, power) = (sum(|p| p.0 * p.0), sum(|p| p.0 * p.1), sum(|p| p.1 * p.1).max(1e-290));
        rows.push((squares / (width as f64 + common * power)).sqrt());
        gains.push((products / power, 1.0 / power + shared));
        for (column, (error, signal)) in columns.iter_mut().zip(&pairs) {
            let loose = 1.0 / (1.0 + common * signal * signal);
            let parts = [error * error, *error, error * signal, signal * signal, 1.0];
            column.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part * loose);
        }
    }
    let count = rows.len() as f64;
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    match word(check, "statistic") {
        "row" => largest(&mut rows.into_iter()),
        "row_gain" => largest(&mut gains.iter().map(|(gain, spread)| beyond(*gain, bias) / spread.sqrt())),
        "gain" => {
            let total: f64 = gains.iter().map(|(_, spread)| 1.0 / spread).sum();
            let gain: f64 = gains.iter().map(|(gain, spread)| gain / spread).sum::<f64>() / total;
            beyond(gain, bias) * total.sqrt()
        }
        "column" => largest(&mut columns.iter().map(|sums| (sums[0] / count).sqrt())),
        "column_offset" => largest(
            &mut columns
                .iter()
                .map(|sums| beyond(sums[1], bias * (sums[3] * count).sqrt()) / sums[4].max(1e-290).sqrt()),
        ),
        "column_gain" => largest(
            &mut columns.iter().map(|sums| beyond(sums[2], bias * sums[3]) / sums[3].max(1e-290).sqrt()),
        ),
        _ => (rows.iter().map(|row| row * row).sum::<f64>() / count).sqrt(),
    }
}

/// A site, row by row, against what the reference recorded.
fn recorded(log: &Log, check: &Value) -> Result<()> {
    let actual = log.rows(word(check, "site"), count(check, "first"), count(check, "stop"))?;
    let expected = file("expected.safetensors")?;
    let apart: Vec<f64> = (actual - &expected["expected"])?.sqr()?.sum(1)?.sqrt()?.to_vec1()?;
    let bound: Vec<f64> = expected["bound"].to_vec1()?;
    for (row, (apart, bound)) in apart.iter().zip(&bound).enumerate() {
        assert!(apart <= bound, "row {row}: {apart:.3e} from the reference, where {bound:.3e} is allowed");
    }
    Ok(())
}

// ------------------------------------------------------------------ steps

fn survivors(log: &Log, check: &Value) -> Result<()> {
    let bytes = std::fs::read(here("expected.safetensors"))?;
    let sorted = |tensors: &SafeTensors<'_>| -> Result<Vec<(i64, f64)>> {
        let probs = tensors.tensor("survivors/prob")?.load(&Device::Cpu)?.to_dtype(DType::F64)?;
        // Some samplers draw from what is left as it is.
        let probs: Vec<f64> = probs.broadcast_div(&probs.sum_all()?)?.to_vec1()?;
        let mut out: Vec<(i64, f64)> = integers(tensors, "survivors/id")?.into_iter().zip(probs).collect();
        out.sort_by_key(|(id, _)| *id);
        Ok(out)
    };
    let expected = sorted(&SafeTensors::deserialize(&bytes)?)?;
    let actual = sorted(&log.step(count(check, "step"))?.1)?;
    let ids = |side: &[(i64, f64)]| side.iter().map(|(id, _)| *id).collect::<Vec<i64>>();
    assert_eq!(ids(&actual), ids(&expected), "other tokens survive");
    for ((id, ours), (_, theirs)) in actual.iter().zip(&expected) {
        let apart = (ours.ln() - theirs.ln()).abs();
        assert!(apart <= number(check, "tolerance"), "token {id} has probability {ours}, not {theirs}");
    }
    Ok(())
}

fn token(log: &Log, check: &Value) -> Result<()> {
    let expected = std::fs::read(here("expected.safetensors"))?;
    let expected = integers(&SafeTensors::deserialize(&expected)?, "token")?[0];
    let (said, tensors) = log.step(count(check, "step"))?;
    // What was chosen, also where another token was forced.
    let drawn = said["draws"].as_array().and_then(|draws| draws.last()).and_then(|draw| draw["result"].as_i64());
    let forced = said["events"].as_array().into_iter().flatten().find(|event| event["kind"] == "forced");
    let instead = forced.and_then(|event| event["detail"]["instead_of"].as_i64());
    let taken = integers(&tensors, "token")?[0];
    let actual = drawn.or(instead).unwrap_or(taken);
    assert_eq!(actual, expected, "another token is chosen");
    Ok(())
}

fn draws(log: &Log, check: &Value) -> Result<()> {
    let bytes = std::fs::read(here("expected.safetensors"))?;
    let expected = SafeTensors::deserialize(&bytes)?;
    let said = log.step(count(check, "step"))?.0;
    let rows: Vec<&Value> = said["draws"].as_array().into_iter().flatten().collect();
    for name in expected.names() {
        let field = name.trim_start_matches("draws/");
        let wanted: Vec<u64> = integers(&expected, name)?.into_iter().map(|value| value as u64).collect();
        let number = |row: &&Value| row[field].as_u64().or(row[field].as_i64().map(|value| value as u64));
        let actual: Vec<u64> = match field {
            "count" => vec![rows.len() as u64],
            _ => rows.iter().take(wanted.len()).filter_map(number).collect(),
        };
        assert_eq!(actual, wanted, "draws: {field}");
    }
    Ok(())
}

fn steps(log: &Log) -> Result<()> {
    let bytes = std::fs::read(here("expected.safetensors"))?;
    let expected = integers(&SafeTensors::deserialize(&bytes)?, "steps")?[0];
    assert_eq!(log.each("step")?.len() as i64, expected, "the generation ends elsewhere");
    Ok(())
}

fn prompt(log: &Log) -> Result<()> {
    let bytes = std::fs::read(here("expected.safetensors"))?;
    let sequences = log.each("sequence")?;
    let (_, actual) = sequences.first().ok_or("no sequence was recorded")?;
    for (name, expected) in SafeTensors::deserialize(&bytes)?.tensors() {
        let found = actual.tensor(&name)?.load(&Device::Cpu)?.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        let expected = expected.load(&Device::Cpu)?.flatten_all()?.to_vec1::<i64>()?;
        assert_eq!(found.len(), expected.len(), "{name}: another length");
        let first = found.iter().zip(&expected).position(|(ours, theirs)| ours != theirs);
        assert!(first.is_none(), "{name}: another entry at {}", first.unwrap_or_default());
    }
    Ok(())
}
