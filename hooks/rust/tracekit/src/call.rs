//! The forward call in hand: which sites fired, whose tensors they gave, and the values that are not written yet.

use std::collections::{HashMap, HashSet};

use crate::log::{Dtype, TensorRef};
use crate::Result;

struct Value {
    name: String,
    dtype: Dtype,
    shape: [usize; 2],
    bytes: Vec<u8>,
}

/// One forward call of the model over `rows` positions.
#[derive(Default)]
pub(crate) struct Call {
    /// Position of its first row.
    pub(crate) first: usize,
    /// `None` until its first value is there, where the program did not say `forward`.
    pub(crate) rows: Option<usize>,
    /// The program said `forward`; else a site that fires again starts the next call.
    told: bool,
    values: Vec<Value>,
    fired: HashSet<String>,
    sources: HashMap<usize, String>,
}

impl Call {
    /// A call that the program announced.
    pub(crate) fn told(first: usize, rows: usize) -> Self {
        Self { first, rows: Some(rows), told: true, ..Self::default() }
    }

    /// The call after this one, in a program that announces none: positions add up.
    pub(crate) fn following(&self) -> Self {
        Self { first: self.end(), ..Self::default() }
    }

    /// Position behind its last row.
    pub(crate) fn end(&self) -> usize {
        self.first + self.rows.unwrap_or(0)
    }

    /// Whether `name` firing now means that another call has begun, in a program that does not say so.
    pub(crate) fn is_over_at(&self, name: &str) -> bool {
        !self.told && self.fired.contains(name)
    }

    /// Notes that a site gave its value; false where it did before in this call.
    pub(crate) fn fire(&mut self, name: &str) -> bool {
        self.fired.insert(name.to_string())
    }

    /// The site that recorded the tensor of this identity in this call.
    pub(crate) fn source(&self, identity: Option<usize>) -> Option<&str> {
        self.sources.get(&identity?).map(String::as_str)
    }

    /// The tensor of this identity is the value of `site`.
    pub(crate) fn set_source(&mut self, identity: Option<usize>, site: &str) {
        if let Some(identity) = identity {
            self.sources.insert(identity, site.to_string());
        }
    }

    /// Why a value of this shape is none of this call's, or `None`.
    pub(crate) fn unfit(&mut self, shape: &[usize]) -> Option<String> {
        let Some(&first) = shape.first() else { return Some("it has no rows".into()) };
        let rows = *self.rows.get_or_insert(first);
        (first != rows).then(|| format!("its shape {shape:?} does not have the {rows} rows of the call"))
    }

    /// Keeps a value of shape [rows, ...], which `unfit` let pass.
    pub(crate) fn keep(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        copy: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<()> {
        let shape = [shape[0], shape[1..].iter().product()];
        self.values.push(Value { name: name.to_string(), dtype, shape, bytes: copy()? });
        Ok(())
    }

    pub(crate) fn has_values(&self) -> bool {
        !self.values.is_empty()
    }

    /// What was kept since the last `forget_values`.
    pub(crate) fn tensors(&self) -> Vec<TensorRef<'_>> {
        self.values
            .iter()
            .map(|Value { name, dtype, shape, bytes }| TensorRef { name, dtype: *dtype, shape, data: bytes })
            .collect()
    }

    pub(crate) fn forget_values(&mut self) {
        self.values.clear();
    }
}
