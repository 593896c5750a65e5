//! Drop-ins for `candle_nn::group_norm`.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::taps::{recorded_as, register_module, register_tensors, Places};

const CLASS: &str = "GroupNorm";

/// `candle_nn::GroupNorm` that records its input and output.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    name: String,
    inner: candle_nn::GroupNorm,
}

fn numbers(num_groups: usize, eps: f64) -> Vec<(&'static str, f64)> {
    vec![("num_groups", num_groups as f64), ("eps", eps)]
}

impl GroupNorm {
    /// A group norm from tensors at hand; [how it is named](super).
    ///
    /// # Errors
    /// If the groups do not divide the channels.
    pub fn new(weight: Tensor, bias: Tensor, num_channels: usize, num_groups: usize, eps: f64) -> Result<Self> {
        let parameters = [("weight", Some(&weight)), ("bias", Some(&bias))];
        let name = register_tensors(CLASS, &parameters, numbers(num_groups, eps));
        let inner = candle_nn::GroupNorm::new(weight, bias, num_channels, num_groups, eps)?;
        Ok(Self { name, inner })
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Module for GroupNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        recorded_as(&self.name, xs, Places::LastAxis, |xs| self.inner.forward(xs))
    }
}

/// A group norm loaded from `vb`.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn group_norm(num_groups: usize, num_channels: usize, eps: f64, vb: VarBuilder) -> Result<GroupNorm> {
    // candle's own shows its tensors to nobody, so they are loaded here as it loads them.
    let weight = vb.get_with_hints(num_channels, "weight", Init::Const(1.))?;
    let bias = vb.get_with_hints(num_channels, "bias", Init::Const(0.))?;
    let name = vb.prefix();
    let parameters = [("weight", Some(&weight)), ("bias", Some(&bias))];
    register_module(&name, CLASS, &parameters, numbers(num_groups, eps))?;
    let inner = candle_nn::GroupNorm::new(weight, bias, num_channels, num_groups, eps)?;
    Ok(GroupNorm { name, inner })
}
