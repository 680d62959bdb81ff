//! What a preparation found.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::pairs::Pairs;
use crate::reason::{Reason, RowsByReason, enter};

/// Rows and tokens of a store. `rows` equals `used` + `skipped` + the refused rows.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Rows seen.
    pub rows: u64,
    /// Groups stored.
    pub used: u64,
    /// Usable rows left out: by the stride, or because they were never appended.
    pub skipped: u64,
    /// Rows not used.
    pub refused: RowsByReason,
    /// Rows used although they were seen before, or without their ties.
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

/// Builds a report from readings and what became of their groups.
#[derive(Debug, Default)]
pub struct Reporter {
    report: Report,
    /// For each reading the first group that may still come.
    readings: HashMap<u64, usize>,
}

impl Reporter {
    /// Enter groups `start..start + count` of a reading, and the reading itself when it comes first.
    ///
    /// # Errors
    /// [`Error::Argument`] for groups that do not exist, or that came before.
    pub fn begin(&mut self, pairs: &Pairs, start: usize, count: usize) -> Result<()> {
        let (total, end) = (pairs.records.len(), start.saturating_add(count));
        let next = self.readings.get(&pairs.identity).copied();
        if end > total || next.is_some_and(|next| start < next) {
            let problem = format!("groups {start} to {end} of {total} do not exist or were appended before");
            return Err(Error::Argument(problem));
        }
        self.readings.insert(pairs.identity, end);
        let report = &mut self.report;
        if next.is_none() {
            report.rows += pairs.rows;
            report.skipped += pairs.skipped + total as u64;
            for (reason, rows) in &pairs.refused {
                report.refused.entry(reason).or_default().extend(rows);
            }
        }
        report.skipped -= count as u64;
        Ok(())
    }

    /// Enter a refused row.
    pub fn refuse(&mut self, row: u64, reason: Reason) {
        enter(&mut self.report.refused, reason, row);
    }

    /// Enter what the chat template said about a row.
    pub fn template_error(&mut self, row: u64, message: &str) {
        self.report.template_errors.insert(row, message.to_owned());
    }

    /// The report so far, to count what is stored.
    pub fn counts(&mut self) -> &mut Report {
        &mut self.report
    }

    /// The findings of a reading about a stored row.
    pub fn note(&mut self, pairs: &Pairs, row: u64) {
        for (reason, rows) in &pairs.noted {
            if rows.binary_search(&row).is_ok() {
                self.report.noted.entry(reason).or_default().push(row);
            }
        }
    }

    /// The report, rows ascending.
    #[must_use]
    pub fn finish(mut self) -> Report {
        for rows in self.report.refused.values_mut().chain(self.report.noted.values_mut()) {
            rows.sort_unstable();
        }
        self.report
    }
}
