//! Variants for tests: mathematically equal rewrites, as other engines have them. A diff must call them harmless.
//!
//! They exchange parts of a model after it is loaded, as `faults/` does; the model does not know of them.

mod attention;
mod fused;

use candle_core::{DType, Result, Tensor};
use clap::ValueEnum;
use tracekit::nn::Linear;

use self::attention::{Blocks, Repeated, ScaledQueries};
use self::fused::Fused;
use crate::config::Config;
use crate::model::attention_core::{Attend, Core};
use crate::model::decoder::Layer;
use crate::model::norm::{Norm, Order};
use crate::model::projections::Project;
use crate::model::rotary::{Rotary, Rotate};
use crate::model::Model;

/// One rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// Query, key and value projections are one matmul; their parts are recorded as the three sites
    FusedQkv,
    /// The same, recorded as the one site self_attn.qkv_proj
    FusedQkvSite,
    /// Gate and up projections are one matmul; their parts are recorded as the two sites
    FusedGateUp,
    /// The same, recorded as the one site mlp.gate_up_proj
    FusedGateUpSite,
    /// Attention in blocks of keys, with a running maximum and sum
    OnlineSoftmax,
    /// Keys and values repeated for each query head, instead of grouped query heads
    KvRepeat,
    /// Queries are scaled before the products with the keys, instead of the products
    ScaleQueries,
    /// Every position moved by 3: rotary attention sees distances alone
    RopeShift,
    /// Rotary frequencies, angles, sines and cosines in float64
    F64RopeTable,
    /// Norms as x * (w * rsqrt(mean square)), the root as a power
    NormOrder,
    /// Linear weights stored transposed, [in, out]
    MatmulTransposed,
    /// A 16-bit model's logits head in float32, then rounded
    UpcastHead,
}

/// The rewrites of this run; usually none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variants(u32);

impl Variants {
    pub fn new(list: &[Variant]) -> Self {
        Self(list.iter().fold(0, |bits, &variant| bits | 1 << variant as u32))
    }

    fn has(self, variant: Variant) -> bool {
        self.0 & 1 << variant as u32 != 0
    }

    /// Exchanges what is computed between the matmuls.
    pub fn rewrite(self, model: &mut Model, config: &Config) {
        self.rewrite_norm(&mut model.decoder.norm);
        for block in &mut model.decoder.layers {
            let Layer { input_layernorm, self_attn, post_attention_layernorm, .. } = block.layer();
            self.rewrite_norm(input_layernorm);
            self.rewrite_norm(post_attention_layernorm);
            self_attn.core = self.core(config.attention_scale());
            self_attn.rotary = self.rotary(config);
        }
    }

    /// Stores weights in another form; after all else that reads or changes them.
    pub fn store(self, model: &mut Model) -> Result<()> {
        for block in &mut model.decoder.layers {
            let Layer { self_attn, mlp, .. } = block.layer();
            let (qkv, gate_up) = (self_attn.qkv.layers(), mlp.gate_up.layers());
            let projections = qkv.iter_mut().chain(gate_up);
            for layer in projections.chain([&mut self_attn.o_proj, &mut mlp.down_proj]) {
                self.transpose(layer)?;
            }
            self.fuse((Variant::FusedQkv, Variant::FusedQkvSite), &mut self_attn.qkv, &self_attn.name, "qkv_proj")?;
            self.fuse((Variant::FusedGateUp, Variant::FusedGateUpSite), &mut mlp.gate_up, &mlp.name, "gate_up_proj")?;
        }
        self.transpose(&mut model.lm_head)?;
        if self.has(Variant::UpcastHead) {
            let head = &model.lm_head;
            model.lm_head = Linear::named(head.name(), head.weight().to_dtype(DType::F32)?, None);
        }
        Ok(())
    }

    fn rewrite_norm(self, norm: &mut Norm) {
        if self.has(Variant::NormOrder) {
            norm.order = Order::ScaleFirst;
        }
    }

    fn core(self, scale: f64) -> Box<dyn Attend> {
        let queries_are_scaled = self.has(Variant::ScaleQueries);
        let left = if queries_are_scaled { 1.0 } else { scale };
        let mut core: Box<dyn Attend> = match self.has(Variant::OnlineSoftmax) {
            true => Box::new(Blocks { scale: left }),
            false => Box::new(Core { scale: left }),
        };
        if queries_are_scaled {
            core = Box::new(ScaledQueries { inner: core, scale });
        }
        match self.has(Variant::KvRepeat) {
            true => Box::new(Repeated(core)),
            false => core,
        }
    }

    fn rotary(self, config: &Config) -> Box<dyn Rotate> {
        let rotary = match self.has(Variant::F64RopeTable) {
            true => Rotary::in_f64(&config.rope, config.head_dim),
            false => Rotary::new(&config.rope, config.head_dim),
        };
        match self.has(Variant::RopeShift) {
            true => Box::new(Shifted(rotary)),
            false => Box::new(rotary),
        }
    }

    fn transpose(self, layer: &mut Linear) -> Result<()> {
        if self.has(Variant::MatmulTransposed) {
            let stored: Tensor = layer.weight().t()?.contiguous()?;
            *layer = Linear::named(layer.name(), stored.t()?, layer.bias().cloned());
        }
        Ok(())
    }

    fn fuse(
        self,
        (in_parts, whole): (Variant, Variant),
        layers: &mut Box<dyn Project>,
        parent: &str,
        name: &str,
    ) -> Result<()> {
        if self.has(whole) {
            *layers = Box::new(Fused::as_one_site(layers.layers(), &format!("{parent}.{name}"))?);
        } else if self.has(in_parts) {
            *layers = Box::new(Fused::as_its_parts(layers.layers())?);
        }
        Ok(())
    }
}

/// Every position moved.
struct Shifted(Rotary);

impl Rotate for Shifted {
    fn rotate(&self, q: &Tensor, k: &Tensor, first: usize) -> Result<(Tensor, Tensor)> {
        self.0.rotate(q, k, first + 3)
    }
}
