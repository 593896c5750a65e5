//! Seam: the sampling settings that the sampler really uses; the trace states the caller's.

use tracekit::sampling::Sampling;

use super::words::Words;
use super::{Faults, Kind as Any, Row, Run};

pub const TABLE: &[Row] = &[
    ("top-p[:P]", "Another top-p, 0.5, than the one stated"),
    ("wrong-default-top-k[:K]", "Another top-k, 20, than the one stated; 0: none"),
    ("temperature-ignored", "The stated temperature is not applied"),
    ("swapped-temperature-top-p", "The numbers of temperature and top-p are swapped"),
    ("temperature-zero-as-one", "A greedy run draws at temperature 1"),
    ("penalty-ignored", "The stated repetition penalty is not applied"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    TopP { p: f64 },
    TopK { k: usize },
    TemperatureIgnored,
    Swapped,
    ZeroAsOne,
    PenaltyIgnored,
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    Some(match name {
        "top-p" => Kind::TopP { p: words.positive(0.5).filter(|&p| p <= 1.0)? },
        "wrong-default-top-k" => Kind::TopK { k: words.count(20)? },
        "temperature-ignored" => Kind::TemperatureIgnored,
        "swapped-temperature-top-p" => Kind::Swapped,
        "temperature-zero-as-one" => Kind::ZeroAsOne,
        "penalty-ignored" => Kind::PenaltyIgnored,
        _ => return None,
    })
}

impl Kind {
    pub fn cannot_show(&self, run: &Run) -> Option<String> {
        let Sampling { temperature, top_k, top_p, .. } = run.settings;
        match *self {
            Self::ZeroAsOne => (!run.is_greedy()).then(|| "wants --greedy".to_string()),
            Self::PenaltyIgnored => run.wants_penalty(),
            Self::TopP { p } if *top_p == Some(p) => Some(format!("top_p is {p} already")),
            Self::TopK { k } if top_k.unwrap_or(0) == k => Some(format!("top_k is {k} already")),
            Self::TemperatureIgnored => run.wants_temperature(),
            Self::Swapped if top_p.is_none() || top_p == temperature => {
                Some("wants a temperature and a top_p that differ".into())
            }
            _ => run.wants_draws(),
        }
    }
}

impl Faults {
    /// The settings as they are used.
    pub(super) fn settings(&self, stated: &Sampling) -> Sampling {
        let mut used = stated.clone();
        for fault in &self.list {
            let Any::Settings(kind) = &fault.kind else { continue };
            match *kind {
                Kind::TopP { p } => used.top_p = Some(p),
                Kind::TopK { k } => used.top_k = Some(k),
                Kind::TemperatureIgnored | Kind::ZeroAsOne => used.temperature = Some(1.0),
                Kind::Swapped => std::mem::swap(&mut used.temperature, &mut used.top_p),
                Kind::PenaltyIgnored => used.repetition_penalty = None,
            }
        }
        used
    }
}
