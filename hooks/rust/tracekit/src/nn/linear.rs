//! Drop-ins for `candle_nn::linear`.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::taps::{recorded, register_module, register_tensors};

/// `candle_nn::Linear` that records its input and output.
#[derive(Clone, Debug)]
pub struct Linear {
    name: String,
    inner: candle_nn::Linear,
}

impl Linear {
    /// A linear layer from tensors at hand; [how it is named](super).
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        let name = register_tensors("Linear", &[("weight", Some(&weight)), ("bias", bias.as_ref())], vec![]);
        Self { name, inner: candle_nn::Linear::new(weight, bias) }
    }

    /// As [`Self::new`]; candle-transformers' name for it.
    pub fn from_weights(weights: Tensor, bias: Option<Tensor>) -> Self {
        Self::new(weights, bias)
    }

    /// A linear layer from tensors at hand, under a site name; nothing is said of where they were loaded from.
    pub fn named(name: &str, weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { name: name.to_string(), inner: candle_nn::Linear::new(weight, bias) }
    }

    /// A logits head that shares the table of an embedding; its weight is noted under the head's own name.
    ///
    /// # Errors
    /// Never, as all recording: see [`crate::Result`].
    pub fn tied(name: &str, table: &Tensor) -> Result<Self> {
        register_module(name, "Linear", &[("weight", Some(table))], vec![])?;
        Ok(Self::named(name, table.clone(), None))
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// [out, in].
    pub fn weight(&self) -> &Tensor {
        self.inner.weight()
    }

    /// `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.inner.bias()
    }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        recorded(&self.name, &self.inner, xs)
    }
}

/// A linear layer with or without bias, loaded from `vb`.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
    let name = vb.prefix();
    let inner = candle_nn::linear_b(in_dim, out_dim, bias, vb)?;
    register_module(&name, "Linear", &[("weight", Some(inner.weight())), ("bias", inner.bias())], vec![])?;
    Ok(Linear { name, inner })
}

/// A linear layer with bias.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    linear_b(in_dim, out_dim, true, vb)
}

/// A linear layer without bias.
///
/// # Errors
/// If the tensor is missing or has another shape.
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    linear_b(in_dim, out_dim, false, vb)
}
