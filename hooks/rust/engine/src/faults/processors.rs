//! Seam: the logits processors: their order, what they keep, which tokens they count as seen.

use std::cell::RefCell;
use std::rc::Rc;

use tracekit::sampling::{keep_top_k, penalise, softmax, Sampling};

use super::words::Words;
use super::{Faults, Kind as Any, Row, Run};
use crate::sampler::{Context, Processor, MIN_P, PENALTY, TEMPERATURE, TOP_K, TOP_P};

pub const TABLE: &[Row] = &[
    ("temperature-after-top-p", "Temperature comes last, behind the cuts"),
    ("top-p-before-top-k", "Top-p comes before top-k: its mass is that of all tokens"),
    ("top-k-off-by-one", "K + 1 tokens survive top-k"),
    ("top-k-strict", "What equals the k-th largest logit goes, the k-th itself too"),
    ("top-k-no-ties", "Exactly K tokens survive top-k, ties by lower id"),
    ("top-p-drops-crossing", "The token that crosses top-p goes"),
    ("min-p-on-logits", "Min-p is a share of the largest logit, not of the largest probability"),
    ("removed-to-zero", "Tokens that were removed have the logit 0 in the end"),
    ("eos-escapes-filter", "The stop tokens' logits from before the cuts are put back behind them"),
    ("min-length[:N]", "Stop tokens are barred from the first N, 8, tokens"),
    ("penalty-squared", "The penalty is applied twice"),
    ("penalty-divides-negative", "The penalty divides negative logits too"),
    ("penalty-inverted-sign", "The penalty multiplies positive logits and divides negative ones"),
    ("penalty-generated-only", "The penalty does not count the prompt"),
    ("penalty-stale", "The penalty does not count the newest token"),
    ("penalty-window[:N]", "The penalty counts the last N, 4, tokens alone"),
    ("penalty-per-occurrence", "The penalty is applied once for each time that a token was seen"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    TemperatureLast,
    TopPFirst,
    TopKOneMore,
    TopKStrict,
    TopKNoTies,
    TopPDropsCrossing,
    MinPOnLogits,
    RemovedToZero,
    EosEscapes,
    MinLength { tokens: usize },
    PenaltyTwice,
    PenaltyDivides,
    PenaltyInverted,
    PenaltyGeneratedOnly,
    PenaltyStale,
    PenaltyWindow { tokens: usize },
    PenaltyEach,
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    Some(match name {
        "temperature-after-top-p" => Kind::TemperatureLast,
        "top-p-before-top-k" => Kind::TopPFirst,
        "top-k-off-by-one" => Kind::TopKOneMore,
        "top-k-strict" => Kind::TopKStrict,
        "top-k-no-ties" => Kind::TopKNoTies,
        "top-p-drops-crossing" => Kind::TopPDropsCrossing,
        "min-p-on-logits" => Kind::MinPOnLogits,
        "removed-to-zero" => Kind::RemovedToZero,
        "eos-escapes-filter" => Kind::EosEscapes,
        "min-length" => Kind::MinLength { tokens: words.count(8).filter(|&tokens| tokens > 0)? },
        "penalty-squared" => Kind::PenaltyTwice,
        "penalty-divides-negative" => Kind::PenaltyDivides,
        "penalty-inverted-sign" => Kind::PenaltyInverted,
        "penalty-generated-only" => Kind::PenaltyGeneratedOnly,
        "penalty-stale" => Kind::PenaltyStale,
        "penalty-window" => Kind::PenaltyWindow { tokens: words.count(4).filter(|&tokens| tokens > 0)? },
        "penalty-per-occurrence" => Kind::PenaltyEach,
        _ => return None,
    })
}

impl Kind {
    pub fn cannot_show(&self, run: &Run) -> Option<String> {
        let Sampling { top_k, top_p, min_p, .. } = run.settings;
        let wants = |what: &str| Some(format!("wants {what}"));
        let has_cut = top_k.is_some() || top_p.is_some() || min_p.is_some();
        match self {
            Self::TemperatureLast => run.wants_temperature().or_else(|| run.wants_top_p()),
            Self::TopPFirst => run.wants_top_p().or_else(|| top_k.is_none().then(|| "wants a top_k".into())),
            Self::TopKOneMore | Self::TopKStrict | Self::TopKNoTies if top_k.is_none() => wants("a top_k"),
            Self::TopKStrict if *top_k == Some(1) => wants("a top_k of 2 or more"),
            Self::TopKOneMore | Self::TopKStrict | Self::TopKNoTies => None,
            Self::TopPDropsCrossing => run.wants_top_p(),
            Self::MinPOnLogits => min_p.is_none().then(|| "wants a min_p".into()),
            Self::RemovedToZero | Self::EosEscapes if !has_cut => wants("a top_k, top_p or min_p"),
            Self::RemovedToZero => None,
            Self::EosEscapes | Self::MinLength { .. } if run.stop.is_empty() => wants("a model with a stop token"),
            Self::EosEscapes | Self::MinLength { .. } => None,
            _ => run.wants_penalty(),
        }
    }

    /// Changes the chain of these settings.
    fn change(self, chain: &mut Vec<Processor>, used: &Sampling, stop: &[u32]) {
        let k = used.top_k.unwrap_or(1);
        let p = used.top_p.unwrap_or(1.0);
        let penalty = used.repetition_penalty.unwrap_or(1.0);
        match self {
            Self::TemperatureLast => chain.sort_by_key(|processor| processor.class == TEMPERATURE),
            Self::TopPFirst => chain.sort_by_key(|processor| rank(processor.class)),
            Self::TopKOneMore => replace(chain, TOP_K, move |scores, _| keep_top_k(scores, k + 1)),
            Self::TopKStrict => replace(chain, TOP_K, move |scores, _| keep_above_kth(scores, k)),
            Self::TopKNoTies => replace(chain, TOP_K, move |scores, _| keep_exactly(scores, k)),
            Self::TopPDropsCrossing => replace(chain, TOP_P, move |scores, _| keep_within(scores, p)),
            Self::MinPOnLogits => {
                let share = used.min_p.unwrap_or(0.0) as f32;
                replace(chain, MIN_P, move |scores, _| keep_share_of_logit(scores, share));
            }
            Self::RemovedToZero => wrap(chain.last_mut(), |scores| {
                scores.iter_mut().filter(|score| **score == f32::NEG_INFINITY).for_each(|score| *score = 0.0);
            }),
            Self::EosEscapes => put_back(chain, stop),
            Self::MinLength { tokens } => chain.insert(0, bar(stop, tokens)),
            Self::PenaltyTwice => {
                let apply =
                    move |scores: &mut [f32], context: &Context| penalise(scores, Some(penalty), context.history);
                chain.insert(0, Processor::new(PENALTY, "penalty", penalty, apply));
            }
            Self::PenaltyDivides => replace(chain, PENALTY, move |scores, context| {
                for_seen(scores, context.history, |score| score / penalty as f32);
            }),
            Self::PenaltyInverted => replace(chain, PENALTY, move |scores, context| {
                let penalty = penalty as f32;
                for_seen(scores, context.history, |score| if score > 0.0 { score * penalty } else { score / penalty });
            }),
            Self::PenaltyGeneratedOnly => replace(chain, PENALTY, move |scores, context| {
                penalise(scores, Some(penalty), &context.history[context.prompt..]);
            }),
            Self::PenaltyStale => replace(chain, PENALTY, move |scores, context| {
                let known = context.history.len().saturating_sub(1).max(context.prompt);
                penalise(scores, Some(penalty), &context.history[..known]);
            }),
            Self::PenaltyWindow { tokens } => replace(chain, PENALTY, move |scores, context| {
                let first = context.history.len().saturating_sub(tokens);
                penalise(scores, Some(penalty), &context.history[first..]);
            }),
            Self::PenaltyEach => replace(chain, PENALTY, move |scores, context| {
                context.history.iter().for_each(|id| penalise(scores, Some(penalty), &[*id]));
            }),
        }
    }
}

impl Faults {
    pub(super) fn plant_processors(&self, chain: &mut Vec<Processor>, used: &Sampling, stop: &[u32]) {
        for fault in &self.list {
            if let Any::Processors(kind) = &fault.kind {
                kind.change(chain, used, stop);
            }
        }
    }
}

/// Order in which top-p comes before top-k; the others keep theirs.
fn rank(class: &str) -> usize {
    [PENALTY, TEMPERATURE, TOP_P, TOP_K].iter().position(|&known| known == class).unwrap_or(4)
}

fn replace(chain: &mut [Processor], class: &str, apply: impl Fn(&mut [f32], &Context) + Clone + 'static) {
    for processor in chain.iter_mut().filter(|processor| processor.class == class) {
        processor.apply = Box::new(apply.clone());
    }
}

/// Does something behind a processor.
fn wrap(processor: Option<&mut Processor>, after: impl Fn(&mut [f32]) + 'static) {
    let Some(processor) = processor else { return };
    let inner = std::mem::replace(&mut processor.apply, Box::new(|_, _| {}));
    processor.apply = Box::new(move |scores, context| {
        inner(scores, context);
        after(scores);
    });
}

/// The stop tokens' scores from before the first cut are those behind the last.
fn put_back(chain: &mut [Processor], stop: &[u32]) {
    let Some(first) = chain.iter_mut().find(|processor| [TOP_K, TOP_P, MIN_P].contains(&processor.class)) else {
        return;
    };
    let kept: Rc<RefCell<Vec<(usize, f32)>>> = Rc::default();
    let (save, stop) = (Rc::clone(&kept), stop.to_vec());
    let inner = std::mem::replace(&mut first.apply, Box::new(|_, _| {}));
    first.apply = Box::new(move |scores, context| {
        let ids = stop.iter().map(|&id| id as usize).filter(|&id| id < scores.len());
        *save.borrow_mut() = ids.map(|id| (id, scores[id])).collect();
        inner(scores, context);
    });
    wrap(chain.last_mut(), move |scores| kept.borrow().iter().for_each(|&(id, score)| scores[id] = score));
}

/// transformers' processor for a least number of new tokens.
fn bar(stop: &[u32], tokens: usize) -> Processor {
    let stop = stop.to_vec();
    let apply = move |scores: &mut [f32], context: &Context| {
        if context.history.len() - context.prompt < tokens {
            for_seen(scores, &stop, |_| f32::NEG_INFINITY);
        }
    };
    Processor::new("MinNewTokensLengthLogitsProcessor", "min_new_tokens", tokens, apply)
}

/// Changes the score of each of these tokens once.
fn for_seen(scores: &mut [f32], ids: &[u32], change: impl Fn(f32) -> f32) {
    let mut seen = ids.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = change(*score);
        }
    }
}

/// Ids by descending score, ties by lower id.
fn descending(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order
}

fn keep_exactly(scores: &mut [f32], k: usize) {
    descending(scores).into_iter().skip(k).for_each(|id| scores[id] = f32::NEG_INFINITY);
}

/// The largest always stays.
fn keep_above_kth(scores: &mut [f32], k: usize) {
    let order = descending(scores);
    let (top, kth) = (scores[order[0]], scores[order[k.min(scores.len()) - 1]]);
    let goes = |score: f32| score <= kth && score < top;
    scores.iter_mut().filter(|score| goes(**score)).for_each(|score| *score = f32::NEG_INFINITY);
}

/// The largest set of mass `p` or less; the first always stays.
fn keep_within(scores: &mut [f32], p: f64) {
    let probs = softmax(scores);
    let mut mass = 0f64;
    for (place, id) in descending(scores).into_iter().enumerate() {
        mass += f64::from(probs[id]);
        if place > 0 && mass > p {
            scores[id] = f32::NEG_INFINITY;
        }
    }
}

fn keep_share_of_logit(scores: &mut [f32], share: f32) {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let goes = |score: f32| score < share * top && score < top;
    scores.iter_mut().filter(|score| goes(**score)).for_each(|score| *score = f32::NEG_INFINITY);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracekit::sampling::keep_top_p;

    const SCORES: [f32; 5] = [1.0, 3.0, 2.0, 3.0, 2.0];

    fn kept(cut: impl Fn(&mut [f32])) -> Vec<usize> {
        let mut scores = SCORES;
        cut(&mut scores);
        (0..5).filter(|&id| scores[id] > f32::NEG_INFINITY).collect()
    }

    #[test]
    fn the_wrong_cuts_keep_what_they_say() {
        assert_eq!(kept(|scores| keep_top_k(scores, 3)), [1, 2, 3, 4]);
        assert_eq!(kept(|scores| keep_exactly(scores, 3)), [1, 2, 3]);
        assert_eq!(kept(|scores| keep_above_kth(scores, 3)), [1, 3]);
        assert_eq!(kept(|scores| keep_above_kth(scores, 1)), [1, 3]);
        // Masses 0.35, 0.35, 0.13, 0.13, 0.05.
        assert_eq!(kept(|scores| keep_top_p(scores, 0.8)), [1, 3, 4]);
        assert_eq!(kept(|scores| keep_within(scores, 0.8)), [1, 3]);
        assert_eq!(kept(|scores| keep_within(scores, 0.1)), [1]);
        assert_eq!(kept(|scores| keep_share_of_logit(scores, 0.5)), [1, 2, 3, 4]);
    }

    #[test]
    fn a_stop_token_comes_back_as_it_was_before_the_cuts() {
        let settings = Sampling::greedy().temperature(2.0).top_k(2).top_p(0.4);
        let mut chain = crate::sampler::processors(&settings);
        Kind::EosEscapes.change(&mut chain, &settings, &[0]);
        let mut scores = SCORES;
        chain.iter().for_each(|each| (each.apply)(&mut scores, &Context { history: &[], prompt: 0 }));
        assert_eq!(scores[0], 0.5);
        assert_eq!(scores.iter().filter(|score| score.is_finite()).count(), 2);
    }
}
