//! A drop-in for `candle_transformers::quantized_nn`: layers with the tensors of a GGUF file.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{Module, Result, Tensor};

use crate::nn::{generated, recorded_as, register_names, LayerNorm, Places};
use crate::quantized_var_builder::VarBuilder;
use crate::with_tracing::QMatMul;

/// An embedding that records its output.
#[derive(Debug, Clone)]
pub struct Embedding(crate::nn::Embedding);

impl Embedding {
    /// A table of `d1` rows of width `d2`, loaded from `vb`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn new(d1: usize, d2: usize, vb: VarBuilder) -> Result<Self> {
        let table = vb.get((d1, d2), "weight")?.dequantize(vb.device())?;
        let name = register_names(&vb.prefix(), "Embedding", &["weight"], vec![]);
        crate::nn::Embedding::named(&name, table).map(Self)
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

/// A quantised matrix and a bias; its output is recorded with the bias.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: QMatMul,
    bias: Option<Tensor>,
}

impl Linear {
    /// A matrix at hand, under a generated name.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn from_arc(weight: Arc<QTensor>, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self { weight: QMatMul::from_weights(weight)?, bias })
    }

    /// A matrix at hand, under its name.
    pub fn from_weights(weight: QMatMul, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        recorded_as(self.weight.name(), xs, Places::Any, |xs| {
            let out = self.weight.unrecorded(xs)?;
            match &self.bias {
                None => Ok(out),
                Some(bias) => out.broadcast_add(bias),
            }
        })
    }
}

/// A linear layer with or without bias, loaded from `vb`.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
    let bias = if bias { Some(vb.get(out_dim, "bias")?.dequantize(vb.device())?) } else { None };
    Ok(Linear { weight: QMatMul::with_bias(in_dim, out_dim, bias.is_some(), &vb)?, bias })
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

/// A layer norm, loaded from `vb`.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn layer_norm(size: usize, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    let weight = vb.get(size, "weight")?.dequantize(vb.device())?;
    let bias = vb.get(size, "bias")?.dequantize(vb.device())?;
    let name = register_names(&vb.prefix(), "LayerNorm", &["weight", "bias"], vec![("eps", eps)]);
    Ok(LayerNorm::named(&name, weight, Some(bias), eps))
}

/// A layer norm without bias, loaded from `vb`.
///
/// # Errors
/// If the tensor is missing or has another shape.
pub fn layer_norm_no_bias(size: usize, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    let weight = vb.get(size, "weight")?.dequantize(vb.device())?;
    let name = register_names(&vb.prefix(), "LayerNorm", &["weight"], vec![("eps", eps)]);
    Ok(LayerNorm::named(&name, weight, None, eps))
}

/// An RMS norm that records its input and output.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    name: String,
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// A norm over `size` elements, loaded from `vb`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn new(size: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get(size, "weight")?.dequantize(vb.device())?;
        let name = register_names(&vb.prefix(), "RMSNorm", &["weight"], vec![("eps", eps)]);
        Ok(Self { name, weight, eps })
    }

    /// A norm from a weight at hand, under a generated name.
    ///
    /// # Errors
    /// If the weight cannot be dequantised.
    pub fn from_qtensor(weight: QTensor, eps: f64) -> Result<Self> {
        let weight = weight.dequantize(&weight.device())?;
        Ok(Self { name: generated("RMSNorm", vec![("eps", eps)]), weight, eps })
    }
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        recorded_as(&self.name, xs, Places::Any, |xs| candle_nn::ops::rms_norm(xs, &self.weight, self.eps as f32))
    }
}
