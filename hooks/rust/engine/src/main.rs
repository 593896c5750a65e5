//! `tracekit-native`: a candle decoder that generates the tokens that transformers generates, and records itself.

mod checkpoint;
mod config;
mod cosyvoice3;
mod faults;
mod fields;
mod generate;
mod generation_config;
mod model;
mod options;
mod rope;
mod sampler;
mod trouble;
mod variants;

use std::io::Write;

use tokenizers::Tokenizer;
use tracekit::follow::Follow;
use tracekit::sampling::Sampling;

use config::Config;
use faults::{Faults, Run};
use generation_config::GenerationConfig;
use model::{CausalModel, Model};
use options::Options;
use trouble::{trouble, Result};
use variants::Variants;

fn main() {
    let speaks = std::env::args_os().nth(1).is_some_and(|word| word == "cosyvoice3");
    let done = match speaks {
        true => cosyvoice3::main(),
        false => Options::from_command_line().and_then(|options| run(&options)),
    };
    if let Err(error) = done {
        eprintln!("tracekit-native: {error}");
        std::process::exit(2);
    }
}

fn run(options: &Options) -> Result<()> {
    if let Some(threads) = options.threads {
        // candle's kernels and rayon's pool read it when they first run.
        std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
    }
    let folder = &options.model;
    if !folder.is_dir() {
        return Err(trouble(format!("{}: is no folder; --model wants a Hugging Face folder", folder.display())));
    }
    let faults = Faults::parse(&options.fault, options.quiet_config)?;
    let mut config = Config::load(folder)?;
    faults.config(&mut config)?;
    let defaults = GenerationConfig::load(folder)?;
    let settings = options.sampling(&defaults)?;
    let follow = Follow::from_env()?;
    let tokenizer = checkpoint::tokenizer(folder)?;
    let prompt_ids = prompt_ids(options, &tokenizer, follow.as_ref(), &faults)?;
    check_prompt(&prompt_ids, options.max_new_tokens, &config)?;
    let prefill_chunk = options.prefill_chunk.unwrap_or(prompt_ids.len());
    faults.check_run(Run {
        limit: options.max_new_tokens,
        prompt: prompt_ids.len(),
        prefill_chunk,
        windows: &config.windows,
        settings: &settings,
        stop: &defaults.eos_token_ids,
        speech: false,
    })?;
    let mut model = load(options, &config, &faults, prompt_ids.len().div_ceil(prefill_chunk))?;
    let seed = options.seed()?;
    describe(options, &config, &settings, &defaults, seed)?;
    let sampler = faults.sampler(&settings, &defaults.eos_token_ids);
    let ends = faults.ends(faults.stop_tokens(&defaults.eos_token_ids));
    let generation = |kept| generate::Generation {
        prompt_text: options.prompt.as_deref(),
        prompt_ids: &prompt_ids,
        limit: faults.limit(options.max_new_tokens),
        prefill_chunk,
        kept,
        seed: faults.seed(seed),
        sampler: &*sampler,
        ends: &*ends,
        follow: follow.as_ref(),
    };
    let mut tokens = vec![generation(0).run(&mut *model, &tokenizer)?];
    for _ in 1..options.requests {
        let kept = options.keep_prefix.min(prompt_ids.len() - 1);
        model.keep(kept)?;
        tokens.push(generation(kept).run(&mut *model, &tokenizer)?);
    }
    tracekit::close()?;
    tokens.iter().try_for_each(|tokens| print_result(options, &tokenizer, tokens))
}

/// The model, and the parts that variants and faults exchange in it.
fn load(options: &Options, config: &Config, faults: &Faults, prefill_calls: usize) -> Result<Box<dyn CausalModel>> {
    let folder = &options.model;
    let mut model = checkpoint::with_progress(&format!("loading {}", folder.display()), || {
        let weights = checkpoint::weights(folder, options.dtype.dtype())?;
        let model = Model::load(&faults.with_tied_head(config), weights);
        model.map_err(|error| trouble(format!("{}: {error}", folder.display())))
    })?;
    let variants = Variants::new(&options.variant);
    variants.rewrite(&mut model, config);
    faults.plant(&mut model, config, prefill_calls)?;
    variants.store(&mut model)?;
    let model = faults.after_head(model);
    faults.check_places()?;
    Ok(model)
}

/// Tells the recorder what this program is and how it will generate.
fn describe(
    options: &Options,
    config: &Config,
    settings: &Sampling,
    defaults: &GenerationConfig,
    seed: u64,
) -> Result<()> {
    let mut sampling = settings.to_json();
    sampling["max_new_tokens"] = options.max_new_tokens.into();
    if !defaults.eos_token_ids.is_empty() {
        sampling["eos_token_id"] = defaults.eos_token_ids.clone().into();
    }
    let checkpoint = options.model.canonicalize().ok().map(|path| path.display().to_string());
    let description = tracekit::Description::new()
        .implementation("native")
        .version("candle", "0.11")
        .device("cpu")
        .dtype(options.dtype.word())
        .model(config.to_json())
        .sampling(sampling)
        .seed(seed)
        .checkpoint(checkpoint);
    tracekit::describe(description)?;
    Ok(())
}

/// The ids given, the text's ids, or with TRACEKIT_FOLLOW_INPUTS=1 those of the trace that is followed.
fn prompt_ids(options: &Options, tokenizer: &Tokenizer, follow: Option<&Follow>, faults: &Faults) -> Result<Vec<u32>> {
    if let Some(ids) = follow.filter(|follow| follow.forces_inputs()).and_then(|follow| follow.prompt_ids(0)) {
        return Ok(ids.to_vec());
    }
    match (&options.prompt_ids, &options.prompt) {
        (Some(ids), _) => Ok(faults.prompt(ids.clone())),
        (None, Some(text)) => {
            let encoding = tokenizer.encode(text.as_str(), true);
            let encoding = encoding.map_err(|error| trouble(format!("the prompt cannot be encoded: {error}")))?;
            Ok(faults.prompt(encoding.get_ids().to_vec()))
        }
        (None, None) => Ok(Vec::new()),
    }
}

fn check_prompt(ids: &[u32], limit: usize, config: &Config) -> Result<()> {
    if ids.is_empty() {
        return Err(trouble("the prompt has no token; give --prompt or --prompt-ids"));
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        return Err(trouble(format!("prompt token {id} is outside the vocabulary of {}", config.vocab_size)));
    }
    // The last new token is never fed back.
    let positions = ids.len().saturating_add(limit - 1);
    if let Some(most) = config.max_position_embeddings.filter(|&most| most < positions) {
        eprintln!("tracekit-native: note: up to {positions} positions, but the model was trained on {most}");
    }
    Ok(())
}

fn print_result(options: &Options, tokenizer: &Tokenizer, tokens: &[u32]) -> Result<()> {
    let text = if options.show_ids {
        tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
    } else {
        let new = tokenizer.decode(tokens, true).map_err(|error| trouble(error.to_string()))?;
        format!("{}{new}", options.prompt.as_deref().unwrap_or_default())
    };
    writeln!(std::io::stdout(), "{text}").map_err(|error| trouble(format!("stdout: {error}")))
}
