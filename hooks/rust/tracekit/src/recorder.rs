//! The recorder of the process: one recording, reached from anywhere in it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::log::Dtype;
use crate::program::Description;
use crate::recording::{Recording, SequenceStart};
use crate::settings::Settings;
use crate::sites::SiteRow;
use crate::steps::Step;
use crate::Result;

const UNKNOWN: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;
static ENABLED: AtomicU8 = AtomicU8::new(UNKNOWN);
static RECORDER: Mutex<Option<Recording>> = Mutex::new(None);

/// Whether this process records: `TRACEKIT_LOG` is set. One atomic load after the first call.
#[inline]
pub fn enabled() -> bool {
    match ENABLED.load(Ordering::Relaxed) {
        ON => true,
        OFF => false,
        _ => look_at_environment(),
    }
}

#[cold]
fn look_at_environment() -> bool {
    let on = std::env::var_os("TRACEKIT_LOG").is_some_and(|path| !path.is_empty());
    ENABLED.store(if on { ON } else { OFF }, Ordering::Relaxed);
    on
}

/// Tells what the program is.
///
/// # Errors
/// If the log cannot be written.
pub fn describe(description: Description) -> Result<()> {
    with(|recorder| {
        recorder.program.description = description;
        Ok(())
    })
}

/// Notes a parameter as it was loaded; its bytes are hashed.
///
/// # Errors
/// If the log cannot be written.
pub fn register_weight(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
    with(|recorder| {
        recorder.program.add_weight(name, dtype, shape, bytes);
        Ok(())
    })
}

/// Notes a module before it first runs, so that its site says class, parameters and numbers.
///
/// # Errors
/// If the log cannot be written.
pub fn register_site(row: SiteRow) -> Result<()> {
    with(|recorder| {
        recorder.sites.declare(row);
        Ok(())
    })
}

/// The output of this site is the steps' logits: it is not stored a second time as a site.
///
/// # Errors
/// If the log cannot be written.
pub fn logits_site(name: &str) -> Result<()> {
    with(|recorder| {
        recorder.logits_site = Some(name.to_string());
        Ok(())
    })
}

/// A generation starts.
///
/// # Errors
/// If the log cannot be written.
pub fn sequence(prompt_ids: &[u32]) -> Result<()> {
    sequence_with(SequenceStart { prompt_ids, ..SequenceStart::default() })
}

/// A generation starts, with more than its prompt ids.
///
/// # Errors
/// If the log cannot be written.
pub fn sequence_with(start: SequenceStart<'_>) -> Result<()> {
    with(|recorder| recorder.start_sequence(&start))
}

/// The next forward call computes `rows` positions from `first_position` on.
///
/// # Errors
/// If the log cannot be written.
pub fn forward(first_position: usize, rows: usize) -> Result<()> {
    with(|recorder| recorder.begin_call(first_position, rows))
}

/// Records a value: `shape` is [rows, width...] and `bytes` its C-order, little-endian content.
///
/// # Errors
/// If the log cannot be written.
pub fn tap_raw(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
    tap_value(name, None, dtype, shape, || Ok(bytes.to_vec()))
}

/// A token was sampled.
///
/// # Errors
/// If the log cannot be written.
pub fn step(step: Step<'_>) -> Result<()> {
    with(|recorder| recorder.write_step(&step))
}

/// What a sampler of this crate draws by; stands in the log where the program says nothing of it.
#[cfg(feature = "candle")]
pub(crate) fn sampler(sampling: serde_json::Value, seed: u64) -> Result<()> {
    with(|recorder| {
        recorder.program.sampler = Some((sampling, seed));
        Ok(())
    })
}

/// Where a parameter lies: the last one told stands in the log where the program says nothing of it.
#[cfg(feature = "candle")]
pub(crate) fn lies_on(device: String) -> Result<()> {
    with(|recorder| {
        recorder.program.device = Some(device);
        Ok(())
    })
}

/// Index of the sequence and of its next step; a sequence begins where the program said none. `None`: not recording.
#[cfg(feature = "candle")]
pub(crate) fn next_step() -> Result<Option<(usize, usize)>> {
    let mut place = None;
    with(|recorder| {
        place = Some(recorder.next_step()?);
        Ok(())
    })?;
    Ok(place)
}

/// Token ids that an embedding is given: those of the first call are the prompt where the program names none.
#[cfg(feature = "candle")]
pub(crate) fn embeds(name: &str, ids: &[u32]) -> Result<()> {
    with(|recorder| recorder.take_ids(name, ids))
}

/// The generation ends: `stop`, `length`, `error` or `left`.
///
/// # Errors
/// If the log cannot be written.
pub fn end_sequence(reason: &str) -> Result<()> {
    with(|recorder| recorder.end_sequence(reason))
}

/// Writes the final frame and flushes to the disk; later calls record nothing.
///
/// # Errors
/// If the log cannot be written.
pub fn close() -> Result<()> {
    if !enabled() {
        return Ok(());
    }
    let taken = lock().take();
    ENABLED.store(OFF, Ordering::Relaxed);
    match taken {
        Some(mut recorder) => recorder.close(),
        None => Ok(()),
    }
}

/// `tap_raw` with the identity of the tensor, for the wiring; `copy` runs only where the value is kept.
pub(crate) fn tap_value(
    name: &str,
    identity: Option<usize>,
    dtype: Dtype,
    shape: &[usize],
    copy: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<()> {
    with(|recorder| recorder.take_value(name, identity, dtype, shape, copy))
}

/// The module `name` was called with the tensor `identity`: wired to the site that recorded it, or recorded as `name:in`.
#[cfg(feature = "candle")]
pub(crate) fn tap_input(
    name: &str,
    identity: usize,
    dtype: Dtype,
    shape: &[usize],
    copy: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<()> {
    with(|recorder| recorder.take_input(name, identity, dtype, shape, copy))
}

/// The tensor `part` is rows of the tensor `whole`: whatever is given `part` is wired to the site that recorded `whole`.
#[cfg(feature = "candle")]
pub(crate) fn tap_part(whole: usize, part: usize) -> Result<()> {
    with(|recorder| {
        recorder.take_part(whole, part);
        Ok(())
    })
}

fn lock() -> MutexGuard<'static, Option<Recording>> {
    RECORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with(act: impl FnOnce(&mut Recording) -> Result<()>) -> Result<()> {
    if !enabled() {
        return Ok(());
    }
    let mut guard = lock();
    if guard.is_none() {
        let path = PathBuf::from(std::env::var_os("TRACEKIT_LOG").unwrap_or_default());
        *guard = Some(Recording::create(&path, Settings::from_environment()?)?);
    }
    match guard.as_mut() {
        Some(recorder) => act(recorder),
        None => Ok(()),
    }
}
