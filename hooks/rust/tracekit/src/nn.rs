//! Drop-ins for candle's layers: change the `use` line of a candle model, and it records itself.
//!
//! Each takes its site name from `vb.prefix()`, records its output, and its input unless that very tensor
//! (`Tensor::id()`) was recorded already: then the site table says where it came from.
//!
//! ```no_run
//! use candle_core::{Module, Result, Tensor};
//! use candle_nn::VarBuilder;
//! use tracekit::nn::{linear_no_bias, Linear}; // was: use candle_nn::{linear_no_bias, Linear};
//!
//! struct Mlp { up: Linear, down: Linear }
//!
//! impl Mlp {
//!     fn new(vb: VarBuilder) -> Result<Self> {
//!         Ok(Self { up: linear_no_bias(64, 256, vb.pp("up_proj"))?, down: linear_no_bias(256, 64, vb.pp("down_proj"))? })
//!     }
//!     fn forward(&self, xs: &Tensor) -> Result<Tensor> {
//!         self.down.forward(&self.up.forward(xs)?.silu()?)
//!     }
//! }
//! ```

use candle_core::{CpuStorage, DType, DeviceLocation, Module, Result, Storage, Tensor};
use candle_nn::VarBuilder;

use crate::log::Dtype;
use crate::recorder::{
    embeds, enabled, guarded, lies_on, register_site, register_weight, skip_value, tap_input, tap_part, tap_value,
};
use crate::sites::{SiteRow, INPUT_SUFFIX};

/// Records a tensor, [rows, width] or [1, rows, width...], under a site name.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn tap(name: &str, xs: &Tensor) -> Result<()> {
    if enabled() {
        guarded(|| match described(xs) {
            Ok((dtype, shape)) => tap_value(name, Some(identity(xs)), dtype, &shape, || bytes(xs).map_err(into_own)),
            Err(why) => skip_value(name, why),
        });
    }
    Ok(())
}

fn tap_in(name: &str, xs: &Tensor) {
    guarded(|| match described(xs) {
        Ok((dtype, shape)) => tap_input(name, identity(xs), dtype, &shape, || bytes(xs).map_err(into_own)),
        Err(why) => skip_value(&format!("{name}{INPUT_SUFFIX}"), why),
    });
}

/// `part` is the last rows of `whole`, which a site recorded: a module that is given `part` is wired to that site.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn part_of(whole: &Tensor, part: &Tensor) -> Result<()> {
    if enabled() {
        guarded(|| tap_part(identity(whole), identity(part)));
    }
    Ok(())
}

fn into_own(error: candle_core::Error) -> crate::Error {
    crate::Error::new(error.to_string())
}

/// candle counts its tensors and never gives a number twice, so equal ids mean the very same tensor.
fn identity(xs: &Tensor) -> usize {
    // `TensorId` shows its number only through Debug: `TensorId(12)`.
    let text = format!("{:?}", xs.id());
    text.bytes().filter(u8::is_ascii_digit).fold(0, |total, digit| total * 10 + usize::from(digit - b'0'))
}

/// Number format, and the shape with a leading batch of one dropped; or why no log can hold the values.
fn described(xs: &Tensor) -> std::result::Result<(Dtype, Vec<usize>), String> {
    let dtype = match xs.dtype() {
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::BF16 => Dtype::Bf16,
        DType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F8E4M3 => Dtype::F8E4M3,
        other => return Err(format!("its dtype {other:?} is none that a trace can hold")),
    };
    let dims = xs.dims();
    let shape = if dims.len() > 2 && dims[0] == 1 { &dims[1..] } else { dims };
    Ok((dtype, shape.to_vec()))
}

/// The values' bytes, C order.
fn bytes(xs: &Tensor) -> Result<Vec<u8>> {
    let xs = xs.to_device(&candle_core::Device::Cpu)?.contiguous()?;
    let (storage, layout) = xs.storage_and_layout();
    let start = layout.start_offset();
    let range = start..start + layout.shape().elem_count();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("the tensor did not come to the CPU") };
    Ok(match storage {
        CpuStorage::U8(values) => values[range].to_vec(),
        CpuStorage::U32(values) => raw(&values[range]).to_vec(),
        CpuStorage::I16(values) => raw(&values[range]).to_vec(),
        CpuStorage::I32(values) => raw(&values[range]).to_vec(),
        CpuStorage::I64(values) => raw(&values[range]).to_vec(),
        CpuStorage::BF16(values) => raw(&values[range]).to_vec(),
        CpuStorage::F16(values) => raw(&values[range]).to_vec(),
        CpuStorage::F32(values) => raw(&values[range]).to_vec(),
        CpuStorage::F64(values) => raw(&values[range]).to_vec(),
        CpuStorage::F8E4M3(values) => raw(&values[range]).to_vec(),
        _ => candle_core::bail!("tracekit cannot record {:?}", xs.dtype()),
    })
}

#[cfg(not(target_endian = "little"))]
compile_error!("tracekit's log is little-endian, and values are copied as they lie in memory");

fn raw<T: candle_core::WithDType>(values: &[T]) -> &[u8] {
    // SAFETY: candle's element types are plain numbers without padding; the slice stays borrowed.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// Notes a parameter as it was loaded. One whose dtype no log can hold is left out.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn register(name: &str, tensor: &Tensor) -> Result<()> {
    if enabled() {
        guarded(|| {
            let device = match tensor.device().location() {
                DeviceLocation::Cpu => "cpu".to_string(),
                DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
                DeviceLocation::Metal { gpu_id } => format!("mps:{gpu_id}"),
            };
            lies_on(device)?;
            let Ok((dtype, _)) = described(tensor) else { return Ok(()) };
            register_weight(name, dtype, tensor.dims(), &bytes(tensor).map_err(into_own)?)
        });
    }
    Ok(())
}

fn register_module(
    name: &str,
    class: &'static str,
    parameters: &[(&'static str, Option<&Tensor>)],
    attributes: Vec<(&'static str, f64)>,
) -> Result<()> {
    if !enabled() {
        return Ok(());
    }
    let mut row = SiteRow { name: name.to_string(), class, attributes, ..SiteRow::default() };
    for (role, tensor) in parameters {
        if let Some(tensor) = tensor {
            let parameter = format!("{name}.{role}");
            register(&parameter, tensor)?;
            row.parameters.push((role, parameter));
        }
    }
    guarded(|| register_site(row));
    Ok(())
}

fn recorded<M: Module>(name: &str, inner: &M, xs: &Tensor) -> Result<Tensor> {
    recorded_as(name, xs, |xs| inner.forward(xs))
}

fn recorded_as(name: &str, xs: &Tensor, forward: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if !enabled() {
        return forward(xs);
    }
    tap_in(name, xs);
    let out = forward(xs)?;
    tap(name, &out)?;
    Ok(out)
}

/// `candle_nn::Linear` that records its input and output.
#[derive(Clone, Debug)]
pub struct Linear {
    name: String,
    inner: candle_nn::Linear,
}

impl Linear {
    /// A linear layer from tensors at hand, under a site name; nothing is said of where they were loaded from.
    pub fn named(name: &str, weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { name: name.to_string(), inner: candle_nn::Linear::new(weight, bias) }
    }

    /// A logits head that shares the table of an embedding; its weight is noted under the head's own name.
    ///
    /// # Errors
    /// Never, as all recording: see [`crate::Result`].
    pub fn tied(name: &str, table: &Tensor) -> Result<Self> {
        register_module(name, "Linear", &[("weight", Some(table))], vec![])?;
        Ok(Self::named(name, table.clone(), None))
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// [out, in].
    pub fn weight(&self) -> &Tensor {
        self.inner.weight()
    }

    /// `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.inner.bias()
    }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        recorded(&self.name, &self.inner, xs)
    }
}

/// A linear layer with or without bias, loaded from `vb`.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
    let name = vb.prefix();
    let inner = candle_nn::linear_b(in_dim, out_dim, bias, vb)?;
    register_module(&name, "Linear", &[("weight", Some(inner.weight())), ("bias", inner.bias())], vec![])?;
    Ok(Linear { name, inner })
}

/// A linear layer with bias.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    linear_b(in_dim, out_dim, true, vb)
}

/// A linear layer without bias.
///
/// # Errors
/// If the tensor is missing or has another shape.
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    linear_b(in_dim, out_dim, false, vb)
}

/// `candle_nn::Embedding` that records its output.
#[derive(Clone, Debug)]
pub struct Embedding {
    name: String,
    inner: candle_nn::Embedding,
}

impl Embedding {
    /// An embedding from a table at hand, under a site name.
    pub fn named(name: &str, table: Tensor) -> Result<Self> {
        let width = table.dim(1)?;
        Ok(Self { name: name.to_string(), inner: candle_nn::Embedding::new(table, width) })
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The table, [vocabulary, width].
    pub fn embeddings(&self) -> &Tensor {
        self.inner.embeddings()
    }
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        if enabled() {
            guarded(|| embeds(&self.name, &token_ids(ids).map_err(into_own)?));
        }
        let out = self.inner.forward(ids)?;
        tap(&self.name, &out)?;
        Ok(out)
    }
}

fn token_ids(ids: &Tensor) -> Result<Vec<u32>> {
    ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1()
}

/// An embedding table loaded from `vb`.
///
/// # Errors
/// If the tensor is missing or has another shape.
pub fn embedding(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Embedding> {
    let name = vb.prefix();
    let inner = candle_nn::embedding(in_size, out_size, vb)?;
    register_module(&name, "Embedding", &[("weight", Some(inner.embeddings()))], vec![])?;
    Ok(Embedding { name, inner })
}

/// `candle_nn::RmsNorm` that records its input and output.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    name: String,
    inner: candle_nn::RmsNorm,
}

impl RmsNorm {
    /// A norm from a weight at hand, under a site name.
    pub fn named(name: &str, weight: Tensor, eps: f64) -> Self {
        Self { name: name.to_string(), inner: candle_nn::RmsNorm::new(weight, eps) }
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `[width]`.
    pub fn weight(&self) -> &Tensor {
        self.inner.weight()
    }

    /// What is added to the mean square.
    pub fn eps(&self) -> f64 {
        self.inner.eps()
    }

    /// As `candle_nn::RmsNorm::forward_diff`: in float32 whatever the dtype, where `forward` rounds the root mean
    /// square to 16 bits first.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_diff(&self, xs: &Tensor) -> Result<Tensor> {
        recorded_as(&self.name, xs, |xs| self.inner.forward_diff(xs))
    }
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        recorded(&self.name, &self.inner, xs)
    }
}

/// An RMS norm loaded from `vb`.
///
/// # Errors
/// If the tensor is missing or has another shape.
pub fn rms_norm(size: usize, eps: f64, vb: VarBuilder) -> Result<RmsNorm> {
    let name = vb.prefix();
    let inner = candle_nn::rms_norm(size, eps, vb)?;
    register_module(&name, "RMSNorm", &[("weight", Some(inner.weight()))], vec![("eps", eps)])?;
    Ok(RmsNorm { name, inner })
}

/// `candle_nn::LayerNorm` that records its input and output.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    name: String,
    inner: candle_nn::LayerNorm,
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        recorded(&self.name, &self.inner, xs)
    }
}

/// A layer norm loaded from `vb`.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn layer_norm<C: Into<candle_nn::LayerNormConfig>>(size: usize, config: C, vb: VarBuilder) -> Result<LayerNorm> {
    let name = vb.prefix();
    let config = config.into();
    let inner = candle_nn::layer_norm(size, config, vb)?;
    let parameters = [("weight", Some(inner.weight())), ("bias", inner.bias())];
    register_module(&name, "LayerNorm", &parameters, vec![("eps", config.eps)])?;
    Ok(LayerNorm { name, inner })
}
