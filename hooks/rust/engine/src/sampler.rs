//! From logits to a token: transformers' logits processors in their order, then torch's draw.

use serde_json::{json, Value};
use tracekit::rng::TorchRng;
use tracekit::sampling::{keep_min_p, keep_top_k, keep_top_p, penalise, softmax, survivors};
use tracekit::sampling::{Choice, Draw, Event, Sampling};

pub const PENALTY: &str = "RepetitionPenaltyLogitsProcessor";
pub const TEMPERATURE: &str = "TemperatureLogitsWarper";
pub const TOP_K: &str = "TopKLogitsWarper";
pub const TOP_P: &str = "TopPLogitsWarper";
pub const MIN_P: &str = "MinPLogitsWarper";

/// What a processor knows besides the scores.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The prompt and the tokens so far.
    pub history: &'a [u32],
    /// Tokens of the prompt.
    pub prompt: usize,
}

type Apply = Box<dyn Fn(&mut [f32], &Context)>;

/// A change of the scores, `[vocabulary]`; a token that is removed gets minus infinity.
pub struct Processor {
    /// transformers' class.
    pub class: &'static str,
    /// Its number, by transformers' name.
    setting: (&'static str, Value),
    pub apply: Apply,
}

impl Processor {
    pub fn new(
        class: &'static str,
        name: &'static str,
        value: impl Into<Value>,
        apply: impl Fn(&mut [f32], &Context) + 'static,
    ) -> Self {
        Self { class, setting: (name, value.into()), apply: Box::new(apply) }
    }

    /// What is recorded of it.
    fn event(&self, scores: &[f32]) -> Event {
        let (name, value) = &self.setting;
        let left = scores.iter().filter(|&&score| score > f32::NEG_INFINITY).count();
        let detail = json!({"class": self.class, "settings": {*name: value}, "survivors": left});
        Event::new("processor", detail)
    }
}

/// The processors of these settings, as `generate` orders them.
pub fn processors(settings: &Sampling) -> Vec<Processor> {
    let mut chain = Vec::new();
    if let Some(penalty) = settings.repetition_penalty.filter(|&penalty| penalty != 1.0) {
        let apply = move |scores: &mut [f32], context: &Context| penalise(scores, Some(penalty), context.history);
        chain.push(Processor::new(PENALTY, "penalty", penalty, apply));
    }
    let Some(temperature) = settings.temperature else { return chain };
    if temperature != 1.0 {
        let apply = move |scores: &mut [f32], _: &Context| divide(scores, temperature);
        chain.push(Processor::new(TEMPERATURE, "temperature", temperature, apply));
    }
    if let Some(k) = settings.top_k.filter(|&k| k > 0) {
        chain.push(Processor::new(TOP_K, "top_k", k, move |scores, _| keep_top_k(scores, k)));
    }
    if let Some(p) = settings.top_p.filter(|&p| p < 1.0) {
        chain.push(Processor::new(TOP_P, "top_p", p, move |scores, _| keep_top_p(scores, p)));
    }
    if let Some(p) = settings.min_p {
        chain.push(Processor::new(MIN_P, "min_p", p, move |scores, _| keep_min_p(scores, p)));
    }
    chain
}

fn divide(scores: &mut [f32], temperature: f64) {
    let divisor = temperature as f32;
    scores.iter_mut().for_each(|score| *score /= divisor);
}

/// Draws an index from probabilities `[n]`; gives the operation as torch calls it, and the index.
pub type DrawFrom = Box<dyn Fn(&mut TorchRng, &[f32]) -> (&'static str, usize)>;

/// `torch.multinomial`.
pub fn multinomial(rng: &mut TorchRng, probs: &[f32]) -> (&'static str, usize) {
    ("multinomial", rng.multinomial_one(probs))
}

/// An index that is drawn, and what is recorded of the draw. `token_of` gives the token of an index.
pub fn recorded_draw(draw_from: &DrawFrom, rng: &mut TorchRng, probs: &[f32], token_of: impl Fn(usize) -> u32) -> Draw {
    let (seed, offset) = (rng.initial_seed(), rng.offset());
    let (op, index) = draw_from(rng, probs);
    Draw::seeded(op, "mt19937", token_of(index), seed, offset, rng.offset() - offset)
}

/// Chooses a step's token.
pub trait Choose {
    /// The token, and what the processors and the generator did.
    fn choose(&self, rng: &mut TorchRng, logits: &[f32], context: &Context) -> (Choice, Vec<Event>);
}

/// The processors and the draw of one run.
pub struct Sampler {
    pub chain: Vec<Processor>,
    pub draw_from: DrawFrom,
    draws: bool,
}

impl Sampler {
    pub fn new(settings: &Sampling) -> Self {
        let draws = settings.temperature.is_some();
        Self { chain: processors(settings), draw_from: Box::new(multinomial), draws }
    }
}

impl Choose for Sampler {
    fn choose(&self, rng: &mut TorchRng, logits: &[f32], context: &Context) -> (Choice, Vec<Event>) {
        let mut scores = logits.to_vec();
        let mut events = Vec::new();
        for processor in &self.chain {
            (processor.apply)(&mut scores, context);
            if tracekit::enabled() {
                events.push(processor.event(&scores));
            }
        }
        if !self.draws {
            return (Choice::greedy_among(&scores, !self.chain.is_empty()), events);
        }
        let probs = softmax(&scores);
        let draw = recorded_draw(&self.draw_from, rng, &probs, |id| id as u32);
        (Choice::drawn(survivors(&probs), vec![draw]), events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_chooses_as_the_crate_does() {
        let settings = Sampling::greedy().temperature(0.7).top_k(20).top_p(0.9).min_p(0.02).repetition_penalty(1.3);
        let mut source = TorchRng::seed(1);
        let sampler = Sampler::new(&settings);
        let (mut ours, mut theirs) = (TorchRng::seed(2), TorchRng::seed(2));
        let mut history = vec![3, 5];
        for _ in 0..50 {
            let logits: Vec<f32> = source.randn_f32(300).iter().map(|x| 4.0 * x).collect();
            let (choice, events) = sampler.choose(&mut ours, &logits, &Context { history: &history, prompt: 2 });
            assert_eq!(choice, tracekit::sampling::choose(&settings, &mut theirs, &logits, &history));
            assert!(events.is_empty(), "nothing is recorded here");
            history.push(choice.token);
        }
    }

    #[test]
    fn an_event_says_class_number_and_what_is_left() {
        let settings = Sampling::greedy().temperature(1.0).top_k(2);
        let chain = processors(&settings);
        let mut scores = [1.0, 3.0, 2.0];
        (chain[0].apply)(&mut scores, &Context { history: &[], prompt: 0 });
        let expected = json!({"class": TOP_K, "settings": {"top_k": 2}, "survivors": 2});
        assert_eq!(chain[0].event(&scores).detail, expected);
    }
}
