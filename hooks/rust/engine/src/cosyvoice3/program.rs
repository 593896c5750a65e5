//! The program: from a folder and texts to speech tokens.

use tracekit::follow::Follow;
use tracekit::sampling::Sampling;

use super::folder::{self, Settings};
use super::generate::Voice;
use super::model::SpeechModel;
use super::options::Options;
use super::prompt_speech::{PromptSpeech, BESIDE_THE_MODEL};
use super::segments::{Request, Segment};
use crate::checkpoint;
use crate::config::Config;
use crate::faults::{Faults, Run};
use crate::trouble::{trouble, Result};

/// Runs the command line of this process.
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
    let segments = faults.request(request(options, &speech)).segments(&tokenizer, follow.as_ref())?;
    check_speech(&segments, &settings)?;
    check_faults(&faults, &segments, &settings, &config)?;
    let mut model = checkpoint::with_progress(&format!("loading {}", folder.display()), || {
        let weights = checkpoint::weights_of(&[folder.join(folder::WEIGHTS)], options.dtype.dtype())?;
        let model = SpeechModel::load(&config, &settings, &weights);
        model.map_err(|error| trouble(format!("{}: {error}", folder.display())))
    })?;
    faults.plant_speech(&mut model, &config)?;
    faults.check_places()?;
    describe(options, &config, &settings)?;
    let stop = faults.speech_stops(settings.stop_tokens(), settings.eos());
    let voice = Voice {
        settings: &settings,
        tokenizer: &tokenizer,
        sampler: &faults.speech_sampler(&settings.ras, stop.clone()),
        ends: &*faults.ends(stop),
        follow: follow.as_ref(),
        seed: faults.seed(options.seed()?),
        stop_after: options.stop_after.unwrap_or(usize::MAX),
    };
    let spoken = voice.speak(model, &segments)?;
    tracekit::close()?;
    match &options.out_tokens {
        Some(path) => folder::write_tokens(path, &spoken),
        None => Ok(()),
    }
}

/// What the command line asks for.
fn request(options: &Options, speech: &PromptSpeech) -> Request {
    let texts = options.texts().into_iter().enumerate();
    let texts = texts.map(|(index, text)| (text, speech.of_segment(index).to_vec())).collect();
    Request::new(options.prompt_text.clone(), texts)
}

fn check_speech(segments: &[Segment], settings: &Settings) -> Result<()> {
    let most = settings.speech_token_size;
    match segments.iter().flat_map(|segment| &segment.speech_ids).find(|&&id| id as usize >= most) {
        Some(id) => Err(trouble(format!("prompt speech token {id} is none of the model's {most}"))),
        None => Ok(()),
    }
}

fn check_faults(faults: &Faults, segments: &[Segment], settings: &Settings, config: &Config) -> Result<()> {
    let prompt = segments.iter().map(Segment::rows).min().unwrap_or_default();
    faults.check_run(Run {
        limit: segments.iter().map(|segment| segment.limits.1).min().unwrap_or_default(),
        prompt,
        prefill_chunk: prompt,
        windows: &config.windows,
        settings: &Sampling::greedy().temperature(1.0).top_p(settings.ras.top_p),
        stop: &settings.stop_tokens(),
        speech: true,
    })
}

/// Tells the recorder what this program is.
fn describe(options: &Options, config: &Config, settings: &Settings) -> Result<()> {
    let mut model = config.to_json();
    model["model_type"] = "cosyvoice3".into();
    model["speech_token_size"] = settings.speech_token_size.into();
    let checkpoint = options.model.canonicalize().ok().map(|path| path.display().to_string());
    let description = tracekit::Description::new()
        .implementation("native")
        .version("candle", "0.11")
        .device("cpu")
        .dtype(options.dtype.word())
        .model(model)
        .sampling(settings.ras.to_json())
        .seed(options.seed()?)
        .checkpoint(checkpoint);
    tracekit::describe(description)?;
    Ok(())
}
