//! The generation loop: prefill, then a forward call and a draw a token, in transformers' order.

use std::time::Instant;

use tokenizers::Tokenizer;
use tracekit::follow::Follow;
use tracekit::rng::TorchRng;
use tracekit::sampling::Sampling;

use crate::faults::Faults;
use crate::model::Model;
use crate::sampler::{Context, Sampler};
use crate::trouble::Result;

/// What to generate.
pub struct Generation<'a> {
    pub prompt_text: Option<&'a str>,
    pub prompt_ids: &'a [u32],
    pub limit: usize,
    pub prefill_chunk: usize,
    pub settings: &'a Sampling,
    pub seed: u64,
    pub stop: &'a [u32],
    /// Forces the tokens of another trace, and its draws where it says so.
    pub follow: Option<&'a Follow>,
}

impl Generation<'_> {
    /// The new tokens, the stop token included where one was drawn.
    pub fn run(&self, mut model: Model<'_>, tokenizer: &Tokenizer, faults: &Faults) -> Result<Vec<u32>> {
        let text = |id: u32| tokenizer.decode(&[id], false).unwrap_or_default();
        let mut rng = TorchRng::seed(faults.seed(self.seed));
        tracekit::sequence_with(tracekit::SequenceStart {
            prompt_ids: self.prompt_ids,
            prompt_text: self.prompt_text,
            texts: tracekit::enabled().then(|| self.prompt_ids.iter().map(|&id| text(id)).collect()),
            rng_state: tracekit::enabled().then(|| rng.state()).as_ref().map(|state| &state[..]),
            ..tracekit::SequenceStart::default()
        })?;
        let began = Instant::now();
        let mut logits = self.prefill(&mut model)?;
        faults.check_places()?;
        let prefill = began.elapsed();
        let sampler = Sampler::new(self.settings, self.stop, faults);
        let stop = faults.stop_tokens(self.stop);
        let mut history = self.prompt_ids.to_vec();
        let mut reason = "length";
        for step in 0..self.limit {
            let context = Context { history: &history, prompt: self.prompt_ids.len() };
            if let Some(follow) = self.follow {
                follow.place(0, step, &mut rng)?;
            }
            if self.follow.is_some_and(|follow| step >= follow.steps(0)) {
                break;
            }
            let (choice, events) = sampler.choose(&mut rng, &logits, &context);
            let ends = |token: u32| stop.contains(&token) || faults.stops(step);
            let is_limit = step + 1 == self.limit;
            if faults.drops_last() && (ends(choice.token) || is_limit) {
                reason = if ends(choice.token) { "stop" } else { reason };
                break;
            }
            let token = tracekit::next_token(tracekit::Step {
                token: choice.token,
                text: tracekit::enabled().then(|| text(choice.token)),
                logits: &logits,
                survivors: &choice.survivors,
                draws: &choice.draws,
                events: &events,
            })?;
            history.push(token);
            let stops = ends(token);
            if stops {
                reason = "stop";
                break;
            }
            if !is_limit {
                faults.at_step(step + 1);
                logits = model.forward(&[token])?;
            }
        }
        tracekit::end_sequence(reason)?;
        let tokens = history.split_off(self.prompt_ids.len());
        let each = (began.elapsed() - prefill).as_secs_f64() * 1e3 / tokens.len().max(1) as f64;
        eprintln!("prefill {:.0} ms, then {} tokens at {each:.1} ms", prefill.as_secs_f64() * 1e3, tokens.len());
        Ok(tokens)
    }

    fn prefill(&self, model: &mut Model<'_>) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        for chunk in self.prompt_ids.chunks(self.prefill_chunk) {
            logits = model.forward(chunk)?;
        }
        debug_assert_eq!(model.cached(), self.prompt_ids.len());
        Ok(logits)
    }
}
