//! The command line of `cosyvoice3`.

use std::path::PathBuf;

use clap::Parser;

use crate::faults;
use crate::options::{line_of, seed_of, Precision};
use crate::trouble::Result;

const TEXTS: [&str; 2] = [
    "Welcome back to the evening programme; tonight we will walk along the old harbour and listen to the ships.",
    "The last train leaves at nine, so please have your ticket ready before you reach the platform.",
];
const PREFIX: &str = "You are a helpful assistant. Please speak in English.<|endofprompt|>";

/// Speak texts with CosyVoice3's speech-token language model; set TRACEKIT_LOG (or run under `tracekit record --`) to
/// record.
#[derive(Parser, Debug)]
#[command(name = "tracekit-native cosyvoice3", version, allow_negative_numbers = true)]
#[command(after_long_help = faults::help())]
pub struct Options {
    /// Folder: cosyvoice3.yaml, llm.rl.safetensors, tokenizer.json, CosyVoice-BlankEN/config.json
    #[arg(long)]
    pub model: PathBuf,
    /// A text; each one given is a segment [default: two texts]
    #[arg(long)]
    pub text: Vec<String>,
    /// What goes before each text
    #[arg(long, default_value = PREFIX)]
    pub prompt_text: String,
    /// Speech tokens to go on from: safetensors with `speech_token_ids`, or a trace (*.h5, *.tklog) whose prompt's are
    /// taken, segment by segment; `-`: none [default: the model folder's]
    #[arg(long)]
    pub prompt_speech_tokens: Option<PathBuf>,
    /// Seed of the generator, once for all segments [default: TRACEKIT_SEED, or 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Leave each text after this many speech tokens
    #[arg(long)]
    pub stop_after: Option<usize>,
    /// Number format of weights and activations
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub dtype: Precision,
    /// Write the speech tokens to this safetensors file
    #[arg(long)]
    pub out_tokens: Option<PathBuf>,
    /// Inject a known fault, NAME[:ARGUMENT...]; may be given more than once. --help lists them
    #[arg(long)]
    pub fault: Vec<String>,
}

impl Options {
    /// The command line of this process, behind its first word.
    pub fn from_command_line() -> Result<Self> {
        let words = std::env::args_os().enumerate().filter(|(index, _)| *index != 1).map(|(_, word)| word);
        Self::try_parse_from(words).map_err(|error| line_of(&error))
    }

    /// The texts to speak.
    pub fn texts(&self) -> Vec<String> {
        match self.text.is_empty() {
            true => TEXTS.iter().map(ToString::to_string).collect(),
            false => self.text.clone(),
        }
    }

    /// The declared seed.
    pub fn seed(&self) -> Result<u64> {
        seed_of(self.seed)
    }
}
