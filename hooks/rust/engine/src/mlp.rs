//! The gated MLP.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::nn::{linear_b, Linear};

use crate::config::Config;
use crate::faults::Faults;
use crate::projections::Projections;
use crate::variants::{Variant, Variants};

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

pub struct Mlp<'a> {
    name: String,
    index: usize,
    gate_up: Projections,
    down_proj: Linear,
    activation: Activation,
    faults: &'a Faults,
}

impl<'a> Mlp<'a> {
    pub fn load(config: &Config, index: usize, vb: VarBuilder, faults: &'a Faults, variants: Variants) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let project = |name: &str, inputs: usize, outputs: usize| {
            variants.linear(faults.linear(linear_b(inputs, outputs, config.mlp_bias, vb.pp(name))?)?)
        };
        let name = vb.prefix();
        let gate_up = vec![project("gate_proj", hidden, inner)?, project("up_proj", hidden, inner)?];
        Ok(Self {
            gate_up: if variants.has(Variant::FusedGateUpSite) {
                Projections::fused_as(&format!("{name}.gate_up_proj"), gate_up)?
            } else if variants.has(Variant::FusedGateUp) {
                Projections::fused(gate_up)?
            } else {
                Projections::apart(gate_up)
            },
            name,
            index,
            down_proj: project("down_proj", inner, hidden)?,
            activation: faults.activation(index),
            faults,
        })
    }

    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let parts = self.faults.gate_up(self.index, self.gate_up.forward(xs)?);
        let gated = (self.activation.forward(&parts[0])? * &parts[1])?;
        let gated = self.faults.input(self.down_proj.name(), gated)?;
        let out = self.faults.site(&self.name, self.down_proj.forward(&gated)?)?;
        tracekit::tap(&self.name, &out)?;
        Ok(out)
    }
}
