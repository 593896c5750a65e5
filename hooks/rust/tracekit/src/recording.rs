//! What the taps and the loop say becomes frames of the log, in their order.

use std::path::Path;

use serde_json::{json, Value};

use crate::call::{Axis, Call, Identity};
use crate::claim::{claim, Refusal};
use crate::log::{object, Dtype, TensorRef, Writer};
use crate::program::Program;
use crate::sampling::Event;
use crate::sequence::Sequence;
use crate::settings::Settings;
#[cfg(feature = "candle")]
use crate::sites::INPUT_SUFFIX;
use crate::sites::{SiteTable, Stored};
use crate::steps::Step;
use crate::Result;

/// How a sequence starts.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SequenceStart<'a> {
    /// Token ids of the prompt.
    pub prompt_ids: &'a [u32],
    /// Its text.
    pub prompt_text: Option<&'a str>,
    /// Text of each prompt token.
    pub texts: Option<Vec<String>>,
    /// State of the generator as the sequence starts, as torch lays it out.
    pub rng_state: Option<&'a [u8]>,
    /// What else it was prompted with, i64 each, by name without `prompt/`. A `token_ids` here stands for `prompt_ids`,
    /// and may hold -1 where a row is no embedding of a token.
    pub inputs: &'a [(&'a str, Vec<i64>)],
    /// What an encoder was given where that is no token ids, and its shape, [channels, time].
    pub encoder_features: Option<(&'a [f32], [usize; 2])>,
    /// Sampling settings of this sequence, where they are not the program's.
    pub sampling: Option<Value>,
    /// More to say of it: an object.
    pub more: Value,
}

const TOKEN_IDS: &str = "token_ids";

fn id_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect()
}

impl<'a> SequenceStart<'a> {
    /// A sequence with a prompt of token ids.
    pub fn new(prompt_ids: &'a [u32]) -> Self {
        Self { prompt_ids, ..Self::default() }
    }

    /// With the prompt's text.
    #[must_use]
    pub fn prompt_text(mut self, text: impl Into<Option<&'a str>>) -> Self {
        self.prompt_text = text.into();
        self
    }

    /// With the text of each prompt token.
    #[must_use]
    pub fn texts(mut self, texts: impl Into<Option<Vec<String>>>) -> Self {
        self.texts = texts.into();
        self
    }

    /// With the state of the generator, as torch lays it out.
    #[must_use]
    pub fn rng_state(mut self, state: impl Into<Option<&'a [u8]>>) -> Self {
        self.rng_state = state.into();
        self
    }

    /// With what else it was prompted with, by name.
    #[must_use]
    pub fn inputs(mut self, inputs: &'a [(&'a str, Vec<i64>)]) -> Self {
        self.inputs = inputs;
        self
    }

    /// With what an encoder was given, [channels, time]: a spectrogram.
    #[must_use]
    pub fn encoder_features(mut self, values: &'a [f32], shape: [usize; 2]) -> Self {
        self.encoder_features = Some((values, shape));
        self
    }

    /// With sampling settings of its own.
    #[must_use]
    pub fn sampling(mut self, sampling: Value) -> Self {
        self.sampling = Some(sampling);
        self
    }

    /// With more to say of it: an object.
    #[must_use]
    pub fn more(mut self, more: Value) -> Self {
        self.more = more;
        self
    }

    /// Tensors by full name; the prompt's ids are among them, once.
    fn tensors(&self) -> Vec<(String, Vec<u8>)> {
        let given = self.inputs.iter().any(|(name, _)| *name == TOKEN_IDS);
        let own = (!given).then(|| (format!("prompt/{TOKEN_IDS}"), id_bytes(self.prompt_ids)));
        let inputs = self.inputs.iter().map(|(name, values)| {
            (format!("prompt/{name}"), values.iter().flat_map(|value| value.to_le_bytes()).collect())
        });
        own.into_iter().chain(inputs).collect()
    }

    /// Positions of the prompt.
    pub(crate) fn length(&self) -> usize {
        let given = self.inputs.iter().find(|(name, _)| *name == TOKEN_IDS);
        given.map_or(self.prompt_ids.len(), |(_, values)| values.len())
    }
}

/// A forward call as a tap finds it.
#[cfg(feature = "candle")]
pub(crate) struct CallPlace {
    /// A number that no other call of this process has.
    pub(crate) call: u64,
    /// Its positions, once they are known.
    pub(crate) rows: Option<usize>,
    /// Whether the site's values are asked for.
    pub(crate) wanted: bool,
    /// The other site that the module's input was, in an earlier call.
    pub(crate) source: Option<String>,
    /// Positions of the encoder's input, where the tensor has a row for each of them and not for the call's.
    pub(crate) encoded: Option<usize>,
}

/// What a tap gives, without its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Tapped<'a> {
    /// Which tensor it is, where that can be told.
    pub(crate) identity: Option<Identity>,
    pub(crate) dtype: Dtype,
    /// What its rows are.
    pub(crate) axis: Axis,
    /// Row of the call that its first row is; `None`: it must have all of them.
    pub(crate) first: Option<usize>,
    /// [rows, width...]
    pub(crate) shape: &'a [usize],
}

/// Whether a value was taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Taken {
    Done,
    /// Its bytes are to be stored: it is to be given again with them.
    WantsBytes,
}

/// One log being written.
pub(crate) struct Recording {
    writer: Writer,
    settings: Settings,
    pub(crate) program: Program,
    opened: bool,
    pub(crate) sites: SiteTable,
    pub(crate) logits_site: Option<String>,
}

impl Recording {
    pub(crate) fn create(path: &Path, settings: Settings) -> std::result::Result<Self, Refusal> {
        Ok(Self {
            writer: Writer::of(claim(path)?, path),
            settings,
            program: Program::default(),
            opened: false,
            sites: SiteTable::default(),
            logits_site: None,
        })
    }

    /// The first frame is written as late as it can be, when everything that is loaded is known.
    fn open(&mut self) -> Result<()> {
        if !self.opened {
            self.program.open(&mut self.writer)?;
            self.opened = true;
        }
        Ok(())
    }

    /// Writes that a sequence begins.
    pub(crate) fn start_sequence(&mut self, sequence: &Sequence, start: &SequenceStart<'_>) -> Result<()> {
        self.open()?;
        let (sampling, seed) = self.program.sampling();
        let mut metadata = object(json!({
            "sequence": sequence.index,
            "prompt_text": start.prompt_text,
            "texts": start.texts,
            "sampling": start.sampling.as_ref().unwrap_or(sampling),
            "seed": seed,
        }));
        if let Value::Object(more) = &start.more {
            metadata.extend(more.clone());
        }
        let inputs = start.tensors();
        let shapes: Vec<[usize; 1]> = inputs.iter().map(|(_, data)| [data.len() / 8]).collect();
        let mut tensors: Vec<TensorRef<'_>> = inputs
            .iter()
            .zip(&shapes)
            .map(|((name, data), shape)| TensorRef { name, dtype: Dtype::I64, shape, data })
            .collect();
        let state_shape = [start.rng_state.map_or(0, <[u8]>::len)];
        if let Some(state) = start.rng_state {
            tensors.push(TensorRef { name: "rng/state", dtype: Dtype::U8, shape: &state_shape, data: state });
        }
        let (values, shape) = start.encoder_features.unwrap_or((&[], [0, 0]));
        let fits = values.len() == shape[0] * shape[1];
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        if fits && !values.is_empty() {
            let name = "prompt/encoder_input_features";
            tensors.push(TensorRef { name, dtype: Dtype::F32, shape: &shape, data: &bytes });
        }
        self.writer.frame("sequence", &metadata, &tensors)?;
        if fits {
            return Ok(());
        }
        self.trouble(&format!(
            "encoder_features: {} values are not of shape {shape:?}; they are left out",
            values.len()
        ))
    }

    /// Taps or a step came before anybody said `sequence`: its prompt is what the embedding was given, if there is one.
    fn start_unsaid(&mut self, sequence: &mut Sequence) -> Result<()> {
        self.open()?;
        let prompt = std::mem::take(&mut sequence.embedded);
        let index = sequence.begin(prompt.len(), true);
        let (data, shape) = (id_bytes(&prompt), [prompt.len()]);
        let tensor = TensorRef { name: "prompt/token_ids", dtype: Dtype::I64, shape: &shape, data: &data };
        let tensors = if prompt.is_empty() { vec![] } else { vec![tensor] };
        self.writer.frame("sequence", &object(json!({ "sequence": index })), &tensors)
    }

    /// Writes the call in hand, and gives the index of the sequence, which begins where nobody said so.
    pub(crate) fn come_to_step(&mut self, sequence: &mut Sequence) -> Result<()> {
        self.finish_call(sequence)?;
        if sequence.index.is_none() {
            self.start_unsaid(sequence)?;
        }
        Ok(())
    }

    /// The ids that an embedding looks up in a call.
    #[cfg(feature = "candle")]
    pub(crate) fn take_ids(&mut self, sequence: &mut Sequence, name: &str, ids: &[u32]) -> Result<()> {
        self.begin_if_repeated(sequence, name)?;
        // The first table that is looked up in is that of tokens; those of positions and segments come after it.
        if sequence.call.axis == Axis::Encoder {
            return Ok(());
        }
        if sequence.call.ids.is_empty() {
            sequence.take_ids(ids);
        }
        if sequence.index.is_none() && sequence.embedded.is_empty() {
            sequence.embedded = ids.to_vec();
        }
        Ok(())
    }

    /// Writes that a sequence ends.
    pub(crate) fn end_sequence(&mut self, sequence: &mut Sequence, reason: &str) -> Result<()> {
        self.finish_call(sequence)?;
        let Some(index) = sequence.index else { return Ok(()) };
        let followed = (sequence.followed > 0).then(|| json!({ "tokens": sequence.followed }));
        let metadata = object(json!({
            "scope": "sequence", "sequence": index, "steps": sequence.steps, "reason": reason, "followed": followed,
        }));
        self.writer.frame("end", &metadata, &[])
    }

    /// Writes the final frame. Gives the file, which stays this process' own.
    pub(crate) fn close(mut self) -> Result<Writer> {
        self.open()?;
        self.writer.frame("end", &object(json!({"scope": "file", "reason": "done"})), &[])?;
        self.writer.sync()?;
        Ok(self.writer)
    }

    /// Leaves in the log why it says less than the program did. Gives the file, as `close` does.
    pub(crate) fn stop(mut self, why: &str) -> Writer {
        // Where even this finds no room, the file ends without an end frame, and is read as recovered.
        if self.opened {
            let _ = self.trouble(why);
        }
        self.writer
    }

    /// Leaves in the log what of this run it does not hold.
    pub(crate) fn trouble(&mut self, why: &str) -> Result<()> {
        self.open()?;
        self.writer.frame("trouble", &object(json!({ "detail": why })), &[])
    }

    pub(crate) fn begin_call(&mut self, sequence: &mut Sequence, first: usize, rows: usize) -> Result<()> {
        self.finish_call(sequence)?;
        sequence.leave_call(Call::told(first, rows));
        Ok(())
    }

    pub(crate) fn begin_encoder(&mut self, sequence: &mut Sequence, rows: usize) -> Result<()> {
        self.finish_call(sequence)?;
        sequence.leave_call(Call::encodes(rows));
        Ok(())
    }

    /// A program that never says `forward`: a site that fires again starts the next call.
    fn begin_if_repeated(&mut self, sequence: &mut Sequence, name: &str) -> Result<()> {
        if sequence.call.is_over_at(name) {
            self.finish_call(sequence)?;
            sequence.leave_call(sequence.call.following());
        }
        Ok(())
    }

    /// Takes what a site gave. Without `bytes`, nothing is taken that wants them.
    pub(crate) fn take_value(
        &mut self,
        sequence: &mut Sequence,
        name: &str,
        tapped: Tapped<'_>,
        bytes: Option<Vec<u8>>,
    ) -> Result<Taken> {
        self.begin_if_repeated(sequence, name)?;
        if sequence.call.has_fired(name) {
            return Ok(Taken::Done); // twice within one told call: the first value stands
        }
        let Tapped { identity, axis, first, shape, .. } = tapped;
        let axis = if sequence.call.axis == Axis::Encoder { Axis::Encoder } else { axis };
        if let Err(why) = self.sites.keep_axis(name, axis) {
            return self.skip_value(sequence, name, why).map(|()| Taken::Done);
        }
        let source = sequence.source(identity).map(str::to_string);
        let call = &mut sequence.call;
        let part = first.filter(|_| call.rows.is_some());
        let stored = if let Some(first) = source {
            Stored::SameAs(first)
        } else if self.logits_site.as_deref() == Some(name) {
            Stored::AsLogits
        } else if let Some(why) = part.map_or_else(|| call.unfit(shape), |_| None) {
            Stored::Skipped(why)
        } else {
            Stored::Values
        };
        let is_kept = matches!(stored, Stored::Values) && self.settings.keeps(name);
        if is_kept && bytes.is_none() {
            return Ok(Taken::WantsBytes);
        }
        call.fire(name);
        if !matches!(stored, Stored::SameAs(_)) {
            call.set_source(identity, name);
        }
        if is_kept || !matches!(stored, Stored::Values) {
            self.sites.meet(name, stored);
        }
        if let Some(bytes) = bytes.filter(|_| is_kept) {
            if axis == Axis::Sequence || sequence.is_new_to_encoder(name) {
                sequence.call.keep(name, &tapped, axis, part.unwrap_or(0), bytes);
            }
        }
        Ok(Taken::Done)
    }

    /// A site gave a value that no log can hold.
    pub(crate) fn skip_value(&mut self, sequence: &mut Sequence, name: &str, why: String) -> Result<()> {
        self.begin_if_repeated(sequence, name)?;
        sequence.call.fire(name);
        if self.logits_site.as_deref() != Some(name) {
            self.sites.meet(name, Stored::Skipped(why));
        }
        Ok(())
    }

    /// A module's input that cannot be stored in this call. From here on it has a site of its own: a call that it can be
    /// stored in is not to be wired to another module's site, which says nothing of this one.
    #[cfg(feature = "candle")]
    pub(crate) fn skip_input(&mut self, sequence: &mut Sequence, name: &str, why: String) -> Result<()> {
        let input = format!("{name}{INPUT_SUFFIX}");
        self.sites.wire(name, &input);
        self.skip_value(sequence, &input, why)
    }

    /// The forward call that `name` fires in now.
    #[cfg(feature = "candle")]
    pub(crate) fn place_of(&mut self, sequence: &mut Sequence, name: &str, of: Identity) -> Result<CallPlace> {
        self.begin_if_repeated(sequence, name)?;
        let wanted = self.settings.keeps(name) || self.settings.keeps(&format!("{name}{INPUT_SUFFIX}"));
        let source = self.sites.source_elsewhere(name).map(str::to_string);
        let encoded = sequence.is_encoded(of).then_some(sequence.encoded);
        let call = &mut sequence.call;
        Ok(CallPlace { call: call.serial(), rows: call.rows, wanted, source, encoded })
    }

    /// A module's input: wired to the site that recorded the very tensor, or recorded as `name:in`. Without `bytes`, as
    /// `take_value`.
    #[cfg(feature = "candle")]
    pub(crate) fn take_input(
        &mut self,
        sequence: &mut Sequence,
        name: &str,
        tapped: Tapped<'_>,
        bytes: Option<Vec<u8>>,
    ) -> Result<Taken> {
        self.begin_if_repeated(sequence, name)?;
        let input = format!("{name}{INPUT_SUFFIX}");
        match sequence.source(tapped.identity) {
            // An input that got a site of its own keeps it, so that no position is missing there.
            Some(source) if self.sites.is_wired_to(name, &input) && source != input => {
                self.take_value(sequence, &input, Tapped { identity: None, ..tapped }, bytes)
            }
            Some(source) => {
                self.sites.wire(name, source);
                Ok(Taken::Done)
            }
            None => {
                self.sites.wire(name, &input);
                self.take_value(sequence, &input, tapped, bytes)
            }
        }
    }

    fn finish_call(&mut self, sequence: &mut Sequence) -> Result<()> {
        let rows = self.sites.take_waiting();
        if !rows.is_empty() {
            self.open()?;
            self.writer.frame("sites", &object(json!({ "sites": rows })), &[])?;
        }
        if !sequence.call.has_values() {
            return Ok(());
        }
        if sequence.index.is_none() {
            self.start_unsaid(sequence)?;
        }
        let again = sequence.again();
        let call = &mut sequence.call;
        call.leave_out(again);
        let again = (again > 0).then_some(again);
        for rows in call.frames() {
            let again = again.filter(|_| rows.axis == Axis::Sequence);
            let metadata = object(json!({
                "sequence": sequence.index, "position": rows.first, "rows": rows.count, "axis": rows.axis.word(),
                "again": again,
            }));
            self.writer.frame("call", &metadata, &rows.values)?;
        }
        call.forget_values();
        sequence.calls += 1;
        Ok(())
    }

    /// Writes the next step of a sequence that has begun. `token` and its `text` are what goes on; `forced` says where
    /// another one was chosen.
    pub(crate) fn write_step(
        &mut self,
        sequence: &Sequence,
        step: &Step<'_>,
        token: u32,
        text: Option<&str>,
        forced: Option<&Event>,
    ) -> Result<()> {
        let (draws, mut events) = step.uses();
        events.extend(forced.map(Event::to_json));
        let metadata = object(json!({
            "sequence": sequence.index,
            "step": sequence.steps,
            "position": sequence.step_position(),
            "text": text,
            "draws": draws,
            "events": events,
        }));
        step.write(token, &mut self.writer, &metadata, &self.settings)
    }
}
