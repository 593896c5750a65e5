//! Seam: the sampler.

use tracekit::rng::TorchRng;
use tracekit::sampling::{self, Choice, Draw, Sampling};

use super::{Faults, Kind as Any, Row, Run};
use crate::faults::words::Words;

pub const TABLE: &[Row] = &[
    ("top-p:P", "Another top-p than the one stated"),
    ("inverse-cdf", "One uniform number against the cumulative sum, in place of the exponential race"),
    ("seed[:DELTA]", "The generator gets the stated seed plus DELTA, 1"),
    ("stop-early[:STEP]", "The generation ends after STEP, 8"),
];

#[derive(Debug)]
pub enum Kind {
    TopP { p: f64 },
    InverseCdf,
    Seed { delta: i64 },
    StopEarly { step: usize },
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    Some(match name {
        "top-p" => Kind::TopP { p: words.word()?.parse().ok()? },
        "inverse-cdf" => Kind::InverseCdf,
        "seed" => Kind::Seed { delta: words.word().map_or(Some(1), |word| word.parse().ok())? },
        "stop-early" => Kind::StopEarly { step: words.count(8)? },
        _ => return None,
    })
}

impl Kind {
    pub fn cannot_show(&self, run: Run) -> Option<String> {
        match self {
            Self::StopEarly { step } if *step >= run.limit => {
                Some(format!("step {step} is not reached by {} new tokens", run.limit))
            }
            Self::StopEarly { .. } => None,
            _ if run.greedy => Some("a greedy run draws nothing; leave out --greedy".into()),
            _ => None,
        }
    }
}

impl Faults {
    fn find_sampler<T>(&self, pick: impl Fn(&Kind) -> Option<T>) -> Option<T> {
        self.find(|kind| match kind {
            Any::Sampler(kind) => pick(kind),
            _ => None,
        })
    }

    /// The seed that the generator really gets.
    pub fn seed(&self, seed: u64) -> u64 {
        let delta = self.find_sampler(|kind| match kind {
            Kind::Seed { delta } => Some(*delta),
            _ => None,
        });
        seed.wrapping_add_signed(delta.unwrap_or(0))
    }

    /// The sampler.
    pub fn choose(&self, settings: &Sampling, rng: &mut TorchRng, logits: &[f32], history: &[u32]) -> Choice {
        let mut settings = settings.clone();
        if let Some(p) = self.find_sampler(|kind| match kind {
            Kind::TopP { p } => Some(*p),
            _ => None,
        }) {
            settings.top_p = Some(p);
        }
        if self.find_sampler(|kind| matches!(kind, Kind::InverseCdf).then_some(())).is_some() {
            if let Some(probs) = sampling::probabilities(&settings, logits, history) {
                return inverse_cdf(rng, &probs);
            }
        }
        sampling::choose(&settings, rng, logits, history)
    }

    /// The stop rule.
    pub fn stops(&self, step: usize) -> bool {
        self.find_sampler(|kind| match kind {
            Kind::StopEarly { step } => Some(*step),
            _ => None,
        }) == Some(step)
    }
}

/// One uniform number against the cumulative sum, in order of token id.
fn inverse_cdf(rng: &mut TorchRng, probs: &[f32]) -> Choice {
    let offset = rng.offset();
    let goal = rng.rand_f64();
    let mut sum = 0.0;
    let hit = probs.iter().position(|&p| {
        sum += f64::from(p);
        sum > goal
    });
    let last = probs.iter().rposition(|&p| p > 0.0).unwrap_or(0);
    let token = hit.unwrap_or(last) as u32;
    let draw = Draw {
        op: "uniform",
        generator: "mt19937",
        seed: rng.initial_seed(),
        offset,
        words: rng.offset() - offset,
        result: token,
    };
    Choice { token, survivors: sampling::survivors(probs), draws: vec![draw] }
}
