//! What is asked of the model, and the segments that it is spoken in.

use tokenizers::Tokenizer;
use tracekit::follow::Follow;
use tracekit::rng::TorchRng;

use super::folder::Settings;
use super::model::Row;
use super::prompt_speech::ids_of;
use crate::trouble::{trouble, Result};

/// Speech tokens for each text token: at least, and at most.
const RATIOS: (usize, usize) = (2, 20);

/// Texts to speak, and how they are read.
#[derive(Clone, Debug)]
pub struct Request {
    /// What comes before each text.
    pub prompt_text: String,
    /// Each text with the speech tokens that it continues.
    pub texts: Vec<(String, Vec<u32>)>,
    /// Whether special tokens in a text are tokens, not the letters that they are written in.
    pub parses_specials: bool,
    /// Whether the prompt's text counts towards the fewest and most speech tokens.
    pub counts_prompt_text: bool,
    /// Whether a speaker's row is part of the input, which this model does not take.
    pub has_speaker_row: bool,
}

impl Request {
    /// As CosyVoice3 reads them.
    pub fn new(prompt_text: String, texts: Vec<(String, Vec<u32>)>) -> Self {
        Self { prompt_text, texts, parses_specials: true, counts_prompt_text: false, has_speaker_row: false }
    }

    /// One segment for each text. `follow` gives the ids of another trace, where its inputs are forced.
    pub fn segments(&self, tokenizer: &Tokenizer, follow: Option<&Follow>) -> Result<Vec<Segment>> {
        let encode = |text: &str| encoded(tokenizer, text, self.parses_specials);
        let segment = |index: usize, text: &str, speech_ids: &[u32]| {
            let followed = |name: &str| {
                let input = follow.filter(|follow| follow.forces_inputs()).and_then(|follow| follow.input(index, name));
                input.map(ids_of)
            };
            let segment = Segment {
                prompt_ids: followed("prompt_text_token_ids").map_or_else(|| encode(&self.prompt_text), Ok)?,
                text_ids: followed("tts_text_token_ids").map_or_else(|| encode(text), Ok)?,
                speech_ids: followed("speech_token_ids").unwrap_or_else(|| speech_ids.to_vec()),
                prompt: self.prompt_text.clone(),
                text: text.to_string(),
                limits: (0, 0),
                has_speaker_row: self.has_speaker_row,
            };
            Ok(segment.with_limits(self.counts_prompt_text))
        };
        self.texts.iter().enumerate().map(|(index, (text, speech_ids))| segment(index, text, speech_ids)).collect()
    }
}

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
    pub has_speaker_row: bool,
}

impl Segment {
    /// `min_len` and `max_len`, by the text tokens alone or with the prompt's.
    fn with_limits(mut self, with_prompt: bool) -> Self {
        let counted = self.text_ids.len() + if with_prompt { self.prompt_ids.len() } else { 0 };
        self.limits = (counted * RATIOS.0, counted * RATIOS.1);
        self
    }

    /// Rows of the input.
    pub fn rows(&self) -> usize {
        2 + usize::from(self.has_speaker_row) + self.prompt_ids.len() + self.text_ids.len() + self.speech_ids.len()
    }

    /// The rows; `width` is that of an embedding.
    pub fn input(&self, settings: &Settings, width: usize) -> Vec<Row> {
        let mut rows = vec![Row::Speech(settings.sos())];
        rows.extend(self.has_speaker_row.then(|| Row::Other(speaker(width))));
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

/// Token ids of a text; without `specials`, special tokens are read as the letters that they are written in.
fn encoded(tokenizer: &Tokenizer, text: &str, specials: bool) -> Result<Vec<u32>> {
    let mut own = tokenizer.clone();
    own.set_encode_special_tokens(!specials);
    let encoding = own.encode(text, false).map_err(|error| trouble(format!("the text cannot be encoded: {error}")))?;
    Ok(encoding.get_ids().to_vec())
}
