//! Following another trace: its tokens are forced on this run, so that every step stays comparable.
//!
//! `tracekit record --follow ref.h5 -- program` hands the reference over as a log named by `TRACEKIT_FOLLOW`.

use std::path::Path;

use crate::log::{read, Dtype, Frame};
use crate::{Error, Result};

/// Prompts and tokens of the trace that is followed.
#[derive(Clone, Debug, Default)]
pub struct Follow {
    sequences: Vec<(Vec<u32>, Vec<u32>)>,
}

impl Follow {
    /// The trace named by `TRACEKIT_FOLLOW`, if it is set.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn from_env() -> Result<Option<Self>> {
        match std::env::var_os("TRACEKIT_FOLLOW").filter(|path| !path.is_empty()) {
            Some(path) => Self::open(Path::new(&path)).map(Some),
            None => Ok(None),
        }
    }

    /// Reads a log.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let contents = read(path)?;
        if contents.frames.is_empty() {
            return Err(Error::new(format!("{}: is no log to follow", path.display())));
        }
        let mut sequences: Vec<(Vec<u32>, Vec<u32>)> = Vec::new();
        for frame in &contents.frames {
            match frame.kind.as_str() {
                "sequence" => sequences.push((ids(frame, "prompt/token_ids"), Vec::new())),
                "step" => {
                    let index = frame.metadata.get("sequence").and_then(|n| n.as_u64()).unwrap_or(0) as usize;
                    if let Some((_, tokens)) = sequences.get_mut(index) {
                        tokens.extend(ids(frame, "token"));
                    }
                }
                _ => {}
            }
        }
        Ok(Self { sequences })
    }

    /// The token to force, or `None` where the followed trace has ended.
    pub fn token(&self, sequence: usize, step: usize) -> Option<u32> {
        self.sequences.get(sequence)?.1.get(step).copied()
    }

    /// The prompt of a sequence.
    pub fn prompt_ids(&self, sequence: usize) -> Option<&[u32]> {
        self.sequences.get(sequence).map(|(prompt, _)| prompt.as_slice())
    }
}

fn ids(frame: &Frame, name: &str) -> Vec<u32> {
    match frame.tensor(name) {
        Some(tensor) if tensor.dtype == Dtype::I64 => tensor
            .data
            .chunks_exact(8)
            .map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes")) as u32)
            .collect(),
        _ => Vec::new(),
    }
}
