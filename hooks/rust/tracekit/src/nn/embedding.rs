//! Drop-ins for `candle_nn::embedding`.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::taps::{recorded_lookup, register_module, register_tensors};

/// `candle_nn::Embedding` that records its output.
#[derive(Clone, Debug)]
pub struct Embedding {
    name: String,
    inner: candle_nn::Embedding,
}

impl Embedding {
    /// An embedding from a table at hand; [how it is named](super).
    pub fn new(embeddings: Tensor, hidden_size: usize) -> Self {
        let name = register_tensors("Embedding", &[("weight", Some(&embeddings))], vec![]);
        Self { name, inner: candle_nn::Embedding::new(embeddings, hidden_size) }
    }

    /// An embedding from a table at hand, under a site name.
    ///
    /// # Errors
    /// If the table is not [vocabulary, width].
    pub fn named(name: &str, table: Tensor) -> Result<Self> {
        let width = table.dim(1)?;
        Ok(Self { name: name.to_string(), inner: candle_nn::Embedding::new(table, width) })
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The table, [vocabulary, width].
    pub fn embeddings(&self) -> &Tensor {
        self.inner.embeddings()
    }

    /// Width of a row of the table.
    pub fn hidden_size(&self) -> usize {
        self.inner.hidden_size()
    }
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        recorded_lookup(&self.name, ids, |ids| self.inner.forward(ids))
    }
}

/// An embedding table loaded from `vb`.
///
/// # Errors
/// If the tensor is missing or has another shape.
pub fn embedding(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Embedding> {
    let name = vb.prefix();
    let inner = candle_nn::embedding(in_size, out_size, vb)?;
    register_module(&name, "Embedding", &[("weight", Some(inner.embeddings()))], vec![])?;
    Ok(Embedding { name, inner })
}
