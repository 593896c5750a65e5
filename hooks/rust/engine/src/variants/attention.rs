//! Other ways to compute the attention core.

use candle_core::{DType, Device, Result, Tensor, D};

use crate::model::attention_core::{by_kv_head, masked, side_by_side, Attend};

/// Keys of one block.
const BLOCK: usize = 16;
/// Below every score, and finite: the difference of two of it is no NaN.
const LOWEST: f32 = -1e30;

/// The softmax in blocks of keys, with a running maximum, sum and weighted sum of values.
pub struct Blocks {
    pub scale: f64,
}

impl Attend for Blocks {
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let queries = by_kv_head(q, k)?;
        let (_, kv_heads, rows, head_dim) = queries.dims4()?;
        let mut top = Tensor::full(LOWEST, (1, kv_heads, rows, 1), &Device::Cpu)?;
        let mut sum = top.zeros_like()?;
        let mut out = Tensor::zeros((1, kv_heads, rows, head_dim), DType::F32, &Device::Cpu)?;
        let positions = k.dim(2)?;
        for start in (0..positions).step_by(BLOCK) {
            let width = BLOCK.min(positions - start);
            let part = |xs: &Tensor, dim: usize| xs.narrow(dim, start, width)?.contiguous();
            let products = queries.matmul(&part(k, 2)?.transpose(2, 3)?)?.to_dtype(DType::F32)?;
            let scores = masked((products * self.scale)?, mask.map(|mask| part(mask, 1)).transpose()?.as_ref())?;
            let higher = top.maximum(&scores.max_keepdim(D::Minus1)?)?;
            let shrink = (&top - &higher)?.exp()?;
            let weights = scores.broadcast_sub(&higher)?.exp()?;
            let values = weights.to_dtype(v.dtype())?.matmul(&part(v, 2)?)?;
            sum = ((sum * &shrink)? + weights.sum_keepdim(D::Minus1)?)?;
            out = (out.broadcast_mul(&shrink)? + values.to_dtype(DType::F32)?)?;
            top = higher;
        }
        side_by_side(&out.broadcast_div(&sum)?.to_dtype(v.dtype())?, q)
    }
}

/// Queries are scaled before the products, instead of the products; `inner` scales by 1.
pub struct ScaledQueries {
    pub inner: Box<dyn Attend>,
    pub scale: f64,
}

impl Attend for ScaledQueries {
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        self.inner.attend(&(q * self.scale)?, k, v, mask)
    }
}

/// Each KV head once for every query head that reads it.
pub struct Repeated(pub Box<dyn Attend>);

impl Attend for Repeated {
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (heads, group) = (q.dim(1)?, q.dim(1)? / k.dim(1)?);
        let order: Vec<u32> = (0..heads).map(|head| (head / group) as u32).collect();
        let order = Tensor::new(order, &Device::Cpu)?;
        self.0.attend(q, &k.index_select(&order, 1)?, &v.index_select(&order, 1)?, mask)
    }
}
