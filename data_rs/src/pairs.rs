//! Rows to usable pairs: read, normalize, lint, stride and flip.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::ThreadPool;
use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::lint::{Mark, Seen, check, marks};
use crate::options::{BadRow, ReadOptions, Repeat};
use crate::order::flips;
use crate::read::{Reader, Source, Window};
use crate::reason::{Reason, RowsByReason, enter};
use crate::record::{FORMATS, Record, normalize};
use crate::refusal::Refusal;

static NEXT_IDENTITY: AtomicU64 = AtomicU64::new(0);

/// What became of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Rows seen; blank lines are none.
    pub rows: u64,
    /// Usable rows left out by the stride.
    pub skipped: u64,
    /// Rows that are not used.
    #[serde(deserialize_with = "by_reason")]
    pub refused: RowsByReason,
    /// Rows that are used although they were seen before, or without their ties.
    #[serde(deserialize_with = "by_reason")]
    pub noted: RowsByReason,
}

/// Read rows by reason.
pub(crate) fn by_reason<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<RowsByReason, D::Error> {
    let rows = BTreeMap::<Reason, Vec<u64>>::deserialize(deserializer)?;
    Ok(rows.into_iter().map(|(reason, rows)| (reason.name(), rows)).collect())
}

/// Where a reading stands between two windows. What it remembers of the rows before is [`PairReader::entered`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Number of the next line or row.
    pub row: u64,
    /// Where it begins: bytes from the beginning, as they are once inflated; rows in tables.
    pub offset: u64,
    /// Usable rows so far, those included that the stride left out.
    pub usable: u64,
    /// Whether a row of a known format was seen.
    pub format_known: bool,
    /// What became of the rows so far.
    pub findings: Findings,
}

/// The usable rows of an input, all in memory, and what became of the others.
#[derive(Debug)]
pub struct Pairs {
    /// Tells this reading from any other of the process.
    pub identity: u64,
    /// What messages call the input.
    pub name: String,
    /// Rows seen; blank lines are none.
    pub rows: u64,
    /// Usable rows left out by the stride.
    pub skipped: u64,
    /// Rows that are not used.
    pub refused: RowsByReason,
    /// Rows that are used although they were seen before, or without their ties.
    pub noted: RowsByReason,
    /// The usable groups.
    pub records: Vec<Record>,
}

/// Reads an input window by window. It holds one window, 16 bytes for each comparison that was used, and the numbers of
/// the rows that were refused or noted.
pub struct PairReader {
    reader: Reader,
    window: Window,
    options: ReadOptions,
    name: String,
    position: Position,
    seen: Seen,
    entered: Vec<u128>,
    /// What is said where the next window was to be.
    broken: Option<Error>,
}

/// What a row is by itself.
enum Outcome {
    /// No row.
    Blank,
    /// Nothing that has columns.
    Broken(Refusal),
    Refused(Refusal),
    Usable(Record, Vec<Mark>),
}

impl PairReader {
    /// Open an input.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be opened, [`Error::Table`] for one that is no Parquet.
    pub fn open(source: Source, options: ReadOptions) -> Result<Self> {
        let row = options.first_row;
        let position = Position { row, offset: 0, usable: 0, format_known: false, findings: Findings::default() };
        Self::open_at(source, options, position, [])
    }

    /// Go on with an input where another reading of the same input, with the same options, stood.
    ///
    /// `entered` are the hashes that all windows before entered, in any order; see [`PairReader::entered`].
    ///
    /// # Errors
    /// As [`PairReader::open`], and [`Error::Io`] for an input that has become shorter.
    pub fn open_at(
        source: Source,
        options: ReadOptions,
        position: Position,
        entered: impl IntoIterator<Item = u128>,
    ) -> Result<Self> {
        let name = options.name.clone().unwrap_or_else(|| source.name());
        let reader = Reader::open(source, &name, position.offset)?;
        let (window, seen) = (Window::default(), entered.into_iter().collect());
        Ok(Self { reader, window, options, name, position, seen, entered: Vec::new(), broken: None })
    }

    /// The usable records of the next `rows` lines or rows, or of fewer that have the bytes of a window; nothing at the
    /// end. Rows are parsed by the threads of `pool`, which changes nothing in what is found.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Table`] for an input that breaks off, once the rows before were given out;
    /// [`Error::Columns`] if the first row is of no pair format; [`Error::Row`] and [`Error::Byte`] where the options ask
    /// to stop. There is nothing to read behind an error.
    pub fn next_window(&mut self, rows: usize, pool: Option<&ThreadPool>) -> Result<Option<Vec<Record>>> {
        self.entered.clear();
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        if let Err(error) = self.reader.fill(&mut self.window, rows.max(1), &self.name, self.position.row) {
            if self.window.len() == 0 {
                return Err(error);
            }
            self.broken = Some(error);
        }
        if self.window.len() == 0 {
            return Ok(None);
        }
        let mut records = Vec::new();
        for (index, outcome) in self.outcomes(pool).into_iter().enumerate() {
            self.enter(index, outcome, &mut records)?;
        }
        self.position.offset = self.reader.offset();
        Ok(Some(records))
    }

    /// What became of the rows so far.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.position.findings
    }

    /// Where the next window begins.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The comparisons that the last window was the first to hold, as hashes of 16 bytes. With the position behind each
    /// window go those of all windows up to there, so a file of them only needs to be added to.
    #[must_use]
    pub fn entered(&self) -> &[u128] {
        &self.entered
    }

    /// What messages call the input.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The reading with its records, for one who kept them all.
    #[must_use]
    pub fn into_pairs(self, records: Vec<Record>) -> Pairs {
        let Findings { rows, skipped, refused, noted } = self.position.findings;
        let identity = NEXT_IDENTITY.fetch_add(1, Ordering::Relaxed);
        Pairs { identity, name: self.name, rows, skipped, refused, noted, records }
    }

    fn outcomes(&self, pool: Option<&ThreadPool>) -> Vec<Outcome> {
        let (window, options, first) = (&self.window, &self.options, self.position.row);
        let outcome = |index: usize| outcome(window, index, first.saturating_add(index as u64), options);
        match pool {
            Some(pool) => pool.install(|| (0..window.len()).into_par_iter().with_min_len(16).map(outcome).collect()),
            None => (0..window.len()).map(outcome).collect(),
        }
    }

    fn enter(&mut self, index: usize, outcome: Outcome, records: &mut Vec<Record>) -> Result<()> {
        let row = self.position.row;
        self.position.row = row.saturating_add(1);
        let known = match &outcome {
            Outcome::Blank => return Ok(()),
            Outcome::Broken(_) => None,
            Outcome::Refused(refusal) => Some(refusal.reason != Reason::UnknownColumns),
            Outcome::Usable(..) => Some(true),
        };
        // The first row with columns decides whether this is an input of pairs at all.
        if known == Some(false) && !self.position.format_known {
            let found = self.window.names(index).join(", ");
            let found = if found.is_empty() { "none".to_owned() } else { found };
            return Err(Error::Columns { name: self.name.clone(), found, accepted: FORMATS });
        }
        self.position.format_known |= known.is_some();
        self.position.findings.rows += 1;
        let refusal = match outcome {
            Outcome::Usable(record, marks) => self.admit(record, &marks, records).err().map(Refusal::from),
            Outcome::Broken(refusal) | Outcome::Refused(refusal) => Some(refusal),
            Outcome::Blank => None,
        };
        refusal.map_or(Ok(()), |refusal| self.refuse(row, refusal))
    }

    fn admit(
        &mut self,
        mut record: Record,
        marks: &[Mark],
        records: &mut Vec<Record>,
    ) -> std::result::Result<(), Reason> {
        let finding = self.seen.find(marks);
        if let Some(reason) = finding
            && self.policy(reason) != Repeat::Keep
        {
            return Err(reason);
        }
        self.seen.enter(marks, &mut self.entered);
        let place = self.position.usable;
        self.position.usable += 1;
        let findings = &mut self.position.findings;
        if !place.is_multiple_of(self.options.stride) {
            findings.skipped += 1;
            return Ok(());
        }
        if let Some(reason) = finding {
            enter(&mut findings.noted, reason, record.row);
        }
        if record.partial {
            enter(&mut findings.noted, Reason::Tie, record.row);
        }
        if flips(self.options.flip, self.options.flip_seed, record.row) {
            record.flip();
        }
        records.push(record);
        Ok(())
    }

    fn policy(&self, reason: Reason) -> Repeat {
        if reason == Reason::Duplicate { self.options.on_duplicate } else { self.options.on_contradiction }
    }

    fn refuse(&mut self, row: u64, refusal: Refusal) -> Result<()> {
        let stop = match refusal.reason {
            Reason::Duplicate | Reason::Contradiction => self.policy(refusal.reason) == Repeat::Raise,
            // Equal ratings say nothing about the pair, but nothing is wrong with the row.
            Reason::Tie => false,
            _ => self.options.on_bad_row == BadRow::Raise,
        };
        if stop {
            return Err(refusal.into_error(&self.name, row));
        }
        enter(&mut self.position.findings.refused, refusal.reason, row);
        Ok(())
    }
}

fn outcome(window: &Window, index: usize, number: u64, options: &ReadOptions) -> Outcome {
    let row = match window.row(index) {
        None => return Outcome::Blank,
        Some(Err(refusal)) => return Outcome::Broken(refusal),
        Some(Ok(row)) => row,
    };
    let usable = normalize(row, number, options).and_then(|record| {
        check(&record)?;
        let marks = marks(&record);
        Ok((record, marks))
    });
    match usable {
        Ok((record, marks)) => Outcome::Usable(record, marks),
        Err(refusal) => Outcome::Refused(refusal),
    }
}

/// Read all of an input into memory.
///
/// # Errors
/// As [`PairReader::open`] and [`PairReader::next_window`].
pub fn read_all(source: Source, options: ReadOptions) -> Result<Pairs> {
    let (mut reader, mut records) = (PairReader::open(source, options)?, Vec::new());
    while let Some(window) = reader.next_window(1024, None)? {
        records.extend(window);
    }
    Ok(reader.into_pairs(records))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, options: &str) -> Result<Pairs> {
        read_all(Source::Bytes(text.as_bytes().to_vec()), ReadOptions::from_json(options)?)
    }

    const PAIR: &str = r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#;
    const SWAPPED: &str = r#"{"prompt": "p", "chosen": "b", "rejected": "a"}"#;

    #[test]
    fn blank_lines_count_as_lines_only() {
        let pairs = read(&format!("\n{PAIR}\n \r\n{SWAPPED}"), "{}").unwrap();
        assert_eq!((pairs.rows, pairs.records.len()), (2, 2));
        assert_eq!(pairs.records[1].row, 4);
        assert_eq!(pairs.noted["contradiction"], [4]);
    }

    #[test]
    fn policies_stop_with_one_line() {
        let text = format!("{PAIR}\n{PAIR}\n[1]");
        let error = read(&text, r#"{"name": "f", "on_duplicate": "raise"}"#).unwrap_err().to_string();
        assert_eq!(error, "f:2: the same pair as in an earlier row; remove the row or use on_duplicate=keep or drop");
        let error = read(&text, r#"{"on_bad_row": "raise"}"#).unwrap_err().to_string();
        assert_eq!(
            error,
            "<bytes>:3:1: not a JSON object in UTF-8 (invalid type: sequence, expected an object); \
                    fix the row or use on_bad_row=drop"
        );
        assert!(read("{}", r#"{"strides": 2}"#).unwrap_err().to_string().contains("unknown field `strides`"));
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        let row =
            |margin: &str| format!(r#"{{"prompt": "NaN \" NaN", "chosen": "a", "rejected": "b", "margin": {margin}}}"#);
        for bad in ["NaN", "-Infinity", "1e999", "1e300", "\"1\"", "true"] {
            assert_eq!(read(&row(bad), "{}").unwrap().refused["bad_number"], [1], "{bad}");
        }
        assert_eq!(read(&row("1.5"), "{}").unwrap().records[0].comparisons[0].margin.to_bits(), 1.5f32.to_bits());
        assert_eq!(read(&row("nan"), "{}").unwrap().refused["invalid_json"], [1]);
    }

    #[test]
    fn a_ranking_becomes_its_comparisons() {
        let row = r#"{"prompt": "p", "responses": ["a", "b", "c"], "ratings": [1, 4, 1]}"#;
        let order = |pairs: &Pairs| -> Vec<(u32, u32, f32)> {
            pairs.records[0].comparisons.iter().map(|one| (one.better, one.worse, one.label)).collect()
        };
        let dropped = read(row, "{}").unwrap();
        assert_eq!(order(&dropped), [(1, 0, 1.0), (1, 2, 1.0)]);
        assert_eq!(dropped.noted["tie"], [1]);
        let kept = read(row, r#"{"on_tie": "keep"}"#).unwrap();
        assert_eq!(order(&kept), [(1, 0, 1.0), (0, 2, 0.5), (1, 2, 1.0)]);
        assert!(kept.noted.is_empty());
        let flipped = read(row, r#"{"on_tie": "keep", "flip": 1.0}"#).unwrap();
        assert_eq!(order(&flipped), [(0, 1, 1.0), (0, 2, 0.5), (2, 1, 1.0)]);
    }

    #[test]
    fn the_first_object_decides() {
        let error = read("7\n{\"b\": 1, \"a\": 2}", r#"{"name": "f"}"#).unwrap_err().to_string();
        assert!(error.starts_with("f: its columns are a, b; a pair needs chosen and rejected"), "{error}");
        assert_eq!(read(&format!("{PAIR}\n{{\"a\": 2}}"), "{}").unwrap().refused["unknown_columns"], [2]);
    }
}
