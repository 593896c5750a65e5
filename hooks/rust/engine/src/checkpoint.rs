//! The files of a Hugging Face folder: safetensors, in one piece or in shards, and the tokenizer.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::fields::read_object;
use crate::trouble::{trouble, Result};

/// Loading that takes longer than this says so.
const PATIENCE: Duration = Duration::from_secs(2);

/// The weights, mapped; each tensor comes in `dtype` when it is asked for.
pub fn weights(folder: &Path, dtype: DType) -> Result<VarBuilder<'static>> {
    weights_of(&weight_files(folder)?, dtype)
}

/// The same of these files.
pub fn weights_of(files: &[PathBuf], dtype: DType) -> Result<VarBuilder<'static>> {
    let named = files.first().map(|file| file.display().to_string()).unwrap_or_default();
    // SAFETY: the files are mapped for reading; nothing of this program writes to them.
    let builder = unsafe { VarBuilder::from_mmaped_safetensors(files, dtype, &Device::Cpu) };
    builder.map_err(|error| trouble(format!("{named}: {error}")))
}

/// `model.safetensors`, or the shards that `model.safetensors.index.json` names.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Err(trouble(format!("{}: holds neither model.safetensors nor its index", folder.display())));
    }
    let table = read_object(&index)?;
    let map = table.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| trouble(format!("{}: has no weight_map", index.display())))?;
    let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| shard(folder, &index, name)).collect()
}

fn shard(folder: &Path, index: &Path, name: &str) -> Result<PathBuf> {
    if Path::new(name).file_name().is_none_or(|file| file != name) {
        return Err(trouble(format!("{}: names the shard {name:?} outside its folder", index.display())));
    }
    let path = folder.join(name);
    match path.exists() {
        true => Ok(path),
        false => Err(trouble(format!("{}: is missing, though the index names it", path.display()))),
    }
}

/// `tokenizer.json`.
pub fn tokenizer(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    // The tokenizers crate panics on some files that are no JSON.
    read_object(&path)?;
    Tokenizer::from_file(&path).map_err(|error| trouble(format!("{}: cannot be read: {error}", path.display())))
}

/// Does `work`, and says `what` on stderr if it takes long.
pub fn with_progress<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (done, waiting) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{what} ...");
            }
        });
        let result = work();
        drop(done);
        result
    })
}
