//! A drop-in for `candle_transformers::generation`: change the `use` line, and the loop draws as torch does and records
//! its steps.
//!
//! The token is that of `torch.multinomial` behind transformers' processors, at the same seed: the exponential race over
//! the whole vocabulary. candle's own processor draws otherwise (rand's `StdRng`, inverse CDF), so that no seed gives
//! the same tokens as a PyTorch program.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use tracekit::generation::LogitsProcessor; // was: use candle_transformers::generation::LogitsProcessor;
//!
//! let mut processor = LogitsProcessor::new(42, Some(0.8), None);
//! let logits = Tensor::new(&[1f32, 3.0, 2.0, 3.0, -1.0], &Device::Cpu)?;
//! let tokens = (0..8).map(|_| processor.sample(&logits)).collect::<candle_core::Result<Vec<u32>>>()?;
//! // torch.manual_seed(42); [torch.multinomial((logits / 0.8).softmax(-1), 1) for _ in range(8)]
//! assert_eq!(tokens, [3, 3, 1, 1, 3, 3, 1, 2]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{DType, Result, Tensor};
use serde_json::json;

use crate::recorder::{next_token, place, sampler};
use crate::rng::TorchRng;
use crate::sampling::{argmax, draw, probabilities_of, softmax, Choice, Event};
use crate::steps::Step;

/// How a token is chosen, in candle-transformers' words.
///
/// Cuts are transformers', which differ from candle-transformers' in two things: top-k keeps what ties with the k-th,
/// and top-p behind top-k counts the mass among what top-k left. `GumbelSoftmax` is left out: candle draws it from the
/// device's own generator.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Sampling {
    /// The largest logit; the lowest index wins a tie.
    ArgMax,
    /// Draws from the whole vocabulary.
    All {
        /// Divides the logits.
        temperature: f64,
    },
    /// Draws from the k largest.
    TopK {
        /// How many; 0: all.
        k: usize,
        /// Divides the logits.
        temperature: f64,
    },
    /// Draws from the smallest set of probability mass p or more.
    TopP {
        /// The mass; all where it is not between 0 and 1.
        p: f64,
        /// Divides the logits.
        temperature: f64,
    },
    /// Draws from the smallest set of mass p among the k largest.
    TopKThenTopP {
        /// How many; 0: all.
        k: usize,
        /// The mass; all where it is not between 0 and 1.
        p: f64,
        /// Divides the logits.
        temperature: f64,
    },
}

impl Sampling {
    /// The same in transformers' words.
    fn settings(&self) -> crate::sampling::Sampling {
        let (temperature, top_k, top_p) = match *self {
            Self::ArgMax => (None, None, None),
            Self::All { temperature } => (Some(temperature), None, None),
            Self::TopK { k, temperature } => (Some(temperature), Some(k), None),
            Self::TopP { p, temperature } => (Some(temperature), None, Some(p)),
            Self::TopKThenTopP { k, p, temperature } => (Some(temperature), Some(k), Some(p)),
        };
        let top_k = top_k.filter(|&k| k > 0);
        let top_p = top_p.filter(|&p| p > 0.0 && p < 1.0);
        crate::sampling::Sampling { temperature, top_k, top_p, ..Default::default() }
    }
}

/// Chooses tokens, and records each as a step where the process records. Where the process follows another trace
/// ([`crate::follow`]), that trace's tokens are given out, for as long as it goes, and what was chosen is recorded.
///
/// A program that never says [`crate::sequence`] gets one sequence, whose prompt is what the first embedding was given.
#[derive(Clone, Debug)]
pub struct LogitsProcessor {
    rng: TorchRng,
    settings: crate::sampling::Sampling,
}

impl LogitsProcessor {
    /// A processor whose generator is seeded as by `torch.manual_seed(seed)`.
    pub fn from_sampling(seed: u64, sampling: Sampling) -> Self {
        let settings = sampling.settings();
        sampler(settings.to_json(), seed);
        Self { rng: TorchRng::seed(seed), settings }
    }

    /// Draws at a temperature, from the smallest set of mass `top_p`; without a temperature (or one below 1e-7) takes
    /// the largest logit.
    pub fn new(seed: u64, temperature: Option<f64>, top_p: Option<f64>) -> Self {
        let sampling = match (temperature, top_p) {
            (None, _) => Sampling::ArgMax,
            (Some(temperature), _) if temperature < 1e-7 => Sampling::ArgMax,
            (Some(temperature), None) => Sampling::All { temperature },
            (Some(temperature), Some(p)) => Sampling::TopP { p, temperature },
        };
        Self::from_sampling(seed, sampling)
    }

    /// The next token; `logits` is `[vocabulary]`.
    ///
    /// # Errors
    /// If the logits have another shape or hold NaN. What goes wrong with the recording is none of them.
    pub fn sample(&mut self, logits: &Tensor) -> Result<u32> {
        self.sample_f(logits, |_| {})
    }

    /// As [`Self::sample`]; `f` may change the probabilities, `[vocabulary]`, between temperature and cuts.
    ///
    /// # Errors
    /// If the logits have another shape or hold NaN. What goes wrong with the recording is none of them.
    pub fn sample_f(&mut self, logits: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<u32> {
        let logits = logits.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        if logits.is_empty() || logits.iter().any(|logit| logit.is_nan()) {
            candle_core::bail!("no token can be chosen: the logits are empty or hold NaN");
        }
        place(&mut self.rng);
        let (Choice { token, survivors, draws }, events) = self.choose(&logits, f)?;
        let step = Step::new(token).logits(&logits).survivors(&survivors).draws(&draws).events(&events);
        // Recording has no errors of its own; this is the own choice, or the followed trace's token.
        Ok(next_token(step).unwrap_or(token))
    }

    fn choose(&mut self, logits: &[f32], f: impl FnOnce(&mut [f32])) -> Result<(Choice, Vec<Event>)> {
        let Some(temperature) = self.settings.temperature else {
            return Ok((Choice::greedy(argmax(logits) as u32), Vec::new()));
        };
        let mut scores: Vec<f32> = logits.iter().map(|logit| logit / temperature as f32).collect();
        let events = change(&mut scores, f);
        let probs = probabilities_of(&self.settings, scores);
        if probs.iter().any(|p| p.is_nan()) {
            candle_core::bail!("no token can be drawn: the probabilities hold NaN");
        }
        Ok((draw(&mut self.rng, &probs), events))
    }
}

/// Lets `f` change the probabilities; scores that it leaves alone keep their bits. Says how many it changed.
fn change(scores: &mut [f32], f: impl FnOnce(&mut [f32])) -> Vec<Event> {
    let before = softmax(scores);
    let mut after = before.clone();
    f(&mut after);
    let changed = before.iter().zip(&after).filter(|(before, after)| before.to_bits() != after.to_bits()).count();
    if changed == 0 {
        return Vec::new();
    }
    scores.iter_mut().zip(&after).for_each(|(score, p)| *score = p.ln());
    vec![Event::new("sample_f", json!({ "changed": changed }))]
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::sampling::choose;

    fn logits(rng: &mut TorchRng) -> Vec<f32> {
        rng.randn_f32(200).iter().map(|x| 3.0 * x).collect()
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).expect("a tensor")
    }

    #[test]
    fn every_sampling_draws_as_transformers() {
        let temperature = 0.7;
        let all = [
            Sampling::ArgMax,
            Sampling::All { temperature },
            Sampling::TopK { k: 20, temperature },
            Sampling::TopP { p: 0.8, temperature },
            Sampling::TopKThenTopP { k: 20, p: 0.8, temperature },
        ];
        for sampling in all {
            let mut source = TorchRng::seed(1);
            let mut theirs = TorchRng::seed(9);
            let mut processor = LogitsProcessor::from_sampling(9, sampling.clone());
            for _ in 0..50 {
                let values = logits(&mut source);
                let want = choose(&sampling.settings(), &mut theirs, &values, &[]).token;
                assert_eq!(processor.sample(&tensor(&values)).expect("a token"), want, "{sampling:?}");
            }
        }
    }

    #[test]
    fn new_reads_its_arguments_as_candle_does() {
        let settings = |temperature, top_p| LogitsProcessor::new(0, temperature, top_p).settings;
        assert_eq!(settings(None, Some(0.5)).temperature, None);
        assert_eq!(settings(Some(0.0), None).temperature, None);
        assert_eq!(settings(Some(0.5), Some(1.0)).top_p, None);
        assert_eq!(settings(Some(0.5), Some(0.0)).top_p, None);
        assert_eq!(settings(Some(0.5), Some(0.9)), Sampling::TopP { p: 0.9, temperature: 0.5 }.settings());
    }

    #[test]
    fn what_is_taken_away_between_is_never_drawn() {
        let mut processor = LogitsProcessor::new(3, Some(1.0), Some(0.9));
        let logits = tensor(&[5.0, 1.0, 1.0, 0.5]);
        let mut seen = [false; 4];
        for _ in 0..100 {
            seen[processor.sample_f(&logits, |probs| probs[0] = 0.0).expect("a token") as usize] = true;
        }
        assert_eq!(seen, [false, true, true, true]);
    }

    #[test]
    fn what_cannot_be_drawn_from_is_an_error() {
        let mut processor = LogitsProcessor::new(0, Some(1.0), None);
        for values in [&[][..], &[1.0, f32::NAN], &[f32::NEG_INFINITY; 2]] {
            assert!(processor.sample(&tensor(values)).is_err(), "{values:?}");
        }
        assert!(processor.sample(&tensor(&[1.0]).unsqueeze(0).expect("a row")).is_err());
    }
}
