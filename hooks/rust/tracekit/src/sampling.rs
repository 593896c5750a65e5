//! Sampling as transformers does it: the logits processors in their order, then torch's draw.

use serde_json::{json, Value};

use crate::rng::TorchRng;

#[cfg(feature = "candle")]
pub use crate::generation::LogitsProcessor;

/// Settings in the words of transformers' GenerationConfig; `None` is not applied. `temperature` `None` is greedy.
///
/// ```
/// use tracekit::sampling::Sampling;
/// let settings = Sampling::greedy().temperature(0.8).top_k(50);
/// # assert_eq!((settings.temperature, settings.top_k, settings.top_p), (Some(0.8), Some(50), None));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Divides the logits.
    pub temperature: Option<f64>,
    /// Keeps the k largest logits, ties with the k-th included.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of probability mass p or more.
    pub top_p: Option<f64>,
    /// Keeps tokens of at least this share of the largest probability.
    pub min_p: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens seen before.
    pub repetition_penalty: Option<f64>,
}

impl Sampling {
    /// The largest logit, and no draw.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// Draws, after the logits are divided by this.
    #[must_use]
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = Some(temperature);
        self
    }

    /// Keeps the k largest logits.
    #[must_use]
    pub fn top_k(mut self, k: usize) -> Self {
        self.top_k = Some(k);
        self
    }

    /// Keeps the smallest set of probability mass p or more.
    #[must_use]
    pub fn top_p(mut self, p: f64) -> Self {
        self.top_p = Some(p);
        self
    }

    /// Keeps tokens of at least this share of the largest probability.
    #[must_use]
    pub fn min_p(mut self, share: f64) -> Self {
        self.min_p = Some(share);
        self
    }

    /// Lowers the logits of tokens seen before.
    #[must_use]
    pub fn repetition_penalty(mut self, penalty: f64) -> Self {
        self.repetition_penalty = Some(penalty);
        self
    }

    /// As the trace states it.
    pub fn to_json(&self) -> Value {
        let mut out = serde_json::Map::new();
        out.insert("do_sample".into(), Value::from(self.temperature.is_some()));
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                out.insert(name.into(), value);
            }
        };
        put("repetition_penalty", self.repetition_penalty.map(Value::from));
        if self.temperature.is_some() {
            put("temperature", self.temperature.map(Value::from));
            put("top_k", self.top_k.map(Value::from));
            put("top_p", self.top_p.map(Value::from));
            put("min_p", self.min_p.map(Value::from));
        }
        Value::Object(out)
    }
}

/// One use of a random generator. `offset` and `words` count 32-bit words since seeding.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Draw {
    /// `multinomial`, `uniform`.
    pub op: &'static str,
    /// `mt19937`, or a name of the generator's own: `thread_rng`.
    pub generator: &'static str,
    /// What the generator was seeded with; `None` where nobody knows: it seeded itself.
    pub seed: Option<u64>,
    /// Words used before this draw, where they are counted.
    pub offset: Option<u64>,
    /// Words used by it, where they are counted.
    pub words: Option<u64>,
    /// The token.
    pub result: u32,
}

impl Draw {
    /// A draw of `words` 32-bit words from a generator that was seeded with `seed` and had used `offset` words before.
    pub fn seeded(op: &'static str, generator: &'static str, result: u32, seed: u64, offset: u64, words: u64) -> Self {
        Self { op, generator, seed: Some(seed), offset: Some(offset), words: Some(words), result }
    }

    /// A draw from a generator that seeded itself (`rand::thread_rng`, `rand::rng`): what it gave is known, and it cannot
    /// be made again.
    pub fn unseeded(op: &'static str, generator: &'static str, result: u32) -> Self {
        Self { op, generator, seed: None, offset: None, words: None, result }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "op": self.op, "generator": self.generator, "seed": self.seed, "offset": self.offset,
            "words": self.words, "result": self.result,
        })
    }
}

/// Something the sampler did besides drawing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// What: a fallback, a stop mask, a retry.
    pub kind: String,
    /// More of it.
    pub detail: Value,
}

impl Event {
    /// An event of this kind.
    pub fn new(kind: impl Into<String>, detail: Value) -> Self {
        Self { kind: kind.into(), detail }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"kind": self.kind, "detail": self.detail})
    }
}

/// What a sampler chose, and from what.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// What could be drawn, by descending probability, ties by lower id; empty when greedy without processors.
    pub survivors: Vec<(u32, f32)>,
    /// Uses of the generator.
    pub draws: Vec<Draw>,
}

impl Choice {
    /// A token that was not drawn.
    pub fn greedy(token: u32) -> Self {
        Self { token, ..Self::default() }
    }

    /// The largest of the scores `[vocabulary]`. Where processors made them, they are kept as survivors while a run is
    /// recorded: the token alone does not say what the processors did.
    pub fn greedy_among(scores: &[f32], processed: bool) -> Self {
        let kept = if processed && crate::enabled() { survivors(&softmax(scores)) } else { Vec::new() };
        Self { survivors: kept, ..Self::greedy(argmax(scores) as u32) }
    }

    /// The token of the last of `draws`, from these survivors.
    pub fn drawn(survivors: Vec<(u32, f32)>, draws: Vec<Draw>) -> Self {
        Self { token: draws.last().map_or(0, |draw| draw.result), survivors, draws }
    }
}

/// Runs the processors and draws. `history` is the prompt and the tokens so far.
pub fn choose(settings: &Sampling, rng: &mut TorchRng, logits: &[f32], history: &[u32]) -> Choice {
    let Some(probs) = probabilities(settings, logits, history) else {
        let mut scores = logits.to_vec();
        penalise(&mut scores, settings.repetition_penalty, history);
        return Choice::greedy_among(&scores, settings.repetition_penalty.is_some_and(|penalty| penalty != 1.0));
    };
    draw(rng, &probs)
}

/// Draws one token as `torch.multinomial(probs, 1)`; `probs` is `[vocabulary]`, zeros where a token was filtered.
pub fn draw(rng: &mut TorchRng, probs: &[f32]) -> Choice {
    let (seed, offset) = (rng.initial_seed(), rng.offset());
    let token = rng.multinomial_one(probs) as u32;
    let draw = Draw::seeded("multinomial", "mt19937", token, seed, offset, rng.offset() - offset);
    Choice::drawn(survivors(probs), vec![draw])
}

/// The distribution that is drawn from, `[vocabulary]`, zeros where a token was filtered; `None` when greedy.
pub fn probabilities(settings: &Sampling, logits: &[f32], history: &[u32]) -> Option<Vec<f32>> {
    let temperature = settings.temperature?;
    let mut scores = logits.to_vec();
    penalise(&mut scores, settings.repetition_penalty, history);
    if temperature != 1.0 {
        let divisor = temperature as f32;
        scores.iter_mut().for_each(|score| *score /= divisor);
    }
    Some(probabilities_of(settings, scores))
}

/// The distribution behind the cuts, from scores that temperature has divided.
pub(crate) fn probabilities_of(settings: &Sampling, mut scores: Vec<f32>) -> Vec<f32> {
    if let Some(k) = settings.top_k.filter(|&k| k > 0) {
        keep_top_k(&mut scores, k);
    }
    if let Some(p) = settings.top_p.filter(|&p| p < 1.0) {
        keep_top_p(&mut scores, p);
    }
    if let Some(p) = settings.min_p {
        keep_min_p(&mut scores, p);
    }
    softmax(&scores)
}

/// Tokens of non-zero probability, descending, ties by lower id.
pub fn survivors(probs: &[f32]) -> Vec<(u32, f32)> {
    let mut kept: Vec<(u32, f32)> =
        probs.iter().enumerate().filter(|(_, &p)| p > 0.0).map(|(id, &p)| (id as u32, p)).collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    kept
}

/// `torch.argmax`: the lowest index wins a tie.
pub fn argmax(scores: &[f32]) -> usize {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if score > &scores[best] {
            best = index;
        }
    }
    best
}

/// transformers' `RepetitionPenaltyLogitsProcessor`: tokens of `history` get lower scores; 1 and `None` change nothing.
pub fn penalise(scores: &mut [f32], penalty: Option<f64>, history: &[u32]) {
    let Some(penalty) = penalty.filter(|&penalty| penalty != 1.0) else { return };
    let penalty = penalty as f32;
    let mut seen = history.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

/// transformers' `TopKLogitsWarper`: what is below the k-th largest goes, what ties with it stays. `k` is 1 or more.
pub fn keep_top_k(scores: &mut [f32], k: usize) {
    let k = k.min(scores.len());
    let mut sorted = scores.to_vec();
    let (_, &mut kth, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    scores.iter_mut().filter(|score| **score < kth).for_each(|score| *score = f32::NEG_INFINITY);
}

/// transformers' `TopPLogitsWarper`: ascending, what lies within the lowest 1 - p of the mass goes; one always stays.
/// torch's cumulative sum of float32 adds up in float64 and rounds each entry.
pub fn keep_top_p(scores: &mut [f32], p: f64) {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&id| scores[id] > f32::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let probs = softmax(&order.iter().map(|&id| scores[id]).collect::<Vec<f32>>());
    let limit = (1.0 - p) as f32;
    let mut sum = 0f64;
    let Some((_, lower)) = order.split_last() else { return };
    for (&id, &prob) in lower.iter().zip(&probs) {
        sum += f64::from(prob);
        if sum as f32 > limit {
            break;
        }
        scores[id] = f32::NEG_INFINITY;
    }
}

/// transformers' `MinPLogitsWarper`: what has less than this share of the largest probability goes.
pub fn keep_min_p(scores: &mut [f32], min_p: f64) {
    let probs = softmax(scores);
    let floor = min_p as f32 * probs.iter().copied().fold(0.0, f32::max);
    let best = argmax(scores);
    for (id, (score, prob)) in scores.iter_mut().zip(&probs).enumerate() {
        if *prob < floor && id != best {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Softmax in float32 with a float64 sum.
pub fn softmax(scores: &[f32]) -> Vec<f32> {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut out: Vec<f32> = scores.iter().map(|&score| (score - top).exp()).collect();
    let sum = out.iter().map(|&x| f64::from(x)).sum::<f64>() as f32;
    out.iter_mut().for_each(|x| *x /= sum);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    fn kept(settings: &Sampling) -> Vec<u32> {
        let probs = probabilities(settings, &LOGITS, &[]).expect("samples");
        survivors(&probs).iter().map(|&(id, _)| id).collect()
    }

    #[test]
    fn top_k_keeps_ties_with_the_kth() {
        let settings = Sampling::greedy().temperature(1.0).top_k(1);
        assert_eq!(kept(&settings), [1, 3]);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses() {
        let settings = Sampling::greedy().temperature(1.0).top_p(0.79);
        assert_eq!(kept(&settings), [1, 3]);
        let settings = Sampling::greedy().temperature(1.0).top_p(0.8);
        assert_eq!(kept(&settings), [1, 3, 2]);
    }

    #[test]
    fn greedy_uses_no_random_number() {
        let mut rng = TorchRng::seed(0);
        let choice = choose(&Sampling::default(), &mut rng, &LOGITS, &[]);
        assert_eq!((choice.token, rng.offset(), choice.draws.len()), (1, 0, 0));
    }

    #[test]
    fn a_penalty_lowers_seen_tokens_whatever_their_sign() {
        let mut scores = vec![2.0, -2.0, 1.0];
        penalise(&mut scores, Some(2.0), &[0, 1, 0]);
        assert_eq!(scores, [1.0, -4.0, 1.0]);
    }
}
