//! The first token that ends beyond a byte of the text, from what the tokens spell.
//!
//! Offsets cost more than the ids. Where each token stands for bytes of the text as it is (byte-level alphabets, and spaces
//! written as "▁" with bytes for unknown characters), the offsets up to the response follow from the tokens themselves. They
//! are compared with the text on the way: where a normalizer changed it, or a token is unknown, the text is one for the
//! engine with offsets.

use std::sync::LazyLock;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::cut::{components, kind};

/// The space of `SentencePiece`.
const SPACE: &str = "\u{2581}";
/// The space in the byte-level alphabet.
const BYTE_SPACE: char = '\u{120}';

/// The tokens do not spell the text.
#[derive(Debug, PartialEq, Eq)]
pub struct Unspelled;

/// What the tokens of a tokenizer spell.
pub struct Spelling {
    tokens: Vec<Option<Spelled>>,
    /// Whether a space may be added to the front of a text, and behind added tokens.
    prepends: bool,
    /// Whether offsets leave out the white space at a token's end.
    trims: bool,
}

#[derive(Clone, Debug)]
struct Spelled {
    bytes: Box<[u8]>,
    /// Bytes of white space at the end, unless there is nothing else.
    trailing: usize,
    added: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    Bytes,
    Spaces { fallback: bool },
}

impl Spelling {
    /// What a tokenizer.json allows, with the tokenizer that was loaded from it; nothing where offsets are needed.
    pub fn new(json: &Value, tokenizer: &Tokenizer) -> Option<Self> {
        let alphabet = alphabet(json)?;
        let unknown = unknown(json, tokenizer);
        let vocabulary = tokenizer.get_vocab(true);
        let decoder = tokenizer.get_added_tokens_decoder();
        let size = vocabulary.values().max().map_or(0, |&last| last as usize + 1);
        let mut tokens = vec![None; size];
        for (token, id) in vocabulary {
            let added = decoder.contains_key(&id);
            if Some(id) != unknown {
                tokens[id as usize] = spell(&token, alphabet, added);
            }
        }
        let steps = components(&json["pre_tokenizer"]);
        let prepends = steps.iter().any(|one| kind(one) == "Metaspace" && one["prepend_scheme"] != "never")
            || components(&json["normalizer"]).iter().any(|one| kind(one) == "Prepend");
        let trimming =
            |one: &&Value| matches!(kind(one), "ByteLevel" | "RobertaProcessing") && one["trim_offsets"] != false;
        let trims = components(&json["post_processor"]).iter().any(trimming);
        Some(Self { tokens, prepends, trims })
    }

    /// The first of `ids`, which encode `text` from byte `from` on, that ends beyond byte `boundary` of it.
    ///
    /// # Errors
    /// [`Unspelled`] where it takes offsets to say.
    pub fn start(&self, ids: &[u32], text: &str, from: usize, boundary: usize) -> Result<Option<usize>, Unspelled> {
        if self.trims && boundary == 0 {
            return Err(Unspelled); // a leading space is trimmed or not by what the post-processor thinks of it
        }
        let (text, mut at, mut first) = (text.as_bytes(), from, true);
        for (index, &id) in ids.iter().enumerate() {
            let spelled = self.tokens.get(id as usize).and_then(Option::as_ref).ok_or(Unspelled)?;
            let rest = text.get(at..).ok_or(Unspelled)?;
            let prepended = self.prepends && first && !spelled.added && !rest.starts_with(b" ");
            let bytes = if prepended { spelled.bytes.strip_prefix(b" ") } else { None }.unwrap_or(&spelled.bytes);
            if !rest.starts_with(bytes) {
                return Err(Unspelled);
            }
            // A space that was added alone has the offsets of what it stands before.
            if prepended && bytes.is_empty() && boundary <= at && !rest.is_empty() {
                return Ok(Some(index));
            }
            at += bytes.len();
            if at - if self.trims { spelled.trailing.min(at) } else { 0 } > boundary {
                return Ok(Some(index));
            }
            first = spelled.added;
        }
        if at == text.len() { Ok(None) } else { Err(Unspelled) }
    }
}

fn alphabet(json: &Value) -> Option<Alphabet> {
    let (normalizers, steps) = (components(&json["normalizer"]), components(&json["pre_tokenizer"]));
    let spaced = |one: &Value| one["pattern"]["String"] == " " && one["content"] == SPACE;
    let known = normalizers.iter().all(|one| match kind(one) {
        "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" => true,
        "Replace" => spaced(one),
        "Prepend" => one["prepend"] == SPACE,
        _ => false,
    }) && steps.iter().all(|one| match kind(one) {
        "ByteLevel" => one["add_prefix_space"] == false,
        "Metaspace" => one["replacement"] == SPACE,
        "Split" | "Punctuation" => one["behavior"] != "Removed",
        "Digits" => true,
        _ => false,
    });
    let added = json["added_tokens"].as_array()?;
    let strange = |one: &Value| {
        one["lstrip"] == true || one["rstrip"] == true || one["normalized"] == true && !normalizers.is_empty()
    };
    let model = &json["model"];
    let affixed = ["continuing_subword_prefix", "end_of_word_suffix"]
        .iter()
        .any(|&name| model[name].as_str().is_some_and(|affix| !affix.is_empty()));
    if !known || added.iter().any(strange) || affixed {
        return None;
    }
    let fallback = model["byte_fallback"] == true;
    let by_byte = steps.iter().any(|one| kind(one) == "ByteLevel");
    let by_sign =
        steps.iter().any(|one| kind(one) == "Metaspace") || normalizers.iter().any(|one| kind(one) == "Replace");
    match (kind(model), by_byte, by_sign) {
        ("BPE", true, false) if !fallback => Some(Alphabet::Bytes),
        ("BPE" | "Unigram", false, true) => Some(Alphabet::Spaces { fallback }),
        _ => None,
    }
}

fn unknown(json: &Value, tokenizer: &Tokenizer) -> Option<u32> {
    let model = &json["model"];
    match model["unk_token"].as_str() {
        Some(token) => tokenizer.token_to_id(token),
        None => model["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok()),
    }
}

fn spell(token: &str, alphabet: Alphabet, added: bool) -> Option<Spelled> {
    let bytes = match alphabet {
        _ if added => token.as_bytes().to_vec(),
        Alphabet::Bytes => token.chars().map(byte_of).collect::<Option<_>>()?,
        Alphabet::Spaces { fallback } => match token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
            Some(digits) if fallback && digits.len() == 2 => vec![u8::from_str_radix(digits, 16).ok()?],
            _ => token.replace(SPACE, " ").into_bytes(),
        },
    };
    let is_space = |&one: &char| one == BYTE_SPACE || one.is_whitespace();
    let width = |one: char| if one == BYTE_SPACE { 1 } else { one.len_utf8() };
    let trailing = token.chars().rev().take_while(is_space).map(width).sum();
    let trailing = if token.chars().all(|one| is_space(&one)) { 0 } else { trailing };
    Some(Spelled { bytes: bytes.into(), trailing, added })
}

/// The byte for which a character of the byte-level alphabet stands: itself where it is printable, else in order from 256.
fn byte_of(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    match u8::try_from(code) {
        Ok(byte) => Some(byte).filter(|&byte| is_printable(byte)),
        Err(_) => UNPRINTABLE.get(usize::try_from(code - 256).ok()?).copied(),
    }
}

static UNPRINTABLE: LazyLock<Vec<u8>> = LazyLock::new(|| (0..=255).filter(|&byte| !is_printable(byte)).collect());

fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_byte_level_alphabet() {
        assert_eq!(byte_of(BYTE_SPACE), Some(b' '));
        assert_eq!(byte_of('\u{10a}'), Some(b'\n'));
        assert_eq!(byte_of('a'), Some(b'a'));
        assert_eq!(byte_of('\u{ff}'), Some(0xff));
        assert_eq!(byte_of('\u{143}'), Some(0xad));
        assert_eq!((byte_of('\u{144}'), byte_of(' ')), (None, None));
    }

    #[test]
    fn finds_the_first_token_beyond() {
        let spelled = |token, added| spell(token, Alphabet::Spaces { fallback: true }, added);
        let tokens = vec![
            spelled("<s>", true),
            spelled("\u{2581}ab", false),
            spelled("\u{2581}", false),
            spelled("<0xC3>", false),
        ];
        let spelling = Spelling { tokens, prepends: true, trims: false };
        assert_eq!(spelling.start(&[0, 1, 1], "<s>ab ab", 0, 5), Ok(Some(2)));
        assert_eq!(spelling.start(&[0, 1, 1], "<s>ab ab", 0, 4), Ok(Some(1)));
        assert_eq!(spelling.start(&[1, 1], "<s>ab ab", 3, 8), Ok(None));
        assert_eq!(spelling.start(&[0, 1, 1], "<s>abab", 0, 5), Err(Unspelled));
        assert_eq!(spelling.start(&[0, 2, 3], "<s>\u{e9}", 0, 2), Ok(Some(0)));
        assert_eq!(spelling.start(&[0, 2, 3], "<s>\u{e9}", 0, 3), Ok(Some(1)));
        assert_eq!(spelling.start(&[9], "x", 0, 0), Err(Unspelled));
    }
}
