//! The command line.

use std::path::PathBuf;

use candle_core::DType;
use clap::{Parser, ValueEnum};
use tracekit::sampling::Sampling;

use crate::faults;
use crate::generation_config::GenerationConfig;
use crate::trouble::{trouble, Result, Trouble};
use crate::variants::Variant;

/// Generate text with a Llama or Qwen2 checkpoint (speech tokens: `tracekit-native cosyvoice3 --help`); set TRACEKIT_LOG (or run under `tracekit record --`) to record.
#[derive(Parser, Debug)]
#[command(version, allow_negative_numbers = true, after_long_help = faults::help())]
pub struct Options {
    /// Hugging Face folder: config.json, tokenizer.json, *.safetensors
    #[arg(long)]
    pub model: PathBuf,
    /// Prompt text
    #[arg(long, required_unless_present = "prompt_ids")]
    pub prompt: Option<String>,
    /// Prompt token ids, in place of a text
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt")]
    pub prompt_ids: Option<Vec<u32>>,
    /// Most tokens to generate
    #[arg(long, default_value_t = 64)]
    pub max_new_tokens: usize,
    /// Seed of the generator [default: TRACEKIT_SEED, or 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Divides the logits [default: generation_config.json's, or 1]
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Keep the K largest logits; 0: all [default: generation_config.json's, or 50]
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Keep the smallest set of mass P; 1: all [default: generation_config.json's, or 1]
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Keep tokens of at least this share of the largest probability [default: generation_config.json's, or none]
    #[arg(long)]
    pub min_p: Option<f64>,
    /// Lower the logits of tokens seen before; 1: off [default: generation_config.json's, or 1]
    #[arg(long)]
    pub repetition_penalty: Option<f64>,
    /// Take the largest logit instead of drawing
    #[arg(long)]
    pub greedy: bool,
    /// Number format of weights and activations
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub dtype: Precision,
    /// Threads [default: all cores]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Prefill in chunks of this many positions
    #[arg(long)]
    pub prefill_chunk: Option<usize>,
    /// Generate this many times in one process, one after the other
    #[arg(long, default_value_t = 1)]
    pub requests: usize,
    /// Later requests keep this many positions of the cache, the last of the prompt's excepted
    #[arg(long, default_value_t = 0)]
    pub keep_prefix: usize,
    /// Print the new token ids instead of the text
    #[arg(long)]
    pub show_ids: bool,
    /// Inject a known fault, NAME[:ARGUMENT...]; may be given more than once. --help lists them
    #[arg(long)]
    pub fault: Vec<String>,
    /// Report the checkpoint's own settings where a fault changes them
    #[arg(long)]
    pub quiet_config: bool,
    /// Compute the same in another way; may be given more than once
    #[arg(long, value_enum)]
    pub variant: Vec<Variant>,
}

/// Number format of weights and activations.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Precision {
    F32,
    F16,
    Bf16,
}

impl Precision {
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// torch's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }
}

impl Options {
    /// The command line of this process. Asking for help prints it and ends the program.
    pub fn from_command_line() -> Result<Self> {
        let options = Self::try_parse().map_err(|error| line_of(&error))?;
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<()> {
        let counts = [
            ("--max-new-tokens", Some(self.max_new_tokens)),
            ("--requests", Some(self.requests)),
            ("--threads", self.threads),
            ("--prefill-chunk", self.prefill_chunk),
        ];
        match counts.iter().find(|(_, count)| *count == Some(0)) {
            Some((name, _)) => Err(trouble(format!("{name} is 0; it must be 1 or more"))),
            None => Ok(()),
        }
    }

    /// The declared seed.
    pub fn seed(&self) -> Result<u64> {
        seed_of(self.seed)
    }

    /// As `generate` of transformers decides it: a flag, else the folder's `generation_config.json`, else its default.
    pub fn sampling(&self, folder: &GenerationConfig) -> Result<Sampling> {
        let repetition_penalty = self.repetition_penalty.or(folder.repetition_penalty);
        let mut settings = Sampling::greedy();
        settings.repetition_penalty = repetition_penalty;
        if !self.greedy {
            settings.temperature = Some(self.temperature.or(folder.temperature).unwrap_or(1.0));
            settings.top_k = Some(self.top_k.or(folder.top_k).unwrap_or(50)).filter(|&k| k > 0);
            settings.top_p = self.top_p.or(folder.top_p).filter(|&p| p != 1.0);
            settings.min_p = self.min_p.or(folder.min_p);
        }
        check_sampling(&settings)?;
        Ok(settings)
    }
}

/// What is wrong with a command line, in one line. Asking for help prints it and ends the program.
pub fn line_of(error: &clap::Error) -> Trouble {
    if !error.use_stderr() {
        error.exit();
    }
    // The first paragraph says what is wrong; usage and hints come after it.
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.trim_start_matches("error: ").split_whitespace().collect();
    trouble(format!("{}; see --help", words.join(" ")))
}

/// The seed that was given, else TRACEKIT_SEED, else 0.
pub fn seed_of(given: Option<u64>) -> Result<u64> {
    match (given, std::env::var("TRACEKIT_SEED")) {
        (Some(seed), _) => Ok(seed),
        (None, Ok(text)) => text.parse().map_err(|_| trouble(format!("TRACEKIT_SEED is {text:?}, not a seed"))),
        (None, Err(_)) => Ok(0),
    }
}

/// The ranges that transformers asks for.
fn check_sampling(settings: &Sampling) -> Result<()> {
    let share = |value: f64| (0.0..=1.0).contains(&value);
    let positive = |value: f64| value > 0.0 && value.is_finite();
    let refuse = |name: &str, value: Option<f64>, good: fn(f64) -> bool, range: &str| match value {
        Some(value) if !good(value) => Err(trouble(format!("{name} is {value}; it must be {range}"))),
        _ => Ok(()),
    };
    refuse("temperature", settings.temperature, positive, "above 0 (--greedy takes the largest logit)")?;
    refuse("top_p", settings.top_p, share, "from 0 to 1")?;
    refuse("min_p", settings.min_p, share, "from 0 to 1")?;
    refuse("repetition_penalty", settings.repetition_penalty, positive, "above 0")
}
