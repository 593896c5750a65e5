//! torch's CPU random numbers, bit for bit.
//!
//! The engine is mt19937 as in pytorch `aten/src/ATen/core/MT19937RNGEngine.h`; the ways from words to numbers follow
//! `aten/src/ATen/core/DistributionsHelper.h` and `aten/src/ATen/native/cpu/DistributionTemplates.h` (torch 2.7 and later:
//! builds before that drew exponentials through MKL).

use crate::mathfun;

const N: usize = 624;
const M: usize = 397;

/// Length in bytes of `torch.get_rng_state()`.
pub const STATE_BYTES: usize = 5056;

/// torch's CPU generator.
///
/// ```
/// let mut rng = tracekit::rng::TorchRng::seed(0);
/// // torch.manual_seed(0); torch.rand(2) -> 0.49625659, 0.76822180
/// assert_eq!(rng.rand_f32(), 0.496_256_6);
/// assert_eq!(rng.rand_f32(), 0.768_221_8);
/// assert_eq!(rng.offset(), 2);
/// ```
#[derive(Clone, Debug)]
pub struct TorchRng {
    seed: u64,
    state: [u32; N],
    /// Words of the present block already used; N: the next word needs a twist.
    next: usize,
    offset: u64,
    /// The second half of a Box-Muller pair, kept for the next single normal.
    cached_normal: Option<f64>,
}

impl TorchRng {
    /// As `torch.manual_seed(seed)`: only the low 32 bits reach the stream.
    pub fn seed(seed: u64) -> Self {
        let mut state = [0u32; N];
        state[0] = seed as u32;
        for j in 1..N {
            let previous = state[j - 1];
            state[j] = 1_812_433_253u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(j as u32);
        }
        Self { seed, state, next: N, offset: 0, cached_normal: None }
    }

    /// The seed it was made with.
    pub fn initial_seed(&self) -> u64 {
        self.seed
    }

    /// 32-bit words used since seeding.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Moves on by `words` without looking at them.
    pub fn skip(&mut self, words: u64) {
        let mut left = words;
        while left > 0 {
            if self.next == N {
                self.twist();
            }
            let take = left.min((N - self.next) as u64);
            self.next += take as usize;
            left -= take;
        }
        self.offset += words;
    }

    /// The next tempered 32-bit word.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        self.offset += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// torch's `random64`: the first word is the high half.
    pub fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        (high << 32) | u64::from(self.next_u32())
    }

    fn twist(&mut self) {
        let mix = |a: u32, b: u32| ((a & 0x8000_0000) | (b & 0x7fff_ffff)) >> 1;
        let odd = |b: u32| if b & 1 == 1 { 0x9908_b0df } else { 0 };
        for j in 0..N {
            let b = self.state[(j + 1) % N];
            self.state[j] = self.state[(j + M) % N] ^ mix(self.state[j], b) ^ odd(b);
        }
        self.next = 0;
    }

    /// `torch.rand(1)`: 24 bits, one word.
    pub fn rand_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// `torch.rand(1, dtype=float64)`: 53 bits, two words.
    pub fn rand_f64(&mut self) -> f64 {
        (self.next_u64() & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// `torch.rand(1, dtype=float16)`, one word; the value as a float32.
    pub fn rand_f16(&mut self) -> f32 {
        below_one(rounded(self.rand_f32(), 11))
    }

    /// `torch.rand(1, dtype=bfloat16)`, one word; the value as a float32.
    pub fn rand_bf16(&mut self) -> f32 {
        below_one(rounded(self.rand_f32(), 8))
    }

    /// `Tensor.exponential_(lambda)` in float64, two words; other dtypes are this value, cast.
    pub fn exponential(&mut self, lambda: f64) -> f64 {
        (-1.0 / lambda) * (-self.rand_f64()).ln_1p()
    }

    /// `Tensor.bernoulli_(p)` (and dropout), two words.
    pub fn bernoulli(&mut self, p: f64) -> bool {
        self.rand_f64() < p
    }

    /// `torch.bernoulli(tensor)` of a float32 probability, one word.
    pub fn bernoulli_f32(&mut self, p: f32) -> bool {
        self.rand_f32() < p
    }

    /// `torch.randint(range, (1,))`: one word, two from a range of 2^28 on.
    ///
    /// # Panics
    /// If `range` is 0.
    pub fn randint(&mut self, range: u64) -> u64 {
        if range >= 1 << 28 {
            self.next_u64() % range
        } else {
            u64::from(self.next_u32()) % range
        }
    }

    /// `torch.randperm(n)`, n - 1 words.
    pub fn randperm(&mut self, n: usize) -> Vec<i64> {
        let mut order: Vec<i64> = (0..n as i64).collect();
        for i in 0..n.saturating_sub(1) {
            let j = i + (self.next_u32() as usize) % (n - i);
            order.swap(i, j);
        }
        order
    }

    /// One element of `torch.randn(n)` for n < 16 in float64 (float32 is this value, cast): Box-Muller, four words a pair.
    pub fn normal(&mut self) -> f64 {
        if let Some(kept) = self.cached_normal.take() {
            return kept;
        }
        let u1 = self.rand_f64();
        let u2 = self.rand_f64();
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * u1;
        self.cached_normal = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// `Tensor.uniform_(low, high)` of float32, one element: a fused multiply-add, as torch's AVX2 build has it. What
    /// rounds up to `high` becomes `low`.
    pub fn uniform_f32(&mut self, low: f32, high: f32) -> f32 {
        let value = self.rand_f32().mul_add(high - low, low);
        if value == high {
            low
        } else {
            value
        }
    }

    /// `torch.randn(n)` in float32, whichever of torch's ways its length takes: from 16 on, blocks of sixteen as torch's
    /// AVX2 build draws them; a ragged end is drawn again.
    pub fn randn_f32(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.normal() as f32).collect();
        }
        let mut data: Vec<f32> = (0..n).map(|_| self.rand_f32()).collect();
        data.chunks_exact_mut(16).for_each(box_muller_f32);
        if n % 16 != 0 {
            let tail = &mut data[n - 16..];
            tail.iter_mut().for_each(|value| *value = self.rand_f32());
            box_muller_f32(tail);
        }
        data
    }

    /// `torch.multinomial(probs, 1)` of float32 probabilities: the exponential race `argmax(p / q)`.
    ///
    /// Uses two words for every entry, those of probability 0 included. The lowest index wins a tie, the first NaN
    /// wins over all.
    pub fn multinomial_one(&mut self, probs: &[f32]) -> usize {
        let mut best = (0, f32::NEG_INFINITY);
        for (index, &p) in probs.iter().enumerate() {
            if p == 0.0 {
                // 0 / q is 0 and never wins; the words are used all the same.
                self.skip(2);
                continue;
            }
            let score = p / self.exponential(1.0) as f32;
            if score.is_nan() {
                self.skip(2 * (probs.len() - index - 1) as u64);
                return index;
            }
            if score > best.1 {
                best = (index, score);
            }
        }
        best.0
    }

    /// `torch.multinomial(probs, samples)` of float32 probabilities, without replacement: the largest of the exponential
    /// race `p / q`, ties by lower index. Two words for every entry, as for one sample.
    ///
    /// Fewer than `samples` come where there are fewer entries (torch refuses that).
    pub fn multinomial(&mut self, probs: &[f32], samples: usize) -> Vec<usize> {
        if samples == 1 && !probs.is_empty() {
            return vec![self.multinomial_one(probs)];
        }
        let scores: Vec<f32> = probs.iter().map(|p| p / self.exponential(1.0) as f32).collect();
        let mut order: Vec<usize> = (0..probs.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(samples);
        order
    }

    /// `torch.multinomial(probs, samples, replacement=True)` of float32 probabilities, for 2 samples and more: a
    /// uniform number each, two words, against the cumulative sum in float32. (One sample is drawn without replacement.)
    pub fn multinomial_with_replacement(&mut self, probs: &[f32], samples: usize) -> Vec<usize> {
        let mut total = 0f32;
        let sums: Vec<f32> = probs
            .iter()
            .map(|p| {
                total += p;
                total
            })
            .collect();
        let mut sums: Vec<f64> = sums.iter().map(|sum| f64::from(sum / total)).collect();
        if let Some(last) = sums.last_mut() {
            *last = 1.0;
        }
        (0..samples).map(|_| self.rand_f64()).map(|goal| sums.partition_point(|&sum| sum < goal)).collect()
    }

    /// The bytes of `torch.get_rng_state()`.
    pub fn state(&self) -> [u8; STATE_BYTES] {
        let mut out = [0u8; STATE_BYTES];
        let fresh = self.offset == 0;
        let left = if fresh { 1 } else { (N - self.next + 1) as i32 };
        let next = if fresh { 0 } else { self.next as u64 };
        out[0..8].copy_from_slice(&self.seed.to_le_bytes());
        out[8..12].copy_from_slice(&left.to_le_bytes());
        out[12..16].copy_from_slice(&1i32.to_le_bytes());
        out[16..24].copy_from_slice(&next.to_le_bytes());
        for (slot, word) in out[24..24 + 8 * N].chunks_exact_mut(8).zip(self.state) {
            slot.copy_from_slice(&u64::from(word).to_le_bytes());
        }
        if let Some(kept) = self.cached_normal {
            out[5024..5032].copy_from_slice(&kept.to_le_bytes());
            out[5040..5044].copy_from_slice(&1i32.to_le_bytes());
        }
        out
    }
}

/// To the nearest number of so many significant bits, ties to even. Below float16's normal numbers nothing is lost:
/// `torch.rand` gives multiples of 2^-24, as fine as they are.
fn rounded(x: f32, bits: u32) -> f32 {
    let drop = 24 - bits;
    let nudge = (1 << (drop - 1)) - 1 + ((x.to_bits() >> drop) & 1);
    f32::from_bits((x.to_bits() + nudge) & !((1 << drop) - 1))
}

/// torch turns what rounds up to the open end of its range into the closed one.
fn below_one(x: f32) -> f32 {
    if x < 1.0 {
        x
    } else {
        0.0
    }
}

/// Sixteen uniforms to normals: number j is paired with j + 8 (`normal_fill_16_AVX2`).
fn box_muller_f32(block: &mut [f32]) {
    for j in 0..8 {
        let radius = (-2.0 * mathfun::log(1.0 - block[j])).sqrt();
        let (sine, cosine) = mathfun::sine_and_cosine(2.0 * std::f32::consts::PI * block[j + 8]);
        // torch goes on to add the mean, 0: that turns a negative zero into a positive one.
        block[j] = radius * cosine + 0.0;
        block[j + 8] = radius * sine + 0.0;
    }
}
