//! A `VarBuilder` that notes which parameter each tensor is.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::taps::register;
use crate::recorder::enabled;

/// The same builder, which notes every tensor that is got from it: its digest comes into the trace, and a module that is
/// made from tensors (`Linear::new(vb.get(shape, "weight")?, None)`) gets its name. One line where the program makes its
/// builder:
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tracekit::nn::{watched, Linear, VarBuilder};
///
/// # let tensors = [("expert.w1.weight".to_string(), Tensor::zeros((3, 2), DType::F32, &Device::Cpu)?)].into();
/// let vb = watched(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu));
/// let layer = Linear::new(vb.pp("expert.w1").get((3, 2), "weight")?, None); // recorded as `expert.w1`
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// A process that does not record gets the builder back as it was.
pub fn watched(vb: VarBuilder<'_>) -> VarBuilder<'_> {
    if !enabled() {
        return vb;
    }
    let (prefix, dtype, device) = (vb.prefix(), vb.dtype(), vb.device().clone());
    let own = VarBuilder::from_backend(Box::new(Watched(vb.root())), dtype, device);
    if prefix.is_empty() {
        own
    } else {
        own.set_prefix(prefix)
    }
}

struct Watched<'a>(VarBuilder<'a>);

impl Watched<'_> {
    fn noted(&self, name: &str, tensor: Tensor, device: &Device) -> Result<Tensor> {
        let tensor = if device.same_device(self.0.device()) { tensor } else { tensor.to_device(device)? };
        register(name, &tensor)?;
        Ok(tensor)
    }
}

impl SimpleBackend for Watched<'_> {
    fn get(&self, shape: Shape, name: &str, hints: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        self.noted(name, self.0.get_with_hints_dtype(shape, name, hints, dtype)?, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.noted(name, self.0.get_unchecked_dtype(name, dtype)?, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains_tensor(name)
    }
}
