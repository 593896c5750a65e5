//! Drop-in for `candle_nn::moe`, whose kernels run on CUDA alone.

use candle_core::{Result, Tensor};

use super::names::of_function;
use super::taps::{recorded_as, Places};

pub use candle_nn::moe::*;

/// `candle_nn::moe::moe_gemm` that records its input, and its output where it has one row a position. Its site is called
/// after its weights; those that no [`watched`](super::watched) builder gave have a generated name. `moe_gemm_gguf` is
/// candle's own: nothing tells its weights apart.
///
/// # Errors
/// As candle's, without CUDA always.
pub fn moe_gemm(
    input: &Tensor,
    weights: &Tensor,
    topk_weights: &Option<Tensor>,
    sorted_token_ids: &Tensor,
    experts_ids: &Tensor,
    topk: usize,
    is_prefill: bool,
) -> Result<Tensor> {
    recorded_as(&of_function("moe_gemm", weights), input, Places::Any, |input| {
        candle_nn::moe::moe_gemm(input, weights, topk_weights, sorted_token_ids, experts_ids, topk, is_prefill)
    })
}
