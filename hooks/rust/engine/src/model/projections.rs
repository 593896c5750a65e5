//! Linear layers that are given the same value: q, k and v, or gate and up.

use candle_core::{Module, Result, Tensor};
use tracekit::nn::Linear;

/// Projects one value several times.
pub trait Project {
    /// One output per layer, in the layers' order.
    fn forward(&self, xs: &Tensor) -> Result<Vec<Tensor>>;

    /// The layers, to exchange them.
    fn layers(&mut self) -> &mut [Linear];
}

/// A matmul for each layer.
pub struct Apart(pub Vec<Linear>);

impl Project for Apart {
    fn forward(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        self.0.iter().map(|layer| layer.forward(xs)).collect()
    }

    fn layers(&mut self) -> &mut [Linear] {
        &mut self.0
    }
}
