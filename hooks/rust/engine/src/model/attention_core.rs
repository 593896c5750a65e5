//! The attention core: softmax of scaled products, times the values.

use candle_core::{DType, Result, Tensor, D};

/// Attends the cached keys and values.
pub trait Attend {
    /// `q` [1, heads, rows, head_dim], `k` and `v` [1, KV heads, positions, head_dim]; gives [1, rows, heads * head_dim].
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor>;
}

/// Scale, mask and softmax in float32 whatever the model's dtype, as in transformers.
pub struct Core {
    pub scale: f64,
}

impl Attend for Core {
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let products = by_kv_head(q, k)?.matmul(&k.transpose(2, 3)?)?;
        let scores = masked((products.to_dtype(DType::F32)? * self.scale)?, mask)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        side_by_side(&weights.matmul(v)?, q)
    }
}

/// The query heads that read one KV head as rows of one matrix, [1, KV heads, group * rows, head_dim]: nothing is
/// repeated.
pub fn by_kv_head(q: &Tensor, k: &Tensor) -> Result<Tensor> {
    let (_, heads, rows, head_dim) = q.dims4()?;
    let kv_heads = k.dim(1)?;
    q.reshape((1, kv_heads, heads / kv_heads * rows, head_dim))
}

/// Adds `mask` [rows, positions] to `scores` [1, KV heads, group * rows, positions].
pub fn masked(scores: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let Some(mask) = mask else { return Ok(scores) };
    let (rows, positions) = mask.dims2()?;
    let (_, kv_heads, all_rows, _) = scores.dims4()?;
    let each = scores.reshape((kv_heads, all_rows / rows, rows, positions))?.broadcast_add(mask)?;
    each.reshape((1, kv_heads, all_rows, positions))
}

/// Outputs by KV head, [1, KV heads, group * rows, head_dim], as [1, rows, heads * head_dim]; heads and rows are those of `q`.
pub fn side_by_side(out: &Tensor, q: &Tensor) -> Result<Tensor> {
    out.reshape(q.shape())?.transpose(1, 2)?.flatten_from(D::Minus2)
}
