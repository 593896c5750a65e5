//! Segments, one after the other: the input's rows, then a draw and a forward call a token.

use serde_json::json;
use tokenizers::Tokenizer;
use tracekit::follow::Follow;
use tracekit::rng::TorchRng;
use tracekit::{SequenceStart, Step};

use super::folder::Settings;
use super::model::{Row, SpeechModel};
use super::sampler::SpeechSampler;
use super::segments::Segment;
use crate::generate::Ends;
use crate::trouble::Result;

/// What the log calls the rows: text, speech, neither.
const TEXT: i64 = 0;
const SPEECH: i64 = 1;
const NEITHER: i64 = 2;

/// One program run.
pub struct Voice<'a> {
    pub settings: &'a Settings,
    pub tokenizer: &'a Tokenizer,
    pub sampler: &'a SpeechSampler,
    pub ends: &'a dyn Ends,
    pub follow: Option<&'a Follow>,
    pub seed: u64,
    /// Speech tokens after which a segment is left.
    pub stop_after: usize,
}

impl Voice<'_> {
    /// The speech tokens of each segment, stop tokens left out. The generator goes on from one to the next.
    pub fn speak(&self, mut model: SpeechModel, segments: &[Segment]) -> Result<Vec<Vec<u32>>> {
        let mut rng = TorchRng::seed(self.seed);
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
        let prompt_text = format!("{}{}", segment.prompt, segment.text);
        let start = SequenceStart::default()
            .prompt_text(&*prompt_text)
            .texts(rows.iter().map(|row| self.text_of(row)).collect::<Vec<_>>())
            .rng_state(&state[..])
            .inputs(&inputs)
            .sampling(sampling)
            .more(json!({"prompt_part": segment.prompt, "tts_text": segment.text, "segment": index}));
        tracekit::sequence_with(start)?;
        Ok(())
    }

    fn text_of(&self, row: &Row) -> String {
        match row {
            Row::Text(id) => self.tokenizer.decode(&[*id], false).unwrap_or_default(),
            Row::Speech(id) => self.settings.text(*id),
            Row::Other(_) => "<speaker>".into(),
        }
    }

    fn decode(&self, model: &mut SpeechModel, rng: &mut TorchRng, index: usize, segment: &Segment) -> Result<Vec<u32>> {
        let (fewest, most) = segment.limits;
        model.clear()?;
        let mut tokens = Vec::new();
        let mut reason = "length";
        let mut rows = segment.input(self.settings, model.width());
        for step in 0..most {
            let logits = model.forward(&rows)?;
            if let Some(follow) = self.follow {
                follow.place(index, step, rng)?;
            }
            if self.follow.is_some_and(|follow| step >= follow.steps(index)) {
                break;
            }
            let (choice, events) = self.sampler.choose(rng, &logits, &tokens, step < fewest)?;
            let text = tracekit::enabled().then(|| self.settings.text(choice.token));
            let token = tracekit::next_token(Step::from(&choice).text(text).logits(&logits).events(&events))?;
            if self.ends.at(step, token) {
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
