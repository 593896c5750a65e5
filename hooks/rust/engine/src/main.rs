//! `tracekit-native`: a candle decoder that generates the tokens that transformers generates, and records itself.

mod config;
mod faults;
mod generate;
mod model;
mod rotary;
mod trouble;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use clap::{Parser, ValueEnum};
use tokenizers::Tokenizer;
use tracekit::sampling::Sampling;

use config::Config;
use faults::Faults;
use trouble::{trouble, Result};

/// Generate text with a Llama or Qwen2 checkpoint; set TRACEKIT_LOG (or run under `tracekit record --`) to record.
#[derive(Parser, Debug)]
#[command(version)]
struct Options {
    /// Hugging Face folder: config.json, tokenizer.json, *.safetensors
    #[arg(long)]
    model: PathBuf,
    /// Prompt text
    #[arg(long, required_unless_present = "prompt_ids")]
    prompt: Option<String>,
    /// Prompt token ids, in place of a text
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt")]
    prompt_ids: Option<Vec<u32>>,
    /// Most tokens to generate
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Seed of the generator [default: TRACEKIT_SEED, or 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Divides the logits
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Keep the K largest logits; 0: all
    #[arg(long, default_value_t = 50)]
    top_k: usize,
    /// Keep the smallest set of mass P
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Keep tokens of at least this share of the largest probability
    #[arg(long)]
    min_p: Option<f64>,
    /// Lower the logits of tokens seen before
    #[arg(long)]
    repetition_penalty: Option<f64>,
    /// Take the largest logit instead of drawing
    #[arg(long)]
    greedy: bool,
    /// Number format of weights and activations
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    dtype: Precision,
    /// Threads [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Prefill in chunks of this many positions
    #[arg(long)]
    prefill_chunk: Option<usize>,
    /// Print the new token ids instead of the text
    #[arg(long)]
    show_ids: bool,
    /// Inject a known fault; may be given more than once
    #[arg(long)]
    fault: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    F32,
    F16,
    Bf16,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// torch's word.
    fn word(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }
}

fn main() {
    let options = Options::parse();
    if let Some(threads) = options.threads {
        // candle's kernels and rayon's pool read it when they first run.
        std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
    }
    if let Err(error) = run(&options) {
        eprintln!("tracekit-native: {error}");
        std::process::exit(2);
    }
}

fn run(options: &Options) -> Result<()> {
    let faults = Faults::parse(&options.fault)?;
    let mut config = Config::load(&options.model)?;
    faults.config(&mut config);
    let tokenizer = load_tokenizer(&options.model)?;
    let prompt_ids = prompt_ids(options, &tokenizer, &config)?;
    let dtype = options.dtype.dtype();
    let files = weight_files(&options.model)?;
    // SAFETY: the files are mapped for reading; nothing of this program writes to them.
    let vb = unsafe { VarBuilder::from_mmaped_safetensors(&files, dtype, &Device::Cpu) }?;
    let model = model::Model::load(&config, vb, &faults)?;
    let seed = declared_seed(options)?;
    let settings = sampling(options);
    let mut reported = settings.to_json();
    reported["max_new_tokens"] = options.max_new_tokens.into();
    tracekit::describe(tracekit::Description {
        implementation: "native".into(),
        versions: vec![("candle".into(), "0.11".into())],
        device: "cpu".into(),
        dtype: options.dtype.word().into(),
        model: config.to_json(),
        sampling: reported,
        seed: Some(seed),
        checkpoint: options.model.canonicalize().ok().map(|path| path.display().to_string()),
    })?;
    let generation = generate::Generation {
        prompt_text: options.prompt.as_deref(),
        prompt_ids: &prompt_ids,
        limit: options.max_new_tokens,
        prefill_chunk: options.prefill_chunk.unwrap_or(usize::MAX).max(1),
        settings: &settings,
        seed,
        stop: &config.eos_token_ids,
    };
    let tokens = generation.run(model, &tokenizer, &faults)?;
    tracekit::close()?;
    print_result(options, &tokenizer, &tokens)
}

fn print_result(options: &Options, tokenizer: &Tokenizer, tokens: &[u32]) -> Result<()> {
    if options.show_ids {
        let words: Vec<String> = tokens.iter().map(u32::to_string).collect();
        println!("{}", words.join(" "));
    } else {
        let text = tokenizer.decode(tokens, true).map_err(|error| trouble(error.to_string()))?;
        println!("{}{text}", options.prompt.as_deref().unwrap_or_default());
    }
    Ok(())
}

fn declared_seed(options: &Options) -> Result<u64> {
    match (options.seed, std::env::var("TRACEKIT_SEED")) {
        (Some(seed), _) => Ok(seed),
        (None, Ok(text)) => text.parse().map_err(|_| trouble(format!("TRACEKIT_SEED is {text:?}, not a number"))),
        (None, Err(_)) => Ok(0),
    }
}

fn sampling(options: &Options) -> Sampling {
    if options.greedy {
        return Sampling { repetition_penalty: options.repetition_penalty, ..Sampling::default() };
    }
    Sampling {
        temperature: Some(options.temperature),
        top_k: (options.top_k > 0).then_some(options.top_k),
        top_p: (options.top_p < 1.0).then_some(options.top_p),
        min_p: options.min_p,
        repetition_penalty: options.repetition_penalty,
    }
}

fn load_tokenizer(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    Tokenizer::from_file(&path).map_err(|error| trouble(format!("{}: cannot be read: {error}", path.display())))
}

fn prompt_ids(options: &Options, tokenizer: &Tokenizer, config: &Config) -> Result<Vec<u32>> {
    let ids = match (&options.prompt_ids, &options.prompt) {
        (Some(ids), _) => ids.clone(),
        (None, Some(text)) => {
            let encoding = tokenizer.encode(text.as_str(), true);
            encoding.map_err(|error| trouble(format!("the prompt cannot be encoded: {error}")))?.get_ids().to_vec()
        }
        (None, None) => Vec::new(),
    };
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        Some(id) => Err(trouble(format!("prompt token {id} is outside the vocabulary of {}", config.vocab_size))),
        None if ids.is_empty() => Err(trouble("the prompt has no token; give --prompt or --prompt-ids")),
        None if ids.len() + options.max_new_tokens > config.max_position_embeddings => Err(trouble(format!(
            "{} prompt tokens and {} new ones exceed the model's {} positions",
            ids.len(),
            options.max_new_tokens,
            config.max_position_embeddings
        ))),
        None => Ok(ids),
    }
}

/// `model.safetensors`, or the shards that `model.safetensors.index.json` names.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index)
        .map_err(|_| trouble(format!("{}: holds neither model.safetensors nor its index", folder.display())))?;
    let table: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| trouble(format!("{}: {error}", index.display())))?;
    let map = table["weight_map"].as_object();
    let map = map.ok_or_else(|| trouble(format!("{}: has no weight_map", index.display())))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for name in map.values().filter_map(serde_json::Value::as_str) {
        let plain = Path::new(name).file_name().is_some_and(|file| file == name);
        if !plain {
            return Err(trouble(format!("{}: names the shard {name:?} outside its folder", index.display())));
        }
        files.push(folder.join(name));
    }
    files.sort();
    files.dedup();
    Ok(files)
}
