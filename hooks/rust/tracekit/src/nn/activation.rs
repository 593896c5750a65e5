//! Drop-ins for `candle_nn::activation`.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::taps::{recorded_as, register_module, register_tensors, Places};

pub use candle_nn::Activation;

const CLASS: &str = "PReLU";

/// `candle_nn::PReLU` that records its input and output.
#[derive(Clone, Debug)]
pub struct PReLU {
    name: String,
    inner: candle_nn::PReLU,
}

impl PReLU {
    /// From a weight at hand, one number or one per channel; [how it is named](super).
    pub fn new(weight: Tensor, is_scalar: bool) -> Self {
        let name = register_tensors(CLASS, &[("weight", Some(&weight))], vec![]);
        Self { name, inner: candle_nn::PReLU::new(weight, is_scalar) }
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `[channels]`, or `[1]`.
    pub fn weight(&self) -> &Tensor {
        self.inner.weight()
    }

    /// Whether all channels share one weight.
    pub fn is_scalar(&self) -> bool {
        self.inner.is_scalar()
    }
}

impl Module for PReLU {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        // A weight per channel is applied along axis 1: [batch, channels, time].
        let places = if self.is_scalar() || xs.rank() < 3 { Places::Any } else { Places::LastAxis };
        recorded_as(&self.name, xs, places, |xs| self.inner.forward(xs))
    }
}

/// A PReLU loaded from `vb`; without `num_channels`, one weight for all.
///
/// # Errors
/// If the tensor is missing or has another shape.
pub fn prelu(num_channels: Option<usize>, vb: VarBuilder) -> Result<PReLU> {
    let (name, weight) = (vb.prefix(), vb.get_with_hints(num_channels.unwrap_or(1), "weight", Init::Const(0.25))?);
    register_module(&name, CLASS, &[("weight", Some(&weight))], vec![])?;
    Ok(PReLU { name, inner: candle_nn::PReLU::new(weight, num_channels.is_none()) })
}
