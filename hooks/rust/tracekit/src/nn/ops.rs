//! Drop-ins for the functions of `candle_nn::ops` that are given a parameter with each call. They are recorded where it came
//! from a [`watched`](super::watched) builder, under the name of the module whose weight it is.

use candle_core::{Result, Tensor};

use super::taps::{recorded_as, register_function, Parameter, Places};

pub use candle_nn::ops::*;

fn norm(
    class: &'static str,
    xs: &Tensor,
    parameters: &[Parameter<'_>],
    eps: f32,
    forward: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let name = register_function(class, parameters, || {
        // As it was written: 1e-6, not the nearest number of 32 bits.
        vec![("eps", eps.to_string().parse().unwrap_or(f64::from(eps)))]
    });
    recorded_as(&name, xs, Places::Any, forward)
}

/// `candle_nn::ops::rms_norm` that records its input and output.
///
/// # Errors
/// If the shapes do not fit.
pub fn rms_norm(xs: &Tensor, alpha: &Tensor, eps: f32) -> Result<Tensor> {
    norm("RMSNorm", xs, &[("weight", Some(alpha))], eps, |xs| candle_nn::ops::rms_norm(xs, alpha, eps))
}

/// `candle_nn::ops::rms_norm_slow` that records its input and output.
///
/// # Errors
/// If the shapes do not fit.
pub fn rms_norm_slow(x: &Tensor, alpha: &Tensor, eps: f32) -> Result<Tensor> {
    norm("RMSNorm", x, &[("weight", Some(alpha))], eps, |x| candle_nn::ops::rms_norm_slow(x, alpha, eps))
}

/// `candle_nn::ops::layer_norm` that records its input and output.
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(xs: &Tensor, alpha: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    let parameters = [("weight", Some(alpha)), ("bias", Some(beta))];
    norm("LayerNorm", xs, &parameters, eps, |xs| candle_nn::ops::layer_norm(xs, alpha, beta, eps))
}

/// `candle_nn::ops::layer_norm_slow` that records its input and output.
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm_slow(x: &Tensor, alpha: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    let parameters = [("weight", Some(alpha)), ("bias", Some(beta))];
    norm("LayerNorm", x, &parameters, eps, |x| candle_nn::ops::layer_norm_slow(x, alpha, beta, eps))
}
