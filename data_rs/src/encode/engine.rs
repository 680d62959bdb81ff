//! The engines: text to ids, without what a post-processor adds.
//!
//! The reference is `tokenizers` 0.23, the engine of the Python package that defines the ids; only it gives offsets. The
//! fast one is `tokenizers` 1.0: the same authors' rewrite, of every model, in Rust alone, without threads of its own. The
//! other candidate, `fastokens`, is faster still for byte-level BPE, but knows nothing else, links C, passes over
//! `single_word`, and keeps spinning workers outside of any pool that we could size or keep out of forked children.

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::Tokenizer;
use tokenizers_1::pipeline::{EncodeOptions, Override, PipelineToken, PipelineTokenizer};

use crate::error::{Error, Result};

/// Text to ids.
pub trait Engine: Send + Sync {
    /// Append the ids of a text, without what the post-processor adds.
    ///
    /// # Errors
    /// In words, for a text that it cannot encode.
    fn encode(&self, text: &str, ids: &mut Vec<u32>) -> std::result::Result<(), String>;
}

/// `tokenizers` 1.0.
pub struct Fast {
    tokenizer: PipelineTokenizer,
    options: EncodeOptions,
}

impl Fast {
    /// The name in reports.
    pub const NAME: &str = "tokenizers 1.0";

    /// Load the text of a tokenizer.json: the text itself, since numbers that are read and written again may change.
    ///
    /// # Errors
    /// In words, for what this engine does not know.
    pub fn new(tokenizer_json: &str, json: &Value) -> std::result::Result<Self, String> {
        if json.pointer("/model/dropout").and_then(Value::as_f64).is_some_and(|dropout| dropout > 0.0) {
            return Err("dropout draws anew for each text".into());
        }
        let tokenizer = catch(|| {
            let text = tokenizers_1::canonicalize_str(tokenizer_json).map_err(|error| one_line(&error))?;
            tokenizers_1::from_json(&text).map_err(|error| one_line(&error))
        })?;
        let options =
            EncodeOptions { padding: Override::Off, truncation: Override::Off, ..EncodeOptions::no_specials() };
        Ok(Self { tokenizer, options })
    }
}

impl Engine for Fast {
    fn encode(&self, text: &str, ids: &mut Vec<u32>) -> std::result::Result<(), String> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        catch(|| self.tokenizer.encode_into(text, &self.options, &mut tokens).map_err(|error| one_line(&error)))?;
        ids.extend_from_slice(PipelineToken::cast_slice(&tokens));
        Ok(())
    }
}

/// A bug of the engine costs its speed, not the preparation.
fn catch<T>(work: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("it broke down".into()))
}

/// `tokenizers` 0.23.
pub struct Reference {
    tokenizer: Tokenizer,
}

impl Reference {
    /// The name in reports.
    pub const NAME: &str = "tokenizers 0.23";

    /// Load the text of a tokenizer.json. Its truncation and padding are switched off.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it is none.
    pub fn new(tokenizer_json: &str) -> Result<Self> {
        let refuse = |error: &dyn std::fmt::Display| Error::Tokenizer(one_line(error));
        let mut tokenizer: Tokenizer = tokenizer_json.parse().map_err(|error| refuse(&error))?;
        tokenizer.with_truncation(None).map_err(|error| refuse(&error))?.with_padding(None);
        Ok(Self { tokenizer })
    }

    /// The ids of a text, with what the post-processor adds if so asked, and the first of them that ends beyond a byte.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a text that it cannot encode.
    pub fn encode_from(&self, text: &str, boundary: usize, add_special: bool) -> Result<(Vec<u32>, Option<usize>)> {
        let encoding = self.tokenizer.encode_char_offsets(text, add_special);
        let encoding = encoding.map_err(|error| Error::Tokenizer(one_line(&error)))?;
        // Offsets count characters: a post-processor that trims white space from them does so character by character.
        let boundary = text.get(..boundary).map_or(usize::MAX, |before| before.chars().count());
        let start = encoding.get_offsets().iter().position(|&(_, end)| end > boundary);
        Ok((encoding.get_ids().to_vec(), start))
    }

    /// What it adds before and behind a text, if it adds that alone.
    pub fn frame(&self) -> Option<[Vec<u32>; 2]> {
        let around = |text| {
            let bare = self.encode_from(text, 0, false).ok()?.0;
            let framed = self.encode_from(text, 0, true).ok()?.0;
            let mut fitting = (0..=framed.len().checked_sub(bare.len())?).filter(|&at| framed[at..].starts_with(&bare));
            let place = fitting.next().filter(|_| fitting.next().is_none())?;
            Some([framed[..place].to_vec(), framed[place + bare.len()..].to_vec()])
        };
        around("a").filter(|frame| around("b c").as_ref() == Some(frame))
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The texts of its added tokens, by id.
    pub fn added_tokens(&self) -> Vec<String> {
        let added: BTreeMap<_, _> = self.tokenizer.get_added_tokens_decoder().into_iter().collect();
        added.into_values().map(|token| token.content).collect()
    }

    /// The ids of its special tokens.
    pub fn special_ids(&self) -> HashSet<i32> {
        let added = self.tokenizer.get_added_tokens_decoder();
        added.iter().filter(|(_, token)| token.special).filter_map(|(&id, _)| i32::try_from(id).ok()).collect()
    }

    /// The tokenizer.json with nothing left out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it cannot be written.
    pub fn to_json(&self) -> Result<Value> {
        let text = self.tokenizer.to_string(false).map_err(|error| Error::Tokenizer(one_line(&error)))?;
        serde_json::from_str(&text).map_err(|error| Error::Tokenizer(one_line(&error)))
    }
}

impl Engine for Reference {
    fn encode(&self, text: &str, ids: &mut Vec<u32>) -> std::result::Result<(), String> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| one_line(&error))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

/// An error in one line.
pub fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().collect::<Vec<_>>().join(" ")
}
