//! The recorder of the process: one log, reached from anywhere in it.
//!
//! Recording may break, the recorded program may not: an error or a panic in here ends the recording. It is said once on
//! stderr and left in the log, where the log takes it; the program never sees it. What follows another trace goes on.

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use crate::call::Axis;
#[cfg(feature = "candle")]
use crate::call::Identity;
use crate::claim::Refusal;
use crate::follow::Follow;
use crate::log::{Dtype, Writer};
use crate::program::Description;
#[cfg(feature = "candle")]
use crate::recording::CallPlace;
use crate::recording::{Recording, SequenceStart, Taken, Tapped};
use crate::sampling::Event;
use crate::scope::{here, Slot};
use crate::sequence::Sequence;
use crate::settings::Settings;
use crate::signals::say;
use crate::sites::SiteRow;
use crate::steps::Step;
use crate::{Error, Result};

/// Bits of `MODE`. Without any, nobody has looked at the environment yet.
const KNOWN: u8 = 1;
const RECORDS: u8 = 2;
const FOLLOWS: u8 = 4;
static MODE: AtomicU8 = AtomicU8::new(0);
/// The process that looked: one that it forks has its memory, but not its log.
static OWNER: AtomicU32 = AtomicU32::new(0);
static STATE: Mutex<Option<Process>> = Mutex::new(None);

/// Whether this process records: `TRACEKIT_LOG` is set, and nothing has ended the recording. One atomic load after the
/// first call.
#[inline]
pub fn enabled() -> bool {
    mode() & RECORDS != 0
}

/// Whether this process records or follows another trace: whether it matters what the loop says.
#[inline]
pub(crate) fn is_on() -> bool {
    mode() & (RECORDS | FOLLOWS) != 0
}

#[inline]
fn mode() -> u8 {
    match MODE.load(Ordering::Relaxed) {
        0 => look_at_environment(),
        mode => mode,
    }
}

#[cold]
fn look_at_environment() -> u8 {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|path| !path.is_empty());
    let bit = |bit: u8, name: &str| if is_set(name) { bit } else { 0 };
    OWNER.store(std::process::id(), Ordering::Relaxed);
    let found = KNOWN | bit(RECORDS, "TRACEKIT_LOG") | bit(FOLLOWS, "TRACEKIT_FOLLOW");
    // Another thread may have looked, and have closed the log since.
    match MODE.compare_exchange(0, found, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => found,
        Err(there) => there,
    }
}

const STOPPED: &str = "recording stopped, the program goes on";

/// What this process records, and the generations that go on in it.
struct Process {
    /// `None` where it only follows, and when the recording is over: it never begins a second time.
    recording: Option<Recording>,
    /// The finished log: its lock is held until the process ends, so that no child takes it for free.
    kept: Option<Writer>,
    sequences: BTreeMap<Slot, Sequence>,
    /// What was said already.
    said: HashSet<String>,
}

impl Process {
    fn begin() -> Self {
        let mut own = Self { recording: None, kept: None, sequences: BTreeMap::new(), said: HashSet::new() };
        if enabled() {
            match Self::recording() {
                Ok(recording) => own.recording = Some(recording),
                Err(refusal) => Self::refuse(refusal),
            }
        }
        own
    }

    fn recording() -> std::result::Result<Recording, Refusal> {
        let path = PathBuf::from(std::env::var_os("TRACEKIT_LOG").unwrap_or_default());
        let settings = Settings::from_environment().map_err(|error| Refusal::Failed(error.to_string()))?;
        Recording::create(&path, settings)
    }

    fn refuse(refusal: Refusal) {
        match refusal {
            // Nor does it follow: the run that is to follow is the one that is recorded.
            Refusal::Taken(why) => {
                MODE.store(KNOWN, Ordering::Release);
                say(&why);
            }
            Refusal::Failed(why) => {
                MODE.fetch_and(!RECORDS, Ordering::AcqRel);
                say(&format!("{STOPPED}: {why}"));
            }
        }
    }

    /// The recording ends here; the log says why.
    fn stop(&mut self, why: &str) {
        if let Some(recording) = self.recording.take() {
            self.kept = catch_unwind(AssertUnwindSafe(|| recording.stop(why))).ok();
        }
    }

    fn is_over(&self) -> bool {
        self.recording.is_none()
    }

    /// Says something once; the log holds it, too.
    fn note(&mut self, why: &str) -> Result<()> {
        if self.said.insert(why.to_string()) {
            say(why);
            if let Some(recording) = &mut self.recording {
                recording.trouble(why)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, slot: Slot, start: &SequenceStart<'_>) -> Result<()> {
        // Values that nobody gave a sequence to belong to a call before the first one: a warm-up.
        let goes_on = self.sequences.get(&slot).is_some_and(|sequence| sequence.index.is_some());
        let left = if goes_on { self.end(slot, "left") } else { Ok(()) };
        let mut sequence = Sequence::default();
        sequence.begin(start.length(), false);
        if let Some(before) = self.sequences.remove(&slot) {
            sequence.take_encoder(before);
        }
        let begun = match &mut self.recording {
            Some(recording) if left.is_ok() => recording.start_sequence(&sequence, start),
            _ => Ok(()),
        };
        self.sequences.insert(slot, sequence);
        left.and(begun)
    }

    fn end(&mut self, slot: Slot, reason: &str) -> Result<()> {
        match (self.sequences.remove(&slot), &mut self.recording) {
            (Some(mut sequence), Some(recording)) => recording.end_sequence(&mut sequence, reason),
            _ => Ok(()),
        }
    }

    fn close(&mut self) -> Result<()> {
        MODE.fetch_and(!RECORDS, Ordering::AcqRel);
        let mut open: Vec<(Option<usize>, Slot)> =
            self.sequences.iter().map(|(&slot, sequence)| (sequence.index, slot)).collect();
        open.sort_unstable();
        for (_, slot) in open {
            self.end(slot, "left")?;
        }
        if let Some(recording) = self.recording.take() {
            self.kept = Some(recording.close()?);
        }
        Ok(())
    }

    /// A generation that nobody announced is about to begin on this thread, while one that was announced waits for its
    /// first forward call: they may be the same, told from two threads.
    fn check_thread(&mut self, slot: Slot) -> Result<()> {
        let waits = |sequence: &Sequence| sequence.index.is_some() && !sequence.unsaid && sequence.calls == 0;
        let own = self.sequences.get(&slot).is_some_and(|sequence| sequence.index.is_some());
        if own || !self.sequences.values().any(|other| waits(other) && other.steps == 0) {
            return Ok(());
        }
        self.note(
            "a thread without a generation of its own taps: recorded as a sequence of its own; \
             if it works for another thread's, enter that there (tracekit::Generation)",
        )
    }

    /// Index of the sequence and of its next step; a sequence begins where nobody said so.
    fn next_step(&mut self, slot: Slot) -> Result<(usize, usize)> {
        self.check_thread(slot)?;
        let sequence = self.sequences.entry(slot).or_default();
        let done = match &mut self.recording {
            Some(recording) => recording.come_to_step(sequence),
            None => Ok(()),
        };
        let index = match sequence.index {
            Some(index) => index,
            None => sequence.begin(0, true),
        };
        done.map(|()| (index, sequence.steps))
    }

    /// Writes a step. `token` is what goes on: the followed trace's, if `follows` and it has one. It is set whatever
    /// becomes of the recording.
    fn step(&mut self, slot: Slot, step: &Step<'_>, follows: bool, token: &mut u32) -> Result<()> {
        let begun = self.next_step(slot);
        let forced = if follows { self.forced(slot, step) } else { Ok(None) };
        let sequence = self.sequences.entry(slot).or_default();
        let (mut text, mut event) = (step.text.as_deref(), None);
        if let Ok(Some((other, its_text))) = forced {
            sequence.followed += 1;
            *token = other;
            if other != step.token {
                event = Some(Event::new("forced", json!({ "instead_of": step.token })));
                text = its_text;
            }
        }
        let written = match &mut self.recording {
            Some(recording) if begun.is_ok() => recording.write_step(sequence, step, *token, text, event.as_ref()),
            _ => Ok(()),
        };
        let is_lost = sequence.unsaid && sequence.prompt == 0 && sequence.calls == 0;
        sequence.steps += 1;
        if is_lost {
            self.note("tracekit::step came before tracekit::sequence: the log does not say what the prompt was")?;
        }
        begun.and(forced.map(|_| ())).and(written)
    }

    /// Token and text of the followed trace for the next step.
    fn forced(&mut self, slot: Slot, step: &Step<'_>) -> Result<Option<(u32, Option<&'static str>)>> {
        let follow = match Follow::of_process() {
            Ok(None) => return Ok(None),
            Ok(Some(follow)) => follow,
            Err(error) => return self.note(&not_followed(&error)).map(|()| None),
        };
        let place = self.sequences.get(&slot).and_then(|sequence| Some((sequence.index?, sequence.steps)));
        let Some((sequence, index)) = place else { return Ok(None) };
        let Some((token, text)) = follow.forced(sequence, index) else { return Ok(None) };
        if !step.logits.is_empty() && token as usize >= step.logits.len() {
            let (last, vocabulary) = (step.logits.len() - 1, step.logits.len());
            let why = format!(
                "sequence {sequence}, step {index}: the followed trace has token {token}, outside the vocabulary of \
                 {vocabulary} (0 to {last}); this step is not followed"
            );
            return self.note(&why).map(|()| None);
        }
        Ok(Some((token, text)))
    }
}

fn not_followed(error: &Error) -> String {
    format!("the trace that TRACEKIT_FOLLOW names is not followed: {error}")
}

// ---------------------------------------------------------------- what the program calls

/// Tells what the program is.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn describe(description: Description) -> Result<()> {
    record(|recording, _| {
        recording.program.description = description;
        Ok(())
    })
}

/// Notes a parameter as it was loaded; its bytes are hashed.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn register_weight(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
    if !enabled() {
        return Ok(());
    }
    let digest = xxh3_64(bytes);
    record(|recording, _| {
        recording.program.add_weight(name, dtype, shape, digest);
        Ok(())
    })
}

/// Notes a module before it first runs, so that its site says class, parameters and numbers.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn register_site(row: SiteRow) -> Result<()> {
    record(|recording, _| {
        recording.sites.declare(row);
        Ok(())
    })
}

/// The output of this site is the steps' logits: it is not stored a second time as a site.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn logits_site(name: &str) -> Result<()> {
    record(|recording, _| {
        recording.logits_site = Some(name.to_string());
        Ok(())
    })
}

/// A generation starts on this thread; one that goes on there is left. Threads have a generation each; for several on
/// one thread see [`crate::Generation`].
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn sequence(prompt_ids: &[u32]) -> Result<()> {
    sequence_with(SequenceStart::new(prompt_ids))
}

/// A generation starts, with more than its prompt ids.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn sequence_with(start: SequenceStart<'_>) -> Result<()> {
    if is_on() {
        if let Some(slot) = here() {
            crate::recorder::start(slot, &start);
        }
    }
    Ok(())
}

/// The next forward call computes `rows` positions from `first_position` on.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn forward(first_position: usize, rows: usize) -> Result<()> {
    record(|recording, sequence| recording.begin_call(sequence, first_position, rows))
}

/// The next call is the encoder's, over `rows` positions of its input: it belongs to the generation that goes on, or to
/// the next one that starts. What cross attention makes of them is told by the tensors. What the encoder was given is
/// said with [`SequenceStart::inputs`], as `encoder_token_ids`.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn encoder(rows: usize) -> Result<()> {
    record(|recording, sequence| recording.begin_encoder(sequence, rows))
}

/// Records a value: `shape` is [rows, width...] and `bytes` its C-order, little-endian content.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn tap_raw(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
    let tapped = Tapped { identity: None, dtype, axis: Axis::Sequence, first: None, shape };
    unlocked(
        || Ok(bytes.to_vec()),
        |bytes, taken| {
            record_tap(|recording, sequence| {
                *taken = recording.take_value(sequence, name, tapped, bytes)?;
                Ok(())
            })
        },
    )
}

/// Records that a token was chosen, which the program goes on with, whether another trace is followed or not: a run under
/// `--follow` says then that it did not follow. [`next_token`] follows.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn step(step: Step<'_>) -> Result<()> {
    take_step(&step, false);
    Ok(())
}

/// Records that a token was chosen, and returns the token to go on with: the followed trace's where one is followed
/// (`tracekit record --follow`), for as long as it goes; else `step.token`. Only so is the followed token to be had,
/// so that the run's own choice is always on record (an event `forced` where it is another).
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn next_token(step: Step<'_>) -> Result<u32> {
    Ok(take_step(&step, true))
}

fn take_step(step: &Step<'_>, follows: bool) -> u32 {
    let mut token = step.token;
    if is_on() {
        with(|process, slot| process.step(slot, step, follows, &mut token));
    }
    token
}

/// The generation ends: `stop`, `length`, `error` or `left`.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn end_sequence(reason: &str) -> Result<()> {
    if is_on() {
        with(|process, slot| process.end(slot, reason));
    }
    Ok(())
}

/// Writes the final frame and flushes to the disk; later calls record nothing.
///
/// # Errors
/// Never, as all recording: see [`crate::Result`].
pub fn close() -> Result<()> {
    if enabled() && is_own() {
        act(|state| match state {
            Some(process) => process.close(),
            None => {
                MODE.fetch_and(!RECORDS, Ordering::AcqRel);
                Ok(())
            }
        });
    }
    Ok(())
}

// ---------------------------------------------------------------- what the crate's own parts call

/// A generation starts in a slot.
pub(crate) fn start(slot: Slot, start: &SequenceStart<'_>) {
    if is_on() {
        with(|process, _| process.start(slot, start));
    }
}

/// A generation ends in a slot.
pub(crate) fn end(slot: Slot, reason: &str) {
    if is_on() && is_own() {
        act(|state| state.as_mut().map_or(Ok(()), |process| process.end(slot, reason)));
    }
}

/// Nobody goes on with a generation.
pub(crate) fn leave(slot: Slot) {
    end(slot, "left");
}

/// What a sampler of this crate draws by; stands in the log where the program says nothing of it.
#[cfg(feature = "candle")]
pub(crate) fn sampler(sampling: serde_json::Value, seed: u64) {
    let _ = record(|recording, _| {
        recording.program.sampler = Some((sampling, seed));
        Ok(())
    });
}

/// Where a parameter lies: the last one told stands in the log where the program says nothing of it.
#[cfg(feature = "candle")]
pub(crate) fn lies_on(device: String) -> Result<()> {
    record(|recording, _| {
        recording.program.device = Some(device);
        Ok(())
    })
}

/// With draws forced, puts a generator where the reference's stood before this thread's next step.
#[cfg(feature = "candle")]
pub(crate) fn place(rng: &mut crate::rng::TorchRng) {
    if !is_on() {
        return;
    }
    with(|process, slot| {
        let (sequence, index) = process.next_step(slot)?;
        match Follow::of_process() {
            Ok(Some(follow)) => match follow.place(sequence, index, rng) {
                Err(error) => process.note(&format!("{error}; this draw is not followed")),
                Ok(()) => Ok(()),
            },
            Ok(None) => Ok(()),
            Err(error) => process.note(&not_followed(&error)),
        }
    });
}

/// Token ids that an embedding is given: those of the first call are the prompt where the program names none.
#[cfg(feature = "candle")]
pub(crate) fn embeds(name: &str, ids: &[u32]) -> Result<()> {
    record(|recording, sequence| recording.take_ids(sequence, name, ids))
}

/// The forward call that `name` fires in now with a tensor; `None` where nothing is recorded.
#[cfg(feature = "candle")]
pub(crate) fn place_of(name: &str, tensor: Identity) -> Option<CallPlace> {
    let mut place = None;
    let _ = record_tap(|recording, sequence| {
        place = Some(recording.place_of(sequence, name, tensor)?);
        Ok(())
    });
    place
}

/// A value; `copy` runs only where it is kept, and while nothing is locked.
#[cfg(feature = "candle")]
pub(crate) fn tap_rows(name: &str, tapped: Tapped<'_>, copy: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
    unlocked(copy, |bytes, taken| {
        record(|recording, sequence| {
            *taken = recording.take_value(sequence, name, tapped, bytes)?;
            Ok(())
        })
    })
}

/// Each row of a site holds the values of this many heads side by side.
#[cfg(feature = "candle")]
pub(crate) fn site_heads(name: &str, heads: usize) -> Result<()> {
    record(|recording, _| {
        recording.sites.set_heads(name, heads);
        Ok(())
    })
}

/// The tensor `part` is rows of what `site` gave in this call.
#[cfg(feature = "candle")]
pub(crate) fn tap_part_of(site: &str, part: Identity) -> Result<()> {
    record(|_, sequence| {
        sequence.take_part_of(site, part);
        Ok(())
    })
}

/// A site gave a value that no log can hold, and why.
#[cfg(feature = "candle")]
pub(crate) fn skip_value(name: &str, why: String) -> Result<()> {
    record(|recording, sequence| recording.skip_value(sequence, name, why))
}

/// What the module `name` was called with cannot be stored, and why.
#[cfg(feature = "candle")]
pub(crate) fn skip_input(name: &str, why: String) -> Result<()> {
    record(|recording, sequence| recording.skip_input(sequence, name, why))
}

/// The module `name` was called with this: wired to the site that recorded it, or recorded as `name:in`. `copy` as in
/// `tap_rows`.
#[cfg(feature = "candle")]
pub(crate) fn tap_input(name: &str, tapped: Tapped<'_>, copy: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
    unlocked(copy, |bytes, taken| {
        record(|recording, sequence| {
            *taken = recording.take_input(sequence, name, tapped, bytes)?;
            Ok(())
        })
    })
}

/// The tensor `part` is rows of the tensor `whole`: whatever is given `part` is wired to the site that recorded `whole`.
#[cfg(feature = "candle")]
pub(crate) fn tap_part(whole: Identity, part: Identity) -> Result<()> {
    record(|_, sequence| {
        sequence.take_part(whole, part);
        Ok(())
    })
}

/// Runs what the crate does on its own account inside the program's forward: an error or a panic in it ends the
/// recording, and the program does not see it.
#[cfg(feature = "candle")]
pub(crate) fn guarded(work: impl FnOnce() -> Result<()>) {
    if let Err(why) = caught(work) {
        fail(&mut lock(), &why);
    }
}

// ---------------------------------------------------------------- the one way in

/// Takes a value in two goes: without its bytes, and, where they are wanted, with them. `copy` runs between the two: other
/// threads record while a device hands over its values.
fn unlocked(
    copy: impl FnOnce() -> Result<Vec<u8>>,
    take: impl Fn(Option<Vec<u8>>, &mut Taken) -> Result<()>,
) -> Result<()> {
    let mut taken = Taken::Done;
    take(None, &mut taken)?;
    match taken {
        Taken::Done => Ok(()),
        Taken::WantsBytes => take(Some(copy()?), &mut taken),
    }
}

/// Runs `act` on the recording and on this thread's generation, if the process records.
fn record(act: impl FnOnce(&mut Recording, &mut Sequence) -> Result<()>) -> Result<()> {
    if enabled() {
        with(|process, slot| match &mut process.recording {
            Some(recording) => act(recording, process.sequences.entry(slot).or_default()),
            None => Ok(()),
        });
    }
    Ok(())
}

/// As `record`, of a value: looks at whether the thread taps for a generation of its own.
fn record_tap(act: impl FnOnce(&mut Recording, &mut Sequence) -> Result<()>) -> Result<()> {
    if enabled() {
        with(|process, slot| {
            process.check_thread(slot)?;
            match &mut process.recording {
                Some(recording) => act(recording, process.sequences.entry(slot).or_default()),
                None => Ok(()),
            }
        });
    }
    Ok(())
}

/// Runs `act` on the state of the process and the generation that this thread is in.
fn with(action: impl FnOnce(&mut Process, Slot) -> Result<()>) {
    if !is_own() {
        return;
    }
    let Some(slot) = here() else { return };
    act(|state| action(state.get_or_insert_with(Process::begin), slot));
}

/// Runs `action` alone on the state; what goes wrong in it ends the recording.
fn act(action: impl FnOnce(&mut Option<Process>) -> Result<()>) {
    let mut state = lock();
    if let Err(why) = caught(|| action(&mut state)) {
        fail(&mut state, &why);
    }
}

/// The recording ends, if it goes on, and says why.
fn fail(state: &mut Option<Process>, why: &str) {
    if MODE.fetch_and(!RECORDS, Ordering::AcqRel) & RECORDS == 0 && state.as_ref().is_none_or(Process::is_over) {
        return;
    }
    if let Some(process) = state {
        process.stop(why);
    }
    say(&format!("{STOPPED}: {why}"));
}

fn caught(work: impl FnOnce() -> Result<()>) -> std::result::Result<(), String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("a defect of tracekit: {}", message(panic.as_ref()))),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it panicked")
}

fn lock() -> MutexGuard<'static, Option<Process>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this is the process that records. A process that it forked has its memory, with locks that may be held by
/// threads that it does not have, and its file: it touches neither, says so, and is quiet from then on.
fn is_own() -> bool {
    let (own, owner) = (std::process::id(), OWNER.load(Ordering::Relaxed));
    if own == owner {
        return true;
    }
    if MODE.swap(KNOWN, Ordering::AcqRel) & RECORDS != 0 {
        let path = PathBuf::from(std::env::var_os("TRACEKIT_LOG").unwrap_or_default());
        let path = path.display();
        say(&format!("{path}: is the log of process {owner}, which forked this one ({own}); this one is not recorded"));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_copied_while_nothing_is_locked() {
        let state = Mutex::new(Vec::new());
        let copy = || Ok(vec![u8::from(state.try_lock().is_ok())]);
        let take = |bytes: Option<Vec<u8>>, taken: &mut Taken| {
            *taken = if bytes.is_some() { Taken::Done } else { Taken::WantsBytes };
            state.lock().expect("free").push(bytes);
            Ok(())
        };
        unlocked(copy, take).expect("taken");
        assert_eq!(state.into_inner().expect("free"), [None, Some(vec![1])]);
        let not_wanted = unlocked(|| panic!("copied for nothing"), |_, _| Ok(()));
        assert!(not_wanted.is_ok());
    }

    #[test]
    fn an_error_and_a_panic_are_a_reason() {
        assert_eq!(caught(|| Ok(())), Ok(()));
        assert_eq!(caught(|| Err(Error::frame("the disk is full"))), Err("the disk is full".to_string()));
        assert_eq!(caught(|| panic!("at {}", 7)), Err("a defect of tracekit: at 7".to_string()));
    }
}
