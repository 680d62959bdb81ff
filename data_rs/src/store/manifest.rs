//! The manifest: what a store's files must be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the layout; another one is refused.
pub const SCHEMA: u64 = 1;

/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";
/// Token ids, i32.
pub const TOKENS: &str = "tokens.bin";
/// Token offsets of segments, u64.
pub const SEGMENTS: &str = "segments.bin";
/// First segment and first comparison of each group, two u64.
pub const GROUPS: &str = "groups.bin";
/// First scored token of each response, u64.
pub const STARTS: &str = "starts.bin";
/// Comparisons, records of [`COMPARISON_BYTES`].
pub const COMPARISONS: &str = "comparisons.bin";
/// A JSON object a group.
pub const ROWS: &str = "rows.jsonl";
/// All files but the manifest.
pub const FILES: [&str; 6] = [TOKENS, SEGMENTS, GROUPS, STARTS, COMPARISONS, ROWS];

/// Bytes of a comparison: row u64, better u32, worse u32, label f32, margin f32, weight f32.
pub const COMPARISON_BYTES: usize = 28;

/// How much a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Groups.
    pub groups: u64,
    /// Responses; segments are as many plus one prompt a group.
    pub responses: u64,
    /// Comparisons.
    pub comparisons: u64,
    /// Tokens.
    pub tokens: u64,
}

/// Length and checksum of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Bytes.
    pub bytes: u64,
    /// xxh3 (64 bits) as 16 hexadecimal digits.
    pub xxh3: String,
}

/// The entries that are checked when a store is opened.
#[derive(Clone, Debug, Deserialize)]
pub struct Checked {
    /// How much there is.
    pub counts: Counts,
    /// The files.
    pub files: BTreeMap<String, FileEntry>,
}

impl Counts {
    /// Bytes that a file must have; nothing for one of free length, or for counts too large to be true.
    #[must_use]
    pub fn bytes_of(&self, name: &str) -> Option<u64> {
        match name {
            TOKENS => self.tokens.checked_mul(4),
            SEGMENTS => self.groups.checked_add(self.responses)?.checked_add(1)?.checked_mul(8),
            GROUPS => self.groups.checked_add(1)?.checked_mul(16),
            STARTS => self.responses.checked_mul(8),
            COMPARISONS => self.comparisons.checked_mul(COMPARISON_BYTES as u64),
            _ => None,
        }
    }
}
