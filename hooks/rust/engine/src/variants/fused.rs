//! Projections of one value as one matmul.

use candle_core::{Module, Result, Tensor, D};
use tracekit::nn::Linear;

use crate::model::projections::Project;

/// One matmul in place of one per layer.
pub struct Fused {
    layers: Vec<Linear>,
    whole: Whole,
}

enum Whole {
    /// Its parts are recorded under the layers' names.
    InParts(candle_nn::Linear),
    /// It is recorded as one site.
    AsOne(Linear),
}

impl Fused {
    /// Recorded as if it were one matmul for each layer.
    pub fn as_its_parts(layers: &[Linear]) -> Result<Self> {
        let (weight, bias) = stacked(layers)?;
        Ok(Self { layers: layers.to_vec(), whole: Whole::InParts(candle_nn::Linear::new(weight, bias)) })
    }

    /// Recorded under a name of its own.
    pub fn as_one_site(layers: &[Linear], name: &str) -> Result<Self> {
        let (weight, bias) = stacked(layers)?;
        Ok(Self { layers: layers.to_vec(), whole: Whole::AsOne(Linear::named(name, weight, bias)) })
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

impl Project for Fused {
    fn forward(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        match &self.whole {
            Whole::AsOne(whole) => self.split(&whole.forward(xs)?),
            Whole::InParts(whole) => {
                let parts = self.split(&whole.forward(xs)?)?;
                self.layers.iter().zip(&parts).try_for_each(|(layer, part)| tracekit::tap(layer.name(), part))?;
                Ok(parts)
            }
        }
    }

    fn layers(&mut self) -> &mut [Linear] {
        &mut self.layers
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
