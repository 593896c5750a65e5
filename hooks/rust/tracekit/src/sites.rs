//! The site table: what each site is, where its module's input comes from, and why it may have no values.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::call::Axis;

pub(crate) const INPUT_SUFFIX: &str = ":in";

/// A row of the site table.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SiteRow {
    /// Site name: the module's state-dict path.
    pub name: String,
    /// Module class, `Linear`.
    pub class: &'static str,
    /// Role and name of each parameter.
    pub parameters: Vec<(&'static str, String)>,
    /// Numbers that the class needs.
    pub attributes: Vec<(&'static str, f64)>,
    /// Its name is a generated one: nothing tells where its parameters come from.
    pub unnamed: bool,
}

impl SiteRow {
    /// A module of this name and class.
    pub fn new(name: impl Into<String>, class: &'static str) -> Self {
        Self { name: name.into(), class, ..Self::default() }
    }

    /// With a parameter: its role, `weight`, and its full name.
    #[must_use]
    pub fn parameter(mut self, role: &'static str, name: impl Into<String>) -> Self {
        self.parameters.push((role, name.into()));
        self
    }

    /// With a number that the class needs, `eps`.
    #[must_use]
    pub fn attribute(mut self, name: &'static str, number: f64) -> Self {
        self.attributes.push((name, number));
        self
    }
}

/// What was stored of a site where it was first met.
pub(crate) enum Stored {
    Values,
    /// Its value is this other site's.
    SameAs(String),
    /// The steps hold it as their logits.
    AsLogits,
    /// Nothing, and why.
    Skipped(String),
}

/// What the log says of a site.
struct Met {
    order: usize,
    has_values: bool,
    /// Why some calls, or all, gave none.
    why: Option<String>,
}

/// All sites met so far, in the order in which they first gave a value.
#[derive(Default)]
pub(crate) struct SiteTable {
    declared: HashMap<String, SiteRow>,
    wiring: HashMap<String, String>,
    /// How many heads lie side by side in a row.
    heads: HashMap<String, usize>,
    /// What the rows of each site are.
    axes: HashMap<String, Axis>,
    met: HashMap<String, Met>,
    /// Rows that the log does not have yet.
    waiting: Vec<Value>,
}

impl SiteTable {
    /// Says what module stands behind a site, before it first runs.
    pub(crate) fn declare(&mut self, row: SiteRow) {
        self.declared.insert(row.name.clone(), row);
    }

    /// The module's input is the value of `source`; the first word stands.
    #[cfg(feature = "candle")]
    pub(crate) fn wire(&mut self, name: &str, source: &str) {
        if !self.wiring.contains_key(name) {
            self.wiring.insert(name.to_string(), source.to_string());
        }
    }

    /// Whether the module's input was said to be another site's value, or one of its own.
    #[cfg(feature = "candle")]
    pub(crate) fn is_wired_to(&self, name: &str, source: &str) -> bool {
        self.wiring.get(name).is_some_and(|own| own == source)
    }

    /// The site of another module that the module's input was said to be.
    #[cfg(feature = "candle")]
    pub(crate) fn source_elsewhere(&self, name: &str) -> Option<&str> {
        let own = self.wiring.get(name).map(String::as_str);
        own.filter(|source| source.strip_suffix(INPUT_SUFFIX) != Some(name))
    }

    /// Each row of the site holds this many heads.
    #[cfg(feature = "candle")]
    pub(crate) fn set_heads(&mut self, name: &str, heads: usize) {
        self.heads.insert(name.to_string(), heads);
    }

    /// The rows of a site are of this axis, as they were before; or why they cannot be.
    pub(crate) fn keep_axis(&mut self, name: &str, axis: Axis) -> Result<(), String> {
        match self.axes.get(name) {
            Some(&before) if before == axis => Ok(()),
            Some(_) => Err("it runs in the encoder's call and in others; its rows are those of the first".into()),
            None => {
                self.axes.insert(name.to_string(), axis);
                Ok(())
            }
        }
    }

    /// Adds the row of a site when it is first met, and again when more is to say of it: that one that was skipped has
    /// values after all, or that a call of one with values has none.
    pub(crate) fn meet(&mut self, name: &str, stored: Stored) {
        let order = self.met.get(name).map_or(self.met.len(), |met| met.order);
        let (has_values, partial) = match (self.met.get(name), &stored) {
            (None, stored) => (matches!(stored, Stored::Values), None),
            (Some(Met { has_values: false, why: Some(why), .. }), Stored::Values) => (true, Some(why.clone())),
            (Some(Met { has_values: true, why: None, .. }), Stored::Skipped(why)) => (true, Some(why.clone())),
            (Some(_), _) => return,
        };
        let why = match &stored {
            Stored::Skipped(why) => Some(why.clone()),
            _ => partial.clone(),
        };
        let mut row = self.row(name, order, if has_values { Stored::Values } else { stored });
        if let Some(why) = partial {
            row.insert("partial".into(), Value::from(why));
        }
        self.waiting.push(Value::Object(row));
        self.met.insert(name.to_string(), Met { order, has_values, why });
    }

    fn row(&self, name: &str, order: usize, stored: Stored) -> Map<String, Value> {
        let mut row = Map::new();
        let mut put = |key: &str, value: Value| row.insert(key.to_string(), value);
        match stored {
            Stored::Values => None,
            Stored::SameAs(other) => put("same_as", Value::from(other)),
            Stored::AsLogits => put("recorded_as", Value::from("logits")),
            Stored::Skipped(why) => put("skipped", Value::from(why)),
        };
        put("name", Value::from(name));
        put("order", Value::from(order));
        put("class", Value::from(if name.ends_with(INPUT_SUFFIX) { "input" } else { "tap" }));
        if let Some(own) = self.declared.get(name) {
            let pair = |(role, name): &(&str, String)| ((*role).to_string(), Value::from(name.as_str()));
            let number = |(key, number): &(&str, f64)| ((*key).to_string(), Value::from(*number));
            put("class", Value::from(own.class));
            put("parameters", own.parameters.iter().map(pair).collect());
            put("attributes", own.attributes.iter().map(number).collect());
            if own.unnamed {
                put("unnamed", Value::from(true));
            }
        }
        if let Some(&heads) = self.heads.get(name) {
            put("heads", Value::from(heads));
        }
        if let Some(source) = self.wiring.get(name) {
            put("input", Value::from(source.as_str()));
        }
        if let Some(axis) = self.axes.get(name).and_then(|axis| axis.word()) {
            put("axis", Value::from(axis));
        }
        row
    }

    /// Rows that the log does not have yet.
    pub(crate) fn take_waiting(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_class_parameters_and_numbers_once() {
        let mut table = SiteTable::default();
        table.declare(SiteRow::new("norm", "RMSNorm").parameter("weight", "norm.weight").attribute("eps", 0.5));
        table.meet("norm:in", Stored::Values);
        table.meet("norm", Stored::Values);
        table.meet("norm", Stored::AsLogits);
        let rows = table.take_waiting();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0], serde_json::json!({"name": "norm:in", "order": 0, "class": "input"}));
        assert_eq!((&rows[1]["class"], &rows[1]["attributes"]["eps"]), (&"RMSNorm".into(), &0.5.into()));
        assert_eq!(rows[1]["parameters"]["weight"], "norm.weight");
        assert!(table.take_waiting().is_empty());
    }

    #[test]
    fn a_site_without_values_says_why() {
        let mut table = SiteTable::default();
        table.meet("a", Stored::SameAs("b".into()));
        table.meet("lm_head", Stored::AsLogits);
        table.meet("odd", Stored::Skipped("one row of five".into()));
        let rows = table.take_waiting();
        assert_eq!((&rows[0]["same_as"], &rows[1]["recorded_as"]), (&"b".into(), &"logits".into()));
        assert_eq!((&rows[2]["skipped"], &rows[2]["class"]), (&"one row of five".into(), &"tap".into()));
    }

    #[test]
    fn a_skip_is_of_its_call() {
        let mut table = SiteTable::default();
        table.meet("head", Stored::Skipped("why".into()));
        table.meet("head", Stored::Skipped("another why".into()));
        table.meet("head", Stored::Values);
        table.meet("norm", Stored::Values);
        table.meet("norm", Stored::Skipped("one call".into()));
        table.meet("norm", Stored::Skipped("two calls".into()));
        table.meet("norm", Stored::Values);
        let rows = table.take_waiting();
        assert_eq!(rows[0], serde_json::json!({"name": "head", "order": 0, "class": "tap", "skipped": "why"}));
        assert_eq!(rows[1], serde_json::json!({"name": "head", "order": 0, "class": "tap", "partial": "why"}));
        assert_eq!(rows[2], serde_json::json!({"name": "norm", "order": 1, "class": "tap"}));
        assert_eq!(rows[3], serde_json::json!({"name": "norm", "order": 1, "class": "tap", "partial": "one call"}));
        assert_eq!(rows.len(), 4);
    }
}
