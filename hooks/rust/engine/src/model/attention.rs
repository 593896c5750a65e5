//! Self-attention with its cache.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::nn::{linear_b, Linear};

use super::attention_core::{Attend, Core};
use super::cache::{Cache, KvCache};
use super::mask::{Mask, Window};
use super::projections::{Apart, Project};
use super::rotary::{Rotary, Rotate};
use crate::config::Config;

pub struct Attention {
    pub name: String,
    /// Queries, keys and values.
    pub qkv: Box<dyn Project>,
    pub rotary: Box<dyn Rotate>,
    pub cache: Box<dyn Cache>,
    pub mask: Box<dyn Mask>,
    pub core: Box<dyn Attend>,
    pub o_proj: Linear,
    head_dim: usize,
}

impl Attention {
    pub fn load(config: &Config, index: usize, vb: &VarBuilder) -> Result<Self> {
        let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let project =
            |name: &str, heads: usize| linear_b(config.hidden_size, heads * head_dim, config.qkv_bias, vb.pp(name));
        let qkv = vec![project("q_proj", heads)?, project("k_proj", kv_heads)?, project("v_proj", kv_heads)?];
        Ok(Self {
            name: vb.prefix(),
            qkv: Box::new(Apart(qkv)),
            rotary: Box::new(Rotary::new(&config.rope, head_dim)),
            cache: Box::new(KvCache::default()),
            mask: Box::new(Window(config.windows[index])),
            core: Box::new(Core { scale: config.attention_scale() }),
            o_proj: linear_b(heads * head_dim, config.hidden_size, config.output_bias, vb.pp("o_proj"))?,
            head_dim,
        })
    }

    /// `xs` [1, rows, width] are the positions after the `cached` ones.
    pub fn forward(&mut self, xs: &Tensor, cached: usize) -> Result<Tensor> {
        let heads = self.heads(xs, cached)?;
        let out = self.o_proj.forward(&heads)?;
        tracekit::tap(&self.name, &out)?;
        Ok(out)
    }

    /// The heads' outputs side by side, [1, rows, heads * head_dim].
    pub fn heads(&mut self, xs: &Tensor, cached: usize) -> Result<Tensor> {
        let projected = self.qkv.forward(xs)?;
        let [q, k, v] = [0, 1, 2].map(|part| self.by_head(&projected[part]));
        let (q, k) = self.rotary.rotate(&q?, &k?, cached)?;
        let (k, v) = self.cache.append(k, v?)?;
        let mask = self.mask.mask(cached, xs.dim(1)?)?;
        self.core.attend(&q, &k, &v, mask.as_ref())
    }

    /// [1, rows, heads * head_dim] as [1, heads, rows, head_dim].
    fn by_head(&self, xs: &Tensor) -> Result<Tensor> {
        let (_, rows, width) = xs.dims3()?;
        xs.reshape((1, rows, width / self.head_dim, self.head_dim))?.transpose(1, 2)?.contiguous()
    }
}
