//! The generation loop: prefill, then a forward call and a draw a token, in transformers' order.

use std::time::Instant;

use tokenizers::Tokenizer;
use tracekit::follow::Follow;
use tracekit::rng::TorchRng;
use tracekit::{SequenceStart, Step};

use crate::model::CausalModel;
use crate::sampler::{Choose, Context};
use crate::trouble::Result;

/// When a generation ends.
pub trait Ends {
    /// Whether the token of a step is the last one.
    fn at(&self, step: usize, token: u32) -> bool;

    /// Whether that token, or the one that reaches the limit, belongs to the sequence.
    fn gives_last(&self) -> bool {
        true
    }
}

/// It ends after one of these.
pub struct StopTokens(pub Vec<u32>);

impl Ends for StopTokens {
    fn at(&self, _step: usize, token: u32) -> bool {
        self.0.contains(&token)
    }
}

/// What to generate.
pub struct Generation<'a> {
    pub prompt_text: Option<&'a str>,
    pub prompt_ids: &'a [u32],
    pub limit: usize,
    pub prefill_chunk: usize,
    /// Positions of the prompt that the cache holds already.
    pub kept: usize,
    pub seed: u64,
    pub sampler: &'a dyn Choose,
    pub ends: &'a dyn Ends,
    /// Forces the tokens of another trace, and its draws where it says so.
    pub follow: Option<&'a Follow>,
}

impl Generation<'_> {
    /// The new tokens, the stop token included where one was drawn.
    pub fn run(&self, model: &mut dyn CausalModel, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let text = |id: u32| tokenizer.decode(&[id], false).unwrap_or_default();
        let mut rng = TorchRng::seed(self.seed);
        let texts = tracekit::enabled().then(|| self.prompt_ids.iter().map(|&id| text(id)).collect::<Vec<_>>());
        let state = tracekit::enabled().then(|| rng.state());
        let start = SequenceStart::new(self.prompt_ids).prompt_text(self.prompt_text).texts(texts);
        tracekit::sequence_with(start.rng_state(state.as_ref().map(|state| &state[..])))?;
        let began = Instant::now();
        let mut logits = self.prefill(model)?;
        let prefill = began.elapsed();
        let mut history = self.prompt_ids.to_vec();
        let mut reason = "length";
        for step in 0..self.limit {
            if let Some(follow) = self.follow {
                follow.place(0, step, &mut rng)?;
            }
            if self.follow.is_some_and(|follow| step >= follow.steps(0)) {
                break;
            }
            let context = Context { history: &history, prompt: self.prompt_ids.len() };
            let (choice, events) = self.sampler.choose(&mut rng, &logits, &context);
            let is_limit = step + 1 == self.limit;
            if !self.ends.gives_last() && (self.ends.at(step, choice.token) || is_limit) {
                reason = if self.ends.at(step, choice.token) { "stop" } else { reason };
                break;
            }
            let own_text = tracekit::enabled().then(|| text(choice.token));
            let token = tracekit::next_token(Step::from(&choice).text(own_text).logits(&logits).events(&events))?;
            history.push(token);
            if self.ends.at(step, token) {
                reason = "stop";
                break;
            }
            if !is_limit {
                logits = model.forward(&[token])?;
            }
        }
        tracekit::end_sequence(reason)?;
        let tokens = history.split_off(self.prompt_ids.len());
        let each = (began.elapsed() - prefill).as_secs_f64() * 1e3 / tokens.len().max(1) as f64;
        eprintln!("prefill {:.0} ms, then {} tokens at {each:.1} ms", prefill.as_secs_f64() * 1e3, tokens.len());
        Ok(tokens)
    }

    fn prefill(&self, model: &mut dyn CausalModel) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        for chunk in self.prompt_ids[self.kept..].chunks(self.prefill_chunk) {
            logits = model.forward(chunk)?;
        }
        Ok(logits)
    }
}
