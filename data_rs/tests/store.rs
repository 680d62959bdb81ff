//! Stores as a whole: written, opened, packed, and damaged in every way.

#![allow(clippy::unwrap_used, reason = "a test may stop")]

use std::fs;
use std::path::Path;

use _data_rs::encode::{Conversation, Group, Rendered, Response};
use _data_rs::error::Error;
use _data_rs::pack::pack;
use _data_rs::pairs::{Findings, Position};
use _data_rs::prepare::{Preparation, Settings};
use _data_rs::read::Source;
use _data_rs::record::{Comparison, Record};
use _data_rs::store::{Store, StoreWriter};
use _data_rs::text::Text;
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

#[allow(clippy::unnecessary_wraps, reason = "what the writer takes")]
fn group(prompt: &str, responses: [&str; 2]) -> Rendered {
    let conversation = |response: &str| Conversation { text: format!("{prompt}{response}"), boundary: prompt.len() };
    Ok(responses.map(conversation).into())
}

fn begin(directory: &Path, identity: &str, options: &str, count: usize) -> Result<Option<Preparation>, Error> {
    let rows: Vec<String> = (0..count)
        .map(|row| json!({"prompt": format!("p{row}"), "chosen": "x", "rejected": "y", "id": row}).to_string())
        .collect();
    let source = || Ok::<_, Error>(Source::Bytes(rows.join("\n").into_bytes()));
    let settings = Settings::from_json(&format!("{{\"write\": {options}, \"window\": 2}}"))?;
    Preparation::begin(source, directory, identity, &tokenizer(), settings)
}

fn write(directory: &Path, options: &str, groups: &[Rendered]) -> Result<String, Error> {
    let mut preparation = begin(directory, "x", options, groups.len())?.unwrap();
    let mut rest = groups;
    let mut render = |records: &[Record]| {
        let (now, later) = rest.split_at(records.len());
        rest = later;
        Ok::<_, Error>(now.to_vec())
    };
    let mut step = || preparation.advance(&mut render, || Ok(()));
    loop {
        match step() {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                preparation.discard();
                return Err(error);
            }
        }
    }
    preparation.finish(Map::from_iter([("identity".to_owned(), json!("x"))]))
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
    let error = write(&folder.path().join("other"), r#"{"max_length": 4, "on_overlong": "raise"}"#, &groups);
    let error = error.unwrap_err().to_string();
    assert!(!folder.path().join(".other.partial-x").exists());
    assert!(error.starts_with("<bytes>:1: more tokens than max_length; raise max_length or"), "{error}");
}

#[test]
fn a_second_store_is_not_written_over_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("store");
    fs::create_dir(&directory).unwrap();
    sample(&directory);
    let manifest = fs::read(directory.join("manifest.json")).unwrap();
    assert!(begin(&directory, "x", "{}", 1).unwrap().is_none());
    assert!(begin(&directory, "y", "{}", 1).unwrap().is_none());
    assert_eq!(fs::read(directory.join("manifest.json")).unwrap(), manifest);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn one_builder_at_a_time_and_leftovers_of_others_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    for name in [".store.partial-1", ".other.partial-1", ".store.partial-2"] {
        fs::create_dir(place(name)).unwrap();
    }
    let alive = fs::File::create(place(".store.partial-2.lock")).unwrap();
    alive.lock().unwrap();
    fs::write(place(".store.partial-3.lock"), "").unwrap();
    let first = begin(&place("store"), "x", "{}", 3).unwrap().unwrap();
    assert!(begin(&place("store"), "x", "{}", 3).unwrap().is_none());
    assert!(begin(&place("store"), "2", "{}", 3).unwrap().is_none());
    drop(first);
    sample(&place("store"));
    assert_eq!(names(folder.path()), [".other.partial-1", ".store.partial-2", ".store.partial-2.lock", "store"]);
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

fn records() -> impl Strategy<Value = Vec<(Record, Group)>> {
    let tokens = || prop::collection::vec(0..=i32::MAX, 0..5);
    let response = (prop::collection::vec(0..=i32::MAX, 1..5), any::<prop::sample::Index>());
    let number = prop_oneof![Just(0.0f32), Just(0.5), Just(1.0), Just(f32::MIN_POSITIVE)];
    let judged = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), number.clone(), number.clone(), number);
    let text = prop::option::of(any::<String>());
    let group = (
        tokens(),
        prop::collection::vec(response, 2..5),
        prop::collection::vec(judged, 1..4),
        (0..=u64::MAX / 2, any::<String>(), text.clone(), text, any::<bool>()),
    );
    prop::collection::vec(group.prop_map(record), 0..8)
}

type Judged = (prop::sample::Index, prop::sample::Index, f32, f32, f32);
type About = (u64, String, Option<String>, Option<String>, bool);

type Drawn = (Vec<i32>, Vec<(Vec<i32>, prop::sample::Index)>, Vec<Judged>, About);

fn record((prompt, responses, judged, (row, id, source, category, flipped)): Drawn) -> (Record, Group) {
    let count = responses.len();
    let comparisons = judged.into_iter().map(|(better, other, label, margin, weight)| {
        let better = better.index(count);
        let worse = (better + 1 + other.index(count - 1)) % count;
        let index = |value: usize| u32::try_from(value).unwrap();
        Comparison { row, better: index(better), worse: index(worse), label, margin: -margin, weight }
    });
    let comparisons = comparisons.collect();
    let (plain, texts) = (Text::Plain(String::new()), vec![Text::Plain(String::new()); count]);
    let responses = responses.into_iter().map(|(own, start)| {
        let tokens = [prompt.clone(), own].concat();
        Response { start: start.index(tokens.len()), tokens }
    });
    let group = Group { shared: prompt.len(), responses: responses.collect() };
    let record = Record {
        row,
        id,
        source,
        category,
        capability: None,
        prompt: plain,
        responses: texts,
        comparisons,
        partial: false,
        flipped,
    };
    (record, group)
}

/// Store groups, letting go of the writer behind each of these many.
fn store(directory: &Path, groups: &[(Record, Group)], window: usize, interrupted: bool) {
    let mut writer = StoreWriter::begin(directory, "x", false).unwrap().unwrap().0;
    let mut done = 0u64;
    for part in groups.chunks(window) {
        for (record, group) in part {
            writer.store(record, group).unwrap();
        }
        done += part.len() as u64;
        let position =
            Position { row: done, offset: done, usable: done, format_known: true, findings: Findings::default() };
        writer.commit(done, position.clone(), &[u128::from(done)]).unwrap();
        if interrupted {
            // What was not committed does not count.
            writer.store(&part[0].0, &part[0].1).unwrap();
            drop(writer);
            let (again, progress) = StoreWriter::begin(directory, "x", false).unwrap().unwrap();
            let progress = progress.unwrap();
            assert_eq!((progress.groups, &progress.reader), (done, &position));
            assert_eq!(progress.entered.last(), Some(&u128::from(done)));
            writer = again;
        }
    }
    writer.finish(Map::new()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn groups_come_back_as_they_were_stored(groups in records(), window in 1usize..4) {
        let folder = tempfile::tempdir().unwrap();
        let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
        store(&whole, &groups, 100, false);
        store(&parts, &groups, window, true);
        for name in FILES.into_iter().chain(["manifest.json"]) {
            prop_assert_eq!(fs::read(whole.join(name)).unwrap(), fs::read(parts.join(name)).unwrap());
        }
        prop_assert_eq!(names(folder.path()), ["parts", "whole"]);
        prop_assert_eq!(names(&parts).len(), 7);
        let opened = Store::open(&whole).unwrap();
        prop_assert_eq!(opened.groups(), groups.len());
        let rows = opened.rows().unwrap();
        for (number, (record, group)) in groups.iter().enumerate() {
            let ids = |bytes: &[u8]| -> Vec<i32> {
                bytes.chunks_exact(4).map(|id| i32::from_le_bytes(id.try_into().unwrap())).collect()
            };
            let segments: Vec<Vec<i32>> = opened.segments_of(number).map(ids).collect();
            let (prompt, own) = segments.split_first().unwrap();
            let found: Vec<Vec<i32>> = own.iter().map(|own| [prompt.clone(), own.clone()].concat()).collect();
            let expected: Vec<Vec<i32>> = group.responses.iter().map(|response| response.tokens.clone()).collect();
            prop_assert_eq!(found, expected);
            let starts: Vec<usize> = group.responses.iter().map(|response| response.start).collect();
            prop_assert_eq!(opened.starts_of(number).collect::<Vec<_>>(), starts);
            prop_assert_eq!(opened.comparisons_of(number).collect::<Vec<_>>(), record.comparisons.clone());
            let info = &rows[number];
            prop_assert_eq!((info.row, &info.id, info.flipped), (record.row, &record.id, record.flipped));
            prop_assert_eq!((&info.source, &info.category), (&record.source, &record.category));
        }
    }

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
