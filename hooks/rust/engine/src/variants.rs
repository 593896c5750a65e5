//! Variants for tests: mathematically equal rewrites, as other engines have them. A diff must call them harmless.

use candle_core::{Result, Tensor};
use clap::ValueEnum;
use tracekit::nn::Linear;

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

    pub fn has(self, variant: Variant) -> bool {
        self.0 & 1 << variant as u32 != 0
    }

    /// Seam: a linear layer as it is built.
    pub fn linear(self, layer: Linear) -> Result<Linear> {
        if !self.has(Variant::MatmulTransposed) {
            return Ok(layer);
        }
        let stored: Tensor = layer.weight().t()?.contiguous()?;
        Ok(Linear::named(layer.name(), stored.t()?, layer.bias().cloned()))
    }

    /// Positions that every token is moved by.
    pub fn rope_shift(self) -> usize {
        match self.has(Variant::RopeShift) {
            true => 3,
            false => 0,
        }
    }
}
