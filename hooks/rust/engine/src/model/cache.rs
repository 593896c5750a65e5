//! Keys and values of the positions so far.

use candle_core::{Result, Tensor};

/// Keeps keys and values, each [1, KV heads, positions, head_dim].
pub trait Cache {
    /// Appends those of a call; gives all.
    fn append(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)>;

    /// Forgets all positions.
    fn clear(&mut self);
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

    fn clear(&mut self) {
        self.0 = None;
    }
}
