//! Stores as a whole: written, opened, packed, and damaged in every way.

#![allow(clippy::unwrap_used, reason = "a test may stop")]

use std::fs;
use std::path::Path;

use _data_rs::encode::{Conversation, Rendered};
use _data_rs::options::{ReadOptions, WriteOptions};
use _data_rs::pack::pack;
use _data_rs::pairs::{Pairs, read_all};
use _data_rs::read::Source;
use _data_rs::store::{Store, StoreWriter};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64;

/// Words are tokens: letters a to f are 0 to 5, and <s> is special.
fn tokenizer() -> String {
    let vocab: Map<String, Value> = ["a", "b", "c", "d", "e", "f", "?", "<s>"]
        .iter()
        .zip(0..)
        .map(|(word, id)| ((*word).into(), json!(id)))
        .collect();
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
        "decoder": null, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "?"},
        "added_tokens": [{"id": 7, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
    })
    .to_string()
}

fn pairs(count: usize) -> Pairs {
    let rows: Vec<String> = (0..count)
        .map(|row| json!({"prompt": format!("p{row}"), "chosen": "x", "rejected": "y", "id": row}).to_string())
        .collect();
    read_all(Source::Bytes(rows.join("\n").into_bytes()), ReadOptions::default()).unwrap()
}

#[allow(clippy::unnecessary_wraps, reason = "what the writer takes")]
fn group(prompt: &str, responses: [&str; 2]) -> Rendered {
    let conversation = |response: &str| Conversation { text: format!("{prompt}{response}"), boundary: prompt.len() };
    Ok(responses.map(conversation).into())
}

fn write(directory: &Path, options: &str, groups: &[Rendered]) -> Result<String, String> {
    let pairs = pairs(groups.len());
    let options = WriteOptions::from_json(options).unwrap();
    let mut writer = StoreWriter::create(directory, &tokenizer(), options).map_err(|error| error.to_string())?;
    writer.begin(&pairs, 0, groups.len()).map_err(|error| error.to_string())?;
    writer.append(&pairs, 0, groups).map_err(|error| error.to_string())?;
    writer.finish(Map::from_iter([("identity".to_owned(), json!("x"))])).map_err(|error| error.to_string())
}

fn sample(directory: &Path) {
    let groups = [group("<s> a b ", ["c d", "c e f"]), group("", ["a", "b"]), group("a ", ["b", "b c"])];
    write(directory, "{}", &groups).unwrap();
}

#[test]
fn a_pack_holds_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("store");
    sample(&directory);
    let store = Store::open(&directory).unwrap();
    assert_eq!(store.costs(), [7, 2, 4]);
    let pack = pack(&store, &[2, 0], &[1.0, 0.0]).unwrap();
    assert_eq!(pack.input_ids, [0, 1, 1, 2, 7, 0, 1, 2, 3, 4, 5]);
    assert_eq!(pack.bounds, [0, 1, 2, 4, 8, 9, 11]);
    assert_eq!(pack.positions, [0, 1, 1, 2, 0, 1, 2, 3, 4, 4, 5]);
    assert_eq!((pack.prefix, pack.responses), (vec![-1, 0, 0, -1, 3, 3], vec![1, 2, 4, 5]));
    assert_eq!((pack.last, pack.group), (vec![1, 3, 8, 10], vec![0, 0, 1, 1]));
    assert_eq!(pack.source, [0, 0, 2, 6, 7, 6, 7, 9]);
    assert_eq!(pack.target, [1, 1, 2, 2, 3, 2, 4, 5]);
    assert_eq!(pack.response, [0, 1, 1, 2, 2, 3, 3, 3]);
    assert_eq!((pack.better, pack.worse), (vec![0, 2], vec![1, 3]));
    assert_eq!(pack.row, [3, 1]);
    assert_eq!(store.rows().unwrap()[2].id, "2");
    assert!(_data_rs::pack::pack(&store, &[3], &[1.0]).is_err());
}

#[test]
fn long_prompts_are_cut_behind_a_special_token() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("store");
    let groups =
        [group("<s> a b ", ["c d", "c e f"]), group("a ", ["a b c d", "a b c d e"]), group("a b ", ["c", "d"])];
    let report = write(&directory, r#"{"max_length": 4, "on_overlong": "truncate_prompt"}"#, &groups).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["refused"], json!({"over_length": [2]}));
    let pack = pack(&Store::open(&directory).unwrap(), &[0], &[1.0]).unwrap();
    assert_eq!((pack.input_ids, pack.bounds), (vec![7, 2, 3, 4, 5], vec![0, 2, 3, 5]));
    let error =
        write(&folder.path().join("other"), r#"{"max_length": 4, "on_overlong": "raise"}"#, &groups).unwrap_err();
    assert!(error.starts_with("<bytes>:1: more tokens than max_length; raise max_length or"), "{error}");
}

#[test]
fn a_second_store_is_not_written_over_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("store");
    fs::create_dir(&directory).unwrap();
    sample(&directory);
    sample(&directory);
    let error = write(&directory, "{}", &[group("a ", ["b", "c"])]).unwrap_err();
    assert!(error.ends_with("holds a store of other data, tokenizer or options; remove it or name another folder"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_a_dead_builder_left_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    for name in [".store.tmp-1-0", ".other.tmp-1-0", ".store.tmp-2-0"] {
        fs::create_dir(place(name)).unwrap();
    }
    let alive = fs::File::create(place(".store.tmp-2-0.lock")).unwrap();
    alive.lock().unwrap();
    fs::write(place(".store.tmp-3-0.lock"), "").unwrap();
    sample(&place("store"));
    let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".other.tmp-1-0", ".store.tmp-2-0", ".store.tmp-2-0.lock", "store"]);
}

const FILES: [&str; 6] = ["tokens.bin", "segments.bin", "groups.bin", "starts.bin", "comparisons.bin", "rows.jsonl"];

#[test]
fn a_damaged_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("store");
    sample(&directory);
    for name in FILES {
        let path = directory.join(name);
        let bytes = fs::read(&path).unwrap();
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        for damaged in [&bytes[..bytes.len() - 1], &[], &flipped] {
            fs::write(&path, damaged).unwrap();
            let error = Store::open(&directory).unwrap_err().to_string();
            assert!(error.starts_with(path.to_str().unwrap()), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(Store::open(&directory).unwrap_err().to_string().contains(&format!("{name}: is missing")));
        fs::write(&path, bytes).unwrap();
    }
    Store::open(&directory).unwrap();
}

/// Put other bytes into a file, with a manifest that says that they are right.
fn forge(directory: &Path, name: &str, bytes: &[u8]) {
    let path = directory.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["files"][name] = json!({"bytes": bytes.len(), "xxh3": format!("{:016x}", xxh3_64(bytes))});
    fs::write(&path, manifest.to_string()).unwrap();
    fs::write(directory.join(name), bytes).unwrap();
}

/// A store that opens can be used.
fn use_all(directory: &Path) {
    if let Ok(store) = Store::open(directory) {
        let groups: Vec<i64> = (0..i64::try_from(store.groups()).unwrap()).collect();
        pack(&store, &groups, &vec![1.0; groups.len()]).unwrap();
        store.rows().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn forged_files_are_no_panic(file in 0usize..6, edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in 0usize..20) {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("store");
        sample(&directory);
        let mut bytes = fs::read(directory.join(FILES[file])).unwrap();
        for (place, byte) in edits {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()) / 8 * 8);
        forge(&directory, FILES[file], &bytes);
        use_all(&directory);
    }

    #[test]
    fn forged_manifests_are_no_panic(groups: u64, responses: u64, comparisons: u64, tokens: u64, large in 0usize..16) {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("store");
        sample(&directory);
        let path = directory.join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (bit, (name, value)) in [("groups", groups), ("responses", responses), ("comparisons", comparisons), ("tokens", tokens)].into_iter().enumerate() {
            if large >> bit & 1 == 1 {
                manifest["counts"][name] = json!(value);
            }
        }
        fs::write(&path, manifest.to_string()).unwrap();
        use_all(&directory);
    }

    #[test]
    fn manifests_of_any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("manifest.json"), bytes).unwrap();
        prop_assert!(Store::open(folder.path()).is_err());
    }
}

#[test]
fn counts_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("store");
    sample(&directory);
    forge(&directory, "groups.bin", &[]);
    let error = Store::open(&directory).unwrap_err().to_string();
    assert!(error.contains("groups.bin: does not have the length"), "{error}");
    let path = directory.join("manifest.json");
    let manifest = fs::read_to_string(&path).unwrap().replace("\"schema\":1", "\"schema\":2");
    fs::write(&path, manifest).unwrap();
    let error = Store::open(&directory).unwrap_err().to_string();
    assert!(error.contains("has schema 2, this version reads schema 1"), "{error}");
}
