//! Seam: CosyVoice's program around its model: the input's rows, its lengths and stop tokens, and its sampler.

use std::time::{SystemTime, UNIX_EPOCH};

use candle_core::{DType, Result};
use tracekit::nn::Linear;
use tracekit::repetition_aware::RepetitionAware;

use super::{Faults, Kind as Any, Row, Run};
use crate::faults::words::Words;

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

    /// Whether a speaker's row goes into the input.
    pub fn speaker_row(&self) -> bool {
        self.has_speech(Kind::SpeakerRow)
    }

    /// The text before each text.
    pub fn prefix<'a>(&self, stated: &'a str) -> &'a str {
        if self.has_speech(Kind::NoPrefix) {
            ""
        } else {
            stated
        }
    }

    /// The text to speak.
    pub fn text(&self, stated: &str) -> String {
        let other = stated.rsplit_once(' ').filter(|_| self.has_speech(Kind::OtherText));
        other.map_or(stated, |(head, _)| head).to_string()
    }

    /// Whether special tokens in a text are tokens.
    pub fn parses_specials(&self) -> bool {
        !self.has_speech(Kind::SpecialsAsText)
    }

    /// Speech tokens to go on from.
    pub fn prompt_speech(&self, stated: &[u32]) -> Vec<u32> {
        let mut out = stated.to_vec();
        self.find_speech(|kind| match kind {
            Kind::FewerSpeech { count } => Some(stated.len().saturating_sub(count)),
            Kind::MoreSpeech { count } => Some(stated.len() + count),
            _ => None,
        })
        .into_iter()
        .for_each(|length| out.resize(length, stated.last().copied().unwrap_or_default()));
        out
    }

    /// Whether the prompt's text counts where the fewest and most speech tokens are worked out.
    pub fn counts_prompt_text(&self) -> bool {
        self.has_speech(Kind::LengthWithPrompt)
    }

    /// Tokens that stop the speech.
    pub fn speech_stops(&self, stated: Vec<u32>, eos: u32) -> Vec<u32> {
        if self.has_speech(Kind::EosOnly) {
            vec![eos]
        } else {
            stated
        }
    }

    /// The sampler's numbers.
    pub fn repetition_aware(&self, stated: &RepetitionAware) -> RepetitionAware {
        let used = self.settings(&tracekit::sampling::Sampling {
            top_p: Some(stated.top_p),
            top_k: Some(stated.top_k),
            ..Default::default()
        });
        RepetitionAware {
            top_p: used.top_p.unwrap_or(stated.top_p),
            top_k: used.top_k.unwrap_or(stated.top_k),
            ..*stated
        }
    }

    /// What is drawn from; `early` steps may not stop.
    pub fn speech_probabilities(&self, mut probs: Vec<f32>, stop: &[u32], early: bool) -> Vec<f32> {
        if early && self.has_speech(Kind::StopMasked) {
            stop.iter().for_each(|&id| probs[id as usize] = 0.0);
            let sum: f32 = probs.iter().sum();
            probs.iter_mut().for_each(|prob| *prob /= sum);
        }
        probs
    }

    /// The tokens that the repetition rule may look back at.
    pub fn looked_back_at<'a>(&self, decoded: &'a [u32], size: usize) -> &'a [u32] {
        match self.has_speech(Kind::WindowFromStart) {
            true => &decoded[..decoded.len().min(size)],
            false => decoded,
        }
    }

    /// Whether a token that the window holds `count` times is drawn again.
    pub fn repeats(&self, count: usize, most: f64) -> bool {
        match self.has_speech(Kind::Strict) {
            true => count as f64 > most,
            false => count as f64 >= most,
        }
    }

    /// The head over speech tokens, after its tensors were hashed.
    pub fn speech_head(&self, head: Linear) -> Result<Linear> {
        if !self.has_speech(Kind::QuantisedHead) {
            return Ok(head);
        }
        let weight = head.weight().to_dtype(DType::F32)?;
        let scale = (weight.abs()?.max_keepdim(1)? / 127.0)?;
        let rounded = weight.broadcast_div(&scale)?.round()?.broadcast_mul(&scale)?;
        Ok(Linear::named(head.name(), rounded.to_dtype(head.weight().dtype())?, head.bias().cloned()))
    }

    /// The time of day, where the generator is not seeded.
    pub(super) fn unseeded(&self) -> Option<u64> {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.subsec_nanos());
        self.has_speech(Kind::Unseeded).then(|| u64::from(now()) | 1 << 40)
    }
}
