//! `tracekit-native cosyvoice3`: CosyVoice3's speech-token language model, a segment for each text.

mod folder;
mod generate;
mod model;
mod options;
mod prompt_speech;
mod sampler;

use tokenizers::Tokenizer;
use tracekit::follow::Follow;
use tracekit::sampling::Sampling;

use crate::checkpoint;
use crate::config::Config;
use crate::faults::{Faults, Run};
use crate::trouble::{trouble, Result};
use crate::variants::Variants;
use folder::Settings;
use generate::{Segment, Voice};
use model::SpeechModel;
use options::Options;
use prompt_speech::{ids_of, PromptSpeech, BESIDE_THE_MODEL};

/// The program behind the word `cosyvoice3`.
pub fn main() -> Result<()> {
    run(&Options::from_command_line()?)
}

fn run(options: &Options) -> Result<()> {
    let folder = &options.model;
    let settings = Settings::load(folder)?;
    let config = Config::load(&folder.join(folder::INNER))?;
    let faults = Faults::parse(&options.fault, false)?;
    let tokenizer = checkpoint::tokenizer(folder)?;
    let speech = match &options.prompt_speech_tokens {
        Some(path) => PromptSpeech::load(path)?,
        None => PromptSpeech::load(&folder.join(BESIDE_THE_MODEL))?,
    };
    let follow = Follow::from_env()?;
    let segments = segments(options, &settings, &tokenizer, &faults, &speech, follow.as_ref())?;
    let stop = settings.stop_tokens();
    let used = Sampling { temperature: Some(1.0), top_p: Some(settings.ras.top_p), ..Sampling::default() };
    let limit = segments.iter().map(|segment| segment.limits.1).min().unwrap_or_default();
    let prompt = segments.iter().map(Segment::rows).min().unwrap_or_default();
    let run = Run { limit, prompt, windows: &config.windows, settings: &used, stop: &stop, speech: true };
    faults.check_run(run)?;
    let dtype = options.dtype.dtype();
    let model = checkpoint::with_progress(&format!("loading {}", folder.display()), || {
        let weights = checkpoint::weights_of(&[folder.join(folder::WEIGHTS)], dtype)?;
        let model = SpeechModel::load(&config, &settings, &weights, &faults, Variants::new(&[]));
        model.map_err(|error| trouble(format!("{}: {error}", folder.display())))
    })?;
    describe(options, &config, &settings)?;
    let voice = Voice {
        settings: &settings,
        tokenizer: &tokenizer,
        faults: &faults,
        follow: follow.as_ref(),
        seed: options.seed()?,
        stop_after: options.stop_after.unwrap_or(usize::MAX),
    };
    let spoken = voice.speak(model, &segments)?;
    tracekit::close()?;
    match &options.out_tokens {
        Some(path) => folder::write_tokens(path, &spoken),
        None => Ok(()),
    }
}

/// Tells the recorder what this program is.
fn describe(options: &Options, config: &Config, settings: &Settings) -> Result<()> {
    let mut model = config.to_json();
    model["model_type"] = "cosyvoice3".into();
    model["speech_token_size"] = settings.speech_token_size.into();
    tracekit::describe(tracekit::Description {
        implementation: "native".into(),
        versions: vec![("candle".into(), "0.11".into())],
        device: "cpu".into(),
        dtype: options.dtype.word().into(),
        model,
        sampling: settings.ras.to_json(),
        seed: Some(options.seed()?),
        checkpoint: options.model.canonicalize().ok().map(|path| path.display().to_string()),
    })?;
    Ok(())
}

/// Texts and speech tokens as token ids, one segment for each text.
fn segments(
    options: &Options,
    settings: &Settings,
    tokenizer: &Tokenizer,
    faults: &Faults,
    speech: &PromptSpeech,
    follow: Option<&Follow>,
) -> Result<Vec<Segment>> {
    let texts = options.texts();
    let encode = |text: &str| encoded(tokenizer, text, faults.parses_specials());
    let mut out = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let followed = |name: &str| {
            let input = follow.filter(|follow| follow.forces_inputs()).and_then(|follow| follow.input(index, name));
            input.map(ids_of)
        };
        let (prompt, words) = (faults.prefix(&options.prompt_text), faults.text(text));
        let segment = Segment {
            prompt_ids: followed("prompt_text_token_ids").map_or_else(|| encode(prompt), Ok)?,
            text_ids: followed("tts_text_token_ids").map_or_else(|| encode(&words), Ok)?,
            speech_ids: followed("speech_token_ids").unwrap_or_else(|| faults.prompt_speech(speech.of_segment(index))),
            prompt: prompt.to_string(),
            text: words,
            limits: (0, 0),
            speaker: faults.speaker_row(),
        };
        out.push(segment.with_limits(faults.counts_prompt_text()));
    }
    let check = |ids: &[u32], most: usize| ids.iter().find(|&&id| id as usize >= most).copied();
    for segment in &out {
        if let Some(id) = check(&segment.speech_ids, settings.speech_token_size) {
            let most = settings.speech_token_size;
            return Err(trouble(format!("prompt speech token {id} is none of the model's {most}")));
        }
    }
    Ok(out)
}

/// Token ids of a text; without `specials`, special tokens are read as the letters that they are written in.
fn encoded(tokenizer: &Tokenizer, text: &str, specials: bool) -> Result<Vec<u32>> {
    let mut own = tokenizer.clone();
    own.set_encode_special_tokens(!specials);
    let encoding = own.encode(text, false).map_err(|error| trouble(format!("the text cannot be encoded: {error}")))?;
    Ok(encoding.get_ids().to_vec())
}
