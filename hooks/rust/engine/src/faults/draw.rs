//! Seam: the generator and the draw.

use tracekit::rng::TorchRng;
use tracekit::sampling::{argmax, Choice, Event, Sampling};

use super::words::Words;
use super::{Faults, Kind as Any, Row, Run};
use crate::sampler::{Choose, Context, DrawFrom, Sampler};

pub const TABLE: &[Row] = &[
    ("inverse-cdf", "One uniform number against the cumulative sum, in place of the exponential race"),
    ("uniform-for-exponential", "The race divides by uniform numbers in place of exponential ones"),
    ("compact-draw", "The race draws numbers for the survivors alone, not for the whole vocabulary"),
    ("seed[:DELTA]", "The generator gets the stated seed plus DELTA, 1"),
    ("seed-each-step", "The generator is seeded anew at each step"),
    ("extra-draw[:STEP]", "One more number is drawn, and thrown away, before the draw of STEP, 4"),
    ("first-token-greedy", "The first token is the largest logit; the settings apply from the second on"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    InverseCdf,
    Uniform,
    Compact,
    Seed { delta: i64 },
    SeedEachStep,
    ExtraDraw { step: usize },
    FirstGreedy,
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    Some(match name {
        "inverse-cdf" => Kind::InverseCdf,
        "uniform-for-exponential" => Kind::Uniform,
        "compact-draw" => Kind::Compact,
        "seed" => Kind::Seed { delta: words.word().map_or(Some(1), |word| word.parse().ok())? },
        "seed-each-step" => Kind::SeedEachStep,
        "extra-draw" => Kind::ExtraDraw { step: words.count(4)? },
        "first-token-greedy" => Kind::FirstGreedy,
        _ => return None,
    })
}

impl Kind {
    pub fn cannot_show(&self, run: &Run) -> Option<String> {
        match *self {
            Self::ExtraDraw { step } => run.wants_draws().or_else(|| run.wants_step(step)),
            Self::SeedEachStep => run.wants_draws().or_else(|| run.wants_step(1)),
            _ => run.wants_draws(),
        }
    }
}

impl Faults {
    fn find_draw<T>(&self, pick: impl Fn(Kind) -> Option<T>) -> Option<T> {
        self.find(|kind| match kind {
            Any::Draw(kind) => pick(*kind),
            _ => None,
        })
    }

    /// The seed that the generator really gets.
    pub fn seed(&self, seed: u64) -> u64 {
        let delta = self.find_draw(|kind| match kind {
            Kind::Seed { delta } => Some(delta),
            _ => None,
        });
        self.unseeded().unwrap_or_else(|| seed.wrapping_add_signed(delta.unwrap_or(0)))
    }

    /// The sampler of these settings, with faults in its settings, processors and draws.
    pub fn sampler(&self, stated: &Sampling, stop: &[u32]) -> Box<dyn Choose> {
        let used = self.settings(stated);
        let mut sampler = Sampler::new(&used);
        self.plant_processors(&mut sampler.chain, &used, stop);
        self.plant_draw(&mut sampler.draw_from);
        let timed = |kind: &Kind| matches!(kind, Kind::FirstGreedy | Kind::SeedEachStep | Kind::ExtraDraw { .. });
        let kinds: Vec<Kind> = self.draw_kinds().filter(timed).collect();
        match kinds.is_empty() {
            true => Box::new(sampler),
            false => Box::new(FaultySampler { inner: sampler, kinds }),
        }
    }

    pub(super) fn plant_draw(&self, draw_from: &mut DrawFrom) {
        let kinds: Vec<Kind> = self.draw_kinds().collect();
        if kinds.contains(&Kind::InverseCdf) {
            *draw_from = Box::new(|rng, probs| ("uniform", inverse_cdf(rng, probs)));
        } else if kinds.contains(&Kind::Uniform) {
            // Of two words each, as the exponential ones are.
            *draw_from = Box::new(|rng, probs| ("multinomial", race(probs.iter().map(|&p| p / rng.rand_f64() as f32))));
        } else if kinds.contains(&Kind::Compact) {
            *draw_from = Box::new(|rng, probs| ("multinomial", compact(rng, probs)));
        }
    }

    fn draw_kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        self.list.iter().filter_map(|fault| match &fault.kind {
            Any::Draw(kind) => Some(*kind),
            _ => None,
        })
    }
}

/// A sampler with faults at some of its steps.
struct FaultySampler {
    inner: Sampler,
    kinds: Vec<Kind>,
}

impl Choose for FaultySampler {
    fn choose(&self, rng: &mut TorchRng, logits: &[f32], context: &Context) -> (Choice, Vec<Event>) {
        let step = context.history.len() - context.prompt;
        if step == 0 && self.kinds.contains(&Kind::FirstGreedy) {
            return (Choice::greedy(argmax(logits) as u32), Vec::new());
        }
        if self.kinds.contains(&Kind::SeedEachStep) {
            *rng = TorchRng::seed(rng.initial_seed());
        }
        if self.kinds.contains(&Kind::ExtraDraw { step }) {
            rng.skip(1);
        }
        self.inner.choose(rng, logits, context)
    }
}

/// The race among the survivors alone.
fn compact(rng: &mut TorchRng, probs: &[f32]) -> usize {
    let survivors: Vec<usize> = (0..probs.len()).filter(|&id| probs[id] > 0.0).collect();
    let compact: Vec<f32> = survivors.iter().map(|&id| probs[id]).collect();
    survivors[rng.multinomial_one(&compact)]
}

/// One uniform number against the cumulative sum, in order; probabilities need not add up to 1.
fn inverse_cdf(rng: &mut TorchRng, probs: &[f32]) -> usize {
    let total: f64 = probs.iter().map(|&p| f64::from(p)).sum();
    let goal = rng.rand_f64() * total;
    let mut sum = 0.0;
    let hit = probs.iter().position(|&p| {
        sum += f64::from(p);
        sum > goal
    });
    hit.or_else(|| probs.iter().rposition(|&p| p > 0.0)).unwrap_or(0)
}

/// The first of the largest.
fn race(scores: impl Iterator<Item = f32>) -> usize {
    scores.enumerate().fold((0, f32::NEG_INFINITY), |best, one| if one.1 > best.1 { one } else { best }).0
}
