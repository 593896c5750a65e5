//! What samplers must keep to, whatever the logits and settings.

use proptest::collection::vec;
use proptest::prelude::*;
use tracekit::rng::TorchRng;
use tracekit::sampling::{choose, keep_top_k, keep_top_p, probabilities, softmax, survivors, Sampling};

/// Logits with and without ties: eighths tie often.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let fine = vec(-20f32..20.0, 1..60);
    let coarse = vec((-24i8..24).prop_map(|n| f32::from(n) / 8.0), 1..60);
    prop_oneof![fine, coarse]
}

fn settings() -> impl Strategy<Value = Sampling> {
    let some = |range: std::ops::Range<f64>| prop::option::of(range);
    let cuts = (prop::option::of(0usize..80), some(0.0..1.1), some(0.0..1.0));
    (0.05f64..3.0, cuts, some(0.5..2.0)).prop_map(|(temperature, (top_k, top_p, min_p), penalty)| {
        let mut settings = Sampling::greedy().temperature(temperature);
        (settings.top_k, settings.top_p, settings.min_p) = (top_k, top_p, min_p);
        settings.repetition_penalty = penalty;
        settings
    })
}

fn kept(scores: &[f32]) -> Vec<usize> {
    (0..scores.len()).filter(|&id| scores[id] > f32::NEG_INFINITY).collect()
}

proptest! {
    #[test]
    fn survivors_are_some_sorted_and_sum_to_one(logits in logits(), settings in settings()) {
        let probs = probabilities(&settings, &logits, &[0, 3]).expect("it samples");
        let left = survivors(&probs);
        prop_assert!(!left.is_empty());
        let sum: f64 = left.iter().map(|&(_, p)| f64::from(p)).sum();
        prop_assert!((sum - 1.0).abs() < 1e-5, "{}", sum);
        let in_order = |pair: &[(u32, f32)]| pair[0].1 > pair[1].1 || pair[0].1 == pair[1].1 && pair[0].0 < pair[1].0;
        prop_assert!(left.windows(2).all(in_order));
    }

    #[test]
    fn only_survivors_are_drawn_at_two_words_an_entry(
        logits in logits(), settings in settings(), seed in any::<u64>(),
    ) {
        let mut rng = TorchRng::seed(seed);
        let choice = choose(&settings, &mut rng, &logits, &[1]);
        prop_assert!(choice.survivors.iter().any(|&(id, _)| id == choice.token));
        prop_assert_eq!(rng.offset(), 2 * logits.len() as u64);
        let draw = &choice.draws[0];
        prop_assert_eq!((draw.offset, draw.words, draw.result), (Some(0), Some(rng.offset()), choice.token));
    }

    #[test]
    fn top_k_keeps_what_is_not_below_the_kth(logits in logits(), k in 1usize..80) {
        let mut scores = logits.clone();
        keep_top_k(&mut scores, k);
        let above = |id: usize| logits.iter().filter(|&&other| other > logits[id]).count();
        let want: Vec<usize> = (0..logits.len()).filter(|&id| above(id) < k).collect();
        prop_assert_eq!(&kept(&scores), &want);
        prop_assert!(want.len() >= k.min(logits.len()));
        prop_assert!(want.iter().all(|&id| scores[id] == logits[id]), "what stays keeps its score");
    }

    #[test]
    fn top_p_keeps_the_smallest_set_of_enough_mass(logits in logits(), p in 0.0f64..1.0) {
        let mut scores = logits.clone();
        keep_top_p(&mut scores, p);
        let probs = softmax(&logits);
        let left = kept(&scores);
        let gone: Vec<usize> = (0..logits.len()).filter(|id| !left.contains(id)).collect();
        let mass: f64 = left.iter().map(|&id| f64::from(probs[id])).sum();
        let least = left.iter().map(|&id| probs[id]).fold(f32::INFINITY, f32::min);
        // Sums are rounded to float32.
        let slack = 1e-6;
        prop_assert!(mass >= p - slack, "{} < {}", mass, p);
        prop_assert!(left.len() == 1 || mass - f64::from(least) < p + slack, "{} is not needed", least);
        prop_assert!(gone.iter().all(|&id| probs[id] <= least), "a larger one is gone");
    }

    #[test]
    fn samples_without_replacement_differ(
        logits in logits(), count in 0usize..70, seed in any::<u64>(),
    ) {
        let probs = softmax(&logits);
        let mut rng = TorchRng::seed(seed);
        let mut chosen = rng.multinomial(&probs, count);
        let first = chosen.first().copied();
        prop_assert_eq!(rng.offset(), 2 * probs.len() as u64);
        prop_assert_eq!(chosen.len(), count.min(probs.len()));
        if count > 0 {
            prop_assert_eq!(first, Some(TorchRng::seed(seed).multinomial_one(&probs)), "the first is that of one");
        }
        chosen.sort_unstable();
        chosen.dedup();
        prop_assert_eq!(chosen.len(), count.min(probs.len()));
    }

    #[test]
    fn samples_with_replacement_are_never_impossible(
        weights in vec(prop_oneof![Just(0.0f32), 0.01f32..1.0], 1..40), seed in any::<u64>(),
    ) {
        prop_assume!(weights.iter().any(|&weight| weight > 0.0));
        let last = weights.iter().rposition(|&weight| weight > 0.0).expect("assumed");
        let chosen = TorchRng::seed(seed).multinomial_with_replacement(&weights[..=last], 50);
        // A uniform number of exactly 0 takes the first entry, as in torch; no seed tried here gives one.
        prop_assert!(chosen.iter().all(|&index| weights[index] > 0.0));
    }

    #[test]
    fn sixteen_bit_uniforms_are_sixteen_bit_and_below_one(seed in any::<u64>()) {
        let mut rng = TorchRng::seed(seed);
        for _ in 0..1000 {
            let (half, brain) = (rng.rand_f16(), rng.rand_bf16());
            prop_assert!((0.0..1.0).contains(&half) && (0.0..1.0).contains(&brain));
            prop_assert_eq!((half.to_bits() & 0x1fff, brain.to_bits() & 0xffff), (0, 0));
        }
    }
}
