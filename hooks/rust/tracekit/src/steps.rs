//! A sampled token as a frame of the log.

use serde_json::{Map, Value};

use crate::log::{Dtype, TensorRef, Writer};
use crate::sampling::{Choice, Draw, Event};
use crate::settings::{Level, Settings};
use crate::Result;

/// One sampled token.
///
/// ```
/// use tracekit::Step;
/// let step = Step::new(1).text("b".to_string()).logits(&[0.1, 0.9]);
/// # assert_eq!(step.token, 1);
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Step<'a> {
    /// The token that this run chose by itself.
    pub token: u32,
    /// Its text.
    pub text: Option<String>,
    /// Logits as the model gave them, `[vocabulary]`.
    pub logits: &'a [f32],
    /// What could be drawn, by descending probability; empty: not known.
    pub survivors: &'a [(u32, f32)],
    /// Uses of the generator.
    pub draws: &'a [Draw],
    /// What else the sampler did.
    pub events: &'a [Event],
}

impl<'a> Step<'a> {
    /// A step of which the token is known.
    pub fn new(token: u32) -> Self {
        Self { token, ..Self::default() }
    }

    /// With the token's text.
    #[must_use]
    pub fn text(mut self, text: impl Into<Option<String>>) -> Self {
        self.text = text.into();
        self
    }

    /// With the logits, `[vocabulary]`.
    #[must_use]
    pub fn logits(mut self, logits: &'a [f32]) -> Self {
        self.logits = logits;
        self
    }

    /// With what could be drawn, by descending probability.
    #[must_use]
    pub fn survivors(mut self, survivors: &'a [(u32, f32)]) -> Self {
        self.survivors = survivors;
        self
    }

    /// With the uses of the generator.
    #[must_use]
    pub fn draws(mut self, draws: &'a [Draw]) -> Self {
        self.draws = draws;
        self
    }

    /// With what else the sampler did.
    #[must_use]
    pub fn events(mut self, events: &'a [Event]) -> Self {
        self.events = events;
        self
    }

    /// Its draws and events, as JSON.
    pub(crate) fn uses(&self) -> (Vec<Value>, Vec<Value>) {
        (self.draws.iter().map(Draw::to_json).collect(), self.events.iter().map(Event::to_json).collect())
    }

    /// Writes its frame: the token that goes on, logits as the settings want them, survivors.
    pub(crate) fn write(
        &self,
        token: u32,
        writer: &mut Writer,
        metadata: &Map<String, Value>,
        settings: &Settings,
    ) -> Result<()> {
        let mut parts = Parts::default();
        parts.push("token", Dtype::I64, i64::from(token).to_le_bytes().to_vec());
        if settings.level >= Level::Logits && !self.logits.is_empty() {
            match settings.top_logits {
                None => parts.push("logits", Dtype::F32, le_bytes(self.logits)),
                Some(count) => parts.push_topk(self.logits, count),
            }
        }
        if !self.survivors.is_empty() {
            let ids = self.survivors.iter().flat_map(|&(id, _)| i64::from(id).to_le_bytes()).collect();
            let probs: Vec<f32> = self.survivors.iter().map(|&(_, prob)| prob).collect();
            parts.push("survivors/id", Dtype::I64, ids);
            parts.push("survivors/prob", Dtype::F32, le_bytes(&probs));
        }
        parts.write(writer, metadata)
    }
}

/// Token, survivors and draws of a sampler's choice.
impl<'a> From<&'a Choice> for Step<'a> {
    fn from(choice: &'a Choice) -> Self {
        Self::new(choice.token).survivors(&choice.survivors).draws(&choice.draws)
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
