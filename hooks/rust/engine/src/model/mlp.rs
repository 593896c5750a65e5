//! The gated MLP.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::nn::{linear_b, Linear};

use super::projections::{Apart, Project};
use crate::config::Config;

/// What the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    Silu,
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
}

impl Activation {
    /// In float32, as torch computes it whatever the dtype; candle would round each of its operations to 16 bits.
    fn forward(self, xs: &Tensor) -> Result<Tensor> {
        let wide = xs.to_dtype(DType::F32)?;
        let out = match self {
            Self::Silu => wide.silu()?,
            Self::Gelu => wide.gelu_erf()?,
            Self::GeluTanh => wide.gelu()?,
        };
        out.to_dtype(xs.dtype())
    }
}

pub struct Mlp {
    pub name: String,
    pub gate_up: Box<dyn Project>,
    pub activation: Activation,
    pub down_proj: Linear,
}

impl Mlp {
    pub fn load(config: &Config, vb: &VarBuilder) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let project =
            |name: &str, inputs: usize, outputs: usize| linear_b(inputs, outputs, config.mlp_bias, vb.pp(name));
        Ok(Self {
            name: vb.prefix(),
            gate_up: Box::new(Apart(vec![project("gate_proj", hidden, inner)?, project("up_proj", hidden, inner)?])),
            activation: Activation::Silu,
            down_proj: project("down_proj", inner, hidden)?,
        })
    }

    /// `xs` [1, rows, width]; gives the same shape.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let out = self.down_proj.forward(&self.gated(xs)?)?;
        tracekit::tap(&self.name, &out)?;
        Ok(out)
    }

    /// [1, rows, inner width].
    pub fn gated(&self, xs: &Tensor) -> Result<Tensor> {
        let parts = self.gate_up.forward(xs)?;
        self.activation.forward(&parts[0])? * &parts[1]
    }
}
