//! Which positions a query sees.

use candle_core::{Device, Result, Tensor};

/// The mask of a layer.
pub trait Mask {
    /// For the `rows` positions after the `cached` ones: 0 where a query sees a key, minus infinity where not, [rows,
    /// positions]; `None` where every row sees all.
    fn mask(&self, cached: usize, rows: usize) -> Result<Option<Tensor>>;
}

/// Each query sees itself and what comes before it, at most this many positions in all.
pub struct Window(pub Option<usize>);

impl Mask for Window {
    fn mask(&self, cached: usize, rows: usize) -> Result<Option<Tensor>> {
        match self.0.filter(|&window| window < cached + rows) {
            Some(window) => mask(cached, rows, |query, key| key <= query && query < key + window).map(Some),
            None if rows == 1 => Ok(None),
            None => mask(cached, rows, |query, key| key <= query).map(Some),
        }
    }
}

/// `sees(query, key)` as a mask, [rows, positions].
pub fn mask(cached: usize, rows: usize, sees: impl Fn(usize, usize) -> bool) -> Result<Tensor> {
    let positions = cached + rows;
    let value = |row: usize, at: usize| if sees(cached + row, at) { 0.0 } else { f32::NEG_INFINITY };
    let values: Vec<f32> = (0..rows).flat_map(|row| (0..positions).map(move |at| value(row, at))).collect();
    Tensor::from_vec(values, (rows, positions), &Device::Cpu)
}
