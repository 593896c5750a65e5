//! A Hugging Face folder's `generation_config.json`: stop tokens, and the sampling settings that flags leave open.

use std::path::Path;

use serde_json::{Map, Value};

use crate::fields::{is_neutral, optional_count, optional_number, read_object, token_ids};
use crate::trouble::{trouble, Result};

/// What `generate` of transformers takes from the folder where the caller says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    pub eos_token_ids: Vec<u32>,
    pub temperature: Option<f64>,
    pub top_k: Option<usize>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
}

/// Settings that this engine does not apply, with the number that switches each off. Any other value is an error.
const OFF: &[(&str, f64)] = &[
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("diversity_penalty", 0.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("guidance_scale", 1.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("num_return_sequences", 1.0),
];

/// Fields that cannot change the tokens of one sequence without beams, or that the flags always decide.
const HARMLESS: &[&str] = &[
    "do_sample",
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "max_length",
    "max_new_tokens",
    "use_cache",
    "cache_implementation",
    "length_penalty",
    "early_stopping",
    "transformers_version",
    "chat_format",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "target_lookbehind",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "_from_model_config",
];

impl GenerationConfig {
    /// Reads the file; without it, transformers takes the stop tokens of `config.json`.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("generation_config.json");
        if !path.exists() {
            let eos_token_ids = token_ids(read_object(&folder.join("config.json"))?.get("eos_token_id"));
            return Ok(Self { eos_token_ids, ..Self::default() });
        }
        Self::parse(&read_object(&path)?).map_err(|error| trouble(format!("{}: {error}", path.display())))
    }

    fn parse(fields: &Map<String, Value>) -> Result<Self> {
        refuse_unknown(fields)?;
        Ok(Self {
            eos_token_ids: token_ids(fields.get("eos_token_id")),
            temperature: optional_number(fields, "temperature")?,
            top_k: optional_count(fields, "top_k")?,
            top_p: optional_number(fields, "top_p")?,
            min_p: optional_number(fields, "min_p")?,
            repetition_penalty: optional_number(fields, "repetition_penalty")?,
        })
    }
}

fn refuse_unknown(fields: &Map<String, Value>) -> Result<()> {
    const READ: &[&str] = &["eos_token_id", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"];
    for (name, value) in fields {
        let off = OFF.iter().any(|&(known, number)| known == name && value.as_f64() == Some(number));
        let known = READ.contains(&name.as_str()) || HARMLESS.contains(&name.as_str());
        if !off && !known && !is_neutral(value) {
            return Err(trouble(format!("{name} = {value} would change the tokens and this engine does not apply it")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<GenerationConfig> {
        GenerationConfig::parse(value.as_object().expect("an object"))
    }

    #[test]
    fn a_setting_that_is_not_applied_must_be_off() {
        assert!(parse(json!({"num_beams": 1, "no_repeat_ngram_size": 0, "bad_words_ids": null})).is_ok());
        let error = parse(json!({"num_beams": 4})).expect_err("beams").to_string();
        assert!(error.contains("num_beams = 4"), "{error}");
        assert!(parse(json!({"suppress_tokens": [1]})).is_err());
    }

    #[test]
    fn stop_tokens_are_one_or_many() {
        assert_eq!(parse(json!({"eos_token_id": 2})).expect("one").eos_token_ids, [2]);
        assert_eq!(parse(json!({"eos_token_id": [2, 7]})).expect("two").eos_token_ids, [2, 7]);
    }
}
