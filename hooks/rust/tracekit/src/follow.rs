//! Following another trace: its tokens are forced on this run, so that every step stays comparable.
//!
//! `tracekit record --follow ref.h5 -- program` hands the reference over as a log named by `TRACEKIT_FOLLOW`. Two more
//! options say what else is forced:
//!
//! - `--follow-draws` (`TRACEKIT_FOLLOW_DRAWS=1`): each step draws the random numbers that the reference drew, whatever
//!   was drawn before it. What this run would have drawn from its own probabilities is recorded, the reference's
//!   token is taken.
//! - `--follow-inputs` (`TRACEKIT_FOLLOW_INPUTS=1`): the prompt's token ids, and whatever else the reference was prompted
//!   with, are taken from the reference.
//!
//! [`crate::generation::LogitsProcessor`] follows by itself. A loop of its own:
//!
//! ```
//! use tracekit::follow::Follow;
//! use tracekit::rng::TorchRng;
//! use tracekit::sampling::{choose, Sampling};
//! use tracekit::Step;
//!
//! # fn generate(own_prompt: Vec<u32>, model: impl Fn(&[u32]) -> Vec<f32>) -> tracekit::Result<Vec<u32>> {
//! let follow = Follow::from_env()?;
//! let prompt = match &follow {
//!     Some(follow) if follow.forces_inputs() => follow.prompt_ids(0).unwrap_or_default().to_vec(),
//!     _ => own_prompt,
//! };
//! tracekit::sequence(&prompt)?;
//! let settings = Sampling::greedy().temperature(1.0);
//! let (mut rng, mut history) = (TorchRng::seed(0), prompt);
//! for step in 0..4 {
//!     let logits = model(&history);
//!     // before a token is chosen: the generator stands where the reference's stood
//!     if let Some(follow) = &follow {
//!         follow.place(0, step, &mut rng)?;
//!     }
//!     let choice = choose(&settings, &mut rng, &logits, &history);
//!     // the own choice is recorded, and the reference's token goes on
//!     history.push(tracekit::next_token(Step::from(&choice).logits(&logits))?);
//! }
//! # Ok(history)
//! # }
//! # assert_eq!(generate(vec![3], |_| vec![0.1, 0.9])?.len(), 5);
//! # Ok::<(), tracekit::Error>(())
//! ```
//!
//! There is no other way to the reference's token than [`crate::next_token`], so a run that follows always says what it
//! would have chosen by itself: in an event `forced`, where that is another token. A program that only says
//! [`crate::step`] goes on with its own tokens; its log says that it was to follow, and that it did not.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

use crate::log::{read, Dtype, Frame, Tensor};
use crate::rng::TorchRng;
use crate::{Error, Result};

/// An offset of more words than this is not walked to: minutes, and no generation draws so many.
const REACH: u64 = 1 << 36;

/// One use of a random generator, as the followed trace holds it; `None` where it does not know.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FollowedDraw {
    /// `multinomial`, `uniform_`.
    pub op: String,
    /// `mt19937`, `philox`.
    pub generator: String,
    /// What the generator was seeded with.
    pub seed: Option<u64>,
    /// 32-bit words used before this draw.
    pub offset: Option<u64>,
    /// Words used by it.
    pub words: Option<u64>,
    /// The number, where a single one was drawn.
    pub value: Option<f64>,
}

#[derive(Clone, Debug, Default)]
struct FollowedStep {
    token: Option<u32>,
    text: Option<String>,
    draws: Vec<FollowedDraw>,
}

#[derive(Clone, Debug, Default)]
struct FollowedSequence {
    prompt: Vec<u32>,
    /// `prompt/...` by name without the prefix.
    inputs: Vec<(String, Tensor)>,
    steps: Vec<FollowedStep>,
}

/// Prompts, tokens and draws of the trace that is followed.
#[derive(Clone, Debug, Default)]
pub struct Follow {
    sequences: Vec<FollowedSequence>,
    draws: bool,
    inputs: bool,
}

impl Follow {
    /// The trace named by `TRACEKIT_FOLLOW`, if it is set, with what else the environment says is forced.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn from_env() -> Result<Option<Self>> {
        let Some(path) = std::env::var_os("TRACEKIT_FOLLOW").filter(|path| !path.is_empty()) else { return Ok(None) };
        let mut follow = Self::open(Path::new(&path))?;
        follow.draws = switch("TRACEKIT_FOLLOW_DRAWS")?;
        follow.inputs = switch("TRACEKIT_FOLLOW_INPUTS")?;
        Ok(Some(follow))
    }

    /// As [`Self::from_env`], read once in this process.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of_process() -> Result<Option<&'static Self>> {
        static OF_PROCESS: OnceLock<Result<Option<Follow>>> = OnceLock::new();
        let read = OF_PROCESS.get_or_init(Self::from_env);
        read.as_ref().map(Option::as_ref).map_err(|source| Error::Followed { source })
    }

    /// Reads a log; only tokens are forced.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let contents = read(path)?;
        let fail = |detail: String| Error::Trace { path: path.to_path_buf(), detail };
        if contents.frames.is_empty() {
            return Err(fail("is no log to follow".into()));
        }
        let mut follow = Self::default();
        for frame in &contents.frames {
            follow.take(frame).map_err(fail)?;
        }
        Ok(follow)
    }

    /// Or what is wrong with the frame.
    fn take(&mut self, frame: &Frame) -> std::result::Result<(), String> {
        match frame.kind.as_str() {
            "sequence" => self.sequences.push(FollowedSequence {
                prompt: ids(frame, "prompt/token_ids")?,
                inputs: inputs(frame),
                steps: Vec::new(),
            }),
            "step" => {
                let index = frame.metadata.get("sequence").and_then(Value::as_u64).unwrap_or(0) as usize;
                if let Some(sequence) = self.sequences.get_mut(index) {
                    let token = ids(frame, "token")?.first().copied();
                    let text = frame.metadata.get("text").and_then(Value::as_str).map(str::to_string);
                    sequence.steps.push(FollowedStep { token, text, draws: draws(frame) });
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Forces draws or inputs besides the tokens, whatever the environment says.
    #[must_use]
    pub fn forcing(mut self, draws: bool, inputs: bool) -> Self {
        self.draws = draws;
        self.inputs = inputs;
        self
    }

    /// Whether the followed trace's draws are forced.
    pub fn forces_draws(&self) -> bool {
        self.draws
    }

    /// Whether the followed trace's prompt is forced.
    pub fn forces_inputs(&self) -> bool {
        self.inputs
    }

    /// How many steps a sequence of the followed trace has.
    pub fn steps(&self, sequence: usize) -> usize {
        self.sequences.get(sequence).map_or(0, |followed| followed.steps.len())
    }

    /// The token to force and its text, or `None` where the followed trace has ended.
    pub(crate) fn forced(&self, sequence: usize, step: usize) -> Option<(u32, Option<&str>)> {
        let step = self.sequences.get(sequence)?.steps.get(step)?;
        Some((step.token?, step.text.as_deref()))
    }

    /// The prompt of a sequence.
    pub fn prompt_ids(&self, sequence: usize) -> Option<&[u32]> {
        self.sequences.get(sequence).map(|followed| followed.prompt.as_slice())
    }

    /// What else a sequence was prompted with, by its name after `prompt/`: `speech_token_ids`.
    pub fn input(&self, sequence: usize, name: &str) -> Option<&Tensor> {
        let inputs = &self.sequences.get(sequence)?.inputs;
        inputs.iter().find(|(own, _)| own == name).map(|(_, tensor)| tensor)
    }

    /// Uses of the generator at a step; empty where there is no such step.
    pub fn draws(&self, sequence: usize, step: usize) -> &[FollowedDraw] {
        let step = self.sequences.get(sequence).and_then(|followed| followed.steps.get(step));
        step.map_or(&[], |step| &step.draws)
    }

    /// With draws forced, puts a generator where the reference's stood before this step's first draw. A step without
    /// draws leaves it alone.
    ///
    /// # Errors
    /// If the reference drew from another kind of generator, or it is not known where in its stream it stood.
    pub fn place(&self, sequence: usize, step: usize, rng: &mut TorchRng) -> Result<()> {
        let Some(draw) = self.draws(sequence, step).first().filter(|_| self.draws) else { return Ok(()) };
        let fail = |detail: String| Err(Error::Draw { sequence, step, detail });
        if draw.generator != "mt19937" {
            return fail(format!("comes from {}; record the reference with --rng cpu to follow it", draw.generator));
        }
        let (Some(seed), Some(offset)) = (draw.seed, draw.offset) else {
            return fail("lies at an unknown place of the generator's stream".into());
        };
        if offset > REACH {
            return fail(format!("lies {offset} words after the seed, which is out of reach"));
        }
        if rng.initial_seed() != seed || rng.offset() > offset {
            *rng = TorchRng::seed(seed);
        }
        rng.skip(offset - rng.offset());
        Ok(())
    }
}

fn switch(name: &'static str) -> Result<bool> {
    match std::env::var(name).unwrap_or_default().as_str() {
        "" | "0" => Ok(false),
        "1" => Ok(true),
        other => Err(Error::variable(name, format!("{other:?}; use 1 or 0"))),
    }
}

fn ids(frame: &Frame, name: &str) -> std::result::Result<Vec<u32>, String> {
    let Some(tensor) = frame.tensor(name).filter(|tensor| tensor.dtype == Dtype::I64) else { return Ok(Vec::new()) };
    let id = |bytes: &[u8]| {
        let number = i64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        u32::try_from(number).map_err(|_| format!("{name}: {number} is no token id"))
    };
    tensor.data.chunks_exact(8).map(id).collect()
}

fn inputs(frame: &Frame) -> Vec<(String, Tensor)> {
    let own = |(name, tensor): &(String, Tensor)| Some((name.strip_prefix("prompt/")?.to_string(), tensor.clone()));
    frame.tensors.iter().filter_map(own).collect()
}

fn draws(frame: &Frame) -> Vec<FollowedDraw> {
    let rows = frame.metadata.get("draws").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let values = frame.tensor("draw/value").filter(|tensor| tensor.dtype == Dtype::F64);
    let value = |index: usize| {
        let bytes = values?.data.get(8 * index..8 * index + 8)?;
        Some(f64::from_le_bytes(bytes.try_into().expect("8 bytes"))).filter(|value| !value.is_nan())
    };
    let word = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_string();
    let draw = |(index, row): (usize, &Value)| FollowedDraw {
        op: word(row, "op"),
        generator: word(row, "generator"),
        // Python's seeds may be negative: torch takes their two's complement.
        seed: row["seed"].as_u64().or(row["seed"].as_i64().map(|seed| seed as u64)),
        offset: row["offset"].as_u64(),
        words: row["words"].as_u64(),
        value: value(index),
    };
    rows.iter().enumerate().map(draw).collect()
}
