//! A drop-in for `candle_transformers::models::with_tracing`, which most of its models import: in a crate that holds a copy
//! of such a model, `pub use tracekit::with_tracing;` stands where `with_tracing.rs` did, or the model's `use` line names
//! this module.
//!
//! ```
//! use tracekit::with_tracing::{linear_no_bias, Linear, RmsNorm}; // was: use crate::models::with_tracing::{...};
//! # let _ = (linear_no_bias, Linear::from_weights, RmsNorm::new);
//! ```

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::nn::register_names;
pub use crate::nn::{conv2d, layer_norm, linear, linear_b, linear_no_bias, Conv2d, LayerNorm, Linear};
use crate::quantized::CLASS;
use crate::quantized_var_builder::VarBuilder as QVarBuilder;

/// An embedding that records its output.
#[derive(Debug, Clone)]
pub struct Embedding(crate::nn::Embedding);

impl Embedding {
    /// A table of `d1` rows of width `d2`, loaded from `vb`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn new(d1: usize, d2: usize, vb: VarBuilder) -> Result<Self> {
        crate::nn::embedding(d1, d2, vb).map(Self)
    }

    /// A table at hand; [how it is named](crate::nn).
    ///
    /// # Errors
    /// If it is not [vocabulary, width].
    pub fn from_weights(weights: Tensor) -> Result<Self> {
        let (_, width) = weights.dims2()?;
        Ok(Self(crate::nn::Embedding::new(weights, width)))
    }

    /// The table, [vocabulary, width].
    pub fn embeddings(&self) -> &Tensor {
        self.0.embeddings()
    }
}

impl Module for Embedding {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

/// An RMS norm that records its input and output.
#[derive(Debug, Clone)]
pub struct RmsNorm(crate::nn::RmsNorm);

impl RmsNorm {
    /// A norm over `size` elements, loaded from `vb`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn new(size: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        crate::nn::rms_norm(size, eps, vb).map(Self)
    }

    /// As [`crate::nn::RmsNorm::forward_diff`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_diff(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward_diff(xs)
    }
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

/// A multiplication by a quantised matrix that records its input and output.
#[derive(Clone, Debug)]
pub struct QMatMul(crate::quantized::QMatMul);

impl QMatMul {
    /// A matrix loaded from `vb`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn new(out_dim: usize, in_dim: usize, vb: QVarBuilder) -> Result<Self> {
        Self::with_bias(out_dim, in_dim, false, &vb)
    }

    /// As [`Self::new`]; the site table names the bias that is added, too.
    pub(crate) fn with_bias(out_dim: usize, in_dim: usize, bias: bool, vb: &QVarBuilder) -> Result<Self> {
        let weights = vb.get((in_dim, out_dim), "weight")?;
        let roles: &[&'static str] = if bias { &["weight", "bias"] } else { &["weight"] };
        let name = register_names(&vb.prefix(), CLASS, roles, vec![]);
        let inner = candle_core::quantized::QMatMul::from_arc(weights)?;
        Ok(Self(crate::quantized::QMatMul { name, inner }))
    }

    pub(crate) fn name(&self) -> &str {
        self.0.name()
    }

    pub(crate) fn unrecorded(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.inner.forward(xs)
    }

    /// A matrix at hand; see [`crate::quantized::QMatMul::from_arc`].
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn from_weights(weights: Arc<QTensor>) -> Result<Self> {
        crate::quantized::QMatMul::from_arc(weights).map(Self)
    }
}

impl Module for QMatMul {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}
