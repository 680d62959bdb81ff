//! Rows of every kind and none.

#![allow(clippy::unwrap_used, reason = "a test may stop")]

use _data_rs::options::ReadOptions;
use _data_rs::pairs::{Pairs, read_all};
use _data_rs::read::Source;
use proptest::prelude::*;
use serde_json::{Value, json};

fn read(bytes: Vec<u8>) -> Option<Pairs> {
    read_all(Source::Bytes(bytes), ReadOptions::default()).ok()
}

/// Every row is used, skipped or refused, once.
fn is_accounted(pairs: &Pairs) -> bool {
    let refused: usize = pairs.refused.values().map(Vec::len).sum();
    pairs.rows == (refused + pairs.records.len()) as u64 + pairs.skipped
}

fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![Just(""), Just(" "), Just("a"), Just("a b"), Just("\n\nHuman: q\n\nAssistant: a")];
    let role = prop_oneof![Just("user"), Just("assistant"), Just("system"), Just("tool")];
    let message = prop_oneof![
        (role, text.clone()).prop_map(|(role, content)| json!({"role": role, "content": content})),
        Just(json!({"role": "user"})),
        Just(json!(1)),
    ];
    prop_oneof![
        3 => text.prop_map(|text| json!(text)),
        3 => prop::collection::vec(message, 0..5).prop_map(Value::Array),
        1 => any::<f64>().prop_map(|number| json!(number)),
        1 => prop::collection::vec(0u8..3, 2..4).prop_map(|numbers| json!(numbers)),
        1 => prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 2..4).prop_map(|texts| json!(texts)),
        1 => Just(Value::Null),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Some(pairs) = read(bytes) {
            prop_assert!(is_accounted(&pairs));
        }
    }

    #[test]
    fn any_columns_are_accounted(rows in prop::collection::vec(prop::collection::btree_map(
        prop_oneof!["prompt|chosen|rejected|conv_A|conv_B", "conv_[AB]_rating|margin|weight|soft_label|source|id",
                    "prompt|responses|ratings|ranks"],
        value(), 0..11), 1..5)) {
        let first = r#"{"chosen": "a b", "rejected": "a c"}"#.to_owned();
        let lines: Vec<String> = [first].into_iter().chain(rows.iter().map(|row| json!(row).to_string())).collect();
        let pairs = read(lines.join("\n").into_bytes()).unwrap();
        prop_assert_eq!(pairs.rows, rows.len() as u64 + 1);
        prop_assert!(is_accounted(&pairs));
    }
}
