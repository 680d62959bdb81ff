//! What a preparation found.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::pairs::{Findings, by_reason};
use crate::reason::{Reason, RowsByReason, enter};

/// Rows and tokens of a store, or of a part of one. `rows` equals `used` + `skipped` + the refused rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Rows seen.
    pub rows: u64,
    /// Groups stored.
    pub used: u64,
    /// Usable rows left out: by the stride, or by offset and limit.
    pub skipped: u64,
    /// Rows not used.
    #[serde(deserialize_with = "by_reason")]
    pub refused: RowsByReason,
    /// Rows used although they were seen before, or without their ties.
    #[serde(deserialize_with = "by_reason")]
    pub noted: RowsByReason,
    /// Stored groups whose sides were swapped.
    pub flipped: u64,
    /// Stored comparisons.
    pub comparisons: u64,
    /// Those of them that are ties.
    pub ties: u64,
    /// Stored tokens, shared prompts counted once.
    pub tokens: u64,
    /// Those of them that are shared prompts.
    pub shared_tokens: u64,
    /// Tokens of the longest response with its prompt.
    pub max_tokens: u64,
    /// What the chat template said, by row.
    pub template_errors: BTreeMap<u64, String>,
}

/// Characters of a template's message that are kept: a message may hold the conversation.
const MOST_SAID: usize = 300;

impl Report {
    /// Enter what a reader found. Its notes are kept apart: they count for rows that are stored.
    pub fn enter(&mut self, findings: &Findings) {
        self.rows += findings.rows;
        self.skipped += findings.skipped;
        extend(&mut self.refused, findings.refused.clone());
    }

    /// Enter a refused row, and what the chat template said about it.
    pub fn refuse(&mut self, row: u64, reason: Reason, message: Option<&str>) {
        enter(&mut self.refused, reason, row);
        if let Some(message) = message {
            self.template_errors.insert(row, message.chars().take(MOST_SAID).collect());
        }
    }

    /// Enter a reader's notes of a stored row.
    pub fn note(&mut self, noted: &RowsByReason, row: u64) {
        for (reason, rows) in noted {
            if rows.binary_search(&row).is_ok() {
                self.noted.entry(reason).or_default().push(row);
            }
        }
    }

    /// Add the report of the rows that come next.
    pub fn add(&mut self, next: Self) {
        self.rows += next.rows;
        self.used += next.used;
        self.skipped += next.skipped;
        extend(&mut self.refused, next.refused);
        extend(&mut self.noted, next.noted);
        self.flipped += next.flipped;
        self.comparisons += next.comparisons;
        self.ties += next.ties;
        self.tokens += next.tokens;
        self.shared_tokens += next.shared_tokens;
        self.max_tokens = self.max_tokens.max(next.max_tokens);
        self.template_errors.extend(next.template_errors);
    }

    /// The report with rows ascending.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        for rows in self.refused.values_mut().chain(self.noted.values_mut()) {
            rows.sort_unstable();
        }
        self
    }
}

fn extend(rows: &mut RowsByReason, more: RowsByReason) {
    for (reason, more) in more {
        rows.entry(reason).or_default().extend(more);
    }
}
