//! CosyVoice's repetition-aware sampling, in the pieces that its program is made of.
//!
//! Source: `nucleus_sampling` and `ras_sampling` of FunAudioLLM's CosyVoice, `cosyvoice/utils/common.py`. A token is drawn
//! from the nucleus with random numbers for its survivors alone, in descending order of probability; where the last tokens
//! hold it too often, it is drawn again from everything. Both draws are torch's exponential race.

use serde_json::{json, Value};

use crate::sampling::softmax;

/// The numbers of `ras_sampling`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RepetitionAware {
    /// The nucleus ends where its mass reaches this.
    pub top_p: f64,
    /// It holds at most this many tokens.
    pub top_k: usize,
    /// Tokens that are looked back at.
    pub win_size: usize,
    /// Share of them that a token may be before it is drawn again.
    pub tau_r: f64,
}

impl RepetitionAware {
    /// The rule with these numbers.
    pub const fn new(top_p: f64, top_k: usize, win_size: usize, tau_r: f64) -> Self {
        Self { top_p, top_k, win_size, tau_r }
    }

    /// Its settings, as a sequence's `sampling` holds them.
    pub fn to_json(&self) -> Value {
        json!({
            "sampler": "ras", "top_p": self.top_p, "top_k": self.top_k, "win_size": self.win_size, "tau_r": self.tau_r,
        })
    }

    /// What the nucleus keeps of probabilities `[vocabulary]`: descending, ties by lower id.
    pub fn nucleus(&self, probs: &[f32]) -> Vec<(u32, f32)> {
        let mut order: Vec<usize> = (0..probs.len()).collect();
        order.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]).then(a.cmp(&b)));
        let (limit, mut sum) = (self.top_p as f32, 0f32);
        let mut kept = Vec::new();
        for id in order.into_iter().take(self.top_k.max(1)) {
            // The first is always taken; torch compares the float32 sum with top_p in float32.
            if !kept.is_empty() && sum >= limit {
                break;
            }
            sum += probs[id];
            kept.push((id as u32, probs[id]));
        }
        kept
    }

    /// How often the last `win_size` tokens hold `token`.
    pub fn count(&self, token: u32, decoded: &[u32]) -> usize {
        let first = decoded.len().saturating_sub(self.win_size);
        decoded[first..].iter().filter(|&&other| other == token).count()
    }

    /// How often the last `win_size` tokens hold `token`, where it is drawn again for that.
    pub fn repeats(&self, token: u32, decoded: &[u32]) -> Option<usize> {
        let count = self.count(token, decoded);
        (count as f64 >= self.most()).then_some(count)
    }

    /// From how often on a token is drawn again.
    pub fn most(&self) -> f64 {
        self.win_size as f64 * self.tau_r
    }
}

/// log-softmax in float32 with a float64 sum, `[vocabulary]`.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = logits.iter().map(|&x| f64::from((x - top).exp())).sum::<f64>();
    let log = (sum as f32).ln();
    logits.iter().map(|&x| x - top - log).collect()
}

/// The probabilities that the sampler works with: its scores are log-probabilities, which it puts through softmax again.
pub fn probabilities(logits: &[f32]) -> Vec<f32> {
    softmax(&log_softmax(logits))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAS: RepetitionAware = RepetitionAware { top_p: 0.8, top_k: 3, win_size: 10, tau_r: 0.1 };

    #[test]
    fn the_token_that_crosses_stays_and_k_ends_it() {
        let ids = |ras: RepetitionAware, probs: &[f32]| ras.nucleus(probs).iter().map(|one| one.0).collect::<Vec<_>>();
        let probs = [0.1, 0.4, 0.3, 0.15, 0.05];
        assert_eq!(ids(RAS, &probs), [1, 2, 3]);
        assert_eq!(ids(RepetitionAware { top_k: 2, ..RAS }, &probs), [1, 2]);
        assert_eq!(ids(RepetitionAware { top_p: 0.7, ..RAS }, &probs), [1, 2]);
        assert_eq!(ids(RepetitionAware { top_p: 0.0, ..RAS }, &probs), [1]);
        assert_eq!(ids(RAS, &[0.25; 4]), [0, 1, 2], "ties by lower id");
    }

    #[test]
    fn the_window_is_the_last_tokens() {
        let decoded: Vec<u32> = (0..11).collect();
        assert_eq!((RAS.count(0, &decoded), RAS.count(1, &decoded), RAS.count(7, &[7, 7])), (0, 1, 2));
        assert!((RAS.most() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn probabilities_are_the_softmax() {
        let probs = probabilities(&[1.0, 3.0, 2.0]);
        let plain = softmax(&[1.0, 3.0, 2.0]);
        assert!(probs.iter().zip(&plain).all(|(one, other)| (one - other).abs() < 1e-6));
    }
}
