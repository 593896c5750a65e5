//! Self-attention with its cache.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use tracekit::nn::{linear_b, Linear};

use crate::attention_core::{window_mask, Core};
use crate::config::Config;
use crate::faults::Faults;
use crate::projections::Projections;
use crate::rotary::Rotary;
use crate::variants::{Variant, Variants};

pub struct Attention<'a> {
    name: String,
    qkv: Projections,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary: Rotary,
    window: Option<usize>,
    core: Core<'a>,
    cache: Option<(Tensor, Tensor)>,
}

impl<'a> Attention<'a> {
    pub fn load(config: &Config, index: usize, vb: VarBuilder, faults: &'a Faults, variants: Variants) -> Result<Self> {
        let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let project = |name: &str, inputs: usize, outputs: usize, bias: bool| {
            variants.linear(faults.linear(linear_b(inputs, outputs, bias, vb.pp(name))?)?)
        };
        let name = vb.prefix();
        let qkv = vec![
            project("q_proj", config.hidden_size, heads * head_dim, config.qkv_bias)?,
            project("k_proj", config.hidden_size, kv_heads * head_dim, config.qkv_bias)?,
            project("v_proj", config.hidden_size, kv_heads * head_dim, config.qkv_bias)?,
        ];
        let rotary = match variants.has(Variant::F64RopeTable) {
            true => Rotary::in_f64(&config.rope, head_dim),
            false => Rotary::new(&config.rope, head_dim),
        };
        Ok(Self {
            qkv: if variants.has(Variant::FusedQkvSite) {
                Projections::fused_as(&format!("{name}.qkv_proj"), qkv)?
            } else if variants.has(Variant::FusedQkv) {
                Projections::fused(qkv)?
            } else {
                Projections::apart(qkv)
            },
            name,
            o_proj: project("o_proj", heads * head_dim, config.hidden_size, config.output_bias)?,
            heads,
            kv_heads,
            head_dim,
            rotary: faults.rotary(index, &config.rope, head_dim, rotary)?,
            window: faults.window(index, &config.windows),
            core: Core {
                index,
                scale: faults.attention_scale(index, 1.0 / (head_dim as f64).sqrt()),
                faults,
                variants,
            },
            cache: None,
        })
    }

    /// Forgets all positions.
    pub fn clear(&mut self) {
        self.cache = None;
    }

    /// `mask` is that of a layer that sees all positions.
    pub fn forward(&mut self, xs: &Tensor, cached: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let (faults, index) = (self.core.faults, self.core.index);
        let (q, k, v) = self.project(xs)?;
        let (q, turned) = self.turn(&q, &k, cached)?;
        let (keys, values) = self.remember(turned, v)?;
        let keys = faults.attended_keys(index, keys, &k)?;
        let mask = match self.window {
            Some(window) => window_mask(cached, xs.dim(1)?, window)?,
            None => mask.cloned(),
        };
        let mask = faults.mask(index, cached, xs.dim(1)?, mask)?;
        let core = self.core.attend(&q, &keys, &values, mask.as_ref())?;
        let core = faults.input(self.o_proj.name(), core)?;
        let out = faults.site(&self.name, self.o_proj.forward(&core)?)?;
        tracekit::tap(&self.name, &out)?;
        Ok(out)
    }

    /// Queries, keys and values, each [1, heads, rows, head_dim].
    fn project(&self, xs: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let rows = xs.dim(1)?;
        let split = |projected: &Tensor, heads: usize| {
            projected.reshape((1, rows, heads, self.head_dim))?.transpose(1, 2)?.contiguous()
        };
        let flat = self.core.faults.qkv(self.core.index, self.qkv.forward(xs)?)?;
        Ok((split(&flat[0], self.heads)?, split(&flat[1], self.kv_heads)?, split(&flat[2], self.kv_heads)?))
    }

    /// Rotary embedding of queries and keys.
    fn turn(&self, q: &Tensor, k: &Tensor, cached: usize) -> Result<(Tensor, Tensor)> {
        let first = cached + self.core.variants.rope_shift();
        let (for_q, for_k) = self.core.faults.positions(self.core.index, first);
        let tables = |first: usize| self.rotary.tables(first, q.dim(2)?, q.dtype());
        let key_tables = tables(for_k)?;
        let query_tables = if for_q == for_k { key_tables.clone() } else { tables(for_q)? };
        Ok((self.rotary.turn(q, &query_tables)?, self.rotary.turn(k, &key_tables)?))
    }

    /// Appends to the cache; gives all keys and values, [1, KV heads, positions, head_dim].
    fn remember(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let (k, v) = match &self.cache {
            None => (k, v),
            Some((old_k, old_v)) => (Tensor::cat(&[old_k, &k], 2)?, Tensor::cat(&[old_v, &v], 2)?),
        };
        let (k, v) = self.core.faults.cache(self.core.index, k, v)?;
        self.cache = Some((k.clone(), v.clone()));
        Ok((k, v))
    }
}
