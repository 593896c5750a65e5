//! The prompt's speech tokens: from a safetensors file, or from a trace of the other side.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use hdf5_reader::{Hdf5File, OpenOptions};
use safetensors::tensor::{Dtype, SafeTensors};
use tracekit::follow::Follow;
use tracekit::log::Tensor;

use crate::trouble::{trouble, Result};

/// Speech tokens that come with the model.
pub const BESIDE_THE_MODEL: &str = "prompt_speech_tokens.safetensors";
const IDS: &str = "speech_token_ids";
const ARCHIVE: &[u8] = b"\x89HDF\r\n\x1a\n";
const LOG: &[u8] = b"TKL1";
/// No file of speech tokens is longer, in bytes: 40 minutes take 480 KB.
const SIZE_LIMIT: u64 = 64 << 20;

/// Speech tokens to go on from, a list for each segment or one for all.
#[derive(Debug, PartialEq)]
pub struct PromptSpeech(Vec<Vec<u32>>);

impl PromptSpeech {
    /// Reads safetensors with `speech_token_ids`, a log or an archive of tracekit; of the path `-`, none.
    pub fn load(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self(Vec::new()));
        }
        let fail = |why: String| trouble(format!("{}: {why}", path.display()));
        let read = match head(path).map_err(|error| fail(format!("cannot be read: {error}")))? {
            head if head == ARCHIVE => of_archive(path),
            head if head.starts_with(LOG) => of_log(path),
            _ => of_safetensors(path).map(|ids| vec![ids]),
        };
        read.map(Self).map_err(fail)
    }

    /// The tokens of a segment; a trace with fewer sequences gives its last one's again.
    pub fn of_segment(&self, index: usize) -> &[u32] {
        self.0.get(index).or(self.0.last()).map_or(&[], Vec::as_slice)
    }
}

/// Token ids of an input that a trace holds.
pub fn ids_of(tensor: &Tensor) -> Vec<u32> {
    tensor.data.chunks_exact(8).map(|bytes| i64_of(bytes) as u32).collect()
}

type Found<T> = std::result::Result<T, String>;

fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(ARCHIVE.len() as u64).read_to_end(&mut head)?;
    Ok(head)
}

fn of_archive(path: &Path) -> Found<Vec<Vec<u32>>> {
    let options = OpenOptions { max_read_bytes: SIZE_LIMIT as usize, ..OpenOptions::default() };
    let damaged = |error: hdf5_reader::error::Error| format!("is no sound archive ({error}); record it again");
    let file = Hdf5File::open_with_options(path, options).map_err(damaged)?;
    let size = std::fs::metadata(path).map_or(0, |about| about.len());
    if file.superblock().eof_address > size {
        return Err(format!("is cut short: {size} bytes of {}; record it again", file.superblock().eof_address));
    }
    let mut found = Vec::new();
    while file.group(&format!("/sequences/{}", found.len())).is_ok() {
        let name = format!("/sequences/{}/prompt/{IDS}", found.len());
        let dataset = file.dataset(&name).map_err(|_| format!("holds no {name}; record a CosyVoice program"))?;
        let ids = dataset.read_array::<i64>().map_err(damaged)?;
        found.push(ids.iter().map(|&id| token(id)).collect::<Found<_>>()?);
    }
    match found.is_empty() {
        true => Err("holds no sequence; record a CosyVoice program".into()),
        false => Ok(found),
    }
}

fn of_log(path: &Path) -> Found<Vec<Vec<u32>>> {
    // Its errors begin with the path already.
    let trace =
        Follow::open(path).map_err(|error| error.to_string().replacen(&format!("{}: ", path.display()), "", 1))?;
    let inputs = (0..).map_while(|index| trace.prompt_ids(index).map(|_| trace.input(index, IDS)));
    let found: Vec<_> = inputs.map(|input| input.map(ids_of)).collect::<Option<_>>().unwrap_or_default();
    match found.is_empty() {
        true => Err(format!("holds no prompt/{IDS}; record a CosyVoice program")),
        false => Ok(found),
    }
}

fn of_safetensors(path: &Path) -> Found<Vec<u32>> {
    let fail =
        |why: String| format!("{why}; write one with `tracekit tokens TRACE --prompt-speech -o FILE.safetensors`");
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    file.take(SIZE_LIMIT).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| fail(format!("is no safetensors file: {error}")))?;
    let tensor = file.tensor(IDS).map_err(|_| fail(format!("holds no {IDS}")))?;
    if tensor.dtype() != Dtype::I64 {
        return Err(fail(format!("{IDS} is {:?}, not I64", tensor.dtype())));
    }
    tensor.data().chunks_exact(8).map(|bytes| token(i64_of(bytes))).collect()
}

fn token(id: i64) -> Found<u32> {
    u32::try_from(id).map_err(|_| format!("{IDS} holds {id}, which is no token"))
}

fn i64_of(bytes: &[u8]) -> i64 {
    bytes.try_into().map_or(-1, i64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_its_own_or_the_last() {
        let each = PromptSpeech(vec![vec![1], vec![2, 3]]);
        assert_eq!([each.of_segment(0), each.of_segment(1), each.of_segment(2)], [&[1][..], &[2, 3], &[2, 3]]);
        let none = PromptSpeech::load(Path::new("-")).expect("none");
        assert!(none.of_segment(0).is_empty());
    }

    #[test]
    fn what_is_no_file_of_tokens_is_named() {
        let path = std::env::temp_dir().join(format!("tracekit-prompt-{}", std::process::id()));
        for (bytes, said) in [
            (&b"hello, this is text"[..], "is no safetensors file"),
            (ARCHIVE, "is no sound archive"),
            (LOG, ": is no log to follow"),
            (b"", "is no safetensors file"),
        ] {
            std::fs::write(&path, bytes).expect("written");
            let error = PromptSpeech::load(&path).expect_err("damaged").to_string();
            assert!(error.contains(said) && error.matches("tracekit-prompt").count() == 1, "{error}");
        }
        std::fs::remove_file(&path).expect("removed");
        assert!(PromptSpeech::load(&path).expect_err("missing").to_string().contains("cannot be read"));
    }
}
