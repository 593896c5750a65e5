//! Drop-ins for `candle_nn::rnn`: what [`RNN::seq`] is given and its hidden states, one row a position; [`RNN::step`] is one position.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::taps::{recorded_as, register_parameters, Places};
use crate::recorder::enabled;

pub use candle_nn::rnn::{Direction, GRUConfig, GRUState, LSTMConfig, LSTMState, RNN};

/// `candle_nn::LSTM` that records its input and its hidden states.
#[allow(clippy::upper_case_acronyms)]
#[derive(Clone, Debug)]
pub struct LSTM {
    name: String,
    inner: candle_nn::LSTM,
}

impl LSTM {
    /// A layer loaded from `vb`. Its site is the prefix; that of a further layer, or of one that runs backwards, ends in its
    /// parameters' suffix: `lstm.l1`, `lstm.l0_reverse`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(in_dim: usize, hidden_dim: usize, config: LSTMConfig, vb: VarBuilder) -> Result<Self> {
        let direction = match config.direction {
            Direction::Forward => "",
            Direction::Backward => "_reverse",
        };
        let suffix = format!("l{}{direction}", config.layer_idx);
        let name = if suffix == "l0" { vb.prefix() } else { format!("{}.{suffix}", vb.prefix()) };
        register(&name, "LSTM", &suffix, [config.b_ih_init.is_some(), config.b_hh_init.is_some()], &vb)?;
        Ok(Self { name, inner: candle_nn::LSTM::new(in_dim, hidden_dim, config, vb)? })
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As it was loaded.
    pub fn config(&self) -> &LSTMConfig {
        self.inner.config()
    }
}

impl RNN for LSTM {
    type State = LSTMState;

    fn zero_state(&self, batch_dim: usize) -> Result<LSTMState> {
        self.inner.zero_state(batch_dim)
    }

    fn step(&self, input: &Tensor, state: &LSTMState) -> Result<LSTMState> {
        recorded_step(&self.name, input, |input| self.inner.step(input, state), LSTMState::h)
    }

    fn seq_init(&self, input: &Tensor, state: &LSTMState) -> Result<Vec<LSTMState>> {
        recorded_seq(&self.name, input, |input| self.inner.seq_init(input, state), LSTMState::h)
    }

    fn states_to_tensor(&self, states: &[LSTMState]) -> Result<Tensor> {
        self.inner.states_to_tensor(states)
    }
}

/// As [`LSTM::new`].
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn lstm(in_dim: usize, hidden_dim: usize, config: LSTMConfig, vb: VarBuilder) -> Result<LSTM> {
    LSTM::new(in_dim, hidden_dim, config, vb)
}

/// `candle_nn::GRU` that records its input and its hidden states.
#[allow(clippy::upper_case_acronyms)]
#[derive(Clone, Debug)]
pub struct GRU {
    name: String,
    inner: candle_nn::GRU,
}

impl GRU {
    /// A layer loaded from `vb`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(in_dim: usize, hidden_dim: usize, config: GRUConfig, vb: VarBuilder) -> Result<Self> {
        let name = vb.prefix();
        register(&name, "GRU", "l0", [config.b_ih_init.is_some(), config.b_hh_init.is_some()], &vb)?;
        Ok(Self { name, inner: candle_nn::GRU::new(in_dim, hidden_dim, config, vb)? })
    }

    /// Its site name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As it was loaded.
    pub fn config(&self) -> &GRUConfig {
        self.inner.config()
    }
}

impl RNN for GRU {
    type State = GRUState;

    fn zero_state(&self, batch_dim: usize) -> Result<GRUState> {
        self.inner.zero_state(batch_dim)
    }

    fn step(&self, input: &Tensor, state: &GRUState) -> Result<GRUState> {
        recorded_step(&self.name, input, |input| self.inner.step(input, state), GRUState::h)
    }

    fn seq_init(&self, input: &Tensor, state: &GRUState) -> Result<Vec<GRUState>> {
        recorded_seq(&self.name, input, |input| self.inner.seq_init(input, state), GRUState::h)
    }

    fn states_to_tensor(&self, states: &[GRUState]) -> Result<Tensor> {
        self.inner.states_to_tensor(states)
    }
}

/// As [`GRU::new`].
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn gru(in_dim: usize, hidden_dim: usize, config: GRUConfig, vb: VarBuilder) -> Result<GRU> {
    GRU::new(in_dim, hidden_dim, config, vb)
}

/// candle's layers show their tensors to nobody: they are got a second time, and only where it is recorded.
fn register(name: &str, class: &'static str, suffix: &str, biases: [bool; 2], vb: &VarBuilder) -> Result<()> {
    if !enabled() {
        return Ok(());
    }
    let has = [("weight_ih", true), ("weight_hh", true), ("bias_ih", biases[0]), ("bias_hh", biases[1])];
    let mut parameters = Vec::new();
    for (role, _) in has.into_iter().filter(|(_, there)| *there) {
        let own = format!("{role}_{suffix}");
        // A builder of a file without the tensor: candle says so in a moment. One that makes tensors has none yet.
        if vb.contains_tensor(&own) {
            parameters.push((role, format!("{}.{own}", vb.prefix()), vb.get_unchecked(&own)?));
        }
    }
    register_parameters(name, class, &parameters)
}

/// `input` [1, features].
fn recorded_step<S>(
    name: &str,
    input: &Tensor,
    step: impl FnOnce(&Tensor) -> Result<S>,
    hidden: impl Fn(&S) -> &Tensor,
) -> Result<S> {
    let mut state = None;
    recorded_as(name, input, Places::Any, |input| {
        let new = step(input)?;
        let value = hidden(&new).clone();
        state = Some(new);
        Ok(value)
    })?;
    state.ok_or_else(|| candle_core::Error::Msg("a step without a state".into()))
}

/// `input` [1, positions, features]; the hidden states are recorded as [1, positions, width].
fn recorded_seq<S>(
    name: &str,
    input: &Tensor,
    seq: impl FnOnce(&Tensor) -> Result<Vec<S>>,
    hidden: impl Fn(&S) -> &Tensor,
) -> Result<Vec<S>> {
    if !enabled() {
        return seq(input);
    }
    let mut states = Vec::new();
    recorded_as(name, input, Places::Any, |input| {
        states = seq(input)?;
        Tensor::stack(&states.iter().map(&hidden).collect::<Vec<_>>(), 1)
    })?;
    Ok(states)
}
