//! Drop-ins for `candle_nn::batch_norm`.

use candle_core::{ModuleT, Result, Tensor};
pub use candle_nn::BatchNormConfig;
use candle_nn::VarBuilder;

use super::taps::{recorded_as, register_module, register_tensors, Parameter, Places};

const CLASS: &str = "BatchNorm";

/// `candle_nn::BatchNorm` that records its input and output.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    name: String,
    inner: candle_nn::BatchNorm,
}

fn parameters(norm: &candle_nn::BatchNorm) -> Vec<Parameter<'_>> {
    let affine = norm.weight_and_bias();
    vec![
        ("weight", affine.map(|(weight, _)| weight)),
        ("bias", affine.map(|(_, bias)| bias)),
        ("running_mean", Some(norm.running_mean())),
        ("running_var", Some(norm.running_var())),
    ]
}

impl BatchNorm {
    fn of_tensors(weight: Option<&Tensor>, bias: Option<&Tensor>, inner: candle_nn::BatchNorm) -> Self {
        let parameters = [("weight", weight), ("bias", bias)];
        let name = match weight {
            Some(_) => register_tensors(CLASS, &parameters, vec![("eps", inner.eps())]),
            None => {
                register_tensors(CLASS, &[("running_mean", Some(inner.running_mean()))], vec![("eps", inner.eps())])
            }
        };
        Self { name, inner }
    }

    /// A batch norm from tensors at hand; [how it is named](super).
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
    ) -> Result<Self> {
        Self::new_with_momentum(num_features, running_mean, running_var, weight, bias, eps, 0.1)
    }

    /// As [`Self::new`], without weight and bias.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new_no_bias(num_features: usize, running_mean: Tensor, running_var: Tensor, eps: f64) -> Result<Self> {
        Self::new_no_bias_with_momentum(num_features, running_mean, running_var, eps, 0.1)
    }

    /// As [`Self::new`]; the momentum is that of the running statistics.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        let (own_weight, own_bias) = (weight.clone(), bias.clone());
        let inner = candle_nn::BatchNorm::new_with_momentum(
            num_features,
            running_mean,
            running_var,
            weight,
            bias,
            eps,
            momentum,
        )?;
        Ok(Self::of_tensors(Some(&own_weight), Some(&own_bias), inner))
    }

    /// As [`Self::new_with_momentum`], without weight and bias.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new_no_bias_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        let inner =
            candle_nn::BatchNorm::new_no_bias_with_momentum(num_features, running_mean, running_var, eps, momentum)?;
        Ok(Self::of_tensors(None, None, inner))
    }

    pub(super) fn inner(&self) -> &candle_nn::BatchNorm {
        &self.inner
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `[features]`.
    pub fn running_mean(&self) -> &Tensor {
        self.inner.running_mean()
    }

    /// `[features]`.
    pub fn running_var(&self) -> &Tensor {
        self.inner.running_var()
    }

    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.inner.eps()
    }

    /// `[features]` each.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &Tensor)> {
        self.inner.weight_and_bias()
    }

    /// Of the running statistics.
    pub fn momentum(&self) -> f64 {
        self.inner.momentum()
    }

    /// As `candle_nn::BatchNorm::forward_train`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_train(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward_t(xs, true)
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        recorded_as(&self.name, xs, Places::LastAxis, |xs| self.inner.forward_t(xs, train))
    }
}

/// A batch norm loaded from `vb`.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn batch_norm<C: Into<BatchNormConfig>>(num_features: usize, config: C, vb: VarBuilder) -> Result<BatchNorm> {
    let name = vb.prefix();
    let inner = candle_nn::batch_norm(num_features, config, vb)?;
    register_module(&name, CLASS, &parameters(&inner), vec![("eps", inner.eps())])?;
    Ok(BatchNorm { name, inner })
}
