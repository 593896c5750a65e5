//! Writes the shared test vector `tests/vectors/log/rust.tklog`; `scripts/make_vectors.py` writes the same from Python.

use serde_json::{json, Map, Value};
use tracekit::log::{Dtype, TensorRef, Writer};

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn main() -> tracekit::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "rust.tklog".into());
    let bytes_i64: Vec<u8> = [i64::MIN, 0, i64::MAX].iter().flat_map(|x| x.to_le_bytes()).collect();
    let bytes_f32: Vec<u8> = [1.5f32, -0.0, f32::INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
    let bytes_f64: Vec<u8> = [std::f64::consts::PI, -1e300, 5e-324].iter().flat_map(|x| x.to_le_bytes()).collect();
    let bytes_bf16: Vec<u8> = [0x3f80u16, 0xc040, 0x7fc1].iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensor = |name, dtype, data| TensorRef::new(name, dtype, &[3], data);
    let tensors = [
        tensor("BOOL", Dtype::Bool, &[1, 0, 1][..]),
        tensor("I64", Dtype::I64, &bytes_i64),
        tensor("F32", Dtype::F32, &bytes_f32),
        tensor("F64", Dtype::F64, &bytes_f64),
        tensor("BF16", Dtype::Bf16, &bytes_bf16),
    ];
    let mut writer = Writer::create(std::path::Path::new(&path))?;
    writer.frame(
        "open",
        &object(json!({"format": 1, "implementation": "vector", "model": {"hidden_size": 3}})),
        &[],
    )?;
    let note = json!({"text": "a \"quoted\" line\nand é", "numbers": [1, 2.5, null]});
    writer.frame("note", &object(note), &tensors)?;
    writer.frame("end", &object(json!({"scope": "file", "reason": "done"})), &[])
}
