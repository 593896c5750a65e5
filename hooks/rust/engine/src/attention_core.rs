//! The attention core: softmax of scaled products, over the values; the cached keys and values are at hand.

use candle_core::{DType, Device, Result, Tensor, D};

use crate::faults::Faults;
use crate::variants::{Variant, Variants};

/// Keys of one block of the online softmax.
const BLOCK: usize = 16;
/// Below every score, and finite: the difference of two of it is no NaN.
const LOWEST: f32 = -1e30;

/// 0 where a query may look, minus infinity where not, [rows, positions].
pub fn mask(cached: usize, rows: usize, sees: impl Fn(usize, usize) -> bool) -> Result<Tensor> {
    let positions = cached + rows;
    let value = |row: usize, at: usize| if sees(cached + row, at) { 0.0 } else { f32::NEG_INFINITY };
    let values: Vec<f32> = (0..rows).flat_map(|row| (0..positions).map(move |at| value(row, at))).collect();
    Tensor::from_vec(values, (rows, positions), &Device::Cpu)
}

/// Each query sees itself and what is before it; none for a single row, which sees all.
pub fn causal_mask(cached: usize, rows: usize) -> Result<Option<Tensor>> {
    match rows {
        1 => Ok(None),
        _ => mask(cached, rows, |query, key| key <= query).map(Some),
    }
}

/// Each query sees itself and the `window - 1` before it; none where no more than these are there for any of them.
pub fn window_mask(cached: usize, rows: usize, window: usize) -> Result<Option<Tensor>> {
    match cached + rows <= window {
        true => causal_mask(cached, rows),
        false => mask(cached, rows, |query, key| key <= query && query < key + window).map(Some),
    }
}

/// The core of one layer.
pub struct Core<'a> {
    pub index: usize,
    pub scale: f64,
    pub faults: &'a Faults,
    pub variants: Variants,
}

impl Core<'_> {
    /// `q` [1, heads, rows, head_dim], `k` and `v` [1, KV heads, positions, head_dim]; gives [1, rows, heads * head_dim].
    ///
    /// The query heads of a KV head are rows of one matrix, so nothing is repeated.
    pub fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (_, heads, rows, head_dim) = q.dims4()?;
        let (k, v) = self.faults.kv_heads(self.index, heads, k, v)?;
        let (k, v) =
            if self.variants.has(Variant::KvRepeat) { (repeat(&k, heads)?, repeat(&v, heads)?) } else { (k, v) };
        let kv_heads = k.dim(1)?;
        let q = q.reshape((1, kv_heads, heads / kv_heads * rows, head_dim))?;
        let out = match self.variants.has(Variant::OnlineSoftmax) {
            true => self.by_blocks(&q, &k, &v, mask)?,
            false => self.weights(&self.scores(&q, &k, mask)?, v.dtype())?.matmul(&v)?,
        };
        let out = self.faults.heads(self.index, out.reshape((1, heads, rows, head_dim))?)?;
        out.transpose(1, 2)?.flatten_from(D::Minus2)
    }

    /// Scaled and masked products, [1, KV heads, group * rows, positions]. transformers takes scale, mask and softmax in
    /// float32 whatever the model's dtype.
    fn scores(&self, q: &Tensor, k: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let scores = match self.variants.has(Variant::ScaleQueries) {
            true => (q * self.scale)?.matmul(&k.transpose(2, 3)?)?.to_dtype(DType::F32)?,
            false => {
                let products = self.faults.products(self.index, q.matmul(&k.transpose(2, 3)?)?)?;
                (products.to_dtype(DType::F32)? * self.scale)?
            }
        };
        let scores = self.faults.scores(self.index, scores)?;
        let Some(mask) = mask else { return Ok(scores) };
        let (rows, positions) = mask.dims2()?;
        let (_, kv_heads, all_rows, _) = scores.dims4()?;
        let each = scores.reshape((kv_heads, all_rows / rows, rows, positions))?.broadcast_add(mask)?;
        each.reshape((1, kv_heads, all_rows, positions))
    }

    fn weights(&self, scores: &Tensor, dtype: DType) -> Result<Tensor> {
        let scores = scores.to_dtype(self.faults.softmax_dtype(self.index))?;
        candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(dtype)
    }

    /// The same with a running maximum, sum and weighted sum of values.
    fn by_blocks(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (_, kv_heads, rows, head_dim) = q.dims4()?;
        let mut top = Tensor::full(LOWEST, (1, kv_heads, rows, 1), &Device::Cpu)?;
        let mut sum = top.zeros_like()?;
        let mut out = Tensor::zeros((1, kv_heads, rows, head_dim), DType::F32, &Device::Cpu)?;
        let positions = k.dim(2)?;
        for start in (0..positions).step_by(BLOCK) {
            let width = BLOCK.min(positions - start);
            let part = mask.map(|mask| mask.narrow(1, start, width)?.contiguous()).transpose()?;
            let scores = self.scores(q, &k.narrow(2, start, width)?.contiguous()?, part.as_ref())?;
            let higher = top.maximum(&scores.max_keepdim(D::Minus1)?)?;
            let shrink = (&top - &higher)?.exp()?;
            let weights = scores.broadcast_sub(&higher)?.exp()?;
            let values = weights.to_dtype(v.dtype())?.matmul(&v.narrow(2, start, width)?.contiguous()?)?;
            sum = ((sum * &shrink)? + weights.sum_keepdim(D::Minus1)?)?;
            out = (out.broadcast_mul(&shrink)? + values.to_dtype(DType::F32)?)?;
            top = higher;
        }
        out.broadcast_div(&sum)?.to_dtype(v.dtype())
    }
}

/// Each KV head once for every query head that reads it, [1, heads, positions, head_dim].
fn repeat(kv: &Tensor, heads: usize) -> Result<Tensor> {
    let group = heads / kv.dim(1)?;
    let order: Vec<u32> = (0..heads).map(|head| (head / group) as u32).collect();
    kv.index_select(&Tensor::new(order, &Device::Cpu)?, 1)
}
