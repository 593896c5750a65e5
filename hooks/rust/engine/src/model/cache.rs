//! Keys and values of the positions so far.

use candle_core::{Result, Tensor};

/// Keeps keys and values, each [1, KV heads, positions, head_dim].
pub trait Cache {
    /// Appends those of a call; gives all.
    fn append(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)>;

    /// Forgets all positions but the first `rows`.
    fn keep(&mut self, rows: usize) -> Result<()>;
}

/// Grows with each call.
#[derive(Default)]
pub struct KvCache(pub Option<(Tensor, Tensor)>);

impl Cache for KvCache {
    fn append(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let all = match &self.0 {
            None => (k, v),
            Some((old_k, old_v)) => (Tensor::cat(&[old_k, &k], 2)?, Tensor::cat(&[old_v, &v], 2)?),
        };
        self.0 = Some(all.clone());
        Ok(all)
    }

    fn keep(&mut self, rows: usize) -> Result<()> {
        self.0 = match self.0.take() {
            Some((k, v)) if rows > 0 => Some((k.narrow(2, 0, rows)?, v.narrow(2, 0, rows)?)),
            _ => None,
        };
        Ok(())
    }
}
