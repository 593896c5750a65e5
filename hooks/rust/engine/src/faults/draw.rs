//! Seam: the generator and the draw.

use tracekit::rng::TorchRng;

use super::{Faults, Kind as Any, Row, Run};
use crate::faults::words::Words;

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

    fn has_draw(&self, kind: Kind) -> bool {
        self.find_draw(|found| (found == kind).then_some(())).is_some()
    }

    /// The seed that the generator really gets.
    pub fn seed(&self, seed: u64) -> u64 {
        let delta = self.find_draw(|kind| match kind {
            Kind::Seed { delta } => Some(delta),
            _ => None,
        });
        self.unseeded().unwrap_or_else(|| seed.wrapping_add_signed(delta.unwrap_or(0)))
    }

    /// Whether the token of a step is the largest logit although the run draws.
    pub fn is_greedy(&self, step: usize) -> bool {
        step == 0 && self.has_draw(Kind::FirstGreedy)
    }

    /// What happens to the generator before the draw of a step.
    pub fn before_draw(&self, rng: &mut TorchRng, step: usize) {
        if self.has_draw(Kind::SeedEachStep) {
            *rng = TorchRng::seed(rng.initial_seed());
        }
        if self.has_draw(Kind::ExtraDraw { step }) {
            rng.skip(1);
        }
    }

    /// Another way of drawing from probabilities, `[vocabulary]`: its name, and the token.
    pub fn draw(&self, rng: &mut TorchRng, probs: &[f32]) -> Option<(&'static str, usize)> {
        self.find_draw(|kind| match kind {
            Kind::InverseCdf => Some("uniform"),
            Kind::Uniform | Kind::Compact => Some("multinomial"),
            _ => None,
        })
        .map(|op| (op, self.drawn(rng, probs)))
    }

    fn drawn(&self, rng: &mut TorchRng, probs: &[f32]) -> usize {
        if self.has_draw(Kind::InverseCdf) {
            return inverse_cdf(rng, probs);
        }
        if self.has_draw(Kind::Uniform) {
            // Of two words each, as the exponential ones are.
            return race(probs.iter().map(|&p| p / rng.rand_f64() as f32));
        }
        let survivors: Vec<usize> = (0..probs.len()).filter(|&id| probs[id] > 0.0).collect();
        let compact: Vec<f32> = survivors.iter().map(|&id| probs[id]).collect();
        survivors[rng.multinomial_one(&compact)]
    }
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
