//! Following another trace: its tokens, its draws, its prompt.

mod tiny;

use std::path::Path;

use serde_json::{json, Value};
use tiny::{generate, ids, log_path, of_kind, record, tokens};
use tracekit::follow::Follow;
use tracekit::log::{Dtype, Frame, TensorRef, Writer};
use tracekit::rng::TorchRng;

fn draws(frames: &[Frame]) -> Vec<(Value, Value, Value)> {
    let rows = of_kind(frames, "step").into_iter().map(|step| &step.metadata["draws"][0]);
    rows.map(|row| (row["seed"].clone(), row["offset"].clone(), row["result"].clone())).collect()
}

/// The program runs with the prompt and the seed that its environment says.
#[test]
#[ignore = "run by the tests below, as a process that records"]
fn recorded() {
    let words = |name: &str| std::env::var(name).expect("it is set");
    let mut prompt: Vec<u32> = words("TEST_PROMPT").split(' ').map(|id| id.parse().expect("an id")).collect();
    match Follow::of_process() {
        Ok(Some(follow)) if follow.forces_inputs() => prompt = follow.prompt_ids(0).expect("a prompt").to_vec(),
        _ => {}
    }
    if let Err(error) = generate(&prompt, words("TEST_SEED").parse().expect("a seed")) {
        eprintln!("said: {error}");
        std::process::exit(2);
    }
    tracekit::close().expect("writable");
}

#[test]
fn tokens_draws_and_prompt_are_the_references() {
    let (reference, own) = (log_path("reference"), log_path("own"));
    let wanted = record(&reference, &[("TEST_PROMPT", "3 1 4"), ("TEST_SEED", "7")]).expect("records");
    let followed = reference.to_str().expect("plain");
    let base = [("TEST_PROMPT", "2 2"), ("TEST_SEED", "99")];
    let run = |more: &[(&str, &str)]| record(&own, &[&base[..], more].concat()).expect("records");

    let free = run(&[]);
    assert_ne!(tokens(&free), tokens(&wanted));

    // Tokens alone: the draws are this run's own, and an event says what they gave.
    let forced = run(&[("TRACEKIT_FOLLOW", followed)]);
    assert_eq!(tokens(&forced), tokens(&wanted));
    assert_eq!(draws(&forced)[0], draws(&free)[0]);
    for (step, (_, _, result)) in of_kind(&forced, "step").iter().zip(draws(&forced)) {
        let token = &Value::from(ids(step, "token")[0]);
        let event = json!([{"kind": "forced", "detail": {"instead_of": result}}]);
        assert_eq!(step.metadata["events"], if *token == result { json!([]) } else { event });
    }

    let about = &forced[0].metadata["follow"];
    assert_eq!((&about["tokens"], &about["draws"], &about["trace"]), (&json!(true), &json!(false), &json!(followed)));
    assert_eq!(of_kind(&forced, "end")[0].metadata["followed"], json!({"tokens": 5}));
    assert!(free[0].metadata.get("follow").is_none());

    // Draws too: the same numbers, this run's probabilities.
    let forced = run(&[("TRACEKIT_FOLLOW", followed), ("TRACEKIT_FOLLOW_DRAWS", "1")]);
    let places = |frames: &[Frame]| draws(frames).into_iter().map(|(seed, at, _)| (seed, at)).collect::<Vec<_>>();
    assert_eq!(places(&forced), places(&wanted));
    assert_eq!(places(&wanted)[4], (json!(7), json!(96)));

    // The prompt too: nothing is left that could differ.
    let all = [("TRACEKIT_FOLLOW", followed), ("TRACEKIT_FOLLOW_DRAWS", "1"), ("TRACEKIT_FOLLOW_INPUTS", "1")];
    let forced = run(&all);
    assert_eq!(draws(&forced), draws(&wanted));
    assert_eq!(ids(of_kind(&forced, "sequence")[0], "prompt/token_ids"), [3, 1, 4]);
    let logits = |frames: &[Frame]| -> Vec<Vec<u8>> {
        of_kind(frames, "step").iter().map(|step| step.tensor("logits").expect("logits").data.clone()).collect()
    };
    assert_eq!(logits(&forced), logits(&wanted));

    // A setting that means nothing: the run is what it is without, and says so.
    let odd = run(&[("TRACEKIT_FOLLOW", followed), ("TRACEKIT_FOLLOW_DRAWS", "yes")]);
    assert_eq!(tokens(&odd), tokens(&free));
    let why = odd[0].metadata["follow"]["failed"].as_str().expect("why");
    assert_eq!(why, "TRACEKIT_FOLLOW_DRAWS is \"yes\"; use 1 or 0");
    std::fs::remove_file(&reference).expect("removable");
    std::fs::remove_file(&own).expect("removable");
}

fn write_steps(path: &Path, draws: &[Value], token: i64) {
    let mut writer = Writer::create(path).expect("writable");
    let own = |value: Value| value.as_object().cloned().expect("an object");
    let speech = [1f32, 2.0].map(f32::to_le_bytes).concat();
    let prompt = TensorRef::new("prompt/speech", Dtype::F32, &[2], &speech);
    writer.frame("open", &own(json!({"format": 1, "implementation": "test"})), &[]).expect("written");
    writer.frame("sequence", &own(json!({"sequence": 0})), &[prompt]).expect("written");
    for (index, draw) in draws.iter().enumerate() {
        let (id, value) = (token.to_le_bytes(), 0.25f64.to_le_bytes());
        let tensors =
            [TensorRef::new("token", Dtype::I64, &[1], &id), TensorRef::new("draw/value", Dtype::F64, &[1], &value)];
        let step = own(json!({"sequence": 0, "step": index, "position": index, "draws": [draw]}));
        writer.frame("step", &step, &tensors).expect("written");
    }
}

fn draw(seed: Value, offset: Value, generator: &str) -> Value {
    json!({"op": "multinomial", "generator": generator, "seed": seed, "offset": offset, "words": 4, "result": 3})
}

#[test]
fn the_generator_is_put_where_the_references_stood() {
    let path = log_path("place");
    let far = draw(json!(-1), json!(2000), "mt19937");
    write_steps(&path, &[draw(json!(5), json!(10), "mt19937"), draw(json!(5), json!(3), "mt19937"), far], 3);
    let tokens_only = Follow::open(&path).expect("sound");
    let follow = tokens_only.clone().forcing(true, false);
    std::fs::remove_file(&path).expect("removable");
    let mut rng = TorchRng::seed(8);
    tokens_only.place(0, 0, &mut rng).expect("nothing to do");
    assert_eq!((rng.initial_seed(), rng.offset()), (8, 0));
    // On, back, and to another seed (torch takes -1 for 2^64 - 1); behind the end it stays.
    for (step, seed, offset) in [(0, 5, 10), (1, 5, 3), (2, u64::MAX, 2000), (3, u64::MAX, 2001)] {
        follow.place(0, step, &mut rng).expect("it knows where");
        assert_eq!((rng.initial_seed(), rng.offset()), (seed, offset));
        let mut walked = TorchRng::seed(seed);
        walked.skip(offset);
        assert_eq!(rng.next_u32(), walked.next_u32());
    }
    assert_eq!((follow.steps(0), follow.steps(1)), (3, 0));
    assert_eq!(follow.draws(0, 1)[0].value, Some(0.25));
    assert_eq!(follow.input(0, "speech").map(|tensor| tensor.shape.as_slice()), Some(&[2][..]));
    assert_eq!(follow.input(0, "embedding"), None);
}

#[test]
fn what_cannot_be_followed_is_said() {
    let path = log_path("odd");
    for (row, said) in [
        (
            draw(json!(5), json!(0), "philox"),
            "sequence 0, step 0: its draw comes from philox; record the reference with",
        ),
        (draw(json!(5), Value::Null, "mt19937"), "unknown place"),
        (draw(json!(5), json!(1u64 << 60), "mt19937"), "out of reach"),
    ] {
        write_steps(&path, &[row], 3);
        let follow = Follow::open(&path).expect("sound").forcing(true, true);
        let error = follow.place(0, 0, &mut TorchRng::seed(0)).expect_err("refused").to_string();
        assert!(error.contains(said), "{error}");
    }
    for id in [-1, 1 << 40] {
        write_steps(&path, &[draw(json!(5), json!(0), "mt19937")], id);
        let error = Follow::open(&path).expect_err("refused").to_string();
        assert!(error.contains(&format!("token: {id} is no token id")), "{error}");
    }
    std::fs::write(&path, b"TKL1").expect("writable");
    assert!(Follow::open(&path).expect_err("refused").to_string().contains("is no log to follow"));
    std::fs::remove_file(&path).expect("removable");
}
