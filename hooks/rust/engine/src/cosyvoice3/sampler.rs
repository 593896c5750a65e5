//! `sampling_ids`: repetition-aware sampling, drawn again while a stop token comes too early.

use serde_json::json;
use tracekit::repetition_aware::{probabilities, RepetitionAware};
use tracekit::rng::TorchRng;
use tracekit::sampling::{Choice, Draw, Event};

use crate::faults::Faults;
use crate::trouble::{trouble, Result};

/// Draws in a row that may give a stop token where none is allowed yet.
const MOST_TRIALS: usize = 100;

pub struct SpeechSampler<'a> {
    ras: RepetitionAware,
    stop: &'a [u32],
    faults: &'a Faults,
}

impl<'a> SpeechSampler<'a> {
    pub fn new(stated: &RepetitionAware, stop: &'a [u32], faults: &'a Faults) -> Self {
        Self { ras: faults.repetition_aware(stated), stop, faults }
    }

    /// The token of a step, and what was drawn and thrown away for it. `early`: a stop token is drawn again.
    pub fn choose(
        &self,
        rng: &mut TorchRng,
        logits: &[f32],
        decoded: &[u32],
        early: bool,
    ) -> Result<(Choice, Vec<Event>)> {
        let probs = self.faults.speech_probabilities(probabilities(logits), self.stop, early);
        let nucleus = self.ras.nucleus(&probs);
        let mut choice = Choice { survivors: nucleus.clone(), ..Choice::default() };
        let mut events = Vec::new();
        for trial in 1..=MOST_TRIALS + 1 {
            choice.token = self.once(rng, &probs, &nucleus, decoded, &mut choice.draws, &mut events);
            if !(early && self.stop.contains(&choice.token)) {
                return Ok((choice, events));
            }
            events.push(event("redraw", choice.token, trial));
        }
        Err(trouble(format!("sampling reached {MOST_TRIALS} trials and only drew stop tokens; check the input")))
    }

    /// `ras_sampling`: from the nucleus, and from everything where the last tokens hold it too often.
    fn once(
        &self,
        rng: &mut TorchRng,
        probs: &[f32],
        nucleus: &[(u32, f32)],
        decoded: &[u32],
        draws: &mut Vec<Draw>,
        events: &mut Vec<Event>,
    ) -> u32 {
        let kept: Vec<f32> = nucleus.iter().map(|one| one.1).collect();
        let token = self.draw(rng, &kept, |index| nucleus[index].0, draws);
        let count = self.ras.count(token, self.faults.looked_back_at(decoded, self.ras.win_size));
        if !self.faults.repeats(count, self.ras.most()) {
            return token;
        }
        events.push(event("repetition_fallback", token, count));
        self.draw(rng, probs, |index| index as u32, draws)
    }

    fn draw(&self, rng: &mut TorchRng, probs: &[f32], id: impl Fn(usize) -> u32, draws: &mut Vec<Draw>) -> u32 {
        let (seed, offset) = (Some(rng.initial_seed()), rng.offset());
        let (op, index) = match self.faults.draw(rng, probs) {
            Some(other) => other,
            None => ("multinomial", rng.multinomial_one(probs)),
        };
        let result = id(index);
        let words = Some(rng.offset() - offset);
        draws.push(Draw { op, generator: "mt19937", seed, offset: Some(offset), words, result });
        result
    }
}

fn event(kind: &str, token: u32, count: usize) -> Event {
    Event { kind: kind.to_string(), detail: json!({"token": token, "count": count}) }
}
