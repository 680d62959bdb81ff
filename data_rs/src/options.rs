//! What the caller may decide, as read from a JSON object.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What to do with a row that is no usable pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadRow {
    /// Leave it out and report it.
    #[default]
    Drop,
    /// Stop.
    Raise,
}

/// What to do with a pair that was seen before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repeat {
    /// Use it and note it.
    #[default]
    Keep,
    /// Leave it out and report it.
    Drop,
    /// Stop.
    Raise,
}

/// What to do with a comparison whose two ratings or ranks are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tie {
    /// Leave it out and report it.
    #[default]
    Drop,
    /// Use it, with a label of one half.
    Keep,
}

/// What to do with a pair of more than `max_length` tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Leave it out and report it.
    #[default]
    Drop,
    /// Cut the prompt's beginning.
    TruncatePrompt,
    /// Stop.
    Raise,
}

/// What makes ids of text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// The fast engine where it is exact, else the reference.
    #[default]
    Auto,
    /// The reference.
    Reference,
}

/// Options of reading.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadOptions {
    /// What messages call the input; nothing for its path.
    pub name: Option<String>,
    /// Number of the first line.
    pub first_row: u64,
    /// Keep every stride-th usable row.
    pub stride: u64,
    /// Fraction of the pairs whose sides are swapped.
    pub flip: f64,
    /// Seed of the swaps.
    pub flip_seed: u64,
    /// Prefix the summarize instruction as the GRM authors do.
    pub paper_text: bool,
    /// For rows that are no usable pair.
    pub on_bad_row: BadRow,
    /// For pairs seen before.
    pub on_duplicate: Repeat,
    /// For pairs seen before with their sides swapped.
    pub on_contradiction: Repeat,
    /// For comparisons of equal ratings or ranks.
    pub on_tie: Tie,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            name: None,
            first_row: 1,
            stride: 1,
            flip: 0.0,
            flip_seed: 0,
            paper_text: false,
            on_bad_row: BadRow::default(),
            on_duplicate: Repeat::default(),
            on_contradiction: Repeat::default(),
            on_tie: Tie::default(),
        }
    }
}

impl ReadOptions {
    /// Read and check options.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name or a value out of range.
    pub fn from_json(json: &str) -> Result<Self> {
        let options: Self = parse(json)?;
        options.check()?;
        Ok(options)
    }

    /// Check values.
    ///
    /// # Errors
    /// [`Error::Argument`] for one out of range.
    pub fn check(&self) -> Result<()> {
        if self.stride < 1 {
            return Err(Error::Argument("stride must be at least 1".into()));
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return Err(Error::Argument(format!("flip is a fraction between 0 and 1, got {}", self.flip)));
        }
        Ok(())
    }
}

/// Options of encoding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WriteOptions {
    /// Longest prompt + response in tokens; nothing for no limit.
    pub max_length: Option<usize>,
    /// For longer pairs.
    pub on_overlong: Overlong,
    /// For rows that cannot be rendered or encoded to a usable pair.
    pub on_bad_row: BadRow,
    /// Let the tokenizer's post-processor add its tokens.
    pub add_special_tokens: bool,
    /// Id to append to each response that does not end with it.
    pub append_token: Option<u32>,
    /// What makes ids of text: no part of what a store is, since all engines give the same ids.
    #[serde(skip_serializing)]
    pub engine: EngineChoice,
    /// Threads; nothing for `RAYON_NUM_THREADS`, or as many as there are cores. No part of what a store is.
    #[serde(skip_serializing)]
    pub threads: Option<usize>,
}

impl WriteOptions {
    /// Read and check options.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name or a value out of range.
    pub fn from_json(json: &str) -> Result<Self> {
        let options: Self = parse(json)?;
        options.check()?;
        Ok(options)
    }

    /// Check values.
    ///
    /// # Errors
    /// [`Error::Argument`] for one out of range.
    pub fn check(&self) -> Result<()> {
        if self.max_length == Some(0) {
            return Err(Error::Argument("max_length must be at least 1".into()));
        }
        if self.threads == Some(0) {
            return Err(Error::Argument("threads must be at least 1".into()));
        }
        if self.append_token.is_some_and(|id| i32::try_from(id).is_err()) {
            return Err(Error::Argument("append_token is no token id".into()));
        }
        Ok(())
    }
}

/// Read options of any kind; the error names the wrong one.
pub(crate) fn parse<T: for<'de> Deserialize<'de>>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|error| {
        let message = error.to_string();
        let short = message.split(" at line ").next().unwrap_or(&message);
        Error::Argument(format!("options: {short}"))
    })
}
