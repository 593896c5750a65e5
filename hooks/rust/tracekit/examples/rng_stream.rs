//! Draws what each line of standard input asks for, `OP SEED SIZE`, and prints the XXH3-64 of the result's bytes and the
//! words used. `scripts/check_rng.py` compares that with torch.

use std::io::{BufRead, BufWriter, Write};

use tracekit::rng::TorchRng;
use xxhash_rust::xxh3::xxh3_64;

fn main() -> std::io::Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [op, seed, size] = words.as_slice() else { panic!("a line is OP SEED SIZE, not {line:?}") };
        let mut rng = TorchRng::seed(seed.parse().expect("a seed"));
        let bytes = draw(&mut rng, op, size.parse().expect("a size"));
        writeln!(out, "{:016x} {}", xxh3_64(&bytes), rng.offset())?;
        out.flush()?;
    }
    Ok(())
}

/// Probabilities that every language makes alike: thousandths, in a scattered order.
fn probabilities(size: usize) -> Vec<f32> {
    (0..size as u64).map(|i| ((i * 2_654_435_761 % 1000) + 1) as f32 / 1000.0).collect()
}

fn indices(chosen: &[usize]) -> Vec<u8> {
    chosen.iter().flat_map(|&index| (index as i64).to_le_bytes()).collect()
}

fn draw(rng: &mut TorchRng, op: &str, size: usize) -> Vec<u8> {
    match op {
        "rand_f32" => (0..size).flat_map(|_| rng.rand_f32().to_le_bytes()).collect(),
        "rand_f64" => (0..size).flat_map(|_| rng.rand_f64().to_le_bytes()).collect(),
        "exponential_f32" => (0..size).flat_map(|_| (rng.exponential(1.0) as f32).to_le_bytes()).collect(),
        "bernoulli" => (0..size).map(|_| u8::from(rng.bernoulli(0.3))).collect(),
        "bernoulli_each" => probabilities(size).iter().map(|&p| u8::from(rng.bernoulli_f32(p))).collect(),
        "randint_1000" => (0..size).flat_map(|_| (rng.randint(1000) as i64).to_le_bytes()).collect(),
        "randint_2_40" => (0..size).flat_map(|_| (rng.randint(1 << 40) as i64).to_le_bytes()).collect(),
        "randperm" => rng.randperm(size).iter().flat_map(|i| i.to_le_bytes()).collect(),
        "multinomial" => (rng.multinomial_one(&probabilities(size)) as i64).to_le_bytes().to_vec(),
        "multinomial_4" => indices(&rng.multinomial(&probabilities(size), 4)),
        "multinomial_4_replacement" => indices(&rng.multinomial_with_replacement(&probabilities(size), 4)),
        // The upper halves of float32 and bfloat16 are the same.
        "rand_bf16" => (0..size).flat_map(|_| ((rng.rand_bf16().to_bits() >> 16) as u16).to_le_bytes()).collect(),
        // float16 has few bits: its numbers are told apart as float32.
        "rand_f16" => (0..size).flat_map(|_| rng.rand_f16().to_le_bytes()).collect(),
        "uniform_far" => (0..size).flat_map(|_| rng.uniform_f32(1000.0, 1001.0).to_le_bytes()).collect(),
        "randn_f32" => rng.randn_f32(size).iter().flat_map(|x| x.to_le_bytes()).collect(),
        "uniform_f32" => (0..size).flat_map(|_| rng.uniform_f32(-1.5, 2.7).to_le_bytes()).collect(),
        _ => panic!("unknown op {op:?}"),
    }
}
