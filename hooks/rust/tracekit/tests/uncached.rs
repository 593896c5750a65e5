//! A program without a cache computes all positions with each token: each is recorded as it was when it was new.

mod tiny;

use tiny::{generate, generate_uncached, go_back, log_path, of_kind, record, repeat, tokens};
use tracekit::log::Frame;

const PROMPT: [u32; 4] = [3, 1, 4, 1];
const SEED: u64 = 7;

/// First position, rows, and how many were computed again, of each call.
fn places(frames: &[Frame]) -> Vec<(u64, u64, u64)> {
    let number = |call: &Frame, key: &str| call.metadata.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let place = |call: &&Frame| (number(call, "position"), number(call, "rows"), number(call, "again"));
    of_kind(frames, "call").iter().map(place).collect()
}

fn recorded_as(kind: &str) -> Vec<Frame> {
    let path = log_path(&format!("uncached-{kind}"));
    let frames = record(&path, &[("KIND", kind)]).expect("records");
    std::fs::remove_file(&path).expect("removable");
    frames
}

#[test]
fn a_position_is_recorded_once_whether_the_program_says_where_it_stands_or_not() {
    let unrecorded = generate(&PROMPT, SEED).expect("generates");
    for kind in ["told", "unsaid"] {
        let frames = recorded_as(kind);
        assert_eq!(tokens(&frames), unrecorded[4..]);
        assert_eq!(places(&frames), [(0, 4, 0), (4, 1, 4), (5, 1, 5), (6, 1, 6), (7, 1, 7)], "{kind}");
        let steps = of_kind(&frames, "step");
        for (index, step) in steps.iter().enumerate() {
            assert_eq!(step.metadata["position"], 3 + index, "{kind}");
        }
        for call in of_kind(&frames, "call") {
            let rows = call.metadata["rows"].as_u64().expect("rows") as usize;
            assert_eq!(call.tensor("embed").expect("stored").shape, [rows, 4]);
        }
    }
}

#[test]
fn another_token_at_a_position_is_another_value() {
    let frames = recorded_as("back");
    assert_eq!(places(&frames), [(0, 4, 0), (4, 2, 0), (4, 2, 0), (6, 1, 0)]);
}

#[test]
fn one_token_over_and_over_goes_on() {
    let frames = recorded_as("repeated");
    assert_eq!(places(&frames), [(0, 1, 0), (1, 1, 0), (2, 1, 0)]);
}

#[test]
#[ignore = "run by the tests above, as a process that records"]
fn recorded() {
    match std::env::var("KIND").expect("said").as_str() {
        "back" => go_back(&PROMPT).expect("runs"),
        "repeated" => repeat(PROMPT[0]).expect("runs"),
        kind => drop(generate_uncached(&PROMPT, SEED, kind == "told").expect("generates")),
    }
    tracekit::close().expect("writable");
}
