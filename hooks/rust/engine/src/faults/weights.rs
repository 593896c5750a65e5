//! Seam: parameters after the loaded tensors were hashed, and values at sites.

use candle_core::{bail, DType, Result, Tensor};
use tracekit::nn::{Embedding, Linear, RmsNorm};

use super::words::Words;
use super::{Faults, Kind as Any, Row};
use crate::model::decoder::Layer;
use crate::model::norm::{Norm, Order};

pub const TABLE: &[Row] = &[
    ("gain:SITE:FACTOR", "A module's parameters, or the value at a site, times FACTOR"),
    ("offset[:SITE[:VALUE]]", "VALUE, 0.01, is added to a linear layer's output, or to the value at a site"),
    ("weight-add[:SITE[:ROW[:COLUMN[:DELTA]]]]", "DELTA, 0.01, is added to one weight, [0, 0]"),
    (
        "weight-low-rank[:SITE[:RANK[:FACTOR]]]",
        "An update of rank RANK, 4, about FACTOR, 0.1, of its size, is added to a linear layer's weight",
    ),
    ("weights-f16[:SITE]", "A linear layer's weights are rounded to float16"),
    ("weights-bf16[:SITE]", "A linear layer's weights are rounded to bfloat16"),
    ("transpose-weight[:SITE]", "A square weight is transposed"),
    ("permuted-rows[:SITE]", "A q or k projection's rows are in the order that interleaved rotary wants"),
    ("missing-bias:SITE", "A linear layer's bias is not loaded"),
    ("double-bias[:SITE]", "A linear layer's bias is added twice"),
    ("norm-plus-one[:SITE]", "1 is added to the weight of a norm, or of all"),
    ("norm-late-cast[:SITE]", "A 16-bit norm, or all, rounds after the weight is multiplied"),
    ("norm-rough[:SITE]", "A 16-bit norm, or all, computes nothing in float32"),
];

#[derive(Debug)]
pub struct Kind {
    what: What,
    /// `None`: all norms.
    site: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Gain { factor: f64 },
    Offset { value: f64 },
    WeightAdd { row: usize, column: usize, delta: f64 },
    LowRank { rank: usize, factor: f64 },
    Rounded { to: DType },
    Transposed,
    PermutedRows,
    MissingBias,
    DoubleBias,
    NormPlusOne,
    NormOrder(Order),
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    let at = |site: Option<String>, default: &str| Some(site.unwrap_or_else(|| default.to_string()));
    let layer = |part: &str| format!("model.layers.0.{part}");
    let kind = |what: What, site: Option<String>| Some(Kind { what, site });
    match name {
        "gain" => {
            let site = words.site()?;
            let factor = words.word()?.parse().ok().filter(|factor: &f64| factor.is_finite())?;
            kind(What::Gain { factor }, Some(site))
        }
        "missing-bias" => {
            let site = words.site()?;
            kind(What::MissingBias, Some(site))
        }
        "offset" => {
            let site = at(words.site(), &layer("mlp.down_proj"));
            kind(What::Offset { value: words.number(0.01)? }, site)
        }
        "weight-add" => {
            let site = at(words.site(), &layer("mlp.down_proj"));
            let (row, column, delta) = (words.count(0)?, words.count(0)?, words.number(0.01)?);
            kind(What::WeightAdd { row, column, delta }, site)
        }
        "weight-low-rank" => {
            let site = at(words.site(), &layer("self_attn.q_proj"));
            let rank = words.count(4).filter(|&rank| rank > 0)?;
            kind(What::LowRank { rank, factor: words.number(0.1)? }, site)
        }
        "weights-f16" => kind(What::Rounded { to: DType::F16 }, at(words.site(), &layer("mlp.down_proj"))),
        "weights-bf16" => kind(What::Rounded { to: DType::BF16 }, at(words.site(), &layer("mlp.down_proj"))),
        "transpose-weight" => kind(What::Transposed, at(words.site(), &layer("self_attn.o_proj"))),
        "permuted-rows" => kind(What::PermutedRows, at(words.site(), &layer("self_attn.k_proj"))),
        "double-bias" => kind(What::DoubleBias, at(words.site(), &layer("self_attn.q_proj"))),
        "norm-plus-one" => kind(What::NormPlusOne, words.site()),
        "norm-late-cast" => kind(What::NormOrder(Order::ScaleThenRound), words.site()),
        "norm-rough" => kind(What::NormOrder(Order::Rough), words.site()),
        _ => None,
    }
}

impl Kind {
    /// Why nothing was found for it.
    pub fn missing(&self) -> String {
        let site = self.site.as_deref().unwrap_or("all norms");
        match self.what {
            What::Gain { .. } | What::Offset { .. } => format!("there is no place {site} in this model"),
            What::MissingBias | What::DoubleBias => format!("{site} is no linear layer with a bias in this model"),
            What::NormPlusOne => format!("{site} is no norm of this model"),
            What::NormOrder(_) => format!("{site} is no norm of this model, or --dtype is f32"),
            What::WeightAdd { .. } => format!("{site} is no module with a weight in this model"),
            _ => format!("{site} is no linear layer of this model"),
        }
    }
}

impl Faults {
    fn find_weights<T>(&self, name: &str, pick: impl Fn(What) -> Option<T>) -> Option<T> {
        self.find(|kind| match kind {
            Any::Weights(Kind { what, site }) if site.as_deref().is_none_or(|site| site == name) => pick(*what),
            _ => None,
        })
    }

    fn has_weights(&self, name: &str, what: What) -> bool {
        self.find_weights(name, |found| (found == what).then_some(())).is_some()
    }

    fn gain(&self, name: &str) -> Option<f64> {
        self.find_weights(name, |what| match what {
            What::Gain { factor } => Some(factor),
            _ => None,
        })
    }

    fn offset(&self, name: &str) -> Option<f64> {
        self.find_weights(name, |what| match what {
            What::Offset { value } => Some(value),
            _ => None,
        })
    }

    /// Parameters of a layer.
    pub(super) fn plant_weights(&self, layer: &mut Layer, head_dim: usize) -> Result<()> {
        let Layer { input_layernorm, self_attn, post_attention_layernorm, mlp, .. } = layer;
        let projections = [&mut self_attn.qkv, &mut mlp.gate_up];
        let linear = projections.into_iter().flat_map(|layers| layers.layers());
        for layer in linear.chain([&mut self_attn.o_proj, &mut mlp.down_proj]) {
            self.plant_linear(layer, head_dim)?;
        }
        self.plant_norm(input_layernorm)?;
        self.plant_norm(post_attention_layernorm)
    }

    pub(super) fn plant_embedding(&self, layer: &mut Embedding) -> Result<()> {
        let table = layer.embeddings() * self.gain(layer.name()).unwrap_or(1.0);
        *layer = Embedding::named(layer.name(), self.with_one_changed(layer.name(), table?)?)?;
        Ok(())
    }

    pub(super) fn plant_linear(&self, layer: &mut Linear, head_dim: usize) -> Result<()> {
        let name = layer.name();
        let weight = self.linear_weight(name, layer.weight().clone(), head_dim)?;
        let bias = self.linear_bias(name, layer.bias().cloned(), &weight)?;
        *layer = Linear::named(name, weight, bias);
        Ok(())
    }

    pub(super) fn plant_norm(&self, norm: &mut Norm) -> Result<()> {
        let (name, inner) = (norm.inner.name(), &norm.inner);
        let mut weight = (inner.weight() * self.gain(name).unwrap_or(1.0))?;
        if self.has_weights(name, What::NormPlusOne) {
            weight = (weight + 1.0)?;
        }
        let weight = self.with_one_changed(name, weight.unsqueeze(0)?)?.squeeze(0)?;
        let is_16_bit = weight.dtype() != DType::F32;
        let order = self.find_weights(name, |what| match what {
            What::NormOrder(order) if is_16_bit => Some(order),
            _ => None,
        });
        let inner = RmsNorm::named(name, weight, self.eps(name).unwrap_or(inner.eps()));
        *norm = Norm { inner, order: order.unwrap_or(norm.order) };
        Ok(())
    }

    fn linear_weight(&self, name: &str, mut weight: Tensor, head_dim: usize) -> Result<Tensor> {
        if let Some(factor) = self.gain(name) {
            weight = (weight * factor)?;
        }
        if let Some(to) = self.find_weights(name, |what| match what {
            What::Rounded { to } => Some(to),
            _ => None,
        }) {
            let rounded = weight.to_dtype(to)?.to_dtype(weight.dtype())?;
            if weight.ne(&rounded)?.flatten_all()?.max(0)?.to_scalar::<u8>()? == 0 {
                bail!("--fault weights-f16 or weights-bf16: the weights of {name} are numbers of {to:?} already");
            }
            weight = rounded;
        }
        if self.has_weights(name, What::Transposed) {
            if weight.dim(0)? != weight.dim(1)? {
                bail!("--fault transpose-weight: the weight of {name} is {:?}, not square", weight.dims());
            }
            weight = weight.t()?.contiguous()?;
        }
        if let Some((rank, factor)) = self.find_weights(name, |what| match what {
            What::LowRank { rank, factor } => Some((rank, factor)),
            _ => None,
        }) {
            weight = (&weight + low_rank(&weight, rank, factor)?)?;
        }
        let is_turned = name.ends_with(".q_proj") || name.ends_with(".k_proj");
        if is_turned && self.has_weights(name, What::PermutedRows) {
            weight = interleaved_rows(&weight, head_dim)?;
        }
        self.with_one_changed(name, weight)
    }

    fn linear_bias(&self, name: &str, bias: Option<Tensor>, weight: &Tensor) -> Result<Option<Tensor>> {
        let mut bias = match (bias, self.gain(name)) {
            (Some(bias), Some(factor)) => Some((bias * factor)?),
            (bias, _) => bias,
        };
        if bias.is_some() && self.has_weights(name, What::MissingBias) {
            bias = None;
        }
        if bias.is_some() && self.has_weights(name, What::DoubleBias) {
            bias = bias.map(|bias| bias * 2.0).transpose()?;
        }
        match self.offset(name) {
            None => Ok(bias),
            Some(value) => {
                let zero = Tensor::zeros(weight.dim(0)?, weight.dtype(), weight.device())?;
                (bias.unwrap_or(zero) + value).map(Some)
            }
        }
    }

    /// `weight`, [rows, columns], with one number changed.
    fn with_one_changed(&self, name: &str, weight: Tensor) -> Result<Tensor> {
        let Some((row, column, delta)) = self.find_weights(name, |what| match what {
            What::WeightAdd { row, column, delta } => Some((row, column, delta)),
            _ => None,
        }) else {
            return Ok(weight);
        };
        let (rows, columns) = weight.dims2()?;
        if row >= rows || column >= columns {
            bail!("--fault weight-add: the weight of {name} is [{rows}, {columns}]; it has no [{row}, {column}]");
        }
        let mut values: Vec<f32> = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        values[row * columns + column] += delta as f32;
        Tensor::from_vec(values, (rows, columns), weight.device())?.to_dtype(weight.dtype())
    }

    /// What happens to the value at a site before it is recorded. The site of a module's input is `MODULE:in`.
    pub(super) fn change_at(&self, site: &str) -> Change {
        Change { gain: self.gain(site), offset: self.offset(site) }
    }
}

/// A value at a site is scaled, then shifted.
#[derive(Debug)]
pub struct Change {
    gain: Option<f64>,
    offset: Option<f64>,
}

impl Change {
    pub fn apply(&self, value: Tensor) -> Result<Tensor> {
        let value = match self.gain {
            Some(factor) => (value * factor)?,
            None => value,
        };
        match self.offset {
            Some(offset) => value + offset,
            None => Ok(value),
        }
    }
}

/// Rows of each head from the order of halves, a0 a1 .. b0 b1 .., to that of neighbours, a0 b0 a1 b1 ...
fn interleaved_rows(weight: &Tensor, head_dim: usize) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    let halves = weight.reshape((rows / head_dim, 2, head_dim / 2, columns))?;
    halves.transpose(1, 2)?.contiguous()?.reshape((rows, columns))
}

/// A matrix of rank `rank` as long as `factor` times `weight`: a sum of outer products of waves.
fn low_rank(weight: &Tensor, rank: usize, factor: f64) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    let wave = |length: usize, step: f64| -> Vec<f32> {
        (0..length * rank).map(|at| ((at as f64 + 1.0) * step * ((at % rank) as f64 + 1.0)).sin() as f32).collect()
    };
    let left = Tensor::from_vec(wave(rows, 0.7), (rows, rank), weight.device())?;
    let right = Tensor::from_vec(wave(columns, 1.3), (columns, rank), weight.device())?;
    let update = left.matmul(&right.t()?)?;
    let norm = |of: &Tensor| of.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>();
    let scale = factor * f64::from(norm(weight)? / norm(&update)?).sqrt();
    (update * scale)?.to_dtype(weight.dtype())
}
