//! Seam: CosyVoice's program around its model: the input's rows, its lengths and stop tokens, and its sampler.

use std::time::{SystemTime, UNIX_EPOCH};

use candle_core::{DType, Result};
use tracekit::nn::Linear;
use tracekit::repetition_aware::RepetitionAware;
use tracekit::sampling::Sampling;

use super::words::Words;
use super::{Faults, Kind as Any, Row, Run};
use crate::config::Config;
use crate::cosyvoice3::model::SpeechModel;
use crate::cosyvoice3::sampler::SpeechSampler;
use crate::cosyvoice3::segments::Request;

pub const TABLE: &[Row] = &[
    ("speaker-row", "A speaker's embedding is a row of the input, behind sos"),
    ("no-prompt-prefix", "The prompt's text is left out"),
    ("specials-not-parsed", "Special tokens in a text are read as letters"),
    ("other-text", "The last word of each text is left out"),
    ("fewer-speech-tokens[:N]", "The last N, 4, of the prompt's speech tokens are left out"),
    ("more-speech-tokens[:N]", "The last of the prompt's speech tokens comes N, 4, more times"),
    ("length-with-prompt", "The fewest and most speech tokens are counted with the prompt's text"),
    ("stop-on-eos-only", "Of the stop tokens only eos stops the speech"),
    ("stop-masked", "Stop tokens that come too early get probability 0, instead of being drawn again"),
    ("stop-zeroed", "The same, and what is left is not brought to 1 again"),
    ("window-from-start", "The repetition rule looks at the first tokens, not at the last"),
    ("repetition-strict", "The repetition rule has > in place of >="),
    ("quantised-decoder", "The head's weights are rounded to 8 bits, a scale for each row"),
    ("unseeded", "The generator is seeded with the time of day"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    SpeakerRow,
    NoPrefix,
    SpecialsAsText,
    OtherText,
    FewerSpeech { count: usize },
    MoreSpeech { count: usize },
    LengthWithPrompt,
    EosOnly,
    StopMasked,
    StopZeroed,
    WindowFromStart,
    Strict,
    QuantisedHead,
    Unseeded,
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    Some(match name {
        "speaker-row" => Kind::SpeakerRow,
        "no-prompt-prefix" => Kind::NoPrefix,
        "specials-not-parsed" => Kind::SpecialsAsText,
        "other-text" => Kind::OtherText,
        "fewer-speech-tokens" => Kind::FewerSpeech { count: words.count(4)? },
        "more-speech-tokens" => Kind::MoreSpeech { count: words.count(4)? },
        "length-with-prompt" => Kind::LengthWithPrompt,
        "stop-on-eos-only" => Kind::EosOnly,
        "stop-masked" => Kind::StopMasked,
        "stop-zeroed" => Kind::StopZeroed,
        "window-from-start" => Kind::WindowFromStart,
        "repetition-strict" => Kind::Strict,
        "quantised-decoder" => Kind::QuantisedHead,
        "unseeded" => Kind::Unseeded,
        _ => return None,
    })
}

impl Kind {
    pub fn cannot_show(&self, run: &Run) -> Option<String> {
        let everywhere = *self == Self::Unseeded;
        (!run.speech && !everywhere).then(|| "is a fault of `tracekit-native cosyvoice3`".to_string())
    }
}

impl Faults {
    fn has_speech(&self, kind: Kind) -> bool {
        self.find_speech(|found| (found == kind).then_some(())).is_some()
    }

    fn find_speech<T>(&self, pick: impl Fn(Kind) -> Option<T>) -> Option<T> {
        self.find(|kind| match kind {
            Any::Speech(kind) => pick(*kind),
            _ => None,
        })
    }

    /// What is asked of the model.
    pub fn request(&self, mut request: Request) -> Request {
        request.has_speaker_row = self.has_speech(Kind::SpeakerRow);
        request.parses_specials = !self.has_speech(Kind::SpecialsAsText);
        request.counts_prompt_text = self.has_speech(Kind::LengthWithPrompt);
        if self.has_speech(Kind::NoPrefix) {
            request.prompt_text.clear();
        }
        for (text, speech_ids) in &mut request.texts {
            if self.has_speech(Kind::OtherText) {
                text.truncate(text.rfind(' ').unwrap_or(text.len()));
            }
            self.change_prompt_speech(speech_ids);
        }
        request
    }

    fn change_prompt_speech(&self, ids: &mut Vec<u32>) {
        let length = self.find_speech(|kind| match kind {
            Kind::FewerSpeech { count } => Some(ids.len().saturating_sub(count)),
            Kind::MoreSpeech { count } => Some(ids.len() + count),
            _ => None,
        });
        if let Some(length) = length {
            ids.resize(length, ids.last().copied().unwrap_or_default());
        }
    }

    /// Tokens that stop the speech.
    pub fn speech_stops(&self, stated: Vec<u32>, eos: u32) -> Vec<u32> {
        match self.has_speech(Kind::EosOnly) {
            true => vec![eos],
            false => stated,
        }
    }

    /// The sampler of these numbers and stop tokens.
    pub fn speech_sampler(&self, stated: &RepetitionAware, stop: Vec<u32>) -> SpeechSampler {
        let ras = self.numbers(stated);
        let mut sampler = SpeechSampler::new(ras, stop.clone());
        self.plant_draw(&mut sampler.draw_from);
        let zeroed = self.has_speech(Kind::StopZeroed);
        if zeroed || self.has_speech(Kind::StopMasked) {
            sampler.probabilities = Box::new(move |logits, early| {
                let mut probs = tracekit::repetition_aware::probabilities(logits);
                if early {
                    stop.iter().for_each(|&id| probs[id as usize] = 0.0);
                    let sum: f32 = if zeroed { 1.0 } else { probs.iter().sum() };
                    probs.iter_mut().for_each(|prob| *prob /= sum);
                }
                probs
            });
        }
        let (from_start, strict) = (self.has_speech(Kind::WindowFromStart), self.has_speech(Kind::Strict));
        if from_start || strict {
            sampler.too_often = Box::new(move |token, decoded| {
                let seen = if from_start { &decoded[..decoded.len().min(ras.win_size)] } else { decoded };
                let (count, most) = (ras.count(token, seen), ras.most());
                let repeats = if strict { count as f64 > most } else { count as f64 >= most };
                repeats.then_some(count)
            });
        }
        sampler
    }

    /// The sampler's numbers.
    fn numbers(&self, stated: &RepetitionAware) -> RepetitionAware {
        let settings = self.settings(&Sampling::greedy().top_p(stated.top_p).top_k(stated.top_k));
        let mut used = *stated;
        used.top_p = settings.top_p.unwrap_or(stated.top_p);
        used.top_k = settings.top_k.unwrap_or(stated.top_k);
        used
    }

    /// Puts the model's faults into it.
    pub fn plant_speech(&self, model: &mut SpeechModel, config: &Config) -> Result<()> {
        if self.list.is_empty() {
            return Ok(());
        }
        self.plant_decoder(&mut model.decoder, config, 1, false)?;
        self.plant_linear(&mut model.llm_decoder, config.head_dim)?;
        if self.has_speech(Kind::QuantisedHead) {
            let head = &model.llm_decoder;
            let weight = head.weight().to_dtype(DType::F32)?;
            let scale = (weight.abs()?.max_keepdim(1)? / 127.0)?;
            let rounded = weight.broadcast_div(&scale)?.round()?.broadcast_mul(&scale)?;
            let rounded = rounded.to_dtype(head.weight().dtype())?;
            model.llm_decoder = Linear::named(head.name(), rounded, head.bias().cloned());
        }
        Ok(())
    }

    /// The time of day, where the generator is not seeded.
    pub(super) fn unseeded(&self) -> Option<u64> {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.subsec_nanos());
        self.has_speech(Kind::Unseeded).then(|| u64::from(now()) | 1 << 40)
    }
}
