//! A store with any changed bytes, whose checksums may be mended, is refused or can be read from end to end.

#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use _data_rs::pack::pack;
use _data_rs::store::Store;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

const FILES: [&str; 6] = ["tokens.bin", "segments.bin", "groups.bin", "starts.bin", "comparisons.bin", "rows.jsonl"];

/// Two groups: a prompt of two tokens with responses of two and three, and one of none with responses of one each.
static SOUND: LazyLock<[Vec<u8>; 6]> = LazyLock::new(|| {
    let numbers = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let comparison = |row: u64| {
        let places = [0u32, 1].map(u32::to_le_bytes).concat();
        [row.to_le_bytes().to_vec(), places, [1f32, 0.0, 1.0].map(f32::to_le_bytes).concat()].concat()
    };
    let row = |row: u64| json!({"row": row, "id": row.to_string(), "source": null, "category": null, "flipped": false});
    [
        (0..9i32).flat_map(i32::to_le_bytes).collect(),
        numbers(&[0, 2, 4, 7, 7, 8, 9]),
        numbers(&[0, 0, 3, 1, 6, 2]),
        numbers(&[2, 2, 0, 0]),
        [comparison(1), comparison(2)].concat(),
        format!("{}\n{}\n", row(1), row(2)).into_bytes(),
    ]
});

#[derive(arbitrary::Arbitrary, Debug)]
enum Change {
    /// The bytes from a place on are others.
    Bytes {
        file: u8,
        place: u8,
        bytes: Vec<u8>,
    },
    /// A number of a file of numbers is another.
    Number {
        file: u8,
        place: u8,
        number: i8,
    },
    Cut {
        file: u8,
        length: u8,
    },
    Longer {
        file: u8,
        bytes: Vec<u8>,
    },
    Count {
        name: u8,
        number: u64,
    },
    Manifest {
        place: u16,
        bytes: Vec<u8>,
    },
}

fuzz_target!(|input: (Vec<Change>, bool)| {
    let (changes, mended) = input;
    let folder = tempfile::tempdir().unwrap();
    let mut files = SOUND.clone();
    let mut counts = json!({"groups": 2, "responses": 4, "comparisons": 2, "tokens": 9});
    changes.iter().for_each(|change| change_files(change, &mut files, &mut counts));
    write(folder.path(), if mended { &files } else { &SOUND }, &files, &counts, &changes);
    let Ok(store) = Store::open(folder.path()) else {
        assert!(!changes.is_empty(), "a sound store is refused");
        return;
    };
    assert!(mended || files == *SOUND, "a changed file is read");
    let groups: Vec<i64> = (0..i64::try_from(store.groups()).unwrap()).collect();
    let counts = vec![1.0; groups.len()];
    let packed = pack(&store, &groups, &counts).expect("groups that are there can be packed");
    assert_eq!(packed.input_ids.len(), usize::try_from(store.costs().iter().sum::<i64>()).unwrap());
    assert!(packed.source.iter().chain(&packed.last).all(|&place| place < packed.input_ids.len() as i64));
    assert_eq!(store.rows().unwrap().len(), groups.len());
});

fn change_files(change: &Change, files: &mut [Vec<u8>; 6], counts: &mut Value) {
    match change {
        Change::Bytes { file, place, bytes } => {
            let old = files[usize::from(*file) % 6].iter_mut().skip(usize::from(*place));
            old.zip(bytes).for_each(|(old, new)| *old = *new);
        }
        Change::Number { file, place, number } => {
            let old = files[usize::from(*file) % 6].chunks_exact_mut(8).nth(usize::from(*place) % 8);
            old.into_iter().for_each(|old| old.copy_from_slice(&i64::from(*number).to_le_bytes()));
        }
        Change::Cut { file, length } => files[usize::from(*file) % 6].truncate(usize::from(*length)),
        Change::Longer { file, bytes } => files[usize::from(*file) % 6].extend(bytes),
        Change::Count { name, number } => {
            counts[["groups", "responses", "comparisons", "tokens"][usize::from(*name) % 4]] = json!(number);
        }
        Change::Manifest { .. } => {}
    }
}

/// The files, with the checksums of `told` and the lengths that they have.
fn write(folder: &Path, told: &[Vec<u8>; 6], files: &[Vec<u8>; 6], counts: &Value, changes: &[Change]) {
    let entry = |told: &Vec<u8>| json!({"bytes": told.len(), "xxh3": format!("{:016x}", xxh3_64(told))});
    let entries: serde_json::Map<_, _> =
        FILES.iter().zip(told).map(|(name, told)| ((*name).to_owned(), entry(told))).collect();
    let mut manifest = json!({"schema": 1, "counts": counts, "files": entries}).to_string().into_bytes();
    for change in changes {
        if let Change::Manifest { place, bytes } = change {
            manifest.iter_mut().skip(usize::from(*place)).zip(bytes).for_each(|(old, new)| *old = *new);
        }
    }
    fs::write(folder.join("manifest.json"), manifest).unwrap();
    FILES.iter().zip(files).for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
}
