//! One generation as far as it has come.

use std::sync::atomic::{AtomicUsize, Ordering};

use std::collections::{HashMap, HashSet};

use crate::call::{Axis, Call, Identity};

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
    /// Positions that calls have computed, and the token ids there, where they are seen.
    computed: usize,
    ids: Vec<u32>,
    /// Positions of the encoder's input, once its call is over.
    pub(crate) encoded: usize,
    /// The sites of the encoder's call by the tensors that they gave.
    encoder_sources: HashMap<Identity, String>,
    /// Sites whose values at the positions of the encoder's input are known: each call may compute them anew.
    encoder_sites: HashSet<String>,
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

    /// The encoder's call may come before anybody says what it is for: the sequence that begins takes it over.
    pub(crate) fn take_encoder(&mut self, before: Self) {
        if before.index.is_none() && before.call.axis == Axis::Encoder {
            self.call = before.call;
        }
    }

    /// Token ids of the call in hand: with them a program without a cache is known, that gives all of them each time,
    /// from one that goes on with others after some that it had.
    pub(crate) fn take_ids(&mut self, ids: &[u32]) {
        let known = self.computed;
        let goes_on = known > 0 && self.ids.len() == known && ids.len() > known && ids.starts_with(&self.ids);
        if !self.call.is_told() && self.call.first == known && goes_on {
            self.call.first = 0;
        }
        self.call.ids = ids.to_vec();
    }

    /// How many rows of the call in hand are of positions that an earlier call computed from the same tokens; where
    /// those are not seen, a call of all positions and more is taken for such a one.
    pub(crate) fn again(&self) -> usize {
        let Call { axis, first, rows, ids, .. } = &self.call;
        let (rows, over) = (rows.unwrap_or(0), self.computed.saturating_sub(*first));
        if *axis == Axis::Encoder || over == 0 || over > rows {
            return 0;
        }
        let seen = self.ids.len() == self.computed && ids.len() == rows;
        let alike = if seen { self.ids[*first..] == ids[..over] } else { *first == 0 && rows > over };
        if alike {
            over
        } else {
            0
        }
    }

    /// The call in hand is over: of the encoder's, what its tensors are stays known; of others, what they computed.
    pub(crate) fn leave_call(&mut self, next: Call) {
        let call = std::mem::replace(&mut self.call, next);
        if call.axis == Axis::Encoder {
            self.encoded = call.rows.unwrap_or(0);
            self.encoder_sources = call.into_sources();
            return;
        }
        let rows = call.rows.unwrap_or(0);
        if self.ids.len() >= call.first && call.ids.len() == rows {
            self.ids.truncate(call.first);
            self.ids.extend(call.ids.iter());
        }
        self.computed = if rows > 0 { call.end() } else { self.computed };
    }

    /// The site that recorded the tensor of this identity, in this call or in the encoder's.
    pub(crate) fn source(&self, identity: Option<Identity>) -> Option<&str> {
        self.call.source(identity).or_else(|| self.encoder_sources.get(&identity?).map(String::as_str))
    }

    /// Whether a tensor of this identity has a row for each position of the encoder's input, and is none of its call.
    #[cfg(feature = "candle")]
    pub(crate) fn is_encoded(&self, identity: Identity) -> bool {
        self.call.axis == Axis::Sequence && self.encoder_sources.contains_key(&identity)
    }

    /// Whether a site gives its values at the positions of the encoder's input for the first time.
    pub(crate) fn is_new_to_encoder(&mut self, name: &str) -> bool {
        self.encoder_sites.insert(name.to_string())
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
