//! A Hugging Face folder's `config.json`, as transformers 4 and 5 write it.

use std::path::Path;

use serde_json::{json, Map, Value};

use crate::fields::{count, flag, is_neutral, number, optional_count, optional_number, read_object};
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
    /// Positions that the attention of some layer would look back on; this engine always looks back on all.
    pub sliding_window: Option<usize>,
}

/// Rotary embedding: base and how its frequencies are scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: Scaling,
}

/// Scaling of the rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    None,
    Linear { factor: f64 },
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
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
            sliding_window: sliding_window(fields, num_hidden_layers)?,
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
        if self.model_type == "llama" {
            words["attention_bias"] = self.qkv_bias.into();
            words["mlp_bias"] = self.mlp_bias.into();
        }
        words
    }
}

impl Rope {
    fn parse(fields: &Map<String, Value>) -> Result<Self> {
        // transformers 5 keeps all of it in `rope_parameters`; 4 had `rope_theta` and `rope_scaling` at the top.
        let new = fields.get("rope_parameters").and_then(Value::as_object);
        let old = fields.get("rope_scaling").and_then(Value::as_object);
        let empty = Map::new();
        let scaling = new.or(old).unwrap_or(&empty);
        let theta = scaling.get("rope_theta").or_else(|| fields.get("rope_theta"));
        let theta = match theta {
            None | Some(Value::Null) => 10_000.0,
            Some(value) => value.as_f64().ok_or_else(|| trouble(format!("rope_theta is {value}, not a number")))?,
        };
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
        let known: &[&str] = match kind {
            None | Some("default") => &[],
            Some("linear") => &["factor"],
            Some("llama3") => &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
            Some(other) => {
                return Err(trouble(format!("rope_type {other:?} is not known; default, linear and llama3 are")))
            }
        };
        for (name, value) in scaling {
            let neutral = name == "partial_rotary_factor" && value.as_f64() == Some(1.0);
            let read = ["rope_type", "type", "rope_theta"].contains(&name.as_str()) || known.contains(&name.as_str());
            if !read && !neutral && !value.is_null() {
                return Err(trouble(format!("the rotary setting {name} = {value} is not known")));
            }
        }
        let scaling = match kind {
            Some("linear") => Scaling::Linear { factor: number(scaling, "factor")? },
            Some("llama3") => Scaling::Llama3 {
                factor: number(scaling, "factor")?,
                low: number(scaling, "low_freq_factor")?,
                high: number(scaling, "high_freq_factor")?,
                original: number(scaling, "original_max_position_embeddings")?,
            },
            _ => Scaling::None,
        };
        Ok(Self { theta, scaling })
    }
}

impl Scaling {
    fn to_json(&self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Self::Llama3 { factor, low, high, original } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }),
        }
    }
}

/// The window of the layers that slide, if any does. Only Qwen2 slides, and only where `use_sliding_window` says so.
fn sliding_window(fields: &Map<String, Value>, layers: usize) -> Result<Option<usize>> {
    if !flag(fields, "use_sliding_window", false)? {
        return Ok(None);
    }
    let slides = match fields.get("layer_types").and_then(Value::as_array) {
        Some(kinds) => kinds.iter().any(|kind| kind.as_str() == Some("sliding_attention")),
        None => optional_count(fields, "max_window_layers")?.unwrap_or(28) < layers,
    };
    Ok(if slides { Some(optional_count(fields, "sliding_window")?.unwrap_or(4096)) } else { None })
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
    fn rotary_settings_of_both_versions_mean_the_same() {
        let mut old = llama();
        old["rope_theta"] = json!(500_000.0);
        old["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
        let mut new = llama();
        new["rope_parameters"] = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 500_000.0});
        let rope = |fields: &Value| Config::parse(fields.as_object().expect("an object")).expect("known").rope;
        assert_eq!(rope(&old), rope(&new));
        assert_eq!(rope(&old).scaling, Scaling::Linear { factor: 2.0 });
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
        let window = |more: Value| {
            let mut fields = llama();
            fields["sliding_window"] = json!(16);
            for (name, value) in more.as_object().expect("an object") {
                fields[name] = value.clone();
            }
            Config::parse(fields.as_object().expect("an object")).expect("known").sliding_window
        };
        assert_eq!(window(json!({"use_sliding_window": false})), None);
        assert_eq!(window(json!({"use_sliding_window": true, "max_window_layers": 2})), None);
        assert_eq!(window(json!({"use_sliding_window": true, "max_window_layers": 1})), Some(16));
    }

    #[test]
    fn heads_that_cannot_share_are_refused() {
        assert!(parse_with("num_key_value_heads", json!(3)).is_err());
        assert!(parse_with("head_dim", json!(15)).is_err());
        assert!(parse_with("num_attention_heads", json!(0)).is_err());
        assert!(parse_with("hidden_size", json!(-1)).is_err());
    }
}
