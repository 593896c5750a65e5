//! CosyVoice3's language model: text and speech embeddings in, the Qwen2 decoder, a head over speech tokens.
//!
//! Names are the checkpoint's: `llm.model.model...`, `speech_embedding`, `llm_decoder`. The Qwen2's own head is not used.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::nn::{embedding, linear_no_bias, Embedding, Linear};

use super::folder::Settings;
use crate::config::Config;
use crate::model::decoder::Decoder;

/// One row of the model's input.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    Text(u32),
    Speech(u32),
    /// An embedding of something else, `[width]`.
    Other(Vec<f32>),
}

pub struct SpeechModel {
    embed_tokens: Embedding,
    speech_embedding: Embedding,
    pub decoder: Decoder,
    pub llm_decoder: Linear,
    dtype: DType,
    width: usize,
}

impl SpeechModel {
    pub fn load(config: &Config, settings: &Settings, vb: &VarBuilder) -> Result<Self> {
        let root = vb.pp("llm").pp("model").pp("model");
        tracekit::logits_site("llm_decoder")?;
        let llm_decoder = linear_no_bias(config.hidden_size, settings.rows(), vb.pp("llm_decoder"))?;
        Ok(Self {
            embed_tokens: embedding(config.vocab_size, config.hidden_size, root.pp("embed_tokens"))?,
            speech_embedding: embedding(settings.rows(), config.hidden_size, vb.pp("speech_embedding"))?,
            decoder: Decoder::load(config, &root)?,
            llm_decoder,
            dtype: vb.dtype(),
            width: config.hidden_size,
        })
    }

    /// Forgets the segment.
    pub fn clear(&mut self) -> Result<()> {
        self.decoder.keep(0)
    }

    /// Width of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Logits of the last row, [speech tokens] in float32; the cache grows by all of them.
    pub fn forward(&mut self, rows: &[Row]) -> Result<Vec<f32>> {
        let cached = self.decoder.cached();
        let mut parts = Vec::new();
        let mut first = 0;
        // An embedding looks up neighbours of one kind at a time; each piece is a call of its own in the log.
        while first < rows.len() {
            let same = rows[first..].iter().take_while(|row| kind(row) == kind(&rows[first])).count();
            if rows.len() > 1 {
                tracekit::forward(cached + first, same)?;
            }
            parts.push(self.embed(&rows[first..first + same])?);
            first += same;
        }
        // With one row the decoder's call is the embedding's.
        if rows.len() > 1 {
            tracekit::forward(cached, rows.len())?;
        }
        let input = Tensor::cat(&parts, 1)?.copy()?;
        let hidden = self.decoder.forward(input)?;
        let last = hidden.narrow(1, rows.len() - 1, 1)?.contiguous()?;
        tracekit::nn::part_of(&hidden, &last)?;
        self.llm_decoder.forward(&last)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
    }

    /// Neighbouring rows of one kind, [1, rows, width].
    fn embed(&self, rows: &[Row]) -> Result<Tensor> {
        let ids: Vec<u32> = rows
            .iter()
            .filter_map(|row| match row {
                Row::Text(id) | Row::Speech(id) => Some(*id),
                Row::Other(_) => None,
            })
            .collect();
        let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        match &rows[0] {
            Row::Text(_) => self.embed_tokens.forward(&ids),
            Row::Speech(_) => self.speech_embedding.forward(&ids),
            Row::Other(_) => {
                let values: Vec<f32> = rows.iter().flat_map(|row| self.plain(row)).collect();
                Tensor::from_vec(values, (1, rows.len(), self.width), &Device::Cpu)?.to_dtype(self.dtype)
            }
        }
    }

    fn plain(&self, row: &Row) -> Vec<f32> {
        match row {
            Row::Other(values) => values.clone(),
            _ => vec![0.0; self.width],
        }
    }
}

fn kind(row: &Row) -> u8 {
    match row {
        Row::Text(_) => 0,
        Row::Speech(_) => 1,
        Row::Other(_) => 2,
    }
}
