//! A Hugging Face folder's `config.json`, as transformers 4 and 5 write it.

use std::path::Path;

use serde_json::{json, Map, Value};

use crate::fields::{count, flag, is_neutral, optional_count, optional_number, read_object};
use crate::rope::Rope;
use crate::trouble::{trouble, Result};

/// What the model is built from. A field of the file that is not understood and could change the result is an error.
#[derive(Clone, Debug)]
pub struct Config {
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: Option<usize>,
    pub rms_norm_eps: f64,
    pub rope: Rope,
    pub tie_word_embeddings: bool,
    /// Biases of the query, key and value projections, and of the output projection.
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// For each layer the positions that a token sees, itself among them; `None`: all before it.
    pub windows: Vec<Option<usize>>,
}

/// Fields that are read below.
const READ: &[&str] = &[
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "partial_rotary_factor",
];

/// Fields that cannot change what inference computes here, whatever they hold.
const HARMLESS: &[&str] = &[
    "_name_or_path",
    "_model_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "dtype",
    "torch_dtype",
    "initializer_range",
    "pad_token_id",
    "pretraining_tp",
    "transformers_version",
    "unk_token_id",
    "use_cache",
    "is_llama_config",
    "_attn_implementation",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "chunk_size_feed_forward",
    "problem_type",
];

impl Config {
    /// Reads `config.json`.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        Self::parse(&read_object(&path)?).map_err(|error| trouble(format!("{}: {error}", path.display())))
    }

    /// What a file leaves out takes the value that transformers gives it.
    fn parse(fields: &Map<String, Value>) -> Result<Self> {
        let model_type = fields.get("model_type").and_then(Value::as_str).unwrap_or_default().to_string();
        // transformers gives Qwen2 these biases whatever its file says.
        let (qkv_bias, output_bias, mlp_bias) = match model_type.as_str() {
            "llama" => {
                let attention = flag(fields, "attention_bias", false)?;
                (attention, attention, flag(fields, "mlp_bias", false)?)
            }
            "qwen2" => (true, false, false),
            other => return Err(trouble(format!("model_type {other:?} is not known; llama and qwen2 are"))),
        };
        refuse_unknown(fields)?;
        let hidden_size = count(fields, "hidden_size")?;
        let num_attention_heads = count(fields, "num_attention_heads")?;
        let num_hidden_layers = count(fields, "num_hidden_layers")?;
        let config = Self {
            hidden_size,
            intermediate_size: count(fields, "intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: optional_count(fields, "num_key_value_heads")?.unwrap_or(num_attention_heads),
            head_dim: optional_count(fields, "head_dim")?.unwrap_or(hidden_size / num_attention_heads.max(1)),
            vocab_size: count(fields, "vocab_size")?,
            max_position_embeddings: optional_count(fields, "max_position_embeddings")?,
            rms_norm_eps: optional_number(fields, "rms_norm_eps")?.unwrap_or(1e-6),
            rope: Rope::parse(fields)?,
            tie_word_embeddings: flag(fields, "tie_word_embeddings", false)?,
            qkv_bias,
            output_bias,
            mlp_bias,
            windows: windows(fields, &model_type, num_hidden_layers)?,
            model_type,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let heads = self.num_attention_heads;
        if heads == 0 || self.num_key_value_heads == 0 || heads % self.num_key_value_heads != 0 {
            return Err(trouble(format!("{heads} heads cannot share {} KV heads", self.num_key_value_heads)));
        }
        // The widest product of two fields; each is checked against its tensor's shape before anything is allocated.
        if heads.checked_mul(self.head_dim).is_none() {
            return Err(trouble(format!("{heads} heads of {} are too many", self.head_dim)));
        }
        if self.head_dim == 0 || self.head_dim % 2 != 0 {
            return Err(trouble(format!("head_dim {} cannot be rotated; it must be even", self.head_dim)));
        }
        Ok(())
    }

    /// What products of queries and keys are multiplied by.
    pub fn attention_scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// The hyper-parameters as this engine uses them, in the file's words.
    pub fn to_json(&self) -> Value {
        let mut words = json!({
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": self.rope.scaling.to_json(),
            "hidden_act": "silu",
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
        });
        if self.model_type == "qwen2" {
            let kind = |window: &Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
            words["sliding_window"] = self.windows.iter().flatten().next().copied().into();
            words["use_sliding_window"] = self.windows.iter().any(Option::is_some).into();
            words["layer_types"] = self.windows.iter().map(kind).collect();
        }
        if self.model_type == "llama" {
            words["attention_bias"] = self.qkv_bias.into();
            words["mlp_bias"] = self.mlp_bias.into();
        }
        words
    }
}

/// Only Qwen2 slides, and only where `use_sliding_window` says so.
fn windows(fields: &Map<String, Value>, model_type: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    if model_type != "qwen2" || !flag(fields, "use_sliding_window", false)? {
        return Ok(vec![None; layers]);
    }
    // transformers' own defaults; a window that is null slides nowhere.
    let window = match fields.get("sliding_window") {
        None => Some(4096),
        Some(_) => optional_count(fields, "sliding_window")?,
    };
    if window == Some(0) {
        return Err(trouble("sliding_window is 0, and no token would see itself"));
    }
    let first = optional_count(fields, "max_window_layers")?.unwrap_or(28);
    let slides = match fields.get("layer_types").and_then(Value::as_array) {
        Some(kinds) if kinds.len() != layers => {
            return Err(trouble(format!("layer_types has {} entries for {layers} layers", kinds.len())));
        }
        Some(kinds) => kinds.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect(),
        None => (0..layers).map(|layer| layer >= first).collect::<Vec<bool>>(),
    };
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

fn refuse_unknown(fields: &Map<String, Value>) -> Result<()> {
    for (name, value) in fields {
        let refused = match name.as_str() {
            "hidden_act" => value.as_str() != Some("silu"),
            "layer_types" => {
                let known = |kind: &Value| matches!(kind.as_str(), Some("full_attention" | "sliding_attention"));
                value.as_array().is_some_and(|list| !list.iter().all(known))
            }
            "partial_rotary_factor" => value.as_f64().is_some_and(|share| share != 1.0),
            known if READ.contains(&known) || HARMLESS.contains(&known) => false,
            _ => !is_neutral(value),
        };
        if refused {
            return Err(trouble(format!("{name} = {value} would change the result and is not known to this engine")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300, "rms_norm_eps": 1e-5,
        })
    }

    fn parse_with(name: &str, value: Value) -> Result<Config> {
        let mut fields = llama();
        fields[name] = value;
        Config::parse(fields.as_object().expect("an object"))
    }

    #[test]
    fn an_unknown_field_is_named_with_its_value_unless_it_is_off() {
        assert!(parse_with("logit_scale", json!(null)).is_ok());
        assert!(parse_with("qk_norm", json!(false)).is_ok());
        let error = parse_with("logit_scale", json!(0.5)).expect_err("unknown").to_string();
        assert!(error.contains("logit_scale = 0.5"), "{error}");
        assert!(parse_with("quantization_config", json!({"bits": 4})).is_err());
        assert!(parse_with("hidden_act", json!("gelu")).is_err());
        assert!(parse_with("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})).is_err());
    }

    #[test]
    fn a_window_counts_only_where_a_layer_slides() {
        let windows = |more: Value| {
            let mut fields = llama();
            fields["model_type"] = json!("qwen2");
            fields["sliding_window"] = json!(16);
            for (name, value) in more.as_object().expect("an object") {
                fields[name] = value.clone();
            }
            Config::parse(fields.as_object().expect("an object")).map(|config| config.windows).ok()
        };
        let slides = json!({"use_sliding_window": true, "max_window_layers": 1});
        assert_eq!(windows(slides), Some(vec![None, Some(16)]));
        assert_eq!(windows(json!({"use_sliding_window": false})), Some(vec![None, None]));
        assert_eq!(windows(json!({"use_sliding_window": true, "max_window_layers": 2})), Some(vec![None, None]));
        assert_eq!(windows(json!({"use_sliding_window": true, "sliding_window": null})), Some(vec![None, None]));
        let kinds = json!({"use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention"]});
        assert_eq!(windows(kinds), Some(vec![Some(16), None]));
        assert_eq!(windows(json!({"use_sliding_window": true, "layer_types": ["full_attention"]})), None);
        assert_eq!(windows(json!({"use_sliding_window": true, "sliding_window": 0})), None);
        let theirs = parse_with("use_sliding_window", json!(true)).expect("known").windows;
        assert_eq!(theirs, [None, None], "transformers' Llama has no window");
    }

    #[test]
    fn heads_that_cannot_share_are_refused() {
        assert!(parse_with("num_key_value_heads", json!(3)).is_err());
        assert!(parse_with("head_dim", json!(15)).is_err());
        assert!(parse_with("num_attention_heads", json!(0)).is_err());
        assert!(parse_with("hidden_size", json!(-1)).is_err());
    }
}
