//! One generation as far as it has come.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::call::Call;
#[cfg(feature = "candle")]
use crate::call::Identity;

/// Sequences that have begun in this process.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// What is known of a generation: where it stands, and the forward call in hand.
#[derive(Default)]
pub(crate) struct Sequence {
    /// Its index in the log; `None` while there are taps only, of which nobody said what they belong to.
    pub(crate) index: Option<usize>,
    /// The program did not say where it began.
    pub(crate) unsaid: bool,
    /// Positions of the prompt.
    pub(crate) prompt: usize,
    /// Tokens that were chosen.
    pub(crate) steps: usize,
    /// Forward calls whose values were written.
    pub(crate) calls: usize,
    /// Steps that went on with the followed trace's token.
    pub(crate) followed: usize,
    pub(crate) call: Call,
    /// What the embedding was given in a call that belongs to no sequence yet.
    pub(crate) embedded: Vec<u32>,
}

impl Sequence {
    /// Begins it; gives its index. Only one thread at a time comes here, so indices are in the order of the log.
    pub(crate) fn begin(&mut self, prompt: usize, unsaid: bool) -> usize {
        let index = BEGUN.fetch_add(1, Ordering::Relaxed);
        self.index = Some(index);
        self.unsaid = unsaid;
        self.prompt = prompt;
        index
    }

    /// Where the logits of its next step stand. An unsaid prompt may have come in several calls: then the last call tells.
    pub(crate) fn step_position(&self) -> usize {
        let rows = if self.unsaid { self.call.end() } else { 0 };
        (if rows > 0 { rows } else { self.prompt + self.steps }).saturating_sub(1)
    }

    /// The tensor of this identity is rows of what `site` gave.
    #[cfg(feature = "candle")]
    pub(crate) fn take_part_of(&mut self, site: &str, identity: Identity) {
        if self.call.source(Some(identity)).is_none() {
            self.call.set_source(Some(identity), site);
        }
    }

    /// The tensor `part` counts as the value of the site that recorded `whole`.
    #[cfg(feature = "candle")]
    pub(crate) fn take_part(&mut self, whole: Identity, part: Identity) {
        if let Some(source) = self.call.source(Some(whole)).map(str::to_string) {
            self.call.set_source(Some(part), &source);
        }
    }
}
