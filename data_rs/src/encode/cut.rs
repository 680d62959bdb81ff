//! Where conversations that begin alike may be cut, so that their beginning is encoded once.
//!
//! A text is split at added tokens before anything else sees it, so what stands before the end of an added token and what
//! stands behind it are encoded apart, whole or cut. That holds unless something looks beyond: added tokens that are
//! matched in normalized text or swallow their surroundings, a component that treats the beginning of a text as a special
//! place, a model of whole texts. Tokens whose text another added token may overlap are never cut behind.

use std::collections::HashSet;

use aho_corasick::AhoCorasick;
use serde_json::Value;

/// Finds cuts behind added tokens.
pub struct Cutter(AhoCorasick);

impl Cutter {
    /// What a tokenizer.json allows; nothing where texts must be encoded whole.
    pub fn new(tokenizer: &Value) -> Option<Self> {
        if !allows(tokenizer) {
            return None;
        }
        let clean = clean(&contents(tokenizer)?);
        if clean.is_empty() { None } else { AhoCorasick::new(clean).ok().map(Self) }
    }

    /// Bytes of the longest beginning that all texts share and that ends with an added token.
    pub fn cut<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> usize {
        let mut texts = texts.into_iter();
        let Some(first) = texts.next() else { return 0 };
        let shared = texts.map(|text| shared_bytes(first.as_bytes(), text.as_bytes())).min().unwrap_or(0);
        self.0.find_iter(&first.as_bytes()[..shared]).last().map_or(0, |found| found.end())
    }
}

fn shared_bytes(left: &[u8], right: &[u8]) -> usize {
    let whole =
        left.chunks_exact(64).zip(right.chunks_exact(64)).take_while(|(left, right)| left == right).count() * 64;
    let rest = left[whole..].iter().zip(&right[whole..]);
    whole + rest.take_while(|(left, right)| left == right).count()
}

fn allows(tokenizer: &Value) -> bool {
    let model = tokenizer.pointer("/model/type").and_then(Value::as_str);
    matches!(model, Some("BPE" | "WordPiece"))
        && components(&tokenizer["normalizer"]).iter().all(|one| !matches!(kind(one), "Prepend" | "Strip"))
        && components(&tokenizer["pre_tokenizer"]).iter().all(|one| !looks_for_first(one))
        && !tokenizer["pre_tokenizer"].is_null()
}

/// The white space sign before the first word of a text, but not before the first word behind an added token.
fn looks_for_first(pre_tokenizer: &Value) -> bool {
    kind(pre_tokenizer) == "Metaspace" && pre_tokenizer["prepend_scheme"] == "first"
}

/// A component, or those of a sequence.
pub fn components(component: &Value) -> Vec<&Value> {
    let inner = ["normalizers", "pretokenizers", "processors"].iter().find_map(|&name| component[name].as_array());
    match inner {
        Some(inner) => inner.iter().flat_map(components).collect(),
        None if component.is_null() => Vec::new(),
        None => vec![component],
    }
}

/// What a component is.
pub fn kind(component: &Value) -> &str {
    component["type"].as_str().unwrap_or_default()
}

/// The texts of the added tokens, if each is matched as it stands.
fn contents(tokenizer: &Value) -> Option<Vec<&str>> {
    let flags = ["normalized", "lstrip", "rstrip", "single_word"];
    let plain = |token: &&Value| flags.iter().all(|&flag| token[flag] != true);
    let added = tokenizer["added_tokens"].as_array()?;
    let taken: Vec<&str> = added.iter().filter(plain).filter_map(|token| token["content"].as_str()).collect();
    (taken.len() == added.len()).then(|| taken.into_iter().filter(|content| !content.is_empty()).collect())
}

/// Those that are found wherever they stand: none other, and not they themselves, can overlap them.
fn clean<'a>(contents: &[&'a str]) -> Vec<&'a str> {
    let beginnings: HashSet<&[u8]> =
        contents.iter().flat_map(|one| (1..one.len()).map(|to| &one.as_bytes()[..to])).collect();
    let endings: HashSet<&[u8]> =
        contents.iter().flat_map(|one| (1..one.len()).map(|from| &one.as_bytes()[from..])).collect();
    let Ok(finder) = AhoCorasick::new(contents) else { return Vec::new() };
    let mut nested = HashSet::new();
    for outer in contents {
        for found in finder.find_overlapping_iter(outer) {
            let inner = contents[found.pattern().as_usize()];
            if inner != *outer {
                nested.extend([inner, *outer]);
            }
        }
    }
    let overlaps = |one: &str| {
        let bytes = one.as_bytes();
        (1..bytes.len()).any(|at| beginnings.contains(&bytes[at..]) || endings.contains(&bytes[..at]))
    };
    contents.iter().copied().filter(|one| !nested.contains(one) && !overlaps(one)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokenizer(contents: &[&str]) -> Value {
        let added: Vec<Value> =
            contents.iter().map(|content| json!({"content": content, "normalized": false})).collect();
        json!({
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]},
            "model": {"type": "BPE"},
        })
    }

    #[test]
    fn cuts_behind_the_last_whole_token() {
        let cutter = Cutter::new(&tokenizer(&["<a>", "<b>"])).unwrap();
        assert_eq!(cutter.cut(["x<a>y<b>one", "x<a>y<b>two"]), 8);
        assert_eq!(cutter.cut(["x<a>y<b>one", "x<a>y<b"]), 4);
        assert_eq!(cutter.cut(["x<a>y", "<a>"]), 0);
        assert_eq!(cutter.cut(["<a>y"]), 0);
        let long = "z".repeat(100);
        assert_eq!(cutter.cut([format!("{long}<a>{long}1").as_str(), &format!("{long}<a>{long}2")]), 103);
    }

    #[test]
    fn leaves_tokens_that_others_overlap() {
        assert_eq!(clean(&["<a>", "<b>", "<b>\n", "\n"]), ["<a>"]);
        assert_eq!(clean(&["xyx", "ab", "bc", "d"]), ["d"]);
        assert_eq!(clean(&["<|end|>", "|"]), Vec::<&str>::new());
    }

    #[test]
    fn refuses_what_looks_beyond() {
        let change = |pointer: &str, value: Value| {
            let mut changed = tokenizer(&["<a>"]);
            *changed.pointer_mut(pointer).unwrap() = value;
            Cutter::new(&changed).is_none()
        };
        assert!(!change("/normalizer", json!(null)));
        assert!(change(
            "/normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"}]})
        ));
        assert!(change("/normalizer", json!({"type": "Strip"})));
        assert!(change("/pre_tokenizer", json!(null)));
        assert!(change("/pre_tokenizer", json!({"type": "Metaspace", "prepend_scheme": "first"})));
        assert!(!change("/pre_tokenizer", json!({"type": "Metaspace", "prepend_scheme": "always"})));
        assert!(change("/model/type", json!("Unigram")));
        for flag in ["normalized", "lstrip", "rstrip", "single_word"] {
            assert!(change("/added_tokens/0", json!({"content": "<a>", flag: true})));
        }
    }
}
