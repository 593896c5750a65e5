//! The recorder of the process: what the taps say becomes frames of the log.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use regex_lite::Regex;
use serde_json::{json, Map, Value};

use crate::log::{Dtype, TensorRef, Writer};
use crate::sampling::{Draw, Event};
use crate::{Error, Result};

const UNKNOWN: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;
static ENABLED: AtomicU8 = AtomicU8::new(UNKNOWN);
static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

/// Whether this process records: `TRACEKIT_LOG` is set. One atomic load after the first call.
#[inline]
pub fn enabled() -> bool {
    match ENABLED.load(Ordering::Relaxed) {
        ON => true,
        OFF => false,
        _ => look_at_environment(),
    }
}

#[cold]
fn look_at_environment() -> bool {
    let on = std::env::var_os("TRACEKIT_LOG").is_some_and(|path| !path.is_empty());
    ENABLED.store(if on { ON } else { OFF }, Ordering::Relaxed);
    on
}

/// What the program is, told before the first sequence. Everything may be left empty.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Short word; `native` where empty.
    pub implementation: String,
    /// Name and version of what computes, `[("candle", "0.11.1")]`.
    pub versions: Vec<(String, String)>,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// torch's word, `float32`.
    pub dtype: String,
    /// Hyper-parameters as the engine uses them, in the words of a Hugging Face `config.json`.
    pub model: Value,
    /// Sampling settings in the words of transformers' GenerationConfig.
    pub sampling: Value,
    /// The declared seed.
    pub seed: Option<u64>,
    /// Folder or file that the weights came from.
    pub checkpoint: Option<String>,
}

/// How a sequence starts.
#[derive(Clone, Debug, Default)]
pub struct SequenceStart<'a> {
    /// Token ids of the prompt.
    pub prompt_ids: &'a [u32],
    /// Its text.
    pub prompt_text: Option<&'a str>,
    /// Text of each prompt token.
    pub texts: Option<Vec<String>>,
    /// State of the generator as the sequence starts, as torch lays it out.
    pub rng_state: Option<&'a [u8]>,
}

/// One sampled token.
#[derive(Clone, Debug, Default)]
pub struct Step<'a> {
    /// The chosen token.
    pub token: u32,
    /// Its text.
    pub text: Option<String>,
    /// Logits as the model gave them, [vocabulary].
    pub logits: &'a [f32],
    /// What could be drawn, by descending probability; empty: not known.
    pub survivors: &'a [(u32, f32)],
    /// Uses of the generator.
    pub draws: &'a [Draw],
    /// What else the sampler did.
    pub events: &'a [Event],
}

/// A row of the site table.
#[derive(Clone, Debug, Default)]
pub struct SiteRow {
    /// Site name: the module's state-dict path.
    pub name: String,
    /// Module class, `Linear`.
    pub class: &'static str,
    /// Role and name of each parameter.
    pub parameters: Vec<(&'static str, String)>,
    /// Numbers that the class needs.
    pub attributes: Vec<(&'static str, f64)>,
}

/// Tells what the program is.
///
/// # Errors
/// If the log cannot be written.
pub fn describe(description: Description) -> Result<()> {
    with(|recorder| {
        recorder.description = description;
        Ok(())
    })
}

/// Notes a parameter as it was loaded; its bytes are hashed.
///
/// # Errors
/// If the log cannot be written.
pub fn register_weight(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
    with(|recorder| {
        let digest = xxhash_rust::xxh3::xxh3_64(bytes);
        if recorder.weight_names.insert(name.to_string()) {
            let row = json!({"name": name, "dtype": dtype.torch_word(), "shape": shape});
            recorder.weights.push((row, digest));
        }
        Ok(())
    })
}

/// Notes a module before it first runs, so that its site says class, parameters and numbers.
///
/// # Errors
/// If the log cannot be written.
pub fn register_site(row: SiteRow) -> Result<()> {
    with(|recorder| {
        recorder.known.insert(row.name.clone(), row);
        Ok(())
    })
}

/// The output of this site is the steps' logits: it is not stored a second time as a site.
///
/// # Errors
/// If the log cannot be written.
pub fn logits_site(name: &str) -> Result<()> {
    with(|recorder| {
        recorder.logits_site = Some(name.to_string());
        Ok(())
    })
}

/// A generation starts.
///
/// # Errors
/// If the log cannot be written.
pub fn sequence(prompt_ids: &[u32]) -> Result<()> {
    sequence_with(SequenceStart { prompt_ids, ..SequenceStart::default() })
}

/// A generation starts, with more than its prompt ids.
///
/// # Errors
/// If the log cannot be written.
pub fn sequence_with(start: SequenceStart<'_>) -> Result<()> {
    with(|recorder| recorder.start_sequence(&start))
}

/// The next forward call computes `rows` positions from `first_position` on.
///
/// # Errors
/// If the log cannot be written.
pub fn forward(first_position: usize, rows: usize) -> Result<()> {
    with(|recorder| {
        recorder.finish_call()?;
        recorder.call = Call { first: first_position, rows: Some(rows), told: true, ..Call::default() };
        Ok(())
    })
}

/// Records a value: `shape` is [rows, width...] and `bytes` its C-order, little-endian content.
///
/// # Errors
/// If the log cannot be written.
pub fn tap_raw(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
    tap_value(name, None, dtype, shape, || Ok(bytes.to_vec()))
}

/// A token was sampled.
///
/// # Errors
/// If the log cannot be written.
pub fn step(step: Step<'_>) -> Result<()> {
    with(|recorder| recorder.write_step(&step))
}

/// The generation ends: `stop`, `length`, `error` or `left`.
///
/// # Errors
/// If the log cannot be written.
pub fn end_sequence(reason: &str) -> Result<()> {
    with(|recorder| recorder.end_sequence(reason))
}

/// Writes the final frame and flushes to the disk; later calls record nothing.
///
/// # Errors
/// If the log cannot be written.
pub fn close() -> Result<()> {
    if !enabled() {
        return Ok(());
    }
    let taken = lock().take();
    ENABLED.store(OFF, Ordering::Relaxed);
    match taken {
        Some(mut recorder) => recorder.close(),
        None => Ok(()),
    }
}

/// `tap_raw` with the identity of the tensor, for the wiring; `copy` runs only where the value is kept.
pub(crate) fn tap_value(
    name: &str,
    identity: Option<usize>,
    dtype: Dtype,
    shape: &[usize],
    copy: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<()> {
    with(|recorder| recorder.take_value(name, identity, dtype, shape, copy))
}

/// The module `name` was called with the tensor `identity`: wired to the site that recorded it, or recorded as `name:in`.
#[cfg(feature = "candle")]
pub(crate) fn tap_input(
    name: &str,
    identity: usize,
    dtype: Dtype,
    shape: &[usize],
    copy: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<()> {
    with(|recorder| {
        recorder.begin_if_repeated(name)?;
        if let Some(source) = recorder.call.identities.get(&identity) {
            let source = source.clone();
            recorder.wire(name, source);
            return Ok(());
        }
        let input = format!("{name}:in");
        recorder.wire(name, input.clone());
        recorder.take_value(&input, Some(identity), dtype, shape, copy)
    })
}

/// The tensor `part` is rows of the tensor `whole`: whatever is given `part` is wired to the site that recorded `whole`.
#[cfg(feature = "candle")]
pub(crate) fn tap_part(whole: usize, part: usize) -> Result<()> {
    with(|recorder| {
        if let Some(source) = recorder.call.identities.get(&whole).cloned() {
            recorder.call.identities.insert(part, source);
        }
        Ok(())
    })
}

fn lock() -> MutexGuard<'static, Option<Recorder>> {
    RECORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with(act: impl FnOnce(&mut Recorder) -> Result<()>) -> Result<()> {
    if !enabled() {
        return Ok(());
    }
    let mut guard = lock();
    if guard.is_none() {
        *guard = Some(Recorder::from_environment()?);
    }
    match guard.as_mut() {
        Some(recorder) => act(recorder),
        None => Ok(()),
    }
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    Tokens,
    Logits,
    Layers,
    All,
}

enum Logits {
    Full,
    Top(usize),
}

struct Value2 {
    name: String,
    dtype: Dtype,
    shape: [usize; 2],
    bytes: Vec<u8>,
}

/// The forward call in hand.
#[derive(Default)]
struct Call {
    first: usize,
    rows: Option<usize>,
    /// The program said `forward`; else a site that fires again starts the next call.
    told: bool,
    values: Vec<Value2>,
    fired: HashSet<String>,
    identities: HashMap<usize, String>,
}

struct Recorder {
    writer: Writer,
    level: Level,
    filter: Option<Regex>,
    logits: Logits,
    description: Description,
    opened: bool,
    weights: Vec<(Value, u64)>,
    weight_names: HashSet<String>,
    known: HashMap<String, SiteRow>,
    wiring: HashMap<String, String>,
    logits_site: Option<String>,
    /// Name of each site whose row is written or waiting, with its order.
    orders: HashMap<String, usize>,
    waiting: Vec<Value>,
    sequences: usize,
    in_sequence: bool,
    prompt: usize,
    steps: usize,
    call: Call,
}

impl Recorder {
    fn from_environment() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = PathBuf::from(variable("TRACEKIT_LOG").unwrap_or_default());
        let level = match variable("TRACEKIT_LEVEL").as_deref() {
            None | Some("all") => Level::All,
            Some("tokens") => Level::Tokens,
            Some("logits") => Level::Logits,
            Some("layers") => Level::Layers,
            Some(other) => {
                return Err(Error::new(format!("TRACEKIT_LEVEL is {other:?}; use tokens, logits, layers or all")))
            }
        };
        let filter = match variable("TRACEKIT_SITES") {
            None => None,
            Some(pattern) => Some(
                Regex::new(&pattern)
                    .map_err(|error| Error::new(format!("TRACEKIT_SITES is no regular expression: {error}")))?,
            ),
        };
        let logits = match variable("TRACEKIT_LOGITS").as_deref() {
            None | Some("full") => Logits::Full,
            Some(count) => Logits::Top(
                count.parse().map_err(|_| Error::new(format!("TRACEKIT_LOGITS is {count:?}; use full or a number")))?,
            ),
        };
        Ok(Self {
            writer: Writer::create(&path)?,
            level,
            filter,
            logits,
            description: Description::default(),
            opened: false,
            weights: Vec::new(),
            weight_names: HashSet::new(),
            known: HashMap::new(),
            wiring: HashMap::new(),
            logits_site: None,
            orders: HashMap::new(),
            waiting: Vec::new(),
            sequences: 0,
            in_sequence: false,
            prompt: 0,
            steps: 0,
            call: Call::default(),
        })
    }

    /// The first frame is written as late as it can be, when everything that is loaded is known.
    fn open(&mut self) -> Result<()> {
        if self.opened {
            return Ok(());
        }
        self.opened = true;
        let description = &self.description;
        let text = |value: &str| if value.is_empty() { Value::Null } else { Value::from(value) };
        let mut versions = Map::new();
        versions.insert("tracekit".into(), Value::from(env!("CARGO_PKG_VERSION")));
        for (name, version) in &description.versions {
            versions.insert(name.clone(), Value::from(version.as_str()));
        }
        let argv: Vec<String> = std::env::args().collect();
        let cwd = std::env::current_dir().map(|path| path.display().to_string()).unwrap_or_default();
        let implementation = match description.implementation.as_str() {
            "" => "native",
            word => word,
        };
        let names: Vec<&Value> = self.weights.iter().map(|(row, _)| row).collect();
        let metadata = object(json!({
            "format": 1,
            "implementation": implementation,
            "versions": versions,
            "device": text(&description.device),
            "dtype": text(&description.dtype),
            "model": description.model,
            "sampling": description.sampling,
            "seed": description.seed,
            "checkpoint": description.checkpoint,
            "command": {"argv": argv, "cwd": cwd},
            "weights": names,
        }));
        let digests: Vec<u8> = self.weights.iter().flat_map(|(_, digest)| digest.to_le_bytes()).collect();
        let shape = [self.weights.len()];
        let tensor = TensorRef { name: "weights/digest", dtype: Dtype::U64, shape: &shape, data: &digests };
        let tensors = if self.weights.is_empty() { vec![] } else { vec![tensor] };
        self.writer.frame("open", &metadata, &tensors)
    }

    fn start_sequence(&mut self, start: &SequenceStart<'_>) -> Result<()> {
        if self.in_sequence {
            self.end_sequence("left")?;
        }
        self.open()?;
        let metadata = object(json!({
            "sequence": self.sequences,
            "prompt_text": start.prompt_text,
            "texts": start.texts,
            "sampling": self.description.sampling,
            "seed": self.description.seed,
        }));
        let ids: Vec<u8> = start.prompt_ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
        let shape = [start.prompt_ids.len()];
        let mut tensors = vec![TensorRef { name: "prompt/token_ids", dtype: Dtype::I64, shape: &shape, data: &ids }];
        let state_shape = [start.rng_state.map_or(0, <[u8]>::len)];
        if let Some(state) = start.rng_state {
            tensors.push(TensorRef { name: "rng/state", dtype: Dtype::U8, shape: &state_shape, data: state });
        }
        self.writer.frame("sequence", &metadata, &tensors)?;
        self.sequences += 1;
        self.in_sequence = true;
        self.prompt = start.prompt_ids.len();
        self.steps = 0;
        self.call = Call::default();
        Ok(())
    }

    fn end_sequence(&mut self, reason: &str) -> Result<()> {
        self.finish_call()?;
        if self.in_sequence {
            self.in_sequence = false;
            let metadata = object(json!({
                "scope": "sequence", "sequence": self.sequences - 1, "steps": self.steps, "reason": reason,
            }));
            self.writer.frame("end", &metadata, &[])?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.open()?;
        self.end_sequence("left")?;
        self.writer.frame("end", &object(json!({"scope": "file", "reason": "done"})), &[])?;
        self.writer.sync()
    }

    /// A program that never says `forward`: a site that fires again starts the next call, positions add up.
    fn begin_if_repeated(&mut self, name: &str) -> Result<()> {
        if !self.call.told && self.call.fired.contains(name) {
            let next = self.call.first + self.call.rows.unwrap_or(0);
            self.finish_call()?;
            self.call = Call { first: next, ..Call::default() };
        }
        Ok(())
    }

    #[cfg(feature = "candle")]
    fn wire(&mut self, name: &str, source: String) {
        self.wiring.entry(name.to_string()).or_insert(source);
    }

    fn take_value(
        &mut self,
        name: &str,
        identity: Option<usize>,
        dtype: Dtype,
        shape: &[usize],
        copy: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<()> {
        self.begin_if_repeated(name)?;
        if !self.call.fired.insert(name.to_string()) {
            return Ok(()); // twice within one told call: the first value stands
        }
        if let Some(first) = identity.and_then(|id| self.call.identities.get(&id)) {
            let row = json!({"same_as": first});
            self.note_site(name, row);
            return Ok(());
        }
        if let Some(id) = identity {
            self.call.identities.insert(id, name.to_string());
        }
        if self.logits_site.as_deref() == Some(name) {
            self.note_site(name, json!({"recorded_as": "logits"}));
            return Ok(());
        }
        let rows = *self.call.rows.get_or_insert(shape.first().copied().unwrap_or(0));
        if shape.first() != Some(&rows) {
            let why = format!("its shape {shape:?} does not have the {rows} rows of the call");
            self.note_site(name, json!({"skipped": why}));
            return Ok(());
        }
        if !self.keeps(name) {
            return Ok(());
        }
        self.note_site(name, json!({}));
        let width = shape[1..].iter().product();
        let bytes = copy()?;
        self.call.values.push(Value2 { name: name.to_string(), dtype, shape: [rows, width], bytes });
        Ok(())
    }

    fn keeps(&self, name: &str) -> bool {
        if self.filter.as_ref().is_some_and(|filter| !filter.is_match(name)) {
            return false;
        }
        match self.level {
            Level::All => true,
            Level::Layers => is_layer(name),
            Level::Tokens | Level::Logits => false,
        }
    }

    /// Adds the row of a site when it is first seen.
    fn note_site(&mut self, name: &str, extra: Value) {
        if self.orders.contains_key(name) {
            return;
        }
        let order = self.orders.len();
        self.orders.insert(name.to_string(), order);
        let mut row = object(extra);
        row.insert("name".into(), Value::from(name));
        row.insert("order".into(), Value::from(order));
        let class = if name.ends_with(":in") { "input" } else { "tap" };
        row.insert("class".into(), Value::from(class));
        if let Some(known) = self.known.get(name) {
            row.insert("class".into(), Value::from(known.class));
            let parameters: Map<String, Value> =
                known.parameters.iter().map(|(role, name)| ((*role).to_string(), Value::from(name.as_str()))).collect();
            row.insert("parameters".into(), Value::Object(parameters));
            let attributes: Map<String, Value> =
                known.attributes.iter().map(|(key, number)| ((*key).to_string(), Value::from(*number))).collect();
            row.insert("attributes".into(), Value::Object(attributes));
        }
        if let Some(source) = self.wiring.get(name) {
            row.insert("input".into(), Value::from(source.as_str()));
        }
        self.waiting.push(Value::Object(row));
    }

    fn finish_call(&mut self) -> Result<()> {
        if self.call.values.is_empty() && self.waiting.is_empty() {
            return Ok(());
        }
        self.open()?;
        if !self.in_sequence {
            self.start_sequence_of_taps()?;
        }
        if !self.waiting.is_empty() {
            let rows = std::mem::take(&mut self.waiting);
            self.writer.frame("sites", &object(json!({ "sites": rows })), &[])?;
        }
        let values = std::mem::take(&mut self.call.values);
        if values.is_empty() {
            return Ok(());
        }
        let metadata = object(json!({
            "sequence": self.sequences - 1, "position": self.call.first, "rows": self.call.rows.unwrap_or(0),
        }));
        let tensors: Vec<TensorRef<'_>> = values
            .iter()
            .map(|value| TensorRef { name: &value.name, dtype: value.dtype, shape: &value.shape, data: &value.bytes })
            .collect();
        self.writer.frame("call", &metadata, &tensors)
    }

    /// Taps came before anybody said `sequence`: they are a sequence without a prompt.
    fn start_sequence_of_taps(&mut self) -> Result<()> {
        let call = std::mem::take(&mut self.call);
        let waiting = std::mem::take(&mut self.waiting);
        self.writer.frame("sequence", &object(json!({"sequence": self.sequences})), &[])?;
        self.sequences += 1;
        self.in_sequence = true;
        self.prompt = 0;
        self.steps = 0;
        self.call = call;
        self.waiting = waiting;
        Ok(())
    }

    fn write_step(&mut self, step: &Step<'_>) -> Result<()> {
        self.finish_call()?;
        if !self.in_sequence {
            return Err(Error::new("tracekit::step came before tracekit::sequence; say which prompt it belongs to"));
        }
        let draws: Vec<Value> = step.draws.iter().map(Draw::to_json).collect();
        let events: Vec<Value> = step.events.iter().map(Event::to_json).collect();
        let metadata = object(json!({
            "sequence": self.sequences - 1,
            "step": self.steps,
            "position": (self.prompt + self.steps).saturating_sub(1),
            "text": step.text,
            "draws": draws,
            "events": events,
        }));
        self.steps += 1;
        let mut parts = Parts::default();
        parts.push("token", Dtype::I64, i64::from(step.token).to_le_bytes().to_vec());
        if self.level >= Level::Logits && !step.logits.is_empty() {
            match self.logits {
                Logits::Full => parts.push("logits", Dtype::F32, le_bytes(step.logits)),
                Logits::Top(count) => parts.push_topk(step.logits, count),
            }
        }
        if !step.survivors.is_empty() {
            let ids = step.survivors.iter().flat_map(|&(id, _)| i64::from(id).to_le_bytes()).collect();
            let probs: Vec<f32> = step.survivors.iter().map(|&(_, prob)| prob).collect();
            parts.push("survivors/id", Dtype::I64, ids);
            parts.push("survivors/prob", Dtype::F32, le_bytes(&probs));
        }
        parts.write(&mut self.writer, &metadata)
    }
}

/// One-dimensional tensors of a step.
#[derive(Default)]
struct Parts(Vec<(&'static str, Dtype, [usize; 1], Vec<u8>)>);

impl Parts {
    fn push(&mut self, name: &'static str, dtype: Dtype, bytes: Vec<u8>) {
        let count = bytes.len() / dtype.size();
        self.0.push((name, dtype, [count], bytes));
    }

    /// The K largest log-softmax values of the raw logits, descending, ties by lower id.
    fn push_topk(&mut self, logits: &[f32], count: usize) {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(count);
        let logprob: Vec<f32> = order.iter().map(|&id| (f64::from(logits[id] - top) - sum.ln()) as f32).collect();
        self.push("topk/id", Dtype::I64, order.iter().flat_map(|&id| (id as i64).to_le_bytes()).collect());
        self.push("topk/logprob", Dtype::F32, le_bytes(&logprob));
    }

    fn write(&self, writer: &mut Writer, metadata: &Map<String, Value>) -> Result<()> {
        let tensors: Vec<TensorRef<'_>> =
            self.0.iter().map(|(name, dtype, shape, data)| TensorRef { name, dtype: *dtype, shape, data }).collect();
        writer.frame("step", metadata, &tensors)
    }
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Level `layers` keeps outputs whose name has no part behind a number: `model.embed_tokens`, `model.layers.3`.
fn is_layer(name: &str) -> bool {
    let mut parts = name.split('.').skip_while(|part| part.parse::<u32>().is_err());
    parts.next();
    !name.ends_with(":in") && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::is_layer;

    #[test]
    fn layers_are_named_by_their_number() {
        for name in ["model.embed_tokens", "model.layers.3", "model.norm", "lm_head"] {
            assert!(is_layer(name), "{name}");
        }
        for name in ["model.layers.3.mlp", "model.norm:in", "h.0.attn.c_proj"] {
            assert!(!is_layer(name), "{name}");
        }
    }
}
