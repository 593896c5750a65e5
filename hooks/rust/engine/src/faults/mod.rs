//! Faults for tests and the demo: known mistakes, planted into a model and a sampler after they are built.
//!
//! Each file is a place where mistakes are made: the loaded config, rotary embedding, parameters (after the loaded
//! tensors were hashed), the attention core, the KV cache, the wiring of a block, the sampler's settings, its processors, its
//! draws, the ends of the sequence, and CosyVoice's program around its model. Each has a table of its faults, reads their
//! arguments, says where one cannot show, and puts them in: it exchanges the part of the model that they change. Model and
//! sampler know nothing of faults; a run without `--fault` is of the model's own parts alone.
//!
//! To add a fault, write its row, its `Kind`, and what it exchanges in the file of its place; nothing else changes.

mod attention;
mod block;
mod cache;
mod config;
mod draw;
mod ends;
mod processors;
mod rotary;
mod settings;
mod speech;
mod weights;
mod words;

use std::cell::Cell;
use std::rc::Rc;

use tracekit::sampling::Sampling;

use crate::config::Config;
use crate::model::decoder::{Block, Decoder};
use crate::model::Model;
use crate::trouble::{trouble, Result};
use words::Words;

/// How a fault is written, and what it does.
type Row = (&'static str, &'static str);

#[derive(Debug)]
enum Kind {
    Config(config::Kind),
    Rotary(rotary::Kind),
    Weights(weights::Kind),
    Attention(attention::Kind),
    Cache(cache::Kind),
    Block(block::Kind),
    Settings(settings::Kind),
    Processors(processors::Kind),
    Draw(draw::Kind),
    Ends(ends::Kind),
    Speech(speech::Kind),
}

#[derive(Debug)]
struct Fault {
    text: String,
    kind: Kind,
    /// The place it names exists.
    found: Cell<bool>,
}

/// The faults of this run; usually none.
#[derive(Debug, Default)]
pub struct Faults {
    list: Vec<Fault>,
    clock: Clock,
    /// Changed settings of the config are not reported as used.
    quiet: bool,
}

/// The generation step that the forward call in hand is of, by the calls of the first layer.
#[derive(Clone, Debug, Default)]
struct Clock(Rc<Calls>);

#[derive(Debug, Default)]
struct Calls {
    /// Of the prefill.
    prefill: Cell<usize>,
    /// So far, the one in hand included.
    all: Cell<usize>,
}

impl Clock {
    /// 0 in the prefill.
    fn step(&self) -> usize {
        self.0.all.get().saturating_sub(self.0.prefill.get())
    }

    fn tick(&self) {
        self.0.all.set(self.0.all.get() + 1);
    }

    fn reset(&self) {
        self.0.all.set(0);
    }
}

/// What is known of a run before the model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Most new tokens.
    pub limit: usize,
    /// Positions of the prompt, and the most of them in one forward call.
    pub prompt: usize,
    pub prefill_chunk: usize,
    /// Of each layer.
    pub windows: &'a [Option<usize>],
    pub settings: &'a Sampling,
    /// Stop tokens.
    pub stop: &'a [u32],
    /// The run is of CosyVoice3's speech tokens.
    pub speech: bool,
}

// Each says why a fault cannot show in this run, or `None`.
impl Run<'_> {
    fn is_greedy(&self) -> bool {
        self.settings.temperature.is_none()
    }

    fn wants_draws(&self) -> Option<String> {
        self.is_greedy().then(|| "a greedy run draws nothing; leave out --greedy".to_string())
    }

    fn wants_step(&self, step: usize) -> Option<String> {
        (step >= self.limit).then(|| format!("step {step} is not reached by {} new tokens", self.limit))
    }

    fn wants_temperature(&self) -> Option<String> {
        let plain = self.settings.temperature == Some(1.0);
        self.wants_draws().or_else(|| plain.then(|| "wants a temperature other than 1".to_string()))
    }

    fn wants_top_p(&self) -> Option<String> {
        self.wants_draws().or_else(|| self.settings.top_p.is_none().then(|| "wants a top_p below 1".to_string()))
    }

    fn wants_penalty(&self) -> Option<String> {
        let none = self.settings.repetition_penalty.is_none_or(|penalty| penalty == 1.0);
        none.then(|| "wants a repetition penalty other than 1".to_string())
    }
}

/// Every fault, in the seams' order.
fn table() -> impl Iterator<Item = Row> {
    let model = [config::TABLE, rotary::TABLE, weights::TABLE, attention::TABLE, cache::TABLE, block::TABLE];
    let generation = [settings::TABLE, processors::TABLE, draw::TABLE, ends::TABLE, speech::TABLE];
    model.into_iter().chain(generation).flatten().copied()
}

fn name_of(syntax: &str) -> &str {
    syntax.split([':', '[']).next().unwrap_or_default()
}

/// A line for each fault, for `--help`.
pub fn help() -> String {
    let lines = table().map(|(syntax, text)| format!("  {syntax}\n          {text}\n"));
    format!("Faults (an argument in brackets may be left out or left empty):\n{}", lines.collect::<String>())
}

impl Faults {
    /// Reads `NAME[:ARGUMENT...]`. With `quiet`, a changed config is not reported as used.
    pub fn parse(texts: &[String], quiet: bool) -> Result<Self> {
        let list = texts.iter().map(|text| Fault::parse(text)).collect::<Result<_>>()?;
        Ok(Self { list, quiet, ..Self::default() })
    }

    /// Puts the faults into a model as it was loaded. `prefill_calls`: forward calls over the prompt.
    pub fn plant(&self, model: &mut Model, config: &Config, prefill_calls: usize) -> candle_core::Result<()> {
        if self.list.is_empty() {
            return Ok(());
        }
        self.plant_embedding(&mut model.embed_tokens)?;
        self.plant_linear(&mut model.lm_head, config.head_dim)?;
        self.plant_decoder(&mut model.decoder, config, prefill_calls, true)
    }

    /// `is_embedded`: what the first layer is given is the embeddings as the table gave them.
    fn plant_decoder(
        &self,
        decoder: &mut Decoder,
        config: &Config,
        prefill_calls: usize,
        is_embedded: bool,
    ) -> candle_core::Result<()> {
        self.clock.0.prefill.set(prefill_calls);
        self.plant_norm(&mut decoder.norm)?;
        for (index, mut block) in std::mem::take(&mut decoder.layers).into_iter().enumerate() {
            let layer = block.layer();
            self.plant_weights(layer, config.head_dim)?;
            self.plant_attention(index, &mut layer.self_attn, config)?;
            self.plant_rotary(index, &mut layer.self_attn, config)?;
            self.plant_cache(index, &mut layer.self_attn);
            self.plant_mlp(index, &mut layer.mlp);
            let faulty: Box<dyn Block> = Box::new(self.faulty_layer(index, block, is_embedded && index == 0));
            decoder.layers.push(faulty);
        }
        Ok(())
    }

    /// After all are planted: a fault whose place was never met is a mistake of the caller.
    pub fn check_places(&self) -> Result<()> {
        match self.list.iter().find(|fault| !fault.found.get()) {
            Some(Fault { text, kind: Kind::Weights(kind), .. }) => {
                Err(trouble(format!("--fault {text}: {}", kind.missing())))
            }
            Some(fault) => {
                Err(trouble(format!("--fault {}: there is no such place in this model and run", fault.text)))
            }
            None => Ok(()),
        }
    }

    /// Before the run: a fault that cannot show in it is a mistake of the caller.
    pub fn check_run(&self, run: Run<'_>) -> Result<()> {
        self.list.iter().try_for_each(|fault| {
            let hidden = match &fault.kind {
                Kind::Attention(kind) => kind.cannot_show(&run),
                Kind::Cache(kind) => kind.cannot_show(&run),
                Kind::Rotary(kind) => kind.cannot_show(&run),
                Kind::Settings(kind) => kind.cannot_show(&run),
                Kind::Processors(kind) => kind.cannot_show(&run),
                Kind::Draw(kind) => kind.cannot_show(&run),
                Kind::Ends(kind) => kind.cannot_show(&run),
                Kind::Speech(kind) => kind.cannot_show(&run),
                Kind::Config(_) | Kind::Weights(_) | Kind::Block(_) => None,
            };
            hidden.map_or(Ok(()), |why| Err(trouble(format!("--fault {}: {why}", fault.text))))
        })
    }

    /// First hit of a kind at a place.
    fn find<T>(&self, pick: impl Fn(&Kind) -> Option<T>) -> Option<T> {
        self.list.iter().find_map(|fault| {
            let hit = pick(&fault.kind);
            if hit.is_some() {
                fault.found.set(true);
            }
            hit
        })
    }
}

impl Fault {
    fn parse(text: &str) -> Result<Self> {
        let (name, _) = Words::of(text);
        let Some((syntax, _)) = table().find(|(syntax, _)| name_of(syntax) == name) else {
            let names: Vec<&str> = table().map(|(syntax, _)| name_of(syntax)).collect();
            return Err(trouble(format!("--fault {text}: is none of {}; see --help", names.join(", "))));
        };
        let kind = Self::kind(text).ok_or_else(|| trouble(format!("--fault {text}: is written {syntax}")))?;
        // Faults behind the model have no place that could be missing.
        let placeless =
            matches!(kind, Kind::Settings(_) | Kind::Processors(_) | Kind::Draw(_) | Kind::Ends(_) | Kind::Speech(_));
        Ok(Self { text: text.to_string(), kind, found: Cell::new(placeless) })
    }

    fn kind(text: &str) -> Option<Kind> {
        fn read<T>(text: &str, parse: impl Fn(&str, &mut Words) -> Option<T>) -> Option<T> {
            let (name, mut words) = Words::of(text);
            parse(name, &mut words).filter(|_| words.is_done())
        }
        read(text, config::parse)
            .map(Kind::Config)
            .or_else(|| read(text, rotary::parse).map(Kind::Rotary))
            .or_else(|| read(text, weights::parse).map(Kind::Weights))
            .or_else(|| read(text, attention::parse).map(Kind::Attention))
            .or_else(|| read(text, cache::parse).map(Kind::Cache))
            .or_else(|| read(text, block::parse).map(Kind::Block))
            .or_else(|| read(text, settings::parse).map(Kind::Settings))
            .or_else(|| read(text, processors::parse).map(Kind::Processors))
            .or_else(|| read(text, draw::parse).map(Kind::Draw))
            .or_else(|| read(text, ends::parse).map(Kind::Ends))
            .or_else(|| read(text, speech::parse).map(Kind::Speech))
    }
}

/// Whether a fault of `layer`, or of all layers, is at `index`.
fn here(layer: Option<usize>, index: usize) -> bool {
    layer.is_none_or(|layer| layer == index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_is_parsed_and_no_name_comes_twice() {
        let mut names: Vec<&str> = table().map(|(syntax, _)| name_of(syntax)).collect();
        for name in &names {
            // Some need arguments; these fit all of them.
            let found = ["", ":model.norm", ":model.norm:2", ":2"]
                .iter()
                .any(|more| Fault::kind(&format!("{name}{more}")).is_some());
            assert!(found, "{name}");
        }
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
