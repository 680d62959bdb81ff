//! The parser of lines against `serde_json`'s values: the same rows, and the same reasons where there is none.

#![allow(clippy::unwrap_used, reason = "a test may stop")]

use std::io::Read;

use _data_rs::read::json::parse_line;
use _data_rs::reason::Reason;
use _data_rs::row::{Cell, Column, Items, Row};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// The slow way: everything as values first.
fn slowly(line: &[u8]) -> Result<Row, Reason> {
    let text = std::str::from_utf8(line).map_err(|_| Reason::InvalidJson)?;
    match serde_json::from_str(text).or_else(|_| serde_json::from_str(&marked(text))) {
        Ok(Value::Object(columns)) => Ok(row_of(columns)),
        Err(error) if error.to_string().starts_with("number out of range") => Err(Reason::BadNumber),
        _ => Err(Reason::InvalidJson),
    }
}

/// Objects in the place of NaN and Infinity, wherever they stand outside of texts.
fn marked(text: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    let (mut rest, mut quoted) = (text, false);
    while let Some(first) = rest.chars().next() {
        let token = ["NaN", "Infinity", "-Infinity"].iter().find(|token| !quoted && rest.starts_with(**token));
        let used = match (first, token) {
            (_, Some(token)) => token.len(),
            ('\\', _) if quoted => 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
            _ => first.len_utf8(),
        };
        quoted ^= first == '"';
        parts.push(if token.is_some() { "{}".to_owned() } else { rest[..used].to_owned() });
        rest = &rest[used..];
    }
    parts.concat()
}

fn row_of(columns: Map<String, Value>) -> Row {
    let mut row = Row::default();
    for (name, value) in columns {
        if let Some(column) = Column::named(&name) {
            row.set(column, cell_of(value));
        }
    }
    row
}

fn cell_of(value: Value) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::String(text) => Cell::Text(text),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Cell::Whole(number.into()),
            (None, Some(number)) => Cell::Whole(number.into()),
            (None, None) => Cell::Number(number.as_f64().unwrap()),
        },
        Value::Array(items) => {
            let mut list = Items::default();
            for item in items {
                match item {
                    Value::Object(mut fields) => {
                        let mut text = |name| fields.remove(name).and_then(|value| value.as_str().map(str::to_owned));
                        list.push_object(text("role"), text("content"));
                    }
                    item => list.push(cell_of(item)),
                }
            }
            list.finish()
        }
        Value::Bool(_) | Value::Object(_) => Cell::Other,
    }
}

fn check(line: &[u8]) {
    let (fast, slow) = (parse_line(line).map_err(|refusal| refusal.reason), slowly(line));
    assert_eq!(fast, slow, "{}", String::from_utf8_lossy(line));
}

#[test]
fn lines_that_are_none() {
    let deep = |depth: usize| {
        format!(
            r#"{{"x": {}{}, "chosen": {}{}}}"#,
            "[".repeat(depth),
            "]".repeat(depth),
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    let long =
        |count: usize| format!(r#"{{"responses": [{}1], "ratings": [{}1]}}"#, "1,".repeat(count), "{},".repeat(count));
    let lines = [
        "",
        " ",
        "1",
        "1e999",
        "[1e999]",
        "[1, NaN]",
        "NaN",
        r#""a""#,
        "{",
        "{}",
        "{} x",
        "{}}",
        r#"{"a": 1e999}"#,
        r#"{"a": [{"b": -1e400}]}"#,
        r#"{"a": "\ud800"}"#,
        r#"{"\ud800": 1}"#,
        r#"{"a": {"\udc00": 1}}"#,
        r#"{"prompt": "\ud83d\ude00 \u0000 \"NaN\" \\", "margin": -Infinity, "x": [Infinity]}"#,
        r#"{"id": -0, "margin": 1E2, "weight": 18446744073709551615, "soft_label": 18446744073709551616}"#,
        r#"{"chosen": "a", "chosen": [1], "x": 1, "x": }"#,
        r#"{"chosen": "a", "chosen": "b"}"#,
        r#"{"chosen": [{"role": "a", "content": "b", "role": "c"}, {"content": "d", "x": [{}], "role": "e"}]}"#,
        r#"{"chosen": [{"role": "a", "content": "b"}, 1, {"role": "a", "content": "b"}], "rejected": [null, [[1], []]]}"#,
        r#"{"chosen": [{"role": 1, "content": "b"}], "rejected": [{"role": null}], "prompt": {"role": "a", "content": "b"}}"#,
        r#"{"a": 01}"#,
        r#"{"a": 1.}"#,
        r"{'a': 1}",
        r#"{"a": tru}"#,
        r#"{"a": nan}"#,
        "{\"a\": \"\u{1}\"}",
        "{\"a\": \"\t\"}",
        "\u{feff}{}",
        r#"{"a": NaN, "b": }"#,
        r#"{"margin": NaN, "b": 1e999}"#,
    ];
    for line in lines {
        check(line.as_bytes());
    }
    for depth in [1, 125, 126, 127, 128, 200] {
        check(deep(depth).as_bytes());
    }
    for count in [1, 255, 256, 257, 300] {
        check(long(count).as_bytes());
    }
    check(b"{\"a\": \"\xff\"}");
    check(b"{\"a\": \"\xed\xa0\x80\"}");
}

#[test]
fn where_a_line_is_broken() {
    let message = |line: &[u8]| parse_line(line).unwrap_err().into_error("f", 3).to_string();
    let at = |line: &[u8], place: &str| assert!(message(line).starts_with(place), "{}", message(line));
    at(br#"{"prompt": "p", "chosen": }"#, "f:3:27: not a JSON object in UTF-8 (expected value)");
    at(br#"{"a": NaN, "b": Infinity, "chosen": }"#, "f:3:37: ");
    at(b"{\"a\": \"\xff\"}", "f:3:8: not a JSON object in UTF-8 (not UTF-8)");
    at(br#"{"a": "\ud800"}"#, "f:3:14: ");
    at(b"{", "f:3:1: not a JSON object in UTF-8 (EOF while parsing an object)");
    at(br#"{"margin": 1e999}"#, "f:3:16: a number that is missing, not finite or out of range (number out of range)");
}

#[test]
fn every_line_of_the_shared_data() {
    let Some(folder) = std::env::var_os("GRMLIGHT_SHARED_DATA") else { return };
    let mut lines = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut inflated = Vec::new();
            flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut inflated).unwrap();
            bytes = inflated;
        }
        for line in bytes.split(|&byte| byte == b'\n') {
            check(line);
            lines += 1;
        }
    }
    assert!(lines > 1000);
}

fn value() -> impl Strategy<Value = Value> {
    let text =
        prop_oneof![Just(""), Just("a"), Just("é\u{2028}\u{1f600}"), Just("\"\\\n\u{0}"), Just("NaN"), Just("role")];
    let leaf = prop_oneof![
        4 => text.prop_map(|text| json!(text)),
        1 => any::<f64>().prop_map(|number| json!(number)),
        1 => any::<i64>().prop_map(|number| json!(number)),
        1 => any::<u64>().prop_map(|number| json!(number)),
        1 => any::<bool>().prop_map(|truth| json!(truth)),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let names = prop_oneof!["role", "content", "[a-c]"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::btree_map(names, inner, 0..4).prop_map(|fields| json!(fields)),
        ]
    })
}

fn line() -> impl Strategy<Value = String> {
    let names = prop_oneof![
        Just("prompt"),
        Just("chosen"),
        Just("rejected"),
        Just("responses"),
        Just("ratings"),
        Just("margin"),
        Just("id"),
        Just("x"),
        Just("conv_A"),
    ];
    prop::collection::vec((names, value()), 0..6).prop_map(|columns| {
        let entries: Vec<String> = columns.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", entries.join(", "))
    })
}

proptest! {
    #[test]
    fn any_row_is_the_same(line in line()) {
        check(line.as_bytes());
    }

    #[test]
    fn any_damage_is_refused_alike(line in line(), place in any::<prop::sample::Index>(), kind in 0..4,
                                   new in prop_oneof![Just("NaN"), Just("-Infinity"), Just("1e999"), Just("\\ud800"),
                                                      Just("\""), Just("{"), Just("]"), Just(","), Just("\u{0}")]) {
        let mut bytes = line.into_bytes();
        let at = place.index(bytes.len());
        match kind {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, new.bytes())),
            2 => drop(bytes.splice(at..=at, new.bytes())),
            _ => bytes[at] ^= 0x80,
        }
        check(&bytes);
    }
}
