//! A candle program that changed its `use` lines and says nothing else still gets a log that can be compared.

mod tiny;

use tiny::{generate, ids, log_path, of_kind, record, tokens, VOCABULARY};

const PROMPT: [u32; 4] = [3, 1, 4, 1];
const SEED: u64 = 7;

#[test]
fn prompt_positions_and_steps_are_found_out() {
    let unrecorded = generate(&PROMPT, SEED).expect("generates");
    let path = log_path("unsaid");
    let frames = record(&path, &[]).expect("records");
    std::fs::remove_file(&path).expect("removable");

    let open = &frames[0];
    assert_eq!((&open.metadata["seed"], &open.metadata["sampling"]["temperature"]), (&SEED.into(), &0.9.into()));
    assert_eq!((&open.metadata["dtype"], &open.metadata["device"]), (&"float32".into(), &"cpu".into()));
    let sequences = of_kind(&frames, "sequence");
    assert_eq!(sequences.len(), 1);
    assert_eq!(ids(sequences[0], "prompt/token_ids"), PROMPT);
    let steps = of_kind(&frames, "step");
    let tokens = tokens(&frames);
    assert_eq!(tokens, unrecorded[4..]);
    for (index, step) in steps.iter().enumerate() {
        assert_eq!(step.metadata["position"], 3 + index);
        assert_eq!(step.metadata["draws"][0]["offset"], 2 * VOCABULARY * index);
        assert_eq!(step.metadata["draws"][0]["result"], tokens[index]);
        assert_eq!(step.tensor("logits").expect("logits").shape, [VOCABULARY]);
    }
    let calls = of_kind(&frames, "call");
    let places: Vec<_> = calls.iter().map(|call| (&call.metadata["position"], &call.metadata["rows"])).collect();
    assert_eq!(places.len(), 5);
    assert_eq!((places[0], places[1]), ((&0.into(), &4.into()), (&4.into(), &1.into())));
    let rows = &of_kind(&frames, "sites")[0].metadata["sites"];
    assert_eq!((&rows[1]["name"], &rows[1]["input"]), (&"lm_head".into(), &"embed".into()));
}

#[test]
#[ignore = "run by the test above, as a process that records"]
fn recorded() {
    generate(&PROMPT, SEED).expect("generates");
    tracekit::close().expect("writable");
}
