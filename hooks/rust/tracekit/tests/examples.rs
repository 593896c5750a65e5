//! The example programs, as a user runs them: the same tokens recorded or not, and a log that holds what they say.

use std::path::PathBuf;
use std::process::Command;

use tracekit::log::{self, Frame};

/// What an example prints, and the frames of its log. `cargo test` builds the examples beside the tests.
fn run(name: &str) -> Vec<Frame> {
    let own = std::env::current_exe().expect("a path");
    let program = own.parent().and_then(|deps| deps.parent()).expect("a target folder").join("examples").join(name);
    let path: PathBuf = std::env::temp_dir().join(format!("tracekit-{name}-{}.tklog", std::process::id()));
    let print = |command: &mut Command| {
        let done = command.output().expect("cargo test without --test builds the examples");
        assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    };
    let plain = print(Command::new(&program).env_remove("TRACEKIT_LOG"));
    assert_eq!(print(Command::new(&program).env("TRACEKIT_LOG", &path)), plain);
    let contents = log::read(&path).expect("readable");
    std::fs::remove_file(&path).expect("removable");
    assert_eq!(contents.damage, None);
    contents.frames
}

fn count(frames: &[Frame], kind: &str) -> usize {
    frames.iter().filter(|frame| frame.kind == kind).count()
}

#[test]
fn a_language_model_records_itself() {
    let frames = run("record_candle");
    assert_eq!((count(&frames, "sequence"), count(&frames, "step")), (1, 12));
}

#[test]
fn a_loop_of_its_own_is_recorded() {
    let frames = run("own_loop");
    assert_eq!(count(&frames, "sequence"), 2);
    let rows: Vec<_> = frames.iter().filter(|frame| frame.kind == "sites").flat_map(sites).collect();
    for name in ["inputs_embeds", "norm:in", "norm", "up_proj", "down_proj", "speech_head"] {
        let row = rows.iter().rfind(|row| row["name"] == name).unwrap_or_else(|| panic!("{name} is not there"));
        assert_eq!((row.get("skipped"), row.get("unnamed")), (None, None), "{row}");
    }
    let head = rows.iter().find(|row| row["name"] == "speech_head").expect("it is there");
    assert_eq!(head["parameters"]["weight"], "speech_head.weight");
    // The first call is of six positions; its head is at the last.
    let calls: Vec<_> = frames.iter().filter(|frame| frame.kind == "call").collect();
    let place = |frame: &Frame| (frame.metadata["position"].as_u64(), frame.metadata["rows"].as_u64());
    assert_eq!((place(calls[0]), place(calls[1])), ((Some(0), Some(6)), (Some(5), Some(1))));
    assert!(calls[0].tensor("norm").is_some() && calls[1].tensor("speech_head").is_some());
    let draws: Vec<_> =
        frames.iter().filter(|frame| frame.kind == "step").map(|frame| &frame.metadata["draws"][0]).collect();
    for (index, draw) in draws.iter().enumerate() {
        assert_eq!((draw["generator"].as_str(), draw["offset"].as_u64()), (Some("lcg64"), Some(index as u64)));
    }
}

fn sites(frame: &Frame) -> Vec<serde_json::Value> {
    frame.metadata["sites"].as_array().cloned().unwrap_or_default()
}
