//! Rotary embedding tables, as transformers computes them: frequencies and angles in float32.

use candle_core::{DType, Device, Result, Tensor};

use crate::config::{Rope, Scaling};

/// Inverse frequencies of one layer.
#[derive(Clone, Debug)]
pub struct Rotary {
    inverse: Vec<f32>,
    /// Angles' cosines and sines are rounded to this first.
    pub table_dtype: DType,
}

impl Rotary {
    /// transformers' `ROPE_INIT_FUNCTIONS`: default, linear and llama3.
    pub fn new(rope: &Rope, head_dim: usize) -> Self {
        let theta = rope.theta as f32;
        let plain = (0..head_dim).step_by(2).map(|i| 1.0 / theta.powf(i as f32 / head_dim as f32));
        let inverse = plain.map(|frequency| scaled(frequency, &rope.scaling)).collect();
        Self { inverse, table_dtype: DType::F32 }
    }

    /// Cosines and sines of positions `first..first + rows`, each [rows, head_dim / 2].
    pub fn tables(&self, first: usize, rows: usize, dtype: DType) -> Result<(Tensor, Tensor)> {
        let angles = (first..first + rows).flat_map(|at| self.inverse.iter().map(move |f| at as f32 * f));
        let angles: Vec<f32> = angles.collect();
        let angles = Tensor::from_vec(angles, (rows, self.inverse.len()), &Device::Cpu)?;
        let rounded = |table: Tensor| table.to_dtype(self.table_dtype)?.to_dtype(dtype);
        Ok((rounded(angles.cos()?)?, rounded(angles.sin()?)?))
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
