//! Record what a language model computes, step by step, from Rust.
//!
//! Nothing happens, at the cost of one atomic load a call, unless the environment variable `TRACEKIT_LOG` names the log
//! to write; `tracekit record -o native.h5 -- ./program` sets it. The recorder belongs to the process, so that taps can
//! sit deep in a model without an argument being threaded through it.
//!
//! A candle model is instrumented by changing its `use` lines to the drop-ins of [`nn`] and [`generation`] (feature
//! `candle`). Every layer then records its input and output under its `VarBuilder` prefix, every sampled token its
//! logits, survivors and draws:
//!
//! ```text
//! use tracekit::generation::LogitsProcessor;          // was: use candle_transformers::generation::LogitsProcessor;
//! use tracekit::nn::{embedding, linear_no_bias, rms_norm};   // was: use candle_nn::{...};
//!
//! tracekit::sequence(&prompt_ids)?;                   // a generation starts
//! tracekit::forward(position, input.len())?;          // before each forward call of the model
//! tracekit::close()?;                                 // at the end of main
//! ```
//!
//! The three calls may be left out: then the first embedding's ids are the prompt, and a site that fires again begins
//! the next forward call. `examples/record_candle.rs` is a whole program, `examples/own_loop.rs` one with embeddings from several
//! tables, a sampler and a loop of its own:
//! `TRACEKIT_LOG=/tmp/x.tklog cargo run --example record_candle --features candle`.
//!
//! Any other engine calls [`tap_raw`], and its generation loop says three things: [`sequence`] where a generation
//! starts, [`forward`] before a forward call, [`next_token`] after a token was sampled.
//!
//! ```
//! use tracekit::{Dtype, Step};
//!
//! # let path = std::env::temp_dir().join(format!("tracekit-doc-{}.tklog", std::process::id()));
//! # std::env::set_var("TRACEKIT_LOG", &path);
//! tracekit::sequence(&[3, 1, 4])?;
//! tracekit::forward(0, 3)?;
//! let hidden = [0.5f32; 6]; // [3 positions, width 2]
//! let bytes: Vec<u8> = hidden.iter().flat_map(|x| x.to_le_bytes()).collect();
//! tracekit::tap_raw("model.embed", Dtype::F32, &[3, 2], &bytes)?;
//! let token = tracekit::next_token(Step::new(1).logits(&[0.1, 0.9]))?;
//! tracekit::end_sequence("length")?;
//! tracekit::close()?;
//! # let frames = tracekit::log::read(&path)?;
//! # assert_eq!(frames.frames.len(), 7);
//! # assert_eq!(token, 1);
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The program is never harmed
//!
//! Recording may break, the program may not: same tokens, same exit code. A full disk, a missing folder, a closed pipe, a
//! setting that means nothing, a panic in here: it is said in one line on stderr, the log holds the reason where it can,
//! and recording is off from then on.
//!
//! A log belongs to the process that made it, until that process ends. A child process that inherits `TRACEKIT_LOG` is
//! **not recorded**, and says so in one line; give it a log of its own by setting the variable for it. The log of an
//! earlier run is replaced; a file that is no log is left alone. After [`close`] nothing is recorded any more.
//!
//! Generations on several threads are kept apart, a [`sequence`] each; those that take turns on one thread are kept apart
//! by [`Generation`].
#![warn(missing_docs)]

mod call;
mod claim;
mod error;
pub mod follow;
#[cfg(feature = "candle")]
pub mod generation;
pub mod log;
mod mathfun;
#[cfg(feature = "candle")]
pub mod nn;
mod program;
#[cfg(feature = "candle")]
pub mod quantized;
#[cfg(feature = "candle")]
pub mod quantized_nn;
#[cfg(feature = "candle")]
pub mod quantized_var_builder;
mod recorder;
mod recording;
pub mod repetition_aware;
pub mod rng;
pub mod sampling;
mod scope;
mod sequence;
mod settings;
mod signals;
mod sites;
mod steps;
#[cfg(feature = "candle")]
pub mod with_tracing;

/// The candle that this crate is built with: a program of another version does not compile with its types.
#[cfg(feature = "candle")]
pub use candle_core;
#[cfg(feature = "candle")]
pub use candle_nn;

pub use error::{Error, Result};
pub use log::Dtype;
pub use program::Description;
pub use recorder::{
    close, describe, enabled, encoder, end_sequence, forward, logits_site, next_token, register_site, register_weight,
    sequence, sequence_with, step, tap_raw,
};
pub use recording::SequenceStart;
pub use scope::{Entered, Generation};
pub use sites::SiteRow;
pub use steps::Step;

#[cfg(feature = "candle")]
pub use nn::tap;
