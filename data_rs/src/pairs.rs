//! Rows to usable pairs: read, normalize, lint, stride and flip.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::lint::{Seen, check, marks};
use crate::options::{BadRow, ReadOptions, Repeat};
use crate::order::flips;
use crate::read::{Line, Lines, Source};
use crate::reason::{Reason, RowsByReason, enter};
use crate::record::{FORMATS, Record, is_known, normalize};

static NEXT_IDENTITY: AtomicU64 = AtomicU64::new(0);

/// The usable rows of an input, and what became of the others.
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

/// What was found since the last look.
#[derive(Debug, Default)]
pub struct Findings {
    /// Rows seen.
    pub rows: u64,
    /// Usable rows left out by the stride.
    pub skipped: u64,
    /// Rows that are not used.
    pub refused: RowsByReason,
    /// Rows that are used nevertheless.
    pub noted: RowsByReason,
}

/// Where a reader stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Position {
    lines: u64,
}

/// Reads an input piece by piece.
pub struct PairReader {
    lines: Lines,
    options: ReadOptions,
    pairs: Pairs,
    seen: Seen,
    next_row: u64,
    usable: u64,
    format_known: bool,
}

impl PairReader {
    /// Open an input.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be opened.
    pub fn open(source: Source, options: ReadOptions) -> Result<Self> {
        let name = match (&options.name, &source) {
            (Some(name), _) => name.clone(),
            (None, Source::Path(path)) => path.clone(),
            (None, Source::Bytes(_)) => "<bytes>".to_owned(),
        };
        let lines = Lines::open(source, &name)?;
        let (refused, noted) = (RowsByReason::new(), RowsByReason::new());
        let identity = NEXT_IDENTITY.fetch_add(1, Ordering::Relaxed);
        let pairs = Pairs { identity, name, rows: 0, skipped: 0, refused, noted, records: Vec::new() };
        let next_row = options.first_row;
        Ok(Self { lines, options, pairs, seen: Seen::default(), next_row, usable: 0, format_known: false })
    }

    /// Open an input where another reader of it stood.
    ///
    /// # Errors
    /// As [`PairReader::open`] and [`PairReader::read`].
    pub fn open_at(source: Source, options: ReadOptions, position: &Position) -> Result<Self> {
        let mut reader = Self::open(source, options)?;
        for _ in 0..position.lines {
            reader.read(1)?;
            reader.pairs.records.clear();
        }
        reader.findings();
        Ok(reader)
    }

    /// The usable groups of the next `count` lines; nothing at the end.
    ///
    /// # Errors
    /// As [`PairReader::read`].
    pub fn next_window(&mut self, count: usize) -> Result<Option<Vec<Record>>> {
        let more = self.read(count)?;
        let records = std::mem::take(&mut self.pairs.records);
        Ok((more || !records.is_empty()).then_some(records))
    }

    /// What was found since this was last asked.
    pub fn findings(&mut self) -> Findings {
        Findings {
            rows: std::mem::take(&mut self.pairs.rows),
            skipped: std::mem::take(&mut self.pairs.skipped),
            refused: std::mem::take(&mut self.pairs.refused),
            noted: std::mem::take(&mut self.pairs.noted),
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { lines: self.next_row.saturating_sub(self.options.first_row) }
    }

    /// Read up to `count` lines. Whether there may be more.
    ///
    /// # Errors
    /// [`Error::Io`] for an input that breaks off, [`Error::Columns`] if the first row is of no pair format,
    /// [`Error::Row`] where the options ask to stop.
    pub fn read(&mut self, count: usize) -> Result<bool> {
        for _ in 0..count {
            let row = self.next_row;
            let line = self.lines.next_line().map_err(|error| {
                let problem = format!("cannot be read at row {row}; the file is damaged or cut off, get it again");
                Error::io(&self.pairs.name, &problem, error)
            })?;
            let Some(line) = line else { return Ok(false) };
            self.next_row = row.saturating_add(1);
            if let Line::Bytes(bytes) = &line
                && bytes.iter().all(u8::is_ascii_whitespace)
            {
                continue;
            }
            self.pairs.rows += 1;
            if let Err(reason) = self.take(row, &line)? {
                self.refuse(row, reason)?;
            }
        }
        Ok(true)
    }

    /// Everything read so far.
    #[must_use]
    pub fn finish(self) -> Pairs {
        self.pairs
    }

    fn take(&mut self, row: u64, line: &Line) -> Result<std::result::Result<(), Reason>> {
        let columns = match parse(line) {
            Ok(columns) => columns,
            Err(reason) => return Ok(Err(reason)),
        };
        self.check_columns(&columns)?;
        let record = match normalize(columns, row, &self.options) {
            Ok(record) => record,
            Err(reason) => return Ok(Err(reason)),
        };
        Ok(check(&record).and_then(|()| self.admit(record)))
    }

    /// The first object decides whether this is an input of pairs at all.
    fn check_columns(&mut self, columns: &Map<String, Value>) -> Result<()> {
        if !self.format_known && !is_known(columns) {
            let mut found: Vec<&str> = columns.keys().map(String::as_str).collect();
            found.sort_unstable();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            return Err(Error::Columns { name: self.pairs.name.clone(), found, accepted: FORMATS });
        }
        self.format_known = true;
        Ok(())
    }

    fn admit(&mut self, mut record: Record) -> std::result::Result<(), Reason> {
        let marks = marks(&record);
        let finding = self.seen.find(&marks);
        if let Some(reason) = finding
            && self.policy(reason) != Repeat::Keep
        {
            return Err(reason);
        }
        self.seen.enter(&marks);
        let place = self.usable;
        self.usable += 1;
        if !place.is_multiple_of(self.options.stride) {
            self.pairs.skipped += 1;
            return Ok(());
        }
        if let Some(reason) = finding {
            enter(&mut self.pairs.noted, reason, record.row);
        }
        if record.partial {
            enter(&mut self.pairs.noted, Reason::Tie, record.row);
        }
        if flips(self.options.flip, self.options.flip_seed, record.row) {
            record.flip();
        }
        self.pairs.records.push(record);
        Ok(())
    }

    fn policy(&self, reason: Reason) -> Repeat {
        if reason == Reason::Duplicate { self.options.on_duplicate } else { self.options.on_contradiction }
    }

    fn refuse(&mut self, row: u64, reason: Reason) -> Result<()> {
        let stop = match reason {
            Reason::Duplicate | Reason::Contradiction => self.policy(reason) == Repeat::Raise,
            // Equal ratings say nothing about the pair, but nothing is wrong with the row.
            Reason::Tie => false,
            _ => self.options.on_bad_row == BadRow::Raise,
        };
        if stop {
            return Err(Error::Row { name: self.pairs.name.clone(), row, reason, detail: String::new() });
        }
        enter(&mut self.pairs.refused, reason, row);
        Ok(())
    }
}

fn parse(line: &Line) -> std::result::Result<Map<String, Value>, Reason> {
    let Line::Bytes(bytes) = line else { return Err(Reason::InvalidJson) };
    let text = std::str::from_utf8(bytes).map_err(|_| Reason::InvalidJson)?;
    let parsed = serde_json::from_str(text).or_else(|error| match mark_non_finite(text) {
        Cow::Owned(marked) => serde_json::from_str(&marked),
        Cow::Borrowed(_) => Err(error),
    });
    match parsed {
        Ok(Value::Object(columns)) => Ok(columns),
        Err(error) if error.to_string().starts_with("number out of range") => Err(Reason::BadNumber),
        _ => Err(Reason::InvalidJson),
    }
}

/// Replace the NaN and Infinity that Python writes by `{}`, which is refused wherever a number or a text is expected.
fn mark_non_finite(text: &str) -> Cow<'_, str> {
    let mut marked = String::new();
    let (mut done, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'N' | b'I' | b'-' if !quoted && at >= done => {
                let rest = text.get(at..).unwrap_or_default();
                if let Some(token) = ["NaN", "Infinity", "-Infinity"].iter().find(|token| rest.starts_with(**token)) {
                    marked.push_str(text.get(done..at).unwrap_or_default());
                    marked.push_str("{}");
                    done = at + token.len();
                }
            }
            _ => {}
        }
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    marked.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(marked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, options: &str) -> Result<Pairs> {
        let source = Source::Bytes(text.as_bytes().to_vec());
        let mut reader = PairReader::open(source, ReadOptions::from_json(options)?)?;
        while reader.read(2)? {}
        Ok(reader.finish())
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
        assert_eq!(error, "<bytes>:3: not a JSON object in UTF-8; fix the row or use on_bad_row=drop");
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
