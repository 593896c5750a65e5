//! The log (`*.tklog`): append-only frames of safetensors, as docs/format.md specifies them.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use xxhash_rust::xxh3::{xxh3_64, Xxh3Default};

use crate::signals::held_back;
use crate::{Error, Result};

pub(crate) const MAGIC: &[u8; 4] = b"TKL1";
const HEAD: usize = 24;
/// Longest safetensors header in bytes, as in the safetensors library.
const HEADER_LIMIT: usize = 100 << 20;
const METADATA: &str = "__metadata__";
const PAD: &str = "__pad__";

/// A number format, by safetensors' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
    F8E4M3,
    F8E5M2,
}

/// Every dtype with safetensors' word, torch's word and its size in bytes.
const DTYPES: [(Dtype, &str, &str, usize); 15] = [
    (Dtype::Bool, "BOOL", "bool", 1),
    (Dtype::U8, "U8", "uint8", 1),
    (Dtype::I8, "I8", "int8", 1),
    (Dtype::U16, "U16", "uint16", 2),
    (Dtype::I16, "I16", "int16", 2),
    (Dtype::U32, "U32", "uint32", 4),
    (Dtype::I32, "I32", "int32", 4),
    (Dtype::U64, "U64", "uint64", 8),
    (Dtype::I64, "I64", "int64", 8),
    (Dtype::F16, "F16", "float16", 2),
    (Dtype::Bf16, "BF16", "bfloat16", 2),
    (Dtype::F32, "F32", "float32", 4),
    (Dtype::F64, "F64", "float64", 8),
    (Dtype::F8E4M3, "F8_E4M3", "float8_e4m3fn", 1),
    (Dtype::F8E5M2, "F8_E5M2", "float8_e5m2", 1),
];

impl Dtype {
    fn row(self) -> &'static (Dtype, &'static str, &'static str, usize) {
        &DTYPES[self as usize]
    }

    /// safetensors' word, `F32`.
    pub fn word(self) -> &'static str {
        self.row().1
    }

    /// torch's word, `float32`.
    pub fn torch_word(self) -> &'static str {
        self.row().2
    }

    /// Bytes an element.
    pub fn size(self) -> usize {
        self.row().3
    }

    fn from_word(word: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.1 == word).map(|row| row.0)
    }
}

/// A tensor to write: its bytes are C order, little-endian.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TensorRef<'a> {
    /// Name in the frame.
    pub name: &'a str,
    /// Number format.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: &'a [usize],
    /// `shape` times `dtype` bytes.
    pub data: &'a [u8],
}

impl<'a> TensorRef<'a> {
    /// A tensor of these bytes.
    pub fn new(name: &'a str, dtype: Dtype, shape: &'a [usize], data: &'a [u8]) -> Self {
        Self { name, dtype, shape, data }
    }
}

/// Writes frames, one `write` each. A frame that the file does not take whole is taken back.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
    /// Bytes of whole frames.
    length: u64,
}

impl Writer {
    /// Creates or empties the file.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::file(path, "written"))?;
        Ok(Self::of(file, path))
    }

    /// Writes to an empty file at hand.
    pub(crate) fn of(file: File, path: &Path) -> Self {
        Self { file, path: path.to_path_buf(), length: 0 }
    }

    /// Appends one frame; `metadata` values are stored as JSON texts. No two tensors may have the same name.
    ///
    /// # Errors
    /// If the file cannot take it, a tensor's bytes do not fit its shape, or a name is one that the format uses itself
    /// (`kind`, `__metadata__`, `__pad__`): a reader would stop there, so nothing is written.
    pub fn frame(&mut self, kind: &str, metadata: &Map<String, Value>, tensors: &[TensorRef<'_>]) -> Result<()> {
        check(metadata, tensors)?;
        let length: usize = tensors.iter().map(|tensor| tensor.data.len()).sum();
        let pad = vec![0u8; length.wrapping_neg() % 8];
        let mut header = header_json(kind, metadata, tensors, pad.len());
        header.push_str(&" ".repeat(header.len().wrapping_neg() % 8));
        let mut body = Vec::with_capacity(8 + header.len());
        body.extend_from_slice(&(header.len() as u64).to_le_bytes());
        body.extend_from_slice(header.as_bytes());

        let mut hash = Xxh3Default::new();
        hash.update(&body);
        tensors.iter().for_each(|tensor| hash.update(tensor.data));
        hash.update(&pad);
        let payload = (body.len() + length + pad.len()) as u64;
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&0u32.to_le_bytes());
        head.extend_from_slice(&payload.to_le_bytes());
        head.extend_from_slice(&hash.digest().to_le_bytes());

        let mut parts: Vec<&[u8]> = vec![&head, &body];
        parts.extend(tensors.iter().map(|tensor| tensor.data));
        parts.push(&pad);
        self.write(&parts)
    }

    fn write(&mut self, parts: &[&[u8]]) -> Result<()> {
        match held_back(|| self.append(parts)) {
            Ok(()) => {
                self.length += parts.iter().map(|part| part.len() as u64).sum::<u64>();
                Ok(())
            }
            Err(error) => {
                // What was written of it goes, so that a reader finds whole frames, and one more may follow.
                let _ = self.file.set_len(self.length);
                let _ = self.file.seek(SeekFrom::Start(self.length));
                Err(Error::file(&self.path, "written")(error))
            }
        }
    }

    /// One vectored write where the kernel takes it all; the rest, if any, by plain writes.
    fn append(&mut self, parts: &[&[u8]]) -> std::io::Result<()> {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut written = loop {
            match self.file.write_vectored(&slices) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                done => break done?,
            }
        };
        for part in parts {
            let done = written.min(part.len());
            self.file.write_all(&part[done..])?;
            written -= done;
        }
        Ok(())
    }

    /// Flushes to the disk.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn sync(&self) -> Result<()> {
        match self.file.sync_all() {
            // A pipe or a device has nothing to flush.
            Err(error) if error.kind() != ErrorKind::InvalidInput => Err(Error::file(&self.path, "flushed")(error)),
            _ => Ok(()),
        }
    }
}

fn check(metadata: &Map<String, Value>, tensors: &[TensorRef<'_>]) -> Result<()> {
    if metadata.contains_key("kind") {
        return Err(Error::frame("metadata \"kind\": the format uses this name itself"));
    }
    for TensorRef { name, dtype, shape, data } in tensors {
        if [METADATA, PAD].contains(name) {
            return Err(Error::frame(format!("tensor {name:?}: the format uses this name itself")));
        }
        if byte_count(*dtype, shape) != Some(data.len()) {
            let (word, length) = (dtype.word(), data.len());
            return Err(Error::frame(format!("tensor {name:?}: {length} bytes are not {word} of shape {shape:?}")));
        }
    }
    Ok(())
}

fn byte_count(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |total, &n| total.checked_mul(n))
}

fn header_json(kind: &str, metadata: &Map<String, Value>, tensors: &[TensorRef<'_>], pad: usize) -> String {
    let mut words = Map::new();
    words.insert("kind".into(), Value::from(kind));
    for (name, value) in metadata {
        if !value.is_null() {
            words.insert(name.clone(), Value::from(value.to_string()));
        }
    }
    let mut header = format!("{{\"{METADATA}\":");
    header.push_str(&Value::Object(words).to_string());
    let mut offset = 0;
    let mut entry = |name: &str, word: &str, shape: &[usize], length: usize| {
        let row = serde_json::json!({"dtype": word, "shape": shape, "data_offsets": [offset, offset + length]});
        header.push_str(&format!(",{}:{row}", Value::from(name)));
        offset += length;
    };
    for tensor in tensors {
        entry(tensor.name, tensor.dtype.word(), tensor.shape, tensor.data.len());
    }
    if pad > 0 {
        entry(PAD, "U8", &[pad], pad);
    }
    header.push('}');
    header
}

/// A tensor read back.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Tensor {
    /// Number format.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Its bytes, C order, little-endian.
    pub data: Vec<u8>,
}

impl Tensor {
    /// A tensor of these bytes.
    pub fn new(dtype: Dtype, shape: Vec<usize>, data: Vec<u8>) -> Self {
        Self { dtype, shape, data }
    }
}

/// One sound frame.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Frame {
    /// What it is.
    pub kind: String,
    /// Metadata, decoded from JSON.
    pub metadata: Map<String, Value>,
    /// Tensors by name, in the order of the header.
    pub tensors: Vec<(String, Tensor)>,
}

impl Frame {
    /// A tensor by its name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|(own, _)| own == name).map(|(_, tensor)| tensor)
    }
}

/// The sound frames of a log, and why reading stopped if it stopped early.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Contents {
    /// Frames in order.
    pub frames: Vec<Frame>,
    /// Where and why the file is not sound, if it is not.
    pub damage: Option<String>,
}

/// Reads a log up to its first bad frame. Lengths are checked against the file before anything is allocated.
///
/// # Errors
/// If the file cannot be read at all.
pub fn read(path: &Path) -> Result<Contents> {
    let data = std::fs::read(path).map_err(Error::file(path, "read"))?;
    let mut contents = parse(&data);
    contents.damage = contents.damage.map(|why| format!("{}: {why}", path.display()));
    Ok(contents)
}

/// As [`read`], of a log in memory.
pub fn parse(data: &[u8]) -> Contents {
    let mut contents = Contents { frames: Vec::new(), damage: None };
    let mut offset = 0;
    while offset < data.len() {
        match parse_frame(&data[offset..]) {
            Ok((frame, length)) => {
                contents.frames.push(frame);
                offset += length;
            }
            Err(why) => {
                contents.damage = Some(format!("at byte {offset}: {why}"));
                break;
            }
        }
    }
    contents
}

type Parsed<T> = std::result::Result<T, String>;

fn parse_frame(data: &[u8]) -> Parsed<(Frame, usize)> {
    let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().expect("8 bytes"));
    if data.len() < HEAD {
        return Err("the file ends inside a frame".into());
    }
    if &data[..4] != MAGIC || data[4..8] != [0; 4] {
        return Err("no frame starts here".into());
    }
    let length = usize::try_from(word(8)).map_err(|_| "the length is absurd")?;
    if length > data.len() - HEAD {
        return Err("the file ends inside a frame".into());
    }
    if length % 8 != 0 || length < 16 {
        return Err("the length is not that of a frame".into());
    }
    let payload = &data[HEAD..HEAD + length];
    let hash = word(16);
    if hash != 0 && hash != xxh3_64(payload) {
        return Err("the frame does not match its hash".into());
    }
    Ok((parse_payload(payload)?, HEAD + length))
}

fn parse_payload(payload: &[u8]) -> Parsed<Frame> {
    let length = u64::from_le_bytes(payload[..8].try_into().expect("8 bytes"));
    let length = usize::try_from(length).map_err(|_| "the header is too long")?;
    if length > HEADER_LIMIT.min(payload.len() - 8) {
        return Err("the header is longer than the frame".into());
    }
    let (header, data) = payload[8..].split_at(length);
    let mut header: Map<String, Value> = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let words = header.remove(METADATA).ok_or("there is no metadata")?;
    let mut metadata = Map::new();
    let mut kind = String::new();
    for (name, text) in words.as_object().ok_or("the metadata is no object")? {
        let text = text.as_str().ok_or("a metadata value is no text")?;
        if name == "kind" {
            kind = text.to_string();
        } else {
            metadata.insert(name.clone(), serde_json::from_str(text).map_err(|error| error.to_string())?);
        }
    }
    header.remove(PAD);
    let mut tensors = Vec::with_capacity(header.len());
    let mut left = data.len();
    for (name, entry) in &header {
        let (dtype, shape, bytes) = parse_entry(entry, data).map_err(|why| format!("{name}: {why}"))?;
        // Tensors that share bytes would be copied many times over.
        left = left.checked_sub(bytes.len()).ok_or_else(|| format!("{name}: overlaps with other tensors"))?;
        tensors.push((name.clone(), Tensor { dtype, shape, data: bytes.to_vec() }));
    }
    Ok(Frame { kind, metadata, tensors })
}

fn parse_entry<'a>(entry: &Value, data: &'a [u8]) -> Parsed<(Dtype, Vec<usize>, &'a [u8])> {
    let word = entry["dtype"].as_str().ok_or("no dtype")?;
    let dtype = Dtype::from_word(word).ok_or_else(|| format!("unknown dtype {word}"))?;
    let counts = |key: &str| -> Parsed<Vec<usize>> {
        let list = entry[key].as_array().ok_or_else(|| format!("no {key}"))?;
        list.iter()
            .map(|number| number.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| format!("bad {key}")))
            .collect()
    };
    let shape = counts("shape")?;
    let offsets = counts("data_offsets")?;
    let &[begin, end] = offsets.as_slice() else { return Err("bad data_offsets".into()) };
    if begin > end || end > data.len() || byte_count(dtype, &shape) != Some(end - begin) {
        return Err("the shape does not fit the bytes".into());
    }
    Ok((dtype, shape, &data[begin..end]))
}

/// The fields of a JSON object, for a frame's metadata.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
