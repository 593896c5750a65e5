//! A drop-in for `candle_transformers::quantized_var_builder`: the tensors of a GGUF file, by name.

use std::collections::HashMap;
use std::io::{Cursor, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::QTensor;
use candle_core::{Device, Result, Shape};

use crate::nn::load_quantised;

/// The tensors of a GGUF file behind a prefix.
#[derive(Clone)]
pub struct VarBuilder {
    data: Arc<HashMap<String, Arc<QTensor>>>,
    path: Vec<String>,
    device: Device,
}

impl VarBuilder {
    /// Reads a file onto a device.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn from_gguf<P: AsRef<Path>>(path: P, device: &Device) -> Result<Self> {
        Self::read(&mut std::fs::File::open(path)?, device)
    }

    /// As [`Self::from_gguf`], from the bytes of a file.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn from_gguf_buffer(buffer: &[u8], device: &Device) -> Result<Self> {
        Self::read(&mut Cursor::new(buffer), device)
    }

    fn read<R: Read + Seek>(reader: &mut R, device: &Device) -> Result<Self> {
        let content = Content::read(reader)?;
        let mut data = HashMap::new();
        for name in content.tensor_infos.keys() {
            data.insert(name.clone(), Arc::new(content.tensor(reader, name, device)?));
        }
        Ok(Self { data: Arc::new(data), path: Vec::new(), device: device.clone() })
    }

    /// The same tensors behind a longer prefix.
    pub fn pp<S: ToString>(&self, part: S) -> Self {
        let mut own = self.clone();
        own.path.push(part.to_string());
        own
    }

    /// The prefix.
    pub fn prefix(&self) -> String {
        self.path.join(".")
    }

    fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix())
        }
    }

    /// The tensor of this name behind the prefix.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn get<S: Into<Shape>>(&self, shape: S, name: &str) -> Result<Arc<QTensor>> {
        let (tensor, shape) = (self.get_no_shape(name)?, shape.into());
        if tensor.shape() != &shape {
            candle_core::bail!("shape mismatch for {name}, got {:?}, expected {shape:?}", tensor.shape());
        }
        Ok(tensor)
    }

    /// As [`Self::get`], of any shape.
    ///
    /// # Errors
    /// If it is missing.
    pub fn get_no_shape(&self, name: &str) -> Result<Arc<QTensor>> {
        let path = self.path(name);
        let found =
            self.data.get(&path).ok_or_else(|| candle_core::Error::Msg(format!("cannot find tensor {path}")))?;
        load_quantised(found, &path);
        Ok(Arc::clone(found))
    }

    /// Where the tensors lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether there is a tensor of this full name.
    pub fn contains_key(&self, key: &str) -> bool {
        self.data.contains_key(key)
    }
}
