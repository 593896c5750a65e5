//! A Hugging Face folder's `config.json`, as transformers 4 and 5 write it.

use std::path::Path;

use serde_json::{json, Map, Value};

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
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope: Rope,
    pub tie_word_embeddings: bool,
    /// Biases of the query, key and value projections, and of the output projection.
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    pub eos_token_ids: Vec<u32>,
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
    "eos_token_id",
    "layer_types",
    "use_sliding_window",
    "partial_rotary_factor",
];

/// Fields that cannot change what inference computes here, whatever they hold.
const HARMLESS: &[&str] = &[
    "_name_or_path",
    "_model_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "torch_dtype",
    "initializer_range",
    "pad_token_id",
    "pretraining_tp",
    "transformers_version",
    "unk_token_id",
    "use_cache",
    "max_window_layers",
    "sliding_window",
    "is_llama_config",
    "rope_interleaved",
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
    /// Reads `config.json` and, for the stop tokens, `generation_config.json`.
    pub fn load(folder: &Path) -> Result<Self> {
        let fields = read_object(&folder.join("config.json"))?;
        let generation = folder.join("generation_config.json");
        let generation = if generation.exists() { read_object(&generation)? } else { Map::new() };
        Self::parse(&fields, &generation).map_err(|error| trouble(format!("{}/config.json: {error}", folder.display())))
    }

    fn parse(fields: &Map<String, Value>, generation: &Map<String, Value>) -> Result<Self> {
        refuse_unknown(fields)?;
        let model_type = fields.get("model_type").and_then(Value::as_str).unwrap_or_default().to_string();
        let flag = |name: &str, default: bool| fields.get(name).and_then(Value::as_bool).unwrap_or(default);
        let (qkv_bias, output_bias) = match model_type.as_str() {
            "llama" => (flag("attention_bias", false), flag("attention_bias", false)),
            "qwen2" => (true, false),
            other => return Err(trouble(format!("model_type {other:?} is not known; llama and qwen2 are"))),
        };
        let hidden_size = count(fields, "hidden_size")?;
        let num_attention_heads = count(fields, "num_attention_heads")?;
        let optional = |name: &str, default: usize| match fields.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(_) => count(fields, name),
        };
        let eos = generation.get("eos_token_id").or_else(|| fields.get("eos_token_id"));
        let config = Self {
            hidden_size,
            intermediate_size: count(fields, "intermediate_size")?,
            num_hidden_layers: count(fields, "num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: optional("num_key_value_heads", num_attention_heads)?,
            head_dim: optional("head_dim", hidden_size / num_attention_heads.max(1))?,
            vocab_size: count(fields, "vocab_size")?,
            max_position_embeddings: optional("max_position_embeddings", usize::MAX)?,
            rms_norm_eps: number(fields, "rms_norm_eps")?,
            rope: Rope::parse(fields)?,
            tie_word_embeddings: flag("tie_word_embeddings", false),
            qkv_bias,
            output_bias,
            mlp_bias: flag("mlp_bias", false),
            eos_token_ids: token_ids(eos),
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
        if self.head_dim == 0 || self.head_dim % 2 != 0 {
            return Err(trouble(format!("head_dim {} cannot be rotated; it must be even", self.head_dim)));
        }
        Ok(())
    }

    /// The hyper-parameters as this engine uses them, in the file's words.
    pub fn to_json(&self) -> Value {
        json!({
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
            "eos_token_id": self.eos_token_ids,
        })
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
        let theta = theta.and_then(Value::as_f64).ok_or_else(|| trouble("rope_theta is missing"))?;
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

fn refuse_unknown(fields: &Map<String, Value>) -> Result<()> {
    for (name, value) in fields {
        let refused = match name.as_str() {
            "hidden_act" => value.as_str() != Some("silu"),
            "layer_types" => {
                value.as_array().is_some_and(|list| list.iter().any(|kind| kind.as_str() != Some("full_attention")))
            }
            "use_sliding_window" => value.as_bool() == Some(true),
            "partial_rotary_factor" => value.as_f64().is_some_and(|share| share != 1.0),
            known if READ.contains(&known) || HARMLESS.contains(&known) => false,
            _ => !matches!(value, Value::Null | Value::Bool(false)),
        };
        if refused {
            return Err(trouble(format!("{name} = {value} would change the result and is not known to this engine")));
        }
    }
    Ok(())
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| trouble(format!("{}: cannot be read: {error}", path.display())))?;
    serde_json::from_str(&text).map_err(|error| trouble(format!("{}: is not a JSON object: {error}", path.display())))
}

fn count(fields: &Map<String, Value>, name: &str) -> Result<usize> {
    let value = fields.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    value.ok_or_else(|| trouble(format!("{name} is missing or not a count")))
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<f64> {
    fields.get(name).and_then(Value::as_f64).ok_or_else(|| trouble(format!("{name} is missing or not a number")))
}

fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}
