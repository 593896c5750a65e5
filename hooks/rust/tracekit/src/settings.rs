//! What to record, as `tracekit record` says it through the environment.

use regex_lite::Regex;
use serde_json::Value;

use crate::{Error, Result};

/// How much is recorded; each level holds what stands before it.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) enum Level {
    Tokens,
    Logits,
    Layers,
    All,
}

const LEVELS: [(&str, Level); 4] =
    [("tokens", Level::Tokens), ("logits", Level::Logits), ("layers", Level::Layers), ("all", Level::All)];

/// `TRACEKIT_LEVEL`, `TRACEKIT_SITES` and `TRACEKIT_LOGITS`.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) level: Level,
    sites: Option<Regex>,
    /// How many logits a step keeps; `None`: all.
    pub(crate) top_logits: Option<usize>,
}

impl Settings {
    pub(crate) fn from_environment() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::parse(variable("TRACEKIT_LEVEL"), variable("TRACEKIT_SITES"), variable("TRACEKIT_LOGITS"))
    }

    fn parse(level: Option<String>, sites: Option<String>, logits: Option<String>) -> Result<Self> {
        let level = match level {
            None => Level::All,
            Some(word) => LEVELS.iter().find(|(name, _)| *name == word).map(|(_, level)| *level).ok_or_else(|| {
                Error::variable("TRACEKIT_LEVEL", format!("{word:?}; use tokens, logits, layers or all"))
            })?,
        };
        let sites = match sites {
            None => None,
            Some(pattern) => Some(Regex::new(&pattern).map_err(|error| Error::Variable {
                name: "TRACEKIT_SITES",
                detail: format!("{pattern:?}, no regular expression"),
                source: Some(Box::new(error)),
            })?),
        };
        let top_logits = match logits.as_deref() {
            None | Some("full") => None,
            Some(count) => match count.parse() {
                Ok(number) if number > 0 => Some(number),
                _ => return Err(Error::variable("TRACEKIT_LOGITS", format!("{count:?}; use full or a count above 0"))),
            },
        };
        Ok(Self { level, sites, top_logits })
    }

    /// Whether the level and the pattern want the site of this name.
    pub(crate) fn keeps(&self, name: &str) -> bool {
        let wanted = match self.level {
            Level::All => true,
            Level::Layers => is_layer(name),
            Level::Tokens | Level::Logits => false,
        };
        wanted && self.sites.as_ref().is_none_or(|pattern| pattern.is_match(name))
    }
}

/// What was asked for, as the first frame's `recorder` holds it. `TRACEKIT_FOLLOWED` is what the followed trace is called:
/// `TRACEKIT_FOLLOW` names a copy of it that lasts as long as the run.
pub(crate) fn as_asked() -> Value {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let switch = |name: &str| variable(name).is_some_and(|value| value == "1");
    let mut out = serde_json::Map::new();
    let words = [("level", "TRACEKIT_LEVEL"), ("sites", "TRACEKIT_SITES"), ("logits", "TRACEKIT_LOGITS")];
    for (key, name) in words {
        out.insert(key.to_string(), variable(name).into());
    }
    if let Some(path) = variable("TRACEKIT_FOLLOW") {
        out.insert("follow".to_string(), variable("TRACEKIT_FOLLOWED").unwrap_or(path).into());
        out.insert("follow_draws".to_string(), switch("TRACEKIT_FOLLOW_DRAWS").into());
        out.insert("follow_inputs".to_string(), switch("TRACEKIT_FOLLOW_INPUTS").into());
    }
    Value::Object(out)
}

/// What is followed, as the first frame's `follow` holds it: what was asked for, and whether it can be. Steps say what
/// came of it.
pub(crate) fn followed() -> Option<Value> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let path = variable("TRACEKIT_FOLLOW")?;
    let (forces, failed) = match crate::follow::Follow::of_process() {
        Ok(Some(follow)) => ((follow.forces_draws(), follow.forces_inputs()), None),
        Ok(None) => ((false, false), None),
        Err(error) => ((false, false), Some(error.to_string())),
    };
    Some(serde_json::json!({
        "trace": variable("TRACEKIT_FOLLOWED").unwrap_or(path),
        "tokens": failed.is_none(),
        "draws": forces.0,
        "inputs": forces.1,
        "follower": concat!("tracekit ", env!("CARGO_PKG_VERSION"), " (Rust)"),
        "failed": failed,
    }))
}

/// Level `layers` keeps outputs whose name has no part behind a number: `model.embed_tokens`, `model.layers.3`.
fn is_layer(name: &str) -> bool {
    let mut parts = name.split('.').skip_while(|part| part.parse::<u32>().is_err());
    parts.next();
    !name.ends_with(":in") && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(level: &str, sites: &str, logits: &str) -> Result<Settings> {
        let given = |text: &str| Some(text.to_string()).filter(|text| !text.is_empty());
        Settings::parse(given(level), given(sites), given(logits))
    }

    #[test]
    fn layers_are_named_by_their_number() {
        for name in ["model.embed_tokens", "model.layers.3", "model.norm", "lm_head"] {
            assert!(is_layer(name), "{name}");
        }
        for name in ["model.layers.3.mlp", "model.norm:in", "h.0.attn.c_proj"] {
            assert!(!is_layer(name), "{name}");
        }
    }

    #[test]
    fn level_and_pattern_must_both_want_a_site() {
        let all = parse("", "mlp|norm", "").expect("sound");
        assert!(all.keeps("model.layers.0.mlp.up_proj:in") && all.keeps("model.norm") && !all.keeps("lm_head"));
        let layers = parse("layers", "mlp|norm", "").expect("sound");
        assert!(layers.keeps("model.norm") && !layers.keeps("model.layers.0.mlp"));
        assert!(!parse("logits", "", "").expect("sound").keeps("model.norm"));
    }

    #[test]
    fn mistakes_are_named() {
        for (level, sites, logits, named) in [
            ("everything", "", "", "TRACEKIT_LEVEL"),
            ("", "(", "", "TRACEKIT_SITES"),
            ("", "", "0", "TRACEKIT_LOGITS"),
            ("", "", "-3", "TRACEKIT_LOGITS"),
        ] {
            let error = parse(level, sites, logits).expect_err("a mistake").to_string();
            assert!(error.starts_with(named) && !error.contains('\n'), "{error}");
        }
    }
}
