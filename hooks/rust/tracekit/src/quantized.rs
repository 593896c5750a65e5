//! A drop-in for `candle_core::quantized`: `use tracekit::quantized::QMatMul;` for `use candle_core::quantized::QMatMul;`.
//!
//! Everything but `QMatMul` is candle's own. Here it is a struct: a program that names candle's variants
//! (`QMatMul::Tensor(..)`) has them made by [`QMatMul::from`].

use std::sync::Arc;

use candle_core::{Module, Result, Tensor};

pub use candle_core::quantized::*;

use crate::nn::{generated, recorded, register_names, register_quantised};

pub(crate) const CLASS: &str = "QMatMul";

/// `candle_core::quantized::QMatMul` that records its input and output.
///
/// A matrix that comes from [`crate::quantized_var_builder`] has its name; any other has a generated one, unless it is
/// [named](QMatMul::named).
#[derive(Clone)]
pub struct QMatMul {
    pub(crate) name: String,
    pub(crate) inner: candle_core::quantized::QMatMul,
}

impl QMatMul {
    /// From a matrix at hand.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn from_arc(qtensor: Arc<QTensor>) -> Result<Self> {
        let name = register_quantised(CLASS, &qtensor);
        Ok(Self { name, inner: candle_core::quantized::QMatMul::from_arc(qtensor)? })
    }

    /// As [`Self::from_arc`].
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn from_qtensor(qtensor: QTensor) -> Result<Self> {
        Self::from_arc(Arc::new(qtensor))
    }

    /// From a matrix at hand, whose name is `name.weight`.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn named(name: &str, qtensor: Arc<QTensor>) -> Result<Self> {
        let name = register_names(name, CLASS, &["weight"], vec![]);
        Ok(Self { name, inner: candle_core::quantized::QMatMul::from_arc(qtensor)? })
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The product in float16.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_via_f16(&self, xs: &Tensor) -> Result<Tensor> {
        recorded(&self.name, &candle_nn::func(|xs| self.inner.forward_via_f16(xs)), xs)
    }
}

/// What else candle's has, as it is in the program's version of candle: rows of the matrix, products with the experts that
/// ids name. None of it is recorded.
impl std::ops::Deref for QMatMul {
    type Target = candle_core::quantized::QMatMul;

    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

/// A matrix of candle's, under a generated name.
impl From<candle_core::quantized::QMatMul> for QMatMul {
    fn from(inner: candle_core::quantized::QMatMul) -> Self {
        Self { name: generated(CLASS, vec![]), inner }
    }
}

impl Module for QMatMul {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        recorded(&self.name, &self.inner, xs)
    }
}

impl std::fmt::Debug for QMatMul {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "QMatMul({})", self.name)
    }
}
