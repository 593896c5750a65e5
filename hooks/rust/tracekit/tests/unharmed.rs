//! Whatever becomes of the recording, the program that is recorded gives the same tokens and the same exit code; and a log
//! is written by one process, once.

#![cfg(unix)]

mod tiny;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor};
use serde_json::json;
use tiny::{generate, ids, log_path, of_kind, tokens};
use tracekit::log::{read, Contents, Dtype};
use tracekit::sampling::Draw;
use tracekit::{Generation, Step};

const PROMPT: [u32; 4] = [3, 1, 4, 1];
const SEED: u64 = 7;

/// The programs that the tests below run, each in a process of its own.
#[test]
#[ignore = "run by the tests below, as a process that records"]
fn program() {
    match std::env::var("TEST_PROGRAM").expect("which").as_str() {
        "plain" => generates(),
        "sigpipe" => {
            // SAFETY: nothing else runs in this process yet.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            generates();
        }
        "long" => (0..40).for_each(|_| generates()),
        "parent" => {
            generates();
            for moment in ["open", "closed"] {
                let child = child_of_this("plain").status().expect("it starts");
                assert!(child.success(), "{moment}");
                tracekit::close().expect("always");
            }
        }
        "forks" => forks(),
        "closes" => closes(),
        "threads" => threads(),
        "turns" => turns().expect("generates"),
        "raw" => raw(),
        "elsewhere" => elsewhere(),
        other => panic!("{other}"),
    }
    tracekit::close().expect("always");
}

fn generates() {
    println!("tokens {:?}", generate(&PROMPT, SEED).expect("generates"));
}

fn forks() {
    generates();
    // SAFETY: the child taps and leaves; it takes no lock of this process.
    let child = unsafe { libc::fork() };
    if child == 0 {
        tracekit::sequence(&[1]).expect("always");
        tap("child", 2);
        tracekit::close().expect("always");
        // SAFETY: ends the child without running what belongs to its parent.
        unsafe { libc::_exit(0) };
    }
    let mut status = 1;
    // SAFETY: the child is this process' own.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
    generates();
}

/// Threads tap while the log is closed, and go on.
fn closes() {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    tap("busy", 1);
                }
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        tracekit::close().expect("always");
        std::thread::sleep(std::time::Duration::from_millis(20));
        over.store(true, Ordering::Relaxed);
    });
}

fn threads() {
    let both = [(PROMPT.to_vec(), SEED), (vec![2, 2], 99)];
    let barrier = std::sync::Barrier::new(both.len());
    std::thread::scope(|scope| {
        for (prompt, seed) in &both {
            scope.spawn(|| {
                barrier.wait();
                tracekit::sequence(prompt).expect("always");
                generate(prompt, *seed).expect("generates");
                tracekit::end_sequence("length").expect("always");
            });
        }
    });
}

/// As a function of candle's says it: what this crate gives is passed on with `?`.
fn turns() -> candle_core::Result<()> {
    let generations = [Generation::start(&[1, 2]), Generation::start(&[3])];
    for turn in 0..3usize {
        for (index, generation) in generations.iter().enumerate() {
            let _inside = generation.enter();
            let (position, rows) = if turn == 0 { (0, 2 - index) } else { (1 - index + turn, 1) };
            tracekit::forward(position, rows)?;
            let value = (10 * index + turn) as f32;
            tracekit::tap("embed", &Tensor::full(value, (1, rows, 3), &Device::Cpu)?)?;
            let token = tracekit::next_token(Step::new(value as u32))?;
            assert_eq!(token, value as u32);
        }
    }
    let [first, second] = generations;
    second.end("stop");
    drop(first);
    tracekit::close()?;
    Ok(())
}

/// A loop that never says `sequence`, and draws from a generator that nobody seeded.
fn raw() {
    for token in 0..3 {
        let draws = [Draw::unseeded("weighted_index", "thread_rng", token)];
        tracekit::step(Step::new(token).draws(&draws)).expect("always");
    }
}

/// `sequence` on one thread, the model on another.
fn elsewhere() {
    tracekit::sequence(&[1]).expect("always");
    std::thread::scope(|scope| {
        scope.spawn(|| tap("embed", 1)).join().expect("joined");
    });
    let generation = Generation::start(&[1]);
    std::thread::scope(|scope| {
        let work = || {
            let _inside = generation.enter();
            tap("embed", 1);
        };
        scope.spawn(work).join().expect("joined");
    });
}

fn tap(name: &str, rows: usize) {
    tracekit::tap_raw(name, Dtype::U8, &[rows, 1], &vec![0; rows]).expect("always");
}

fn child_of_this(program: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().expect("a path"));
    child.args(["--ignored", "--exact", "program", "--nocapture"]).env("TEST_PROGRAM", program);
    child
}

fn run(program: &str, log: &Path) -> Output {
    child_of_this(program).env("TRACEKIT_LOG", log).output().expect("it starts")
}

fn limited(mut child: Command, bytes: u64) -> Output {
    // SAFETY: setrlimit may be called between fork and exec.
    unsafe {
        child.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    };
    child.output().expect("it starts")
}

/// Lines in which the program printed its tokens.
fn printed(output: &Output) -> Vec<String> {
    // The test harness prints on the same line.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split('\n').filter_map(|line| line.split_once("tokens ")).map(|(_, said)| said.to_string()).collect()
}

fn said(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stderr).lines().map(str::to_string).collect()
}

fn unrecorded(program: &str) -> Vec<String> {
    let output = child_of_this(program).env_remove("TRACEKIT_LOG").output().expect("it starts");
    assert!(output.status.success() && said(&output).is_empty(), "{output:?}");
    printed(&output)
}

fn sound(path: &Path) -> Contents {
    let contents = read(path).expect("readable");
    assert_eq!(contents.damage, None);
    contents
}

fn scratch(name: &str) -> PathBuf {
    let path = log_path(name);
    let _ = std::fs::remove_file(&path);
    path
}

#[test]
fn a_log_that_cannot_be_written_changes_no_token_and_is_said_once() {
    let wanted = unrecorded("plain");
    let letter = scratch("letter");
    std::fs::write(&letter, "Dear reader").expect("written");
    let places = [
        (Path::new("/dev/full"), "No space left on device"),
        (Path::new("/no/such/folder/x.tklog"), "No such file or directory"),
        (Path::new("/"), "Is a directory"),
        (&letter, "is not a log and is not overwritten"),
    ];
    for (path, why) in places {
        let output = run("plain", path);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(printed(&output), wanted, "{path:?}");
        let lines = said(&output);
        assert!(lines.len() == 1 && lines[0].starts_with("tracekit: recording stopped, the program goes on: "));
        assert!(lines[0].contains(why) && lines[0].contains(&*path.to_string_lossy()), "{lines:?}");
    }
    assert_eq!(std::fs::read(&letter).expect("there"), b"Dear reader");
    std::fs::remove_file(&letter).expect("removable");
}

#[test]
fn a_setting_that_means_nothing_changes_no_token() {
    let path = scratch("setting");
    for (name, value) in [("TRACEKIT_LEVEL", "most"), ("TRACEKIT_SITES", "("), ("TRACEKIT_LOGITS", "-1")] {
        let output = child_of_this("plain").env("TRACEKIT_LOG", &path).env(name, value).output().expect("it starts");
        assert!(output.status.success() && printed(&output) == unrecorded("plain"), "{output:?}");
        assert!(said(&output).len() == 1 && said(&output)[0].contains(name), "{output:?}");
    }
    assert!(!path.exists());
}

#[test]
fn a_trace_that_cannot_be_followed_changes_no_token() {
    let path = scratch("unfollowed");
    let output = child_of_this("plain")
        .env("TRACEKIT_LOG", &path)
        .env("TRACEKIT_FOLLOW", "/no/such/trace.tklog")
        .output()
        .expect("it starts");
    assert!(output.status.success() && printed(&output) == unrecorded("plain"), "{output:?}");
    assert!(said(&output).len() == 1 && said(&output)[0].contains("is not followed: /no/such/trace.tklog"));
    let frames = sound(&path).frames;
    assert!(frames[0].metadata["follow"]["failed"].as_str().expect("why").contains("/no/such/trace.tklog"));
    assert_eq!(frames[0].metadata["follow"]["tokens"], json!(false));
    assert_eq!(of_kind(&frames, "trouble").len(), 1);
    assert_eq!(of_kind(&frames, "step").len(), 5);
    std::fs::remove_file(&path).expect("removable");
}

#[test]
fn a_disk_that_fills_up_leaves_whole_frames_and_the_reason() {
    let wanted = unrecorded("long");
    let path = scratch("full");
    let whole = run("long", &path);
    assert_eq!(printed(&whole), wanted);
    let length = std::fs::metadata(&path).expect("there").len();
    let mut explained = 0;
    for part in 1..12 {
        let limit = length * part / 12;
        let mut child = child_of_this("long");
        child.env("TRACEKIT_LOG", &path);
        let output = limited(child, limit);
        assert!(output.status.success() && printed(&output) == wanted, "{output:?}");
        assert!(said(&output).len() == 1 && said(&output)[0].contains("File too large"), "{output:?}");
        let frames = sound(&path).frames;
        let last = frames.last().expect("a frame");
        assert!(!frames.iter().any(|frame| frame.kind == "end" && frame.metadata["scope"] == "file"));
        if last.kind == "trouble" {
            assert!(last.metadata["detail"].as_str().expect("why").contains("File too large"));
            explained += 1;
        }
    }
    // The reason takes some 300 bytes; a limit just behind a frame leaves no room for it.
    assert!(explained >= 6, "{explained}");
    std::fs::remove_file(&path).expect("removable");
}

#[test]
fn a_stderr_that_is_gone_ends_nothing() {
    let wanted = unrecorded("plain");
    for program in ["plain", "sigpipe"] {
        // Closed: a descriptor that is none.
        let mut child = child_of_this(program);
        child.env("TRACEKIT_LOG", "/dev/full");
        // SAFETY: close may be called between fork and exec.
        unsafe {
            child.pre_exec(|| {
                libc::close(libc::STDERR_FILENO);
                Ok(())
            })
        };
        let output = child.stderr(Stdio::inherit()).output().expect("it starts");
        assert!(output.status.success() && printed(&output) == wanted, "{output:?}");
        // A pipe that nobody reads from.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut child = child_of_this(program);
        let output = child.env("TRACEKIT_LOG", "/dev/full").stderr(writer).output().expect("it starts");
        assert!(output.status.success() && printed(&output) == wanted, "{output:?}");
    }
}

#[test]
fn a_child_that_inherits_the_variable_leaves_the_log_alone() {
    let path = scratch("parent");
    let output = run("parent", &path);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(printed(&output), vec![unrecorded("plain")[0].clone(); 3]);
    let lines = said(&output);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("is written by another process") && line.contains("TRACEKIT_LOG")));
    let frames = sound(&path).frames;
    assert_eq!((of_kind(&frames, "open").len(), of_kind(&frames, "step").len()), (1, 5));
    assert_eq!(frames.last().expect("a frame").metadata["scope"], "file");

    // Set by hand, the next run replaces it; in one run of `tracekit record`, a second process does not.
    let bytes = std::fs::read(&path).expect("there");
    let second =
        child_of_this("plain").env("TRACEKIT_LOG", &path).env("TRACEKIT_LOG_IS_NEW", "1").output().expect("it starts");
    assert!(second.status.success() && said(&second)[0].contains("was written by another process of this run"));
    assert_eq!(std::fs::read(&path).expect("there"), bytes);
    assert!(said(&run("turns", &path)).is_empty());
    assert_eq!(of_kind(&sound(&path).frames, "step").len(), 6);
    std::fs::remove_file(&path).expect("removable");
}

#[test]
fn a_forked_process_writes_nothing_into_its_parents_log() {
    let path = scratch("forks");
    let output = run("forks", &path);
    assert!(output.status.success(), "{output:?}");
    let lines = said(&output);
    assert!(lines.len() == 1 && lines[0].contains("which forked this one"), "{lines:?}");
    let frames = sound(&path).frames;
    assert_eq!((of_kind(&frames, "sequence").len(), of_kind(&frames, "step").len()), (1, 10));
    assert!(of_kind(&frames, "call").iter().all(|call| call.tensor("child").is_none()));
    std::fs::remove_file(&path).expect("removable");
}

#[test]
fn a_tap_during_and_after_close_leaves_the_finished_log_alone() {
    let path = scratch("closes");
    for _ in 0..10 {
        let output = run("closes", &path);
        assert!(output.status.success() && said(&output).is_empty(), "{output:?}");
        let frames = sound(&path).frames;
        let ends: Vec<usize> =
            (0..frames.len()).filter(|&at| frames[at].metadata.get("scope") == Some(&json!("file"))).collect();
        assert_eq!(ends, [frames.len() - 1]);
        // Each thread has a sequence of its own.
        assert!(of_kind(&frames, "sequence").len() <= 4 && of_kind(&frames, "call").len() > 4);
    }
    std::fs::remove_file(&path).expect("removable");
}

#[test]
fn threads_have_a_sequence_each_and_their_own_positions() {
    let path = scratch("threads");
    let output = run("threads", &path);
    assert!(output.status.success() && said(&output).is_empty(), "{output:?}");
    let frames = sound(&path).frames;
    assert_eq!(of_kind(&frames, "sequence").len(), 2);
    for sequence in of_kind(&frames, "sequence") {
        let index = &sequence.metadata["sequence"];
        let prompt = ids(sequence, "prompt/token_ids");
        let seed = if prompt == PROMPT { SEED } else { 99 };
        let own: Vec<_> =
            frames.iter().filter(|frame| frame.metadata.get("sequence") == Some(index)).cloned().collect();
        assert_eq!(tokens(&own), generate(&prompt, seed).expect("generates")[prompt.len()..]);
        let places: Vec<_> = of_kind(&own, "call").iter().map(|call| call.metadata["position"].clone()).collect();
        let wanted: Vec<_> = [0].into_iter().chain(prompt.len()..prompt.len() + 4).map(|at| json!(at)).collect();
        assert_eq!(places, wanted);
        let end = of_kind(&own, "end")[0];
        assert_eq!((&end.metadata["reason"], &end.metadata["steps"]), (&json!("length"), &json!(5)));
    }
    std::fs::remove_file(&path).expect("removable");
}

#[test]
fn generations_that_take_turns_on_a_thread_are_kept_apart() {
    let path = scratch("turns");
    let output = run("turns", &path);
    assert!(output.status.success() && said(&output).is_empty(), "{output:?}");
    let frames = sound(&path).frames;
    for (index, wanted) in [(0, [0, 1, 2]), (1, [10, 11, 12])] {
        let own: Vec<_> =
            frames.iter().filter(|frame| frame.metadata.get("sequence") == Some(&json!(index))).cloned().collect();
        assert_eq!(tokens(&own), wanted);
        let positions: Vec<_> = of_kind(&own, "step").iter().map(|step| step.metadata["position"].clone()).collect();
        assert_eq!(positions, (0..3).map(|step| json!(1 - index + step)).collect::<Vec<_>>());
        let first = &of_kind(&own, "call")[1].tensor("embed").expect("recorded").data;
        assert_eq!(first[..4], (wanted[1] as f32).to_le_bytes());
        let reason = if index == 1 { "stop" } else { "left" };
        assert_eq!(of_kind(&own, "end")[0].metadata["reason"], reason);
    }
    std::fs::remove_file(&path).expect("removable");
}

#[test]
fn steps_without_a_sequence_are_kept_and_said_once() {
    let path = scratch("raw");
    let output = run("raw", &path);
    assert!(output.status.success(), "{output:?}");
    let lines = said(&output);
    assert!(lines.len() == 1 && lines[0].contains("tracekit::step came before tracekit::sequence"), "{lines:?}");
    let frames = sound(&path).frames;
    assert_eq!(tokens(&frames), [0, 1, 2]);
    let draw = &of_kind(&frames, "step")[1].metadata["draws"][0];
    assert_eq!((&draw["generator"], &draw["seed"], &draw["result"]), (&json!("thread_rng"), &json!(null), &json!(1)));
    assert_eq!(of_kind(&frames, "trouble").len(), 1);
    std::fs::remove_file(&path).expect("removable");
}

#[test]
fn taps_of_a_thread_that_entered_nothing_are_said() {
    let path = scratch("elsewhere");
    let output = run("elsewhere", &path);
    let lines = said(&output);
    assert!(lines.len() == 1 && lines[0].contains("enter that there (tracekit::Generation)"), "{lines:?}");
    let frames = sound(&path).frames;
    let calls: Vec<_> = of_kind(&frames, "call").iter().map(|call| call.metadata["sequence"].clone()).collect();
    assert_eq!(calls, [json!(1), json!(2)]);
    std::fs::remove_file(&path).expect("removable");
}

#[test]
fn a_log_goes_through_a_device_as_well() {
    let output = run("plain", Path::new("/dev/null"));
    assert!(output.status.success() && said(&output).is_empty(), "{output:?}");
}
