//! Linear layers that are given the same value: a matmul each, or all in one.

use candle_core::{Module, Result, Tensor, D};
use tracekit::nn::Linear;

/// q, k and v, or gate and up.
pub struct Projections {
    layers: Vec<Linear>,
    fused: Fused,
}

/// Whether the matmuls are one.
enum Fused {
    No,
    /// One matmul whose parts are recorded under the layers' names.
    Parts(candle_nn::Linear),
    /// One matmul that is recorded as one site.
    Whole(Linear),
}

impl Projections {
    pub fn apart(layers: Vec<Linear>) -> Self {
        Self { layers, fused: Fused::No }
    }

    /// One matmul, recorded as if it were one for each layer.
    pub fn fused(layers: Vec<Linear>) -> Result<Self> {
        let (weight, bias) = stacked(&layers)?;
        Ok(Self { layers, fused: Fused::Parts(candle_nn::Linear::new(weight, bias)) })
    }

    /// One matmul under its own name.
    pub fn fused_as(name: &str, layers: Vec<Linear>) -> Result<Self> {
        let (weight, bias) = stacked(&layers)?;
        Ok(Self { layers, fused: Fused::Whole(Linear::named(name, weight, bias)) })
    }

    /// One output a layer, in the layers' order.
    pub fn forward(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        match &self.fused {
            Fused::No => self.layers.iter().map(|layer| layer.forward(xs)).collect(),
            Fused::Whole(whole) => self.split(&whole.forward(xs)?),
            Fused::Parts(whole) => {
                let parts = self.split(&whole.forward(xs)?)?;
                self.layers.iter().zip(&parts).try_for_each(|(layer, part)| tracekit::tap(layer.name(), part))?;
                Ok(parts)
            }
        }
    }

    fn split(&self, whole: &Tensor) -> Result<Vec<Tensor>> {
        let mut start = 0;
        let part = |layer: &Linear| {
            let width = layer.weight().dim(0)?;
            start += width;
            whole.narrow(D::Minus1, start - width, width)?.contiguous()
        };
        self.layers.iter().map(part).collect()
    }
}

/// Weights and biases one below the other. All layers have a bias, or none has.
fn stacked(layers: &[Linear]) -> Result<(Tensor, Option<Tensor>)> {
    let weights: Vec<&Tensor> = layers.iter().map(Linear::weight).collect();
    let biases: Vec<&Tensor> = layers.iter().filter_map(Linear::bias).collect();
    let bias = match biases.len() {
        0 => None,
        count if count == layers.len() => Some(Tensor::cat(&biases, 0)?),
        _ => candle_core::bail!("layers with and without a bias cannot be fused"),
    };
    Ok((Tensor::cat(&weights, 0)?, bias))
}
