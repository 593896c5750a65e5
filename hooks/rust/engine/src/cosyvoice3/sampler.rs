//! `sampling_ids`: repetition-aware sampling, drawn again while a stop token comes too early.

use serde_json::json;
use tracekit::repetition_aware::{probabilities, RepetitionAware};
use tracekit::rng::TorchRng;
use tracekit::sampling::{Choice, Draw, Event};

use crate::sampler::{multinomial, recorded_draw, DrawFrom};
use crate::trouble::{trouble, Result};

/// Draws in a row that may give a stop token where none is allowed yet.
const MOST_TRIALS: usize = 100;

/// Probabilities of logits, `[vocabulary]`; whether the step may not stop yet.
pub type Probabilities = Box<dyn Fn(&[f32], bool) -> Vec<f32>>;
/// How often the tokens so far hold a token, where that is too often to take it.
pub type TooOften = Box<dyn Fn(u32, &[u32]) -> Option<usize>>;

pub struct SpeechSampler {
    ras: RepetitionAware,
    stop: Vec<u32>,
    pub probabilities: Probabilities,
    pub too_often: TooOften,
    pub draw_from: DrawFrom,
}

impl SpeechSampler {
    pub fn new(ras: RepetitionAware, stop: Vec<u32>) -> Self {
        Self {
            ras,
            stop,
            probabilities: Box::new(|logits, _| probabilities(logits)),
            too_often: Box::new(move |token, decoded| ras.repeats(token, decoded)),
            draw_from: Box::new(multinomial),
        }
    }

    /// The token of a step, and what was drawn and rejected before it. `early`: a stop token is drawn again.
    pub fn choose(
        &self,
        rng: &mut TorchRng,
        logits: &[f32],
        decoded: &[u32],
        early: bool,
    ) -> Result<(Choice, Vec<Event>)> {
        let probs = (self.probabilities)(logits, early);
        let nucleus = self.ras.nucleus(&probs);
        let mut choice = Choice::drawn(nucleus.clone(), Vec::new());
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
        let first = recorded_draw(&self.draw_from, rng, &kept, |index| nucleus[index].0);
        let token = first.result;
        draws.push(first);
        let Some(count) = (self.too_often)(token, decoded) else { return token };
        events.push(event("repetition_fallback", token, count));
        let second = recorded_draw(&self.draw_from, rng, probs, |index| index as u32);
        let token = second.result;
        draws.push(second);
        token
    }
}

fn event(kind: &str, token: u32, count: usize) -> Event {
    Event::new(kind, json!({"token": token, "count": count}))
}
