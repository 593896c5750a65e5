//! Logs of any content come back as they were written; damaged ones never panic and never cost more than their size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{json, Map, Value};
use tracekit::log::{self, Dtype, TensorRef, Writer};

/// Counts what this thread holds, so that a test can bound what reading takes.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The largest amount of memory that `act` held at once.
fn most_held(act: impl FnOnce()) -> usize {
    let before = HELD.with(Cell::get);
    MOST.with(|most| most.set(before));
    act();
    (MOST.with(Cell::get) - before) as usize
}

const DTYPES: [Dtype; 15] = [
    Dtype::Bool,
    Dtype::U8,
    Dtype::I8,
    Dtype::U16,
    Dtype::I16,
    Dtype::U32,
    Dtype::I32,
    Dtype::U64,
    Dtype::I64,
    Dtype::F16,
    Dtype::Bf16,
    Dtype::F32,
    Dtype::F64,
    Dtype::F8E4M3,
    Dtype::F8E5M2,
];

#[derive(Clone, Debug)]
struct Content {
    kind: String,
    metadata: Map<String, Value>,
    tensors: Vec<(String, log::Tensor)>,
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i16>().prop_map(|n| json!(f64::from(n) / 64.0)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let list = vec(prop_oneof![Just(Value::Null), inner.clone()], 0..4).prop_map(Value::from);
        let object = btree_map(any::<String>(), inner, 0..4);
        prop_oneof![list, object.prop_map(|map| map.into_iter().collect())]
    })
}

fn tensor() -> impl Strategy<Value = log::Tensor> {
    (0..DTYPES.len(), vec(0usize..4, 0..4)).prop_flat_map(|(index, shape)| {
        let dtype = DTYPES[index];
        let length = shape.iter().product::<usize>() * dtype.size();
        let shape = Just(shape);
        (shape, vec(any::<u8>(), length)).prop_map(move |(shape, data)| log::Tensor::new(dtype, shape, data))
    })
}

fn content() -> impl Strategy<Value = Content> {
    let own = |name: &String| !["kind", "__metadata__", "__pad__"].contains(&name.as_str());
    let metadata = btree_map(any::<String>().prop_filter("taken", own), value(), 0..4);
    let tensors = btree_map(any::<String>().prop_filter("taken", own), tensor(), 0..4);
    (any::<String>(), metadata, tensors).prop_map(|(kind, metadata, tensors)| Content {
        kind,
        metadata: metadata.into_iter().collect(),
        tensors: tensors.into_iter().collect(),
    })
}

/// The log's bytes, and where each frame ends.
fn written(contents: &[Content]) -> (Vec<u8>, Vec<usize>) {
    let path: PathBuf = std::env::temp_dir().join(format!(
        "tracekit-any-{}-{:?}.tklog",
        std::process::id(),
        std::thread::current().id()
    ));
    let mut writer = Writer::create(&path).expect("writable");
    let mut ends = vec![0];
    for Content { kind, metadata, tensors } in contents {
        let refs: Vec<TensorRef<'_>> = tensors
            .iter()
            .map(|(name, tensor)| TensorRef::new(name, tensor.dtype, &tensor.shape, &tensor.data))
            .collect();
        writer.frame(kind, metadata, &refs).expect("writable");
        ends.push(std::fs::metadata(&path).expect("there").len() as usize);
    }
    let data = std::fs::read(&path).expect("readable");
    std::fs::remove_file(&path).expect("removable");
    (data, ends)
}

fn same(frame: &log::Frame, content: &Content) -> bool {
    let mut tensors = frame.tensors.clone();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    frame.kind == content.kind && frame.metadata == content.metadata && tensors == content.tensors
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(contents in vec(content(), 0..4)) {
        let (data, _) = written(&contents);
        let read = log::parse(&data);
        prop_assert_eq!(&read.damage, &None);
        prop_assert_eq!(read.frames.len(), contents.len());
        for (frame, content) in read.frames.iter().zip(&contents) {
            prop_assert!(same(frame, content), "{:?} {:?}", frame, content);
        }
    }

    #[test]
    fn a_log_cut_at_any_byte_gives_its_whole_frames(contents in vec(content(), 1..4)) {
        let (data, ends) = written(&contents);
        for length in 0..data.len() {
            let read = log::parse(&data[..length]);
            let whole = ends.iter().filter(|&&end| end <= length).count() - 1;
            prop_assert_eq!(read.frames.len(), whole);
            prop_assert_eq!(read.damage.is_some(), !ends.contains(&length));
            prop_assert!(read.frames.iter().zip(&contents).all(|(frame, content)| same(frame, content)));
        }
    }

    #[test]
    fn one_bit_flipped_ends_the_reading_there(
        contents in vec(content(), 1..3), place in any::<prop::sample::Index>(), bit in 0..8,
    ) {
        let (mut data, ends) = written(&contents);
        let place = place.index(data.len());
        data[place] ^= 1u8 << bit;
        let read = log::parse(&data);
        prop_assert!(read.damage.is_some());
        prop_assert_eq!(read.frames.len(), ends.iter().filter(|&&end| end <= place).count() - 1);
    }

    /// With the hash set to "not hashed", so that what lies behind it is reached.
    #[test]
    fn corrupt_bytes_neither_panic_nor_take_memory(
        contents in vec(content(), 1..3),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (mut data, ends) = written(&contents);
        for &end in &ends[..ends.len() - 1] {
            data[end + 16..end + 24].fill(0);
        }
        for (place, byte) in changes {
            let place = place.index(data.len());
            data[place] = byte;
        }
        let bound = bound(data.len());
        let held = most_held(|| drop(log::parse(&data)));
        prop_assert!(held <= bound, "{} bytes held for a log of {}", held, data.len());
    }
}

/// A parsed header takes more than its text: a number of one digit becomes a JSON value, and lists grow by doubling.
fn bound(length: usize) -> usize {
    128 * length + 4096
}

/// An unhashed frame around a header and data.
fn frame(header: &str, data: &[u8]) -> Vec<u8> {
    let mut header = header.to_string();
    header.push_str(&" ".repeat(header.len().wrapping_neg() % 8));
    let mut out = b"TKL1\0\0\0\0".to_vec();
    out.extend(((8 + header.len() + data.len()) as u64).to_le_bytes());
    out.extend([0; 8]);
    out.extend((header.len() as u64).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

#[test]
fn lengths_beyond_the_file_cost_nothing() {
    let sound = frame(r#"{"__metadata__":{"kind":"end"}}"#, &[0; 8]);
    assert_eq!(log::parse(&sound).frames.len(), 1);
    for place in [8, 24] {
        for length in [u64::MAX, u64::MAX - 7, 1 << 62, 1 << 40, (sound.len() as u64 + 7) & !7] {
            let mut data = sound.clone();
            data[place..place + 8].copy_from_slice(&length.to_le_bytes());
            let held = most_held(|| assert!(log::parse(&data).damage.is_some()));
            assert!(held <= bound(data.len()), "{held}");
        }
    }
}

#[test]
fn shapes_beyond_the_data_cost_nothing() {
    for shape in ["[1099511627776]", "[4294967296,4294967296,2]", "[18446744073709551615]", "[-1]", "[1.5]", "8", "[9]"]
    {
        let header =
            format!(r#"{{"__metadata__":{{"kind":"x"}},"a":{{"dtype":"U8","shape":{shape},"data_offsets":[0,8]}}}}"#);
        let data = frame(&header, &[0; 8]);
        let held = most_held(|| assert!(log::parse(&data).damage.is_some(), "{shape}"));
        assert!(held <= bound(data.len()), "{shape}: {held}");
    }
}

#[test]
fn tensors_that_share_bytes_are_not_copied_each() {
    let data = vec![7u8; 1 << 16];
    let entry = |i: usize| format!(r#","t{i}":{{"dtype":"U8","shape":[65536],"data_offsets":[0,65536]}}"#);
    let entries: String = (0..1000).map(entry).collect();
    let hostile = frame(&format!(r#"{{"__metadata__":{{"kind":"x"}}{entries}}}"#), &data);
    let held = most_held(|| {
        let damage = log::parse(&hostile).damage.expect("refused");
        assert!(damage.contains("overlaps"), "{damage}");
    });
    assert!(held < 2 << 20, "{held}");
}

#[test]
fn deep_nesting_is_refused() {
    let deep = "[".repeat(100_000);
    for header in [deep.clone(), format!(r#"{{"__metadata__":{{"kind":"x","m":"{deep}"}}}}"#)] {
        assert!(log::parse(&frame(&header, &[])).damage.is_some());
    }
}

#[test]
fn a_frame_that_no_reader_takes_is_not_written() {
    let path = std::env::temp_dir().join(format!("tracekit-refused-{}.tklog", std::process::id()));
    let mut writer = Writer::create(&path).expect("writable");
    let none = Map::new();
    let tensor = |name, shape, data| TensorRef::new(name, Dtype::F32, shape, data);
    for refused in
        [tensor("a", &[2], &[0u8; 7]), tensor("__pad__", &[1], &[0; 4]), tensor("__metadata__", &[1], &[0; 4])]
    {
        assert!(writer.frame("call", &none, &[refused]).is_err());
    }
    let kind = json!({"kind": "other"}).as_object().cloned().expect("an object");
    assert!(writer.frame("call", &kind, &[]).is_err());
    assert_eq!(std::fs::metadata(&path).expect("there").len(), 0);
    std::fs::remove_file(&path).expect("removable");
}
