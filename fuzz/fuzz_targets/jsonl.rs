//! Any bytes as JSON lines: every line is a group, a refusal or skipped, or the input is one error; in windows of any size
//! the same is found.

#![no_main]

use _data_rs::options::ReadOptions;
use _data_rs::pairs::{PairReader, read_all};
use _data_rs::read::Source;
use libfuzzer_sys::fuzz_target;

const OPTIONS: [&str; 4] = [
    "{}",
    r#"{"on_tie": "keep", "on_duplicate": "drop", "on_contradiction": "drop"}"#,
    r#"{"flip": 0.5, "stride": 2, "paper_text": true}"#,
    r#"{"on_bad_row": "raise", "on_tie": "keep"}"#,
];

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (choice, bytes) = input;
    let options = || ReadOptions::from_json(OPTIONS[usize::from(choice) % OPTIONS.len()]).unwrap();
    let whole = read_all(Source::Bytes(bytes.clone()), options());
    let window = usize::from(choice / 4) % 5 + 1;
    let mut reader = match PairReader::open(Source::Bytes(bytes), options()) {
        Ok(reader) => reader,
        Err(error) => {
            assert_eq!(whole.map(|_| ()).unwrap_err().to_string(), error.to_string());
            return;
        }
    };
    let mut records = Vec::new();
    loop {
        match reader.next_window(window, None) {
            Ok(Some(found)) => records.extend(found),
            Ok(None) => break,
            Err(error) => {
                assert_eq!(whole.map(|_| ()).unwrap_err().to_string(), error.to_string());
                return;
            }
        }
    }
    let whole = whole.expect("windows found no error");
    assert_eq!(whole.records, records);
    for record in &records {
        assert!(record.responses.len() >= 2 && !record.comparisons.is_empty());
        for comparison in &record.comparisons {
            assert!((comparison.better.max(comparison.worse) as usize) < record.responses.len());
            assert!(
                comparison.margin.is_finite() && comparison.weight >= 0.0 && (0.0..=1.0).contains(&comparison.label)
            );
        }
    }
});
