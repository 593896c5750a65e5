//! Rotary embedding, as transformers computes it: frequencies and angles in float32.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rotary_emb;

use crate::rope::{Rope, Scaling};

/// Rotates queries and keys.
pub trait Rotate {
    /// `q` and `k`, each [1, heads, rows, head_dim], at positions from `first` on.
    fn rotate(&self, q: &Tensor, k: &Tensor, first: usize) -> Result<(Tensor, Tensor)>;
}

/// Which numbers of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pairs {
    /// Number i with number i + width / 2.
    Halves,
    /// Number 2 i with number 2 i + 1.
    Neighbours,
}

/// How one layer rotates its queries and keys.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Inverse frequencies, one a pair.
    inverse: Vec<f64>,
    pub pairs: Pairs,
    /// Inverse frequencies are rounded to this first.
    pub frequency_dtype: DType,
    /// Angles, and then their cosines and sines, are computed in this dtype; float32 or float64.
    pub dtype: DType,
    /// Angles are rounded to this first.
    pub angle_dtype: DType,
    /// Cosines and sines are rounded to this first.
    pub table_dtype: DType,
}

impl Rotary {
    /// transformers' `ROPE_INIT_FUNCTIONS`: default, linear and llama3. The first `width` numbers of a head are rotated.
    pub fn new(rope: &Rope, width: usize) -> Self {
        let theta = rope.theta as f32;
        let plain = (0..width).step_by(2).map(|i| 1.0 / theta.powf(i as f32 / width as f32));
        let inverse = plain.map(|frequency| f64::from(scaled(frequency, &rope.scaling))).collect();
        Self {
            inverse,
            pairs: Pairs::Halves,
            frequency_dtype: DType::F64,
            dtype: DType::F32,
            angle_dtype: DType::F32,
            table_dtype: DType::F32,
        }
    }

    /// The same in float64 throughout.
    pub fn in_f64(rope: &Rope, width: usize) -> Self {
        let single = Self::new(rope, width);
        let inverse = (0..width).step_by(2).zip(&single.inverse).map(|(i, &rounded)| {
            let exact = rope.theta.powf(-(i as f64) / width as f64);
            let plain = 1.0 / (rope.theta as f32).powf(i as f32 / width as f32);
            exact * (rounded / f64::from(plain))
        });
        Self { inverse: inverse.collect(), dtype: DType::F64, angle_dtype: DType::F64, ..single }
    }

    /// Cosines and sines of positions `first..first + rows`, each [rows, pairs].
    fn tables(&self, first: usize, rows: usize, dtype: DType) -> Result<(Tensor, Tensor)> {
        let positions = Tensor::arange(first as u32, (first + rows) as u32, &Device::Cpu)?.to_dtype(self.dtype)?;
        let inverse = Tensor::new(&self.inverse[..], &Device::Cpu)?.to_dtype(self.frequency_dtype)?;
        let inverse = inverse.to_dtype(self.dtype)?;
        let angles = positions.unsqueeze(1)?.broadcast_mul(&inverse.unsqueeze(0)?)?;
        let angles = angles.to_dtype(self.angle_dtype)?.to_dtype(self.dtype)?;
        let rounded = |table: Tensor| table.to_dtype(self.table_dtype)?.to_dtype(dtype);
        Ok((rounded(angles.cos()?)?, rounded(angles.sin()?)?))
    }

    /// `xs` [1, heads, rows, head_dim] by the tables; what is wider than they are is left as it is.
    fn rotated(&self, xs: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
        let (width, head_dim) = (2 * self.inverse.len(), xs.dim(3)?);
        if width < head_dim {
            let rotated = self.pairs_of(&xs.narrow(3, 0, width)?.contiguous()?, cos, sin)?;
            return Tensor::cat(&[&rotated, &xs.narrow(3, width, head_dim - width)?], 3);
        }
        self.pairs_of(xs, cos, sin)
    }

    fn pairs_of(&self, xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        match self.pairs {
            Pairs::Halves => rotary_emb::rope(xs, cos, sin),
            Pairs::Neighbours => rotary_emb::rope_i(xs, cos, sin),
        }
    }
}

impl Rotate for Rotary {
    fn rotate(&self, q: &Tensor, k: &Tensor, first: usize) -> Result<(Tensor, Tensor)> {
        let tables = self.tables(first, q.dim(2)?, q.dtype())?;
        Ok((self.rotated(q, &tables)?, self.rotated(k, &tables)?))
    }
}

fn scaled(frequency: f32, scaling: &Scaling) -> f32 {
    match *scaling {
        Scaling::None => frequency,
        Scaling::Linear { factor } => frequency / factor as f32,
        Scaling::Llama3 { factor, low, high, original } => {
            let wavelength = 2.0 * std::f32::consts::PI / frequency;
            let (factor, low, high, original) = (factor as f32, low as f32, high as f32, original as f32);
            if wavelength > original / low {
                frequency / factor
            } else if wavelength < original / high {
                frequency
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * (frequency / factor) + smooth * frequency
            }
        }
    }
}
