//! Candle tensors as values of sites.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{CpuStorage, DType, DeviceLocation, Module, Result, Storage, Tensor};

use super::names::{claim, load, module_of, of_module, parameter, quantised_parameter, unnamed};
use super::place::{with_places, without_batch, Layout};
use crate::call::Axis;
use crate::log::Dtype;
use crate::recorder::{
    embeds, enabled, guarded, lies_on, place_of, register_site, register_weight, site_heads, skip_input, skip_value,
    tap_input, tap_part, tap_part_of, tap_rows,
};
use crate::recording::{CallPlace, Tapped};
use crate::sites::{SiteRow, INPUT_SUFFIX};

/// Role and tensor of a module's parameter.
pub(crate) type Parameter<'a> = (&'static str, Option<&'a Tensor>);

/// Records a tensor, [rows, width] or [1, rows, width...], under a site name; [which rows](crate::nn) may be fewer.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn tap(name: &str, xs: &Tensor) -> Result<()> {
    if enabled() {
        see_output(name, xs, &Places::Any);
    }
    Ok(())
}

/// `part` is the last rows of `whole`, which a site recorded: a module that is given `part` is wired to that site.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn part_of(whole: &Tensor, part: &Tensor) -> Result<()> {
    if enabled() {
        guarded(|| tap_part(whole.id(), part.id()));
    }
    Ok(())
}

/// Where the rows of a value may stand.
pub(crate) enum Places {
    /// Wherever its elements show.
    Any,
    /// Along the last axis: what a convolution takes and gives.
    LastAxis,
    /// Where those of a tensor of these outer dimensions do.
    As(Vec<usize>, Layout),
}

fn layout_of(xs: &Tensor, here: &CallPlace, places: &Places) -> Result<Layout> {
    let (dims, rows) = (xs.dims(), here.rows);
    if let Some(count) = here.encoded.filter(|count| without_batch(xs).first() == Some(count)) {
        return Ok(Layout::Encoded(count));
    }
    match places {
        Places::As(outer, layout) if dims.split_last().is_some_and(|(_, own)| own == outer) => Ok(layout.clone()),
        Places::LastAxis => Ok(match (rows, dims) {
            (Some(rows), [1, _, time]) if *time == rows => Layout::Channels,
            (Some(rows), [first, ..]) if *first == rows && dims.len() > 2 && rows > 1 => Layout::Whole,
            _ => Layout::Nowhere(format!("its shape {dims:?} is [batch, channels, ...], not one row a position")),
        }),
        Places::Any | Places::As(..) => match rows {
            None => Ok(Layout::Whole),
            Some(rows) if !here.wanted && without_batch(xs).first() != Some(&rows) => {
                Ok(Layout::Nowhere(format!("its shape {dims:?} does not have the {rows} rows of the call")))
            }
            Some(rows) => with_places(here.call, |own| match own.known(xs.id()) {
                Some(layout) => Ok(layout),
                None => own.find(xs, rows),
            }),
        },
    }
}

/// Records a module's input, unless a site did; gives its layout.
fn see_input(name: &str, xs: &Tensor, places: &Places) -> Layout {
    let mut found = Layout::Whole;
    guarded(|| {
        found = try_input(name, xs, places)?;
        Ok(())
    });
    found
}

fn try_input(name: &str, xs: &Tensor, places: &Places) -> Result<Layout> {
    let Some(here) = place_of(name, xs.id()) else { return Ok(Layout::Whole) };
    let layout = layout_of(xs, &here, places)?;
    let input = format!("{name}{INPUT_SUFFIX}");
    let dtype = match storable(&layout, xs) {
        Ok(dtype) => dtype,
        Err(why) => {
            skip_input(name, why)?;
            return Ok(layout);
        }
    };
    let (values, first) = layout.apply(xs, here.rows.unwrap_or(0))?;
    let source = match (&layout, here.source) {
        (Layout::Part { of: Some(site), .. }, _) => Some(site.clone()),
        // A copy of what its input was in an earlier call: `xs.i((.., last, ..))?.contiguous()?`, with one position now.
        (Layout::Whole, Some(site)) if with_places(here.call, |own| own.gave(&site, &values))? => Some(site),
        _ => None,
    };
    if let Some(site) = source {
        tap_part_of(&site, xs.id())?;
    }
    if let Some(heads) = layout.heads() {
        site_heads(&input, heads)?;
    }
    remember(here.call, here.rows, &input, xs, &values, &layout)?;
    let tapped =
        Tapped { identity: Some(xs.id()), dtype, axis: layout.axis(), first: Some(first), shape: values.dims() };
    tap_input(name, tapped, || Ok(bytes(&values)?))?;
    Ok(layout)
}

fn see_output(name: &str, xs: &Tensor, places: &Places) {
    guarded(|| Ok(try_output(name, xs, places)?));
}

fn try_output(name: &str, xs: &Tensor, places: &Places) -> Result<()> {
    let Some(here) = place_of(name, xs.id()) else { return Ok(()) };
    let layout = layout_of(xs, &here, places)?;
    let dtype = match storable(&layout, xs) {
        Ok(dtype) => dtype,
        Err(why) => return Ok(skip_value(name, why)?),
    };
    let (values, first) = layout.apply(xs, here.rows.unwrap_or(0))?;
    if let Some(heads) = layout.heads() {
        site_heads(name, heads)?;
    }
    remember(here.call, here.rows, name, xs, &values, &layout)?;
    let tapped =
        Tapped { identity: Some(xs.id()), dtype, axis: layout.axis(), first: Some(first), shape: values.dims() };
    Ok(tap_rows(name, tapped, || Ok(bytes(&values)?))?)
}

fn remember(call: u64, rows: Option<usize>, site: &str, xs: &Tensor, values: &Tensor, layout: &Layout) -> Result<()> {
    with_places(call, |own| {
        own.note(xs.id(), layout);
        if layout.axis() == Axis::Sequence && rows.is_none_or(|rows| values.dims()[0] == rows) {
            own.remember(site, values);
        }
        Ok(())
    })
}

/// Number format of values that can be stored; or why they cannot.
fn storable(layout: &Layout, xs: &Tensor) -> std::result::Result<Dtype, String> {
    match layout {
        Layout::Nowhere(why) => Err(why.clone()),
        _ => dtype_of(xs),
    }
}

fn dtype_of(xs: &Tensor) -> std::result::Result<Dtype, String> {
    Ok(match xs.dtype() {
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
    })
}

/// The values' bytes, C order.
pub(super) fn bytes(xs: &Tensor) -> Result<Vec<u8>> {
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
    if enabled() && load(tensor, name) {
        guarded(|| {
            let device = match tensor.device().location() {
                DeviceLocation::Cpu => "cpu".to_string(),
                DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
                DeviceLocation::Metal { gpu_id } => format!("mps:{gpu_id}"),
            };
            lies_on(device)?;
            let Ok(dtype) = dtype_of(tensor) else { return Ok(()) };
            register_weight(name, dtype, tensor.dims(), &bytes(tensor)?)
        });
    }
    Ok(())
}

/// A module that was loaded under its own name: its parameters are `name.role`.
pub(crate) fn register_module(
    name: &str,
    class: &'static str,
    parameters: &[Parameter<'_>],
    attributes: Vec<(&'static str, f64)>,
) -> Result<()> {
    if !enabled() {
        return Ok(());
    }
    claim(name, class);
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

/// A module whose parameters, by role, have names of their own.
pub(super) fn register_parameters(
    name: &str,
    class: &'static str,
    parameters: &[(&'static str, String, Tensor)],
) -> Result<()> {
    claim(name, class);
    let mut row = SiteRow::new(name, class);
    for (role, parameter, tensor) in parameters {
        register(parameter, tensor)?;
        row.parameters.push((role, parameter.clone()));
    }
    guarded(|| register_site(row));
    Ok(())
}

/// A module made from tensors, the first of which names it; gives its name.
pub(crate) fn register_tensors(
    class: &'static str,
    parameters: &[Parameter<'_>],
    attributes: Vec<(&'static str, f64)>,
) -> String {
    let Some((_, Some(weight))) = parameters.first().filter(|_| enabled()) else { return String::new() };
    let (name, unnamed) = of_module(class, weight);
    if name.is_empty() {
        return name;
    }
    claim(&name, class);
    let mut row = SiteRow { name: name.clone(), class, attributes, unnamed, ..SiteRow::default() };
    for (role, tensor) in parameters {
        if let Some(parameter) = tensor.and_then(parameter) {
            row.parameters.push((role, parameter));
        }
    }
    guarded(|| register_site(row));
    name
}

/// A function that is given parameters with each call; gives the name of the module whose weight the first is, which is
/// empty where it is no known parameter.
pub(super) fn register_function(
    class: &'static str,
    parameters: &[Parameter<'_>],
    attributes: impl FnOnce() -> Vec<(&'static str, f64)>,
) -> String {
    let known = match parameters.first() {
        Some((_, Some(weight))) if enabled() => parameter(weight),
        _ => None,
    };
    let Some(name) = known.map(|known| module_of(&known, class).to_string()) else { return String::new() };
    if claim(&name, class) {
        let named = parameters.iter().filter_map(|(role, tensor)| Some((*role, tensor.and_then(parameter)?)));
        let row =
            SiteRow { parameters: named.collect(), attributes: attributes(), ..SiteRow::new(name.as_str(), class) };
        guarded(|| register_site(row));
    }
    name
}

/// A module whose parameters have names, `name.role`, and no tensors that could be hashed: quantised ones. Gives its name.
pub(crate) fn register_names(
    name: &str,
    class: &'static str,
    roles: &[&'static str],
    attributes: Vec<(&'static str, f64)>,
) -> String {
    if enabled() {
        claim(name, class);
        let parameters = roles.iter().map(|role| (*role, format!("{name}.{role}"))).collect();
        let row = SiteRow { name: name.to_string(), class, parameters, attributes, unnamed: false };
        guarded(|| register_site(row));
    }
    name.to_string()
}

/// A module made from a quantised tensor, which names it if it was seen to be loaded; gives its name.
pub(crate) fn register_quantised(class: &'static str, weight: &Arc<QTensor>) -> String {
    let Some(parameter) = quantised_parameter(weight).filter(|_| enabled()) else { return generated(class, vec![]) };
    let name = module_of(&parameter, class).to_string();
    claim(&name, class);
    let row = SiteRow { parameters: vec![("weight", parameter)], ..SiteRow::new(&name, class) };
    guarded(|| register_site(row));
    name
}

/// A module of which nothing is known but its class, under a generated name.
pub(crate) fn generated(class: &'static str, attributes: Vec<(&'static str, f64)>) -> String {
    let name = if enabled() { unnamed(class) } else { String::new() };
    if !name.is_empty() {
        let row = SiteRow { name: name.clone(), class, attributes, unnamed: true, ..SiteRow::default() };
        guarded(|| register_site(row));
    }
    name
}

/// Runs a module, and records its input and output.
pub(crate) fn recorded<M: Module>(name: &str, inner: &M, xs: &Tensor) -> Result<Tensor> {
    recorded_as(name, xs, Places::Any, |xs| inner.forward(xs))
}

pub(crate) fn recorded_as(
    name: &str,
    xs: &Tensor,
    places: Places,
    forward: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if !enabled() || name.is_empty() {
        return forward(xs);
    }
    let layout = see_input(name, xs, &places);
    let out = forward(xs)?;
    let places = match (places, xs.dims().split_last()) {
        (Places::Any, Some((_, outer))) => Places::As(outer.to_vec(), layout),
        (places, _) => places,
    };
    see_output(name, &out, &places);
    Ok(out)
}

/// Looks up ids in a table, and records what it gives.
pub(crate) fn recorded_lookup(
    name: &str,
    ids: &Tensor,
    forward: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if !enabled() || name.is_empty() {
        return forward(ids);
    }
    guarded(|| embeds(name, &token_ids(ids)?));
    let out = forward(ids)?;
    see_output(name, &out, &Places::Any);
    Ok(out)
}

fn token_ids(ids: &Tensor) -> Result<Vec<u32>> {
    ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1()
}
