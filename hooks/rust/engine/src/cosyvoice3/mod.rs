//! `tracekit-native cosyvoice3`: CosyVoice3's speech-token language model, a segment for each text.

mod folder;
mod generate;
pub mod model;
mod options;
mod program;
mod prompt_speech;
pub mod sampler;
pub mod segments;

pub use program::main;
