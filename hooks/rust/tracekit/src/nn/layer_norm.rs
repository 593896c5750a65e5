//! Drop-ins for `candle_nn::layer_norm`.

use candle_core::{Module, Result, Tensor};
pub use candle_nn::LayerNormConfig;
use candle_nn::VarBuilder;

use super::taps::{recorded, recorded_as, register_module, register_tensors, Places};

const LAYER_NORM: &str = "LayerNorm";
const RMS_NORM: &str = "RMSNorm";

/// `candle_nn::LayerNorm` that records its input and output.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    name: String,
    inner: candle_nn::LayerNorm,
    // candle's own shows these from 0.10 on.
    eps: f64,
    remove_mean: bool,
}

impl LayerNorm {
    /// A layer norm from tensors at hand; [how it is named](super).
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self::of_tensors(candle_nn::LayerNorm::new(weight, bias, eps), eps, true)
    }

    /// As [`Self::new`], without a bias.
    pub fn new_no_bias(weight: Tensor, eps: f64) -> Self {
        Self::of_tensors(candle_nn::LayerNorm::new_no_bias(weight, eps), eps, true)
    }

    /// As [`Self::new_no_bias`], and the mean is not removed.
    pub fn rms_norm(weight: Tensor, eps: f64) -> Self {
        Self::of_tensors(candle_nn::LayerNorm::rms_norm(weight, eps), eps, false)
    }

    /// A layer norm from tensors at hand, under a site name.
    pub fn named(name: &str, weight: Tensor, bias: Option<Tensor>, eps: f64) -> Self {
        let inner = match bias {
            Some(bias) => candle_nn::LayerNorm::new(weight, bias, eps),
            None => candle_nn::LayerNorm::new_no_bias(weight, eps),
        };
        Self { name: name.to_string(), inner, eps, remove_mean: true }
    }

    fn of_tensors(inner: candle_nn::LayerNorm, eps: f64, remove_mean: bool) -> Self {
        let parameters = [("weight", Some(inner.weight())), ("bias", inner.bias())];
        let class = if remove_mean { LAYER_NORM } else { RMS_NORM };
        let name = register_tensors(class, &parameters, vec![("eps", eps)]);
        Self { name, inner, eps, remove_mean }
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `[width]`.
    pub fn weight(&self) -> &Tensor {
        self.inner.weight()
    }

    /// `[width]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.inner.bias()
    }

    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Whether the mean is subtracted first.
    pub fn remove_mean(&self) -> bool {
        self.remove_mean
    }
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        recorded(&self.name, &self.inner, xs)
    }
}

/// A layer norm loaded from `vb`; old checkpoints call its parameters `gamma` and `beta`.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn layer_norm<C: Into<LayerNormConfig>>(size: usize, config: C, vb: VarBuilder) -> Result<LayerNorm> {
    let name = vb.prefix();
    let config = config.into();
    let roles = (role("weight", "gamma", &vb), role("bias", "beta", &vb));
    let inner = candle_nn::layer_norm(size, config, vb)?;
    let parameters = [(roles.0, Some(inner.weight())), (roles.1, inner.bias())];
    let class = if config.remove_mean { LAYER_NORM } else { RMS_NORM };
    register_module(&name, class, &parameters, vec![("eps", config.eps)])?;
    Ok(LayerNorm { name, inner, eps: config.eps, remove_mean: config.remove_mean })
}

/// What a parameter is called in the checkpoint: candle takes the old name from 0.11 on, where there is no new one.
fn role(new: &'static str, old: &'static str, vb: &VarBuilder) -> &'static str {
    if !vb.contains_tensor(new) && vb.contains_tensor(old) {
        old
    } else {
        new
    }
}

/// A layer norm without bias, loaded from `vb`.
///
/// # Errors
/// If the tensor is missing or has another shape.
pub fn layer_norm_no_bias(size: usize, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    layer_norm(size, LayerNormConfig { eps, remove_mean: true, affine: false }, vb)
}

/// `candle_nn::RmsNorm` that records its input and output.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    name: String,
    inner: candle_nn::RmsNorm,
    // candle's own shows these from 0.10 on.
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// A norm from a weight at hand; [how it is named](super).
    pub fn new(weight: Tensor, eps: f64) -> Self {
        let name = register_tensors(RMS_NORM, &[("weight", Some(&weight))], vec![("eps", eps)]);
        Self { name, ..Self::named("", weight, eps) }
    }

    /// A norm from a weight at hand, under a site name.
    pub fn named(name: &str, weight: Tensor, eps: f64) -> Self {
        let inner = candle_nn::RmsNorm::new(weight.clone(), eps);
        Self { name: name.to_string(), inner, weight, eps }
    }

    /// The same as a layer norm that leaves the mean.
    pub fn into_inner(self) -> LayerNorm {
        LayerNorm { name: self.name, inner: self.inner.into_inner(), eps: self.eps, remove_mean: false }
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `[width]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added to the mean square.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// As `candle_nn::RmsNorm::forward_diff`: in float32 whatever the dtype, where `forward` rounds the root mean
    /// square to 16 bits first.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_diff(&self, xs: &Tensor) -> Result<Tensor> {
        recorded_as(&self.name, xs, Places::Any, |xs| self.inner.forward_diff(xs))
    }
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        recorded(&self.name, &self.inner, xs)
    }
}

/// An RMS norm loaded from `vb`.
///
/// # Errors
/// If the tensor is missing or has another shape.
pub fn rms_norm(size: usize, eps: f64, vb: VarBuilder) -> Result<RmsNorm> {
    let (name, role) = (vb.prefix(), role("weight", "gamma", &vb));
    let inner = candle_nn::rms_norm(size, eps, vb)?;
    let weight = inner.clone().into_inner().weight().clone();
    register_module(&name, RMS_NORM, &[(role, Some(&weight))], vec![("eps", eps)])?;
    Ok(RmsNorm { name, inner, weight, eps })
}
