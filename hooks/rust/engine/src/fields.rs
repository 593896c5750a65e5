//! Reading fields of JSON objects, each with an error that names the field.

use std::path::Path;

use serde_json::{Map, Value};

use crate::trouble::{trouble, Result};

/// A file that holds one JSON object.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| trouble(format!("{}: cannot be read: {error}", path.display())))?;
    serde_json::from_str(&text).map_err(|error| trouble(format!("{}: is not a JSON object: {error}", path.display())))
}

/// A whole number, 0 or more.
pub fn count(fields: &Map<String, Value>, name: &str) -> Result<usize> {
    optional_count(fields, name)?.ok_or_else(|| trouble(format!("{name} is missing")))
}

/// The same, where it is there and not null.
pub fn optional_count(fields: &Map<String, Value>, name: &str) -> Result<Option<usize>> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_u64()
            .and_then(|count| usize::try_from(count).ok())
            .map(Some)
            .ok_or_else(|| trouble(format!("{name} is {value}, which is not a count"))),
    }
}

/// A number.
pub fn number(fields: &Map<String, Value>, name: &str) -> Result<f64> {
    optional_number(fields, name)?.ok_or_else(|| trouble(format!("{name} is missing")))
}

/// The same, where it is there and not null.
pub fn optional_number(fields: &Map<String, Value>, name: &str) -> Result<Option<f64>> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            value.as_f64().map(Some).ok_or_else(|| trouble(format!("{name} is {value}, which is not a number")))
        }
    }
}

/// True or false; `default` where it is not there or null.
pub fn flag(fields: &Map<String, Value>, name: &str, default: bool) -> Result<bool> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| trouble(format!("{name} is {value}, which is not true or false"))),
    }
}

/// One token id or a list of them.
pub fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// A value that switches nothing on.
pub fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
