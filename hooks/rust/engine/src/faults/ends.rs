//! Seam: the ends of a sequence: the prompt that goes in, and where the generation stops.

use super::words::Words;
use super::{Faults, Kind as Any, Row, Run};
use crate::generate::{Ends, StopTokens};

pub const TABLE: &[Row] = &[
    ("bos-twice", "The prompt's first token comes twice"),
    ("stop-early[:STEP]", "The generation ends after STEP, 8"),
    ("wrong-eos[:ID]", "The token ID, 0, stops the generation in place of the stop tokens"),
    ("eos-ignored", "No token stops the generation"),
    ("eos-first-only", "Of several stop tokens only the first one stops the generation"),
    ("max-tokens-off-by-one[:DELTA]", "The most new tokens are DELTA, 1, more than stated; -1: one fewer"),
    ("drop-last-token", "The last token is drawn but not given out"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    BosTwice,
    StopEarly { step: usize },
    WrongEos { id: u32 },
    EosIgnored,
    EosFirstOnly,
    MaxTokens { delta: isize },
    DropLast,
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    Some(match name {
        "bos-twice" => Kind::BosTwice,
        "stop-early" => Kind::StopEarly { step: words.count(8)? },
        "wrong-eos" => Kind::WrongEos { id: words.word().map_or(Some(0), |word| word.parse().ok())? },
        "eos-ignored" => Kind::EosIgnored,
        "eos-first-only" => Kind::EosFirstOnly,
        "max-tokens-off-by-one" => {
            let delta = words.word().map_or(Some(1), |word| word.parse().ok());
            Kind::MaxTokens { delta: delta.filter(|&delta| delta != 0)? }
        }
        "drop-last-token" => Kind::DropLast,
        _ => return None,
    })
}

impl Kind {
    pub fn cannot_show(&self, run: &Run) -> Option<String> {
        let wants = |what: &str| Some(format!("wants {what}"));
        match *self {
            Self::StopEarly { step } => run.wants_step(step),
            Self::WrongEos { id } if run.stop == [id] => Some(format!("{id} is the stop token")),
            Self::EosIgnored if run.stop.is_empty() => wants("a model with a stop token"),
            Self::EosFirstOnly if run.stop.len() < 2 => wants("a model with several stop tokens"),
            Self::MaxTokens { delta } if run.limit.checked_add_signed(delta).is_none_or(|limit| limit == 0) => {
                wants("a longer run")
            }
            Self::DropLast if run.limit < 2 => wants("a run of 2 or more new tokens"),
            _ => None,
        }
    }
}

impl Faults {
    fn find_end<T>(&self, pick: impl Fn(Kind) -> Option<T>) -> Option<T> {
        self.find(|kind| match kind {
            Any::Ends(kind) => pick(*kind),
            _ => None,
        })
    }

    fn has_end(&self, kind: Kind) -> bool {
        self.find_end(|found| (found == kind).then_some(())).is_some()
    }

    /// The prompt as it was encoded.
    pub fn prompt(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(&first) = ids.first().filter(|_| self.has_end(Kind::BosTwice)) {
            ids.insert(0, first);
        }
        ids
    }

    /// Most new tokens.
    pub fn limit(&self, stated: usize) -> usize {
        let delta = self.find_end(|kind| match kind {
            Kind::MaxTokens { delta } => Some(delta),
            _ => None,
        });
        stated.saturating_add_signed(delta.unwrap_or(0))
    }

    /// The tokens that stop the generation.
    pub fn stop_tokens(&self, stated: &[u32]) -> Vec<u32> {
        let other = self.find_end(|kind| match kind {
            Kind::WrongEos { id } => Some(vec![id]),
            Kind::EosIgnored => Some(Vec::new()),
            Kind::EosFirstOnly => Some(stated[..1].to_vec()),
            _ => None,
        });
        other.unwrap_or_else(|| stated.to_vec())
    }

    /// Where the generation ends, given the tokens that stop it.
    pub fn ends(&self, stop: Vec<u32>) -> Box<dyn Ends> {
        let after = self.find_end(|kind| match kind {
            Kind::StopEarly { step } => Some(step),
            _ => None,
        });
        Box::new(FaultyEnds { stop: StopTokens(stop), after, drops_last: self.has_end(Kind::DropLast) })
    }
}

struct FaultyEnds {
    stop: StopTokens,
    after: Option<usize>,
    drops_last: bool,
}

impl Ends for FaultyEnds {
    fn at(&self, step: usize, token: u32) -> bool {
        self.stop.at(step, token) || self.after == Some(step)
    }

    fn gives_last(&self) -> bool {
        !self.drops_last
    }
}
