//! Faults for tests and the demo: known mistakes, injected at a few seams.
//!
//! The seams are the loaded config, a layer as it is built (after its loaded tensors were hashed), a value at a site or
//! on its way into a module, the KV cache, and the sampler. Without `--fault` every seam gives back what it was given.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use candle_core::{DType, Result as CandleResult, Tensor};
use tracekit::nn::{Embedding, Linear, RmsNorm};
use tracekit::rng::TorchRng;
use tracekit::sampling::{self, Choice, Draw, Sampling};

use crate::config::{Config, Rope};
use crate::rotary::Rotary;
use crate::trouble::{trouble, Result};

/// How each fault is written, for the error message and `--help`.
pub const NAMES: &str = "rope-theta[:THETA[:LAYER]], rope-f16[:LAYER], norm-eps[:EPS[:SITE]], \
    attention-scale[:FACTOR[:LAYER]], gain:SITE:FACTOR, swap-gate-up[:LAYER], missing-bias:SITE, \
    stale-cache-row[:STEP[:LAYER]], top-p:P, inverse-cdf, seed[:DELTA], stop-early[:STEP]";

#[derive(Debug)]
enum Kind {
    RopeTheta { theta: f64, layer: Option<usize> },
    RopeF16 { layer: Option<usize> },
    NormEps { eps: f64, site: Option<String> },
    AttentionScale { factor: f64, layer: Option<usize> },
    Gain { site: String, factor: f64 },
    SwapGateUp { layer: Option<usize> },
    MissingBias { site: String },
    StaleCacheRow { step: usize, layer: usize },
    TopP { p: f64 },
    InverseCdf,
    Seed { delta: i64 },
    StopEarly { step: usize },
}

#[derive(Debug)]
struct Fault {
    text: String,
    kind: Kind,
    /// The place it names exists.
    found: AtomicBool,
}

/// The faults of this run; usually none.
#[derive(Debug, Default)]
pub struct Faults {
    list: Vec<Fault>,
    step: AtomicUsize,
}

impl Faults {
    /// Reads `NAME[:ARG...]`.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let list = texts.iter().map(|text| Fault::parse(text)).collect::<Result<_>>()?;
        Ok(Self { list, step: AtomicUsize::new(0) })
    }

    /// After a forward call: a fault whose place was never met is a mistake of the caller.
    pub fn check_places(&self) -> Result<()> {
        match self.list.iter().find(|fault| !fault.found.load(Ordering::Relaxed)) {
            Some(Fault { text, kind: Kind::MissingBias { site }, .. }) => {
                Err(trouble(format!("--fault {text}: {site} is no linear layer with a bias in this model")))
            }
            Some(fault) => Err(trouble(format!("--fault {}: there is no such place in this model", fault.text))),
            None => Ok(()),
        }
    }

    /// Before the run: a fault that cannot show in it is a mistake of the caller.
    pub fn check_run(&self, limit: usize, greedy: bool) -> Result<()> {
        for Fault { text, kind, .. } in &self.list {
            match kind {
                Kind::TopP { .. } | Kind::InverseCdf | Kind::Seed { .. } if greedy => {
                    return Err(trouble(format!("--fault {text}: a greedy run draws nothing; leave out --greedy")));
                }
                Kind::StaleCacheRow { step, .. } | Kind::StopEarly { step } if *step >= limit => {
                    return Err(trouble(format!("--fault {text}: step {step} is not reached by {limit} new tokens")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The generation step whose forward call comes next.
    pub fn at_step(&self, step: usize) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// First hit of a kind at a place.
    fn find<T>(&self, pick: impl Fn(&Kind) -> Option<T>) -> Option<T> {
        self.list.iter().find_map(|fault| {
            let hit = pick(&fault.kind);
            if hit.is_some() {
                fault.found.store(true, Ordering::Relaxed);
            }
            hit
        })
    }

    /// Seam: the loaded config. What is changed here is reported as used.
    pub fn config(&self, config: &mut Config) -> Result<()> {
        let theta = self.find(|kind| match kind {
            Kind::RopeTheta { theta, layer: None } => Some(*theta),
            _ => None,
        });
        let eps = self.find(|kind| match kind {
            Kind::NormEps { eps, site: None } => Some(*eps),
            _ => None,
        });
        replace("rope-theta", &mut config.rope.theta, theta)?;
        replace("norm-eps", &mut config.rms_norm_eps, eps)
    }

    /// Seam: the embedding table as it is built.
    pub fn embedding(&self, layer: Embedding) -> CandleResult<Embedding> {
        match self.gain_of(layer.name()) {
            Some(factor) => Embedding::named(layer.name(), (layer.embeddings() * factor)?),
            None => Ok(layer),
        }
    }

    /// Seam: a linear layer as it is built.
    pub fn linear(&self, layer: Linear) -> CandleResult<Linear> {
        let gain = self.gain_of(layer.name());
        let unbiased = |kind: &Kind| matches!(kind, Kind::MissingBias { site } if site == layer.name()).then_some(());
        let drops_bias = layer.bias().is_some() && self.find(unbiased).is_some();
        if gain.is_none() && !drops_bias {
            return Ok(layer);
        }
        let factor = gain.unwrap_or(1.0);
        let bias = layer.bias().filter(|_| !drops_bias).map(|bias| bias * factor).transpose()?;
        Ok(Linear::named(layer.name(), (layer.weight() * factor)?, bias))
    }

    /// Seam: a norm as it is built.
    pub fn norm(&self, norm: RmsNorm) -> CandleResult<RmsNorm> {
        let gain = self.gain_of(norm.name());
        let eps = self.find(|kind| match kind {
            Kind::NormEps { eps, site: Some(site) } if site == norm.name() => Some(*eps),
            _ => None,
        });
        if gain.is_none() && eps.is_none() {
            return Ok(norm);
        }
        let weight = (norm.weight() * gain.unwrap_or(1.0))?;
        Ok(RmsNorm::named(norm.name(), weight, eps.unwrap_or(norm.eps())))
    }

    /// Seam: a layer's rotary tables.
    pub fn rotary(&self, index: usize, rope: &Rope, head_dim: usize) -> Rotary {
        let theta = self.find(|kind| match kind {
            Kind::RopeTheta { theta, layer: Some(layer) } if *layer == index => Some(*theta),
            _ => None,
        });
        let rope = Rope { theta: theta.unwrap_or(rope.theta), scaling: rope.scaling.clone() };
        let mut rotary = Rotary::new(&rope, head_dim);
        let half = |kind: &Kind| matches!(kind, Kind::RopeF16 { layer } if here(*layer, index)).then_some(());
        if self.find(half).is_some() {
            rotary.table_dtype = DType::F16;
        }
        rotary
    }

    /// Seam: a layer's softmax scale.
    pub fn attention_scale(&self, index: usize, scale: f64) -> f64 {
        let factor = self.find(|kind| match kind {
            Kind::AttentionScale { factor, layer } if here(*layer, index) => Some(*factor),
            _ => None,
        });
        scale * factor.unwrap_or(1.0)
    }

    /// Seam: gate and up of a gated MLP.
    pub fn gate_up(&self, index: usize, gate: Tensor, up: Tensor) -> (Tensor, Tensor) {
        let swap = |kind: &Kind| matches!(kind, Kind::SwapGateUp { layer } if here(*layer, index)).then_some(());
        match self.find(swap) {
            Some(()) => (up, gate),
            None => (gate, up),
        }
    }

    /// Seam: a value at a site, before it is recorded.
    pub fn site(&self, name: &str, value: Tensor) -> CandleResult<Tensor> {
        match self.gain_of(name) {
            Some(factor) => value * factor,
            None => Ok(value),
        }
    }

    /// Seam: the value that a module is about to be given, before it is recorded as the module's input.
    pub fn input(&self, module: &str, value: Tensor) -> CandleResult<Tensor> {
        if self.list.is_empty() {
            return Ok(value);
        }
        self.site(&format!("{module}:in"), value)
    }

    /// Seam: the cache after this call's rows went in, [1, KV heads, positions, head_dim].
    pub fn cache(&self, index: usize, k: Tensor, v: Tensor) -> CandleResult<(Tensor, Tensor)> {
        let now = self.step.load(Ordering::Relaxed);
        let stale = |kind: &Kind| match kind {
            Kind::StaleCacheRow { step, layer } if *layer == index => Some(*step),
            _ => None,
        };
        match self.find(stale) {
            // The last row keeps what the row before it held: it was never written.
            Some(step) if step == now && k.dim(2)? > 1 => Ok((repeat_last_but_one(&k)?, repeat_last_but_one(&v)?)),
            _ => Ok((k, v)),
        }
    }

    /// Seam: the seed that the generator really gets.
    pub fn seed(&self, seed: u64) -> u64 {
        let delta = self.find(|kind| match kind {
            Kind::Seed { delta } => Some(*delta),
            _ => None,
        });
        seed.wrapping_add_signed(delta.unwrap_or(0))
    }

    /// Seam: the sampler.
    pub fn choose(&self, settings: &Sampling, rng: &mut TorchRng, logits: &[f32], history: &[u32]) -> Choice {
        let mut settings = settings.clone();
        if let Some(p) = self.find(|kind| match kind {
            Kind::TopP { p } => Some(*p),
            _ => None,
        }) {
            settings.top_p = Some(p);
        }
        if self.find(|kind| matches!(kind, Kind::InverseCdf).then_some(())).is_some() {
            if let Some(probs) = sampling::probabilities(&settings, logits, history) {
                return inverse_cdf(rng, &probs);
            }
        }
        sampling::choose(&settings, rng, logits, history)
    }

    /// Seam: the stop rule.
    pub fn stops(&self, step: usize) -> bool {
        self.find(|kind| match kind {
            Kind::StopEarly { step } => Some(*step),
            _ => None,
        }) == Some(step)
    }

    fn gain_of(&self, name: &str) -> Option<f64> {
        self.find(|kind| match kind {
            Kind::Gain { site, factor } if site == name => Some(*factor),
            _ => None,
        })
    }
}

fn replace(name: &str, setting: &mut f64, value: Option<f64>) -> Result<()> {
    match value {
        Some(value) if value == *setting => Err(trouble(format!("--fault {name}: the model uses {value} already"))),
        Some(value) => {
            *setting = value;
            Ok(())
        }
        None => Ok(()),
    }
}

fn here(layer: Option<usize>, index: usize) -> bool {
    layer.is_none_or(|layer| layer == index)
}

fn repeat_last_but_one(rows: &Tensor) -> CandleResult<Tensor> {
    let last = rows.dim(2)? - 1;
    let old = rows.narrow(2, 0, last)?;
    Tensor::cat(&[&old, &rows.narrow(2, last - 1, 1)?], 2)
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

impl Fault {
    fn parse(text: &str) -> Result<Self> {
        let kind = Self::kind(text).ok_or_else(|| trouble(format!("--fault {text}: is not one of {NAMES}")))?;
        // Sampler faults have no place that could be missing.
        let placeless =
            matches!(kind, Kind::TopP { .. } | Kind::InverseCdf | Kind::Seed { .. } | Kind::StopEarly { .. });
        Ok(Self { text: text.to_string(), kind, found: AtomicBool::new(placeless) })
    }

    fn kind(text: &str) -> Option<Kind> {
        let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        // A site may itself end in ":in", so a site comes apart from the right.
        let (first, second) = match rest {
            None => (None, None),
            Some(rest) if name == "gain" => rest.rsplit_once(':').map(|(a, b)| (Some(a), Some(b)))?,
            Some(rest) if name == "missing-bias" => (Some(rest), None),
            Some(rest) => rest.split_once(':').map_or((Some(rest), None), |(a, b)| (Some(a), Some(b))),
        };
        let number = |text: Option<&str>, default: f64| text.map_or(Some(default), |text| text.parse().ok());
        let count = |text: Option<&str>, default: usize| text.map_or(Some(default), |text| text.parse().ok());
        let layer = |text: Option<&str>| text.map_or(Some(None), |text| text.parse().ok().map(Some));
        Some(match name {
            "rope-theta" => Kind::RopeTheta { theta: number(first, 10_000.0)?, layer: layer(second)? },
            "rope-f16" => Kind::RopeF16 { layer: layer(first)? },
            "norm-eps" => Kind::NormEps { eps: number(first, 1e-6)?, site: second.map(str::to_string) },
            "attention-scale" => Kind::AttentionScale { factor: number(first, 1.01)?, layer: layer(second)? },
            "gain" => Kind::Gain { site: first?.to_string(), factor: number(second, 1.0)? },
            "swap-gate-up" => Kind::SwapGateUp { layer: layer(first)? },
            "missing-bias" => Kind::MissingBias { site: first?.to_string() },
            "stale-cache-row" => Kind::StaleCacheRow { step: count(first, 4)?, layer: count(second, 0)? },
            "top-p" => Kind::TopP { p: number(Some(first?), 1.0)? },
            "inverse-cdf" => Kind::InverseCdf,
            "seed" => Kind::Seed { delta: first.map_or(Some(1), |text| text.parse().ok())? },
            "stop-early" => Kind::StopEarly { step: count(first, 8)? },
            _ => return None,
        })
    }
}
