//! Drop-ins for the whole of candle_nn: change the `use` line of a candle model, and it records itself.
//!
//! Each takes its site name from `vb.prefix()`, records its output, and its input unless that very tensor
//! (`Tensor::id()`) was recorded already: then the site table says where it came from.
//!
//! ```no_run
//! use candle_core::{Result, Tensor};
//! use tracekit::nn::{self as candle_nn, linear_no_bias, Linear, Module, VarBuilder}; // was: use candle_nn::{...};
//!
//! struct Mlp { up: Linear, down: Linear, norm: candle_nn::RmsNorm }
//!
//! impl Mlp {
//!     fn new(vb: VarBuilder) -> Result<Self> {
//!         Ok(Self {
//!             up: linear_no_bias(64, 256, vb.pp("up_proj"))?,
//!             down: linear_no_bias(256, 64, vb.pp("down_proj"))?,
//!             norm: candle_nn::rms_norm(64, 1e-5, vb.pp("norm"))?,
//!         })
//!     }
//!     fn forward(&self, xs: &Tensor) -> Result<Tensor> {
//!         self.down.forward(&candle_nn::ops::silu(&self.up.forward(&self.norm.forward(xs)?)?)?)
//!     }
//! }
//! ```
//!
//! Everything of candle_nn that has no parameters is candle's own, re-exported, so that `use tracekit::nn as candle_nn;`
//! serves paths such as `candle_nn::ops::softmax_last_dim` as well. Models that import candle-transformers' `with_tracing`,
//! `quantized_nn` or `quantized_var_builder`, or `candle_core::quantized`, find them in [`crate::with_tracing`],
//! [`crate::quantized_nn`], [`crate::quantized_var_builder`] and [`crate::quantized`].
//!
//! **Names of modules that are made from tensors** (`Linear::new(weight, None)`). A head that shares the table of an
//! embedding is `lm_head`, with the embedding's parameter. A weight that was got from a [`watched`] builder names its
//! module; one that is a parameter of a larger module has its own name (`self_attn.in_proj_weight`). Any other module gets
//! a generated name, `unnamed.linear.0`, and its row of the site table says `"unnamed": true`.
//!
//! **Rows.** A site holds one row a position, [rows, width]. Per-head values, [heads * time, width] or [1, heads, time,
//! width], are stored side by side, [time, heads * width], as the projection that they came from; a head that is given the
//! last positions only is stored at those. Both are told by comparing elements with earlier sites of the same forward
//! call, never by shape alone: what is found nowhere is not stored, and the site table says why.

pub mod activation;
pub mod batch_norm;
pub mod conv;
pub mod embedding;
pub mod group_norm;
pub mod layer_norm;
pub mod linear;
pub mod moe;
mod names;
pub mod ops;
mod place;
pub mod rnn;
mod taps;
mod watch;

pub use candle_nn::*;

pub use self::activation::{prelu, PReLU};
pub use self::batch_norm::{batch_norm, BatchNorm};
pub use self::conv::{
    conv1d, conv1d_no_bias, conv2d, conv2d_no_bias, conv_transpose1d, conv_transpose1d_no_bias, conv_transpose2d,
    conv_transpose2d_no_bias, Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d,
};
pub use self::embedding::{embedding, Embedding};
pub use self::group_norm::{group_norm, GroupNorm};
pub use self::layer_norm::{layer_norm, layer_norm_no_bias, rms_norm, LayerNorm, RmsNorm};
pub use self::linear::{linear, linear_b, linear_no_bias, Linear};
pub use self::rnn::{gru, lstm, GRU, LSTM};
pub use self::taps::{part_of, register, tap};
pub use self::watch::watched;

pub(crate) use self::names::load_quantised;
pub(crate) use self::taps::{generated, recorded, recorded_as, register_names, register_quantised, Places};
