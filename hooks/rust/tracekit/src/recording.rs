//! What the taps and the loop say becomes frames of the log, in their order.

use std::path::Path;

use serde_json::{json, Value};

use crate::call::Call;
use crate::log::{object, Dtype, TensorRef, Writer};
use crate::program::Program;
use crate::settings::Settings;
#[cfg(feature = "candle")]
use crate::sites::INPUT_SUFFIX;
use crate::sites::{SiteTable, Stored};
use crate::steps::Step;
use crate::{Error, Result};

/// How a sequence starts.
#[derive(Clone, Debug, Default)]
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
    /// Sampling settings of this sequence, where they are not the program's.
    pub sampling: Option<Value>,
    /// More to say of it: an object.
    pub more: Value,
}

const TOKEN_IDS: &str = "token_ids";

fn id_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect()
}

impl SequenceStart<'_> {
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
    fn length(&self) -> usize {
        let given = self.inputs.iter().find(|(name, _)| *name == TOKEN_IDS);
        given.map_or(self.prompt_ids.len(), |(_, values)| values.len())
    }
}

/// One log being written.
pub(crate) struct Recording {
    writer: Writer,
    settings: Settings,
    pub(crate) program: Program,
    opened: bool,
    pub(crate) sites: SiteTable,
    pub(crate) logits_site: Option<String>,
    sequences: usize,
    in_sequence: bool,
    /// The program did not say where the sequence began.
    unsaid: bool,
    prompt: usize,
    steps: usize,
    call: Call,
    /// What the embedding was given in a call that belongs to no sequence yet.
    embedded: Vec<u32>,
}

impl Recording {
    pub(crate) fn create(path: &Path, settings: Settings) -> Result<Self> {
        Ok(Self {
            writer: Writer::create(path)?,
            settings,
            program: Program::default(),
            opened: false,
            sites: SiteTable::default(),
            logits_site: None,
            sequences: 0,
            in_sequence: false,
            unsaid: false,
            prompt: 0,
            steps: 0,
            call: Call::default(),
            embedded: Vec::new(),
        })
    }

    /// The first frame is written as late as it can be, when everything that is loaded is known.
    fn open(&mut self) -> Result<()> {
        if self.opened {
            return Ok(());
        }
        self.opened = true;
        self.program.open(&mut self.writer)
    }

    pub(crate) fn start_sequence(&mut self, start: &SequenceStart<'_>) -> Result<()> {
        if self.in_sequence {
            self.end_sequence("left")?;
        }
        self.open()?;
        let (sampling, seed) = self.program.sampling();
        let mut metadata = object(json!({
            "sequence": self.sequences,
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
        self.writer.frame("sequence", &metadata, &tensors)?;
        self.count_sequence(start.length());
        self.call = Call::default();
        Ok(())
    }

    /// Taps came before anybody said `sequence`: its prompt is what the embedding was given, if there is one.
    fn start_sequence_of_taps(&mut self) -> Result<()> {
        let prompt = std::mem::take(&mut self.embedded);
        let (data, shape) = (id_bytes(&prompt), [prompt.len()]);
        let tensor = TensorRef { name: "prompt/token_ids", dtype: Dtype::I64, shape: &shape, data: &data };
        let tensors = if prompt.is_empty() { vec![] } else { vec![tensor] };
        self.writer.frame("sequence", &object(json!({"sequence": self.sequences})), &tensors)?;
        self.count_sequence(prompt.len());
        self.unsaid = true;
        Ok(())
    }

    /// Index of the sequence and of its next step; a sequence begins where nobody said so.
    #[cfg(feature = "candle")]
    pub(crate) fn next_step(&mut self) -> Result<(usize, usize)> {
        self.finish_call()?;
        if !self.in_sequence {
            self.open()?;
            self.start_sequence_of_taps()?;
        }
        Ok((self.sequences - 1, self.steps))
    }

    /// The ids that an embedding looks up in a call.
    #[cfg(feature = "candle")]
    pub(crate) fn take_ids(&mut self, name: &str, ids: &[u32]) -> Result<()> {
        self.begin_if_repeated(name)?;
        if !self.in_sequence {
            self.embedded = ids.to_vec();
        }
        Ok(())
    }

    fn count_sequence(&mut self, prompt: usize) {
        self.sequences += 1;
        self.in_sequence = true;
        self.unsaid = false;
        self.prompt = prompt;
        self.steps = 0;
    }

    pub(crate) fn end_sequence(&mut self, reason: &str) -> Result<()> {
        self.finish_call()?;
        if self.in_sequence {
            self.in_sequence = false;
            let metadata = object(json!({
                "scope": "sequence", "sequence": self.sequences - 1, "steps": self.steps, "reason": reason,
            }));
            self.writer.frame("end", &metadata, &[])?;
        }
        Ok(())
    }

    pub(crate) fn close(&mut self) -> Result<()> {
        self.open()?;
        self.end_sequence("left")?;
        self.writer.frame("end", &object(json!({"scope": "file", "reason": "done"})), &[])?;
        self.writer.sync()
    }

    pub(crate) fn begin_call(&mut self, first: usize, rows: usize) -> Result<()> {
        self.finish_call()?;
        self.call = Call::told(first, rows);
        Ok(())
    }

    /// A program that never says `forward`: a site that fires again starts the next call.
    fn begin_if_repeated(&mut self, name: &str) -> Result<()> {
        if self.call.is_over_at(name) {
            self.finish_call()?;
            self.call = self.call.following();
        }
        Ok(())
    }

    pub(crate) fn take_value(
        &mut self,
        name: &str,
        identity: Option<usize>,
        dtype: Dtype,
        shape: &[usize],
        copy: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<()> {
        self.begin_if_repeated(name)?;
        if !self.call.fire(name) {
            return Ok(()); // twice within one told call: the first value stands
        }
        if let Some(first) = self.call.source(identity) {
            self.sites.meet(name, Stored::SameAs(first.to_string()));
            return Ok(());
        }
        self.call.set_source(identity, name);
        if self.logits_site.as_deref() == Some(name) {
            self.sites.meet(name, Stored::AsLogits);
            return Ok(());
        }
        if let Some(why) = self.call.unfit(shape) {
            self.sites.meet(name, Stored::Skipped(why));
            return Ok(());
        }
        if !self.settings.keeps(name) {
            return Ok(());
        }
        self.sites.meet(name, Stored::Values);
        self.call.keep(name, dtype, shape, copy)
    }

    /// A module's input: wired to the site that recorded the very tensor, or recorded as `name:in`.
    #[cfg(feature = "candle")]
    pub(crate) fn take_input(
        &mut self,
        name: &str,
        identity: usize,
        dtype: Dtype,
        shape: &[usize],
        copy: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<()> {
        self.begin_if_repeated(name)?;
        if let Some(source) = self.call.source(Some(identity)) {
            self.sites.wire(name, source);
            return Ok(());
        }
        let input = format!("{name}{INPUT_SUFFIX}");
        self.sites.wire(name, &input);
        self.take_value(&input, Some(identity), dtype, shape, copy)
    }

    /// The tensor `part` counts as the value of the site that recorded `whole`.
    #[cfg(feature = "candle")]
    pub(crate) fn take_part(&mut self, whole: usize, part: usize) {
        if let Some(source) = self.call.source(Some(whole)).map(str::to_string) {
            self.call.set_source(Some(part), &source);
        }
    }

    fn finish_call(&mut self) -> Result<()> {
        if !self.call.has_values() && !self.sites.has_waiting() {
            return Ok(());
        }
        self.open()?;
        if !self.in_sequence {
            self.start_sequence_of_taps()?;
        }
        let rows = self.sites.take_waiting();
        if !rows.is_empty() {
            self.writer.frame("sites", &object(json!({ "sites": rows })), &[])?;
        }
        if !self.call.has_values() {
            return Ok(());
        }
        let metadata = object(json!({
            "sequence": self.sequences - 1, "position": self.call.first, "rows": self.call.rows.unwrap_or(0),
        }));
        self.writer.frame("call", &metadata, &self.call.tensors())?;
        self.call.forget_values();
        Ok(())
    }

    pub(crate) fn write_step(&mut self, step: &Step<'_>) -> Result<()> {
        self.finish_call()?;
        if !self.in_sequence {
            return Err(Error::new("tracekit::step came before tracekit::sequence; say which prompt it belongs to"));
        }
        let (draws, events) = step.uses();
        let metadata = object(json!({
            "sequence": self.sequences - 1,
            "step": self.steps,
            "position": self.step_position(),
            "text": step.text,
            "draws": draws,
            "events": events,
        }));
        self.steps += 1;
        step.write(&mut self.writer, &metadata, &self.settings)
    }

    /// Where the logits of this step stand. An unsaid prompt may have come in several calls: then the last call tells.
    fn step_position(&self) -> usize {
        let rows = if self.unsaid { self.call.end() } else { 0 };
        (if rows > 0 { rows } else { self.prompt + self.steps }).saturating_sub(1)
    }
}
