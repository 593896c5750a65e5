//! RMS norms, in float32 whatever the dtype, as transformers computes them.

use candle_core::{DType, Module, Result, Tensor, D};
use candle_nn::VarBuilder;
use tracekit::nn::{rms_norm, RmsNorm};

use crate::config::Config;

/// In which order a norm multiplies and rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// (x / root) rounded to the model's dtype, then times w: transformers.
    RoundThenScale,
    /// (x / root) times w in float32, then rounded.
    ScaleThenRound,
    /// x * (w * root^-1), each in float32, then rounded.
    ScaleFirst,
    /// The mean square, its root and all else in the model's dtype.
    Rough,
}

/// `tracekit::nn::RmsNorm` with the order of its operations.
pub struct Norm {
    pub inner: RmsNorm,
    pub order: Order,
}

impl Norm {
    pub fn load(config: &Config, vb: VarBuilder) -> Result<Self> {
        let inner = rms_norm(config.hidden_size, config.rms_norm_eps, vb)?;
        Ok(Self { inner, order: Order::RoundThenScale })
    }

    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match (self.order, xs.dtype()) {
            (Order::RoundThenScale, DType::F32) => self.inner.forward(xs),
            (Order::RoundThenScale, _) => self.inner.forward_diff(xs),
            _ => {
                let name = self.inner.name();
                tracekit::tap(&format!("{name}:in"), xs)?;
                let out = self.by_hand(xs)?;
                tracekit::tap(name, &out)?;
                Ok(out)
            }
        }
    }

    fn by_hand(&self, xs: &Tensor) -> Result<Tensor> {
        let dtype = if self.order == Order::Rough { xs.dtype() } else { DType::F32 };
        let (wide, weight) = (xs.to_dtype(dtype)?, self.inner.weight().to_dtype(dtype)?);
        let mean = (wide.sqr()?.sum_keepdim(D::Minus1)? / xs.dim(D::Minus1)? as f64)?;
        let out = match self.order {
            Order::ScaleFirst => {
                let inverse = (mean + self.inner.eps())?.powf(-0.5)?;
                wide.broadcast_mul(&weight.broadcast_mul(&inverse)?)?
            }
            _ => wide.broadcast_div(&(mean + self.inner.eps())?.sqrt()?)?.broadcast_mul(&weight)?,
        };
        out.to_dtype(xs.dtype())
    }
}
