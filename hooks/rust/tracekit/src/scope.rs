//! Which generation a thread's taps and steps belong to.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::recorder;
use crate::recording::SequenceStart;

/// Names a generation within this process; 0 is nobody's.
pub(crate) type Slot = u64;

static NEXT: AtomicU64 = AtomicU64::new(1);

fn new_slot() -> Slot {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What a thread works on.
#[derive(Default)]
struct Here {
    /// The generation that the thread began by [`crate::sequence`], or by a tap.
    own: Option<Slot>,
    /// Those that it entered, the innermost last.
    entered: Vec<Slot>,
}

impl Drop for Here {
    /// The thread ends, and its generation with it.
    fn drop(&mut self) {
        if let Some(slot) = self.own.take() {
            recorder::leave(slot);
        }
    }
}

thread_local! {
    static HERE: RefCell<Here> = RefCell::default();
}

/// The generation that this thread is in, a new one where it is in none. `None`: the thread is at its end.
pub(crate) fn here() -> Option<Slot> {
    HERE.try_with(|here| {
        let mut here = here.borrow_mut();
        match here.entered.last() {
            Some(&slot) => slot,
            None => *here.own.get_or_insert_with(new_slot),
        }
    })
    .ok()
}

/// One generation of several that go on at the same time: its own sequence in the log.
///
/// Taps and steps of a thread belong to the generation that the thread is in: the one that it entered last, else the one
/// that it began with [`crate::sequence`]. Threads that generate side by side, each with a [`crate::sequence`] of its own,
/// are therefore kept apart without further ado. What takes turns on one thread, or wanders from thread to thread, is
/// kept apart by entering:
///
/// ```
/// use tracekit::{Generation, Step};
///
/// # let path = std::env::temp_dir().join(format!("tracekit-scope-{}.tklog", std::process::id()));
/// # std::env::set_var("TRACEKIT_LOG", &path);
/// let generations = [Generation::start(&[1, 2]), Generation::start(&[3])];
/// for turn in 0..3 {
///     for generation in &generations {
///         let _inside = generation.enter();
///         // tracekit::forward(...), the model's forward, the sampler
///         tracekit::step(Step::new(turn))?;
///     }
/// }
/// for generation in generations {
///     generation.end("length");
/// }
/// tracekit::close()?;
/// # let frames = tracekit::log::read(&path)?.frames;
/// # assert_eq!(frames.iter().filter(|frame| frame.kind == "step").count(), 6);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Threads that only compute (rayon's, inside a kernel) tap nothing and need not enter. Of two threads that are in the
/// same generation at once, the forward calls mix.
#[derive(Debug)]
pub struct Generation(Slot);

impl Generation {
    /// A generation of this prompt begins.
    pub fn start(prompt_ids: &[u32]) -> Self {
        Self::start_with(&SequenceStart::new(prompt_ids))
    }

    /// As [`Self::start`], with more than the prompt's ids.
    pub fn start_with(start: &SequenceStart<'_>) -> Self {
        let own = Self(new_slot());
        recorder::start(own.0, start);
        own
    }

    /// Until the guard is dropped, this thread's taps and steps belong to this generation.
    pub fn enter(&self) -> Entered<'_> {
        let _ = HERE.try_with(|here| here.borrow_mut().entered.push(self.0));
        Entered { slot: self.0, here: PhantomData }
    }

    /// It ends: `stop`, `length`, `error` or `left`, which is also what dropping it means.
    pub fn end(self, reason: &str) {
        recorder::end(self.0, reason);
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        recorder::leave(self.0);
    }
}

/// A thread is in a generation for as long as this lives; see [`Generation::enter`].
#[derive(Debug)]
#[must_use = "the thread leaves the generation when this is dropped"]
pub struct Entered<'a> {
    slot: Slot,
    /// Stays on its thread.
    here: PhantomData<(&'a Generation, *const ())>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let _ = HERE.try_with(|here| {
            let entered = &mut here.borrow_mut().entered;
            if let Some(at) = entered.iter().rposition(|&slot| slot == self.slot) {
                entered.remove(at);
            }
        });
    }
}
