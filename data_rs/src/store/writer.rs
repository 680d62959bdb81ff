//! Write a store.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::files::HashedFile;
use super::manifest::{COMPARISONS, Counts, GROUPS, MANIFEST, ROWS, SCHEMA, SEGMENTS, STARTS, TOKENS};
use super::place::Workplace;
use crate::encode::{Encoder, Group, Rendered};
use crate::error::{Error, Result};
use crate::options::{BadRow, Overlong, WriteOptions};
use crate::pairs::Pairs;
use crate::reason::Reason;
use crate::record::{Comparison, Record};
use crate::report::Reporter;

/// Builds a store; nothing is at its place before [`StoreWriter::finish`].
pub struct StoreWriter {
    encoder: Encoder,
    tokenizer_hash: String,
    files: Files,
    counts: Counts,
    reporter: Reporter,
    place: Workplace,
}

struct Files {
    tokens: HashedFile,
    segments: HashedFile,
    groups: HashedFile,
    starts: HashedFile,
    comparisons: HashedFile,
    rows: HashedFile,
}

#[derive(Serialize)]
struct RowLine<'a> {
    row: u64,
    id: &'a str,
    source: Option<&'a str>,
    category: Option<&'a str>,
    flipped: bool,
}

impl StoreWriter {
    /// Start a store.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a text that is no tokenizer.json, [`Error::Io`] where nothing can be written.
    pub fn create(directory: impl Into<PathBuf>, tokenizer_json: &str, options: WriteOptions) -> Result<Self> {
        let encoder = Encoder::new(tokenizer_json, options)?;
        let tokenizer_hash = format!("{:032x}", xxh3_128(tokenizer_json.as_bytes()));
        let place = Workplace::create(&directory.into())?;
        let create = |name: &str| HashedFile::create(place.folder().join(name));
        let mut files = Files {
            tokens: create(TOKENS)?,
            segments: create(SEGMENTS)?,
            groups: create(GROUPS)?,
            starts: create(STARTS)?,
            comparisons: create(COMPARISONS)?,
            rows: create(ROWS)?,
        };
        files.segments.write(&0u64.to_le_bytes())?;
        files.groups.write(&[0; 16])?;
        let (counts, reporter) = (Counts::default(), Reporter::default());
        Ok(Self { encoder, tokenizer_hash, files, counts, reporter, place })
    }

    /// Announce groups `start..start + count` of `pairs`, which come next by [`StoreWriter::append`].
    ///
    /// # Errors
    /// [`Error::Argument`] for groups that do not exist, or that came before.
    pub fn begin(&mut self, pairs: &Pairs, start: usize, count: usize) -> Result<()> {
        self.reporter.begin(pairs, start, count)
    }

    /// Encode and store groups of `pairs` from `start` on, as announced.
    ///
    /// # Errors
    /// [`Error::Row`] where the options ask to stop, [`Error::Argument`] for a wrong number of texts.
    pub fn append(&mut self, pairs: &Pairs, start: usize, groups: &[Rendered]) -> Result<()> {
        let records = pairs.records.get(start..).unwrap_or_default();
        if records.len() < groups.len() {
            return Err(Error::Argument("more texts than groups".into()));
        }
        for (record, rendered) in records.iter().zip(groups) {
            if let Ok(texts) = rendered
                && texts.len() != record.responses.len()
            {
                let (row, responses) = (record.row, record.responses.len());
                let problem = format!("row {row}: {} texts for {responses} responses", texts.len());
                return Err(Error::Argument(problem));
            }
        }
        let encoded = self.encoder.encode(start as u64, groups)?;
        for ((record, rendered), group) in records.iter().zip(groups).zip(encoded) {
            match group {
                Ok(group) => self.store(pairs, record, &group)?,
                Err(reason) => self.refuse(pairs, record.row, reason, rendered.as_ref().err())?,
            }
        }
        Ok(())
    }

    /// Write the manifest with these entries added, and move the store to its place. The report as JSON.
    ///
    /// # Errors
    /// [`Error::Taken`] if something else is there, [`Error::Argument`] for an entry that would hide one of the store's.
    pub fn finish(self, entries: Map<String, Value>) -> Result<String> {
        let Self { encoder, tokenizer_hash, files, counts, reporter, mut place } = self;
        let finished = [
            (TOKENS, files.tokens.finish()?),
            (SEGMENTS, files.segments.finish()?),
            (GROUPS, files.groups.finish()?),
            (STARTS, files.starts.finish()?),
            (COMPARISONS, files.comparisons.finish()?),
            (ROWS, files.rows.finish()?),
        ];
        let listed: Map<String, Value> =
            finished.iter().map(|(name, entry)| ((*name).to_owned(), json!(entry))).collect();
        let report = json!(reporter.finish());
        let encoding = json!({"options": encoder.options(), "tokenizer_xxh3": tokenizer_hash});
        let own = json!({"schema": SCHEMA, "counts": counts, "encoding": encoding, "files": listed, "report": report});
        let mut manifest = entries;
        if let Value::Object(own) = own {
            for (name, value) in own {
                if manifest.insert(name.clone(), value).is_some() {
                    return Err(Error::Argument(format!("manifest entry {name} is the store's own; use another name")));
                }
            }
        }
        let text = format!("{}\n", Value::Object(manifest));
        let mut file = HashedFile::create(place.folder().join(MANIFEST))?;
        file.write(text.as_bytes())?;
        file.finish()?;
        place.publish(&text)?;
        Ok(report.to_string())
    }

    fn refuse(&mut self, pairs: &Pairs, row: u64, reason: Reason, message: Option<&String>) -> Result<()> {
        let options = self.encoder.options();
        let stop = match reason {
            Reason::OverLength => options.on_overlong == Overlong::Raise,
            _ => options.on_bad_row == BadRow::Raise,
        };
        if stop {
            let detail = message.map(|message| format!(" ({message})")).unwrap_or_default();
            return Err(Error::Row { name: pairs.name.clone(), row, reason, detail });
        }
        self.reporter.refuse(row, reason);
        if let Some(message) = message {
            self.reporter.template_error(row, message);
        }
        Ok(())
    }

    fn store(&mut self, pairs: &Pairs, record: &Record, group: &Group) -> Result<()> {
        let longest = group.responses.iter().map(|response| response.tokens.len()).max().unwrap_or(0);
        let before = self.counts.tokens;
        if let Some(first) = group.responses.first() {
            self.store_segment(first.tokens.get(..group.shared).unwrap_or_default())?;
        }
        for response in &group.responses {
            self.store_segment(response.tokens.get(group.shared..).unwrap_or_default())?;
            self.files.starts.write(&(response.start as u64).to_le_bytes())?;
            self.counts.responses += 1;
        }
        record.comparisons.iter().try_for_each(|comparison| self.store_comparison(comparison))?;
        self.counts.groups += 1;
        self.files.groups.write(&(self.counts.groups + self.counts.responses).to_le_bytes())?;
        self.files.groups.write(&self.counts.comparisons.to_le_bytes())?;
        self.store_row(record)?;
        self.reporter.note(pairs, record.row);
        let report = self.reporter.counts();
        report.used += 1;
        report.flipped += u64::from(record.flipped);
        report.comparisons += record.comparisons.len() as u64;
        report.ties += record.comparisons.iter().filter(|one| one.label.total_cmp(&0.5).is_eq()).count() as u64;
        report.tokens += self.counts.tokens - before;
        report.shared_tokens += group.shared as u64;
        report.max_tokens = report.max_tokens.max(longest as u64);
        Ok(())
    }

    fn store_segment(&mut self, tokens: &[i32]) -> Result<()> {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        self.files.tokens.write(&bytes)?;
        self.counts.tokens += tokens.len() as u64;
        self.files.segments.write(&self.counts.tokens.to_le_bytes())
    }

    fn store_comparison(&mut self, comparison: &Comparison) -> Result<()> {
        let file = &mut self.files.comparisons;
        file.write(&comparison.row.to_le_bytes())?;
        for index in [comparison.better, comparison.worse] {
            file.write(&index.to_le_bytes())?;
        }
        for value in [comparison.label, comparison.margin, comparison.weight] {
            file.write(&value.to_le_bytes())?;
        }
        self.counts.comparisons += 1;
        Ok(())
    }

    fn store_row(&mut self, record: &Record) -> Result<()> {
        let line = RowLine {
            row: record.row,
            id: &record.id,
            source: record.source.as_deref(),
            category: record.category.as_deref(),
            flipped: record.flipped,
        };
        let text = serde_json::to_string(&line).map_err(|error| Error::Argument(error.to_string()))?;
        self.files.rows.write(text.as_bytes())?;
        self.files.rows.write(b"\n")
    }
}
