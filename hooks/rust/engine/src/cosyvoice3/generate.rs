//! Segments, one after the other: the input's rows, then a draw and a forward call a token.

use serde_json::json;
use tokenizers::Tokenizer;
use tracekit::follow::Follow;
use tracekit::rng::TorchRng;

use super::folder::Settings;
use super::model::{Row, SpeechModel};
use super::sampler::SpeechSampler;
use crate::faults::Faults;
use crate::trouble::Result;

/// Speech tokens for each text token: at least, and at most.
const RATIOS: (usize, usize) = (2, 20);
/// What the log calls the rows: text, speech, neither.
const TEXT: i64 = 0;
const SPEECH: i64 = 1;
const NEITHER: i64 = 2;

/// What is spoken in one go.
#[derive(Clone, Debug)]
pub struct Segment {
    pub prompt: String,
    pub text: String,
    pub prompt_ids: Vec<u32>,
    pub text_ids: Vec<u32>,
    pub speech_ids: Vec<u32>,
    /// Fewest and most speech tokens.
    pub limits: (usize, usize),
    /// Whether a speaker's row goes in, which this model does not take.
    pub speaker: bool,
}

impl Segment {
    /// `min_len` and `max_len`, by the text tokens alone or with the prompt's.
    pub fn with_limits(mut self, with_prompt: bool) -> Self {
        let counted = self.text_ids.len() + if with_prompt { self.prompt_ids.len() } else { 0 };
        self.limits = (counted * RATIOS.0, counted * RATIOS.1);
        self
    }

    /// Rows of the input.
    pub fn rows(&self) -> usize {
        2 + usize::from(self.speaker) + self.prompt_ids.len() + self.text_ids.len() + self.speech_ids.len()
    }

    fn input(&self, settings: &Settings, width: usize) -> Vec<Row> {
        let mut rows = vec![Row::Speech(settings.sos())];
        rows.extend(self.speaker.then(|| Row::Other(speaker(width))));
        rows.extend(self.prompt_ids.iter().chain(&self.text_ids).map(|&id| Row::Text(id)));
        rows.push(Row::Speech(settings.task_id()));
        rows.extend(self.speech_ids.iter().map(|&id| Row::Speech(id)));
        rows
    }
}

/// A speaker's embedding as a port might put it in: any vector of an embedding's size.
fn speaker(width: usize) -> Vec<f32> {
    TorchRng::seed(1986).randn_f32(width).into_iter().map(|value| 0.5 * value).collect()
}

/// One program run.
pub struct Voice<'a> {
    pub settings: &'a Settings,
    pub tokenizer: &'a Tokenizer,
    pub faults: &'a Faults,
    pub follow: Option<&'a Follow>,
    pub seed: u64,
    /// Speech tokens after which a segment is left.
    pub stop_after: usize,
}

impl Voice<'_> {
    /// The speech tokens of each segment, stop tokens left out. The generator goes on from one to the next.
    pub fn speak(&self, mut model: SpeechModel<'_>, segments: &[Segment]) -> Result<Vec<Vec<u32>>> {
        let mut rng = TorchRng::seed(self.faults.seed(self.seed));
        let mut spoken = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let [prompt, text, speech] = [&segment.prompt_ids, &segment.text_ids, &segment.speech_ids].map(Vec::len);
            println!("prompt text {prompt} tokens, text {text}, prompt speech {speech}");
            self.begin(&rng, index, segment)?;
            let tokens = self.decode(&mut model, &mut rng, index, segment)?;
            println!("Generated {} speech tokens", tokens.len());
            spoken.push(tokens);
        }
        Ok(spoken)
    }

    fn begin(&self, rng: &TorchRng, index: usize, segment: &Segment) -> Result<()> {
        let rows = segment.input(self.settings, 1);
        let number = |row: &Row| match row {
            Row::Text(id) => (i64::from(*id), TEXT),
            Row::Speech(id) => (i64::from(*id), SPEECH),
            Row::Other(_) => (-1, NEITHER),
        };
        let (ids, vocabulary): (Vec<i64>, Vec<i64>) = rows.iter().map(number).unzip();
        let plain = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect::<Vec<i64>>();
        let inputs = [
            ("token_ids", ids),
            ("vocabulary", vocabulary),
            ("prompt_text_token_ids", plain(&segment.prompt_ids)),
            ("tts_text_token_ids", plain(&segment.text_ids)),
            ("speech_token_ids", plain(&segment.speech_ids)),
        ];
        let mut sampling = self.settings.ras.to_json();
        sampling["min_len"] = segment.limits.0.into();
        sampling["max_len"] = segment.limits.1.into();
        sampling["stop_token_ids"] = self.settings.stop_tokens().into();
        let state = rng.state();
        tracekit::sequence_with(tracekit::SequenceStart {
            texts: Some(rows.iter().map(|row| self.text_of(row)).collect()),
            prompt_text: Some(&format!("{}{}", segment.prompt, segment.text)),
            rng_state: Some(&state),
            inputs: &inputs,
            sampling: Some(sampling),
            more: json!({"prompt_part": segment.prompt, "tts_text": segment.text, "segment": index}),
            ..tracekit::SequenceStart::default()
        })?;
        Ok(())
    }

    fn text_of(&self, row: &Row) -> String {
        match row {
            Row::Text(id) => self.tokenizer.decode(&[*id], false).unwrap_or_default(),
            Row::Speech(id) => self.settings.text(*id),
            Row::Other(_) => "<speaker>".into(),
        }
    }

    fn decode(
        &self,
        model: &mut SpeechModel<'_>,
        rng: &mut TorchRng,
        index: usize,
        segment: &Segment,
    ) -> Result<Vec<u32>> {
        let stop = self.faults.speech_stops(self.settings.stop_tokens(), self.settings.eos());
        let sampler = SpeechSampler::new(&self.settings.ras, &stop, self.faults);
        let (fewest, most) = segment.limits;
        model.clear();
        let mut tokens = Vec::new();
        let mut reason = "length";
        let mut rows = segment.input(self.settings, model.width());
        for step in 0..most {
            self.faults.at_step(step);
            let logits = model.forward(&rows)?;
            if step == 0 {
                self.faults.check_places()?;
            }
            if let Some(follow) = self.follow {
                follow.place(index, step, rng)?;
            }
            if self.follow.is_some_and(|follow| step >= follow.steps(index)) {
                break;
            }
            let (choice, events) = sampler.choose(rng, &logits, &tokens, step < fewest)?;
            let token = tracekit::next_token(tracekit::Step {
                token: choice.token,
                text: tracekit::enabled().then(|| self.settings.text(choice.token)),
                logits: &logits,
                survivors: &choice.survivors,
                draws: &choice.draws,
                events: &events,
            })?;
            if stop.contains(&token) || self.faults.stops(step) {
                println!("LLM: stop token reached at step {step}");
                reason = "stop";
                break;
            }
            tokens.push(token);
            if tokens.len() == self.stop_after {
                reason = "left";
                break;
            }
            rows = vec![Row::Speech(token)];
            if step + 1 < most {
                tracekit::forward(segment.rows() + step, 1)?;
            }
        }
        tracekit::end_sequence(reason)?;
        Ok(tokens)
    }
}
