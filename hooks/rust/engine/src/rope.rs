//! What a `config.json` says of rotary embedding, as transformers 4 and 5 write it.

use serde_json::{json, Map, Value};

use crate::fields::number;
use crate::trouble::{trouble, Result};

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

impl Rope {
    /// From a `config.json`.
    pub fn parse(fields: &Map<String, Value>) -> Result<Self> {
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
    /// In the words of transformers 4's `rope_scaling`.
    pub fn to_json(&self) -> Value {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_settings_of_both_versions_mean_the_same() {
        let old = json!({"rope_theta": 500_000.0, "rope_scaling": {"type": "linear", "factor": 2.0}});
        let new = json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500_000.0}});
        let rope = |fields: &Value| Rope::parse(fields.as_object().expect("an object")).expect("known");
        assert_eq!(rope(&old), rope(&new));
        assert_eq!(rope(&old), Rope { theta: 500_000.0, scaling: Scaling::Linear { factor: 2.0 } });
    }
}
