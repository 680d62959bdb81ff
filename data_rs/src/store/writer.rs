//! Write a store, window by window.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::files::HashedFile;
use super::journal::{ENTERED, Entry, Journal};
use super::manifest::{COMPARISONS, Counts, FileEntry, GROUPS, MANIFEST, ROWS, SCHEMA, SEGMENTS, STARTS, TOKENS};
use super::place::Workplace;
use crate::encode::Group;
use crate::error::{Error, Result};
use crate::pairs::Position;
use crate::record::{Comparison, Record};
use crate::report::Report;

/// Builds a store; nothing is at its place before [`StoreWriter::finish`].
pub struct StoreWriter {
    files: Files,
    journal: Journal,
    counts: Counts,
    /// Of all windows that were committed.
    total: Report,
    /// Of the window in work.
    window: Report,
    careful: bool,
    place: Workplace,
}

/// How far an interrupted builder came.
#[derive(Debug)]
pub struct Progress {
    /// Groups that came from the reader, stored or not.
    pub groups: u64,
    /// Where the reader stood.
    pub reader: Position,
    /// The hashes that it had entered.
    pub entered: Vec<u128>,
}

struct Files {
    tokens: HashedFile,
    segments: HashedFile,
    groups: HashedFile,
    starts: HashedFile,
    comparisons: HashedFile,
    rows: HashedFile,
    /// No part of the store: what the reader remembers, 16 bytes each.
    entered: HashedFile,
}

impl Files {
    fn open(mut open: impl FnMut(&'static str) -> Result<Option<HashedFile>>) -> Result<Option<Self>> {
        let [Some(tokens), Some(segments), Some(groups), Some(starts), Some(comparisons), Some(rows)] =
            [open(TOKENS)?, open(SEGMENTS)?, open(GROUPS)?, open(STARTS)?, open(COMPARISONS)?, open(ROWS)?]
        else {
            return Ok(None);
        };
        let Some(entered) = open(ENTERED)? else { return Ok(None) };
        Ok(Some(Self { tokens, segments, groups, starts, comparisons, rows, entered }))
    }

    fn flush(&mut self) -> Result<BTreeMap<String, FileEntry>> {
        let all = [
            (TOKENS, &mut self.tokens),
            (SEGMENTS, &mut self.segments),
            (GROUPS, &mut self.groups),
            (STARTS, &mut self.starts),
            (COMPARISONS, &mut self.comparisons),
            (ROWS, &mut self.rows),
            (ENTERED, &mut self.entered),
        ];
        all.into_iter().map(|(name, file)| Ok((name.to_owned(), file.flush()?))).collect()
    }

    fn finish(self) -> Result<()> {
        for file in [self.tokens, self.segments, self.groups, self.starts, self.comparisons, self.rows] {
            file.finish()?;
        }
        Ok(())
    }
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
    /// Start a store, or go on with the one that an interrupted builder of the same identity left.
    /// Nothing if another builder is at work, or the store is there already. `careful` is kept with a store that is
    /// begun: who goes on with it is as careful.
    ///
    /// # Errors
    /// [`Error::Taken`] if something else is at the target, [`Error::Io`] where nothing can be written.
    pub fn begin(target: &Path, identity: &str, careful: bool) -> Result<Option<(Self, Option<Progress>)>> {
        let Some(mut place) = Workplace::claim(target, identity)? else { return Ok(None) };
        if let Some((journal, entry)) = Journal::resume(place.folder())?
            && let Some(files) = Files::open(|name| match entry.files.get(name) {
                Some(known) => HashedFile::resume(place.folder().join(name), known),
                None => Ok(None),
            })?
        {
            let entered = files.entered.read_back()?;
            let entered = entered.as_chunks().0.iter().map(|bytes| u128::from_le_bytes(*bytes)).collect();
            let progress = Progress { groups: entry.groups, reader: entry.reader, entered };
            let (counts, total, window, careful) = (entry.counts, entry.report, Report::default(), entry.careful);
            return Ok(Some((Self { files, journal, counts, total, window, careful, place }, Some(progress))));
        }
        place.clear()?;
        let files = Files::open(|name| HashedFile::create(place.folder().join(name)).map(Some))?;
        let Some(mut files) = files else { return Ok(None) };
        files.segments.write(&0u64.to_le_bytes())?;
        files.groups.write(&[0; 16])?;
        let journal = Journal::create(place.folder())?;
        let (counts, total, window) = (Counts::default(), Report::default(), Report::default());
        Ok(Some((Self { files, journal, counts, total, window, careful, place }, None)))
    }

    /// Whether it must be written without fast ways.
    #[must_use]
    pub fn careful(&self) -> bool {
        self.careful
    }

    /// The report of the window in work.
    pub fn report(&mut self) -> &mut Report {
        &mut self.window
    }

    /// The report of all windows that were committed.
    #[must_use]
    pub fn total(&self) -> &Report {
        &self.total
    }

    /// Store a group.
    ///
    /// # Errors
    /// [`Error::Io`] where nothing can be written.
    pub fn store(&mut self, record: &Record, group: &Group) -> Result<()> {
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
        let report = &mut self.window;
        report.used += 1;
        report.flipped += u64::from(record.flipped);
        report.comparisons += record.comparisons.len() as u64;
        report.ties += record.comparisons.iter().filter(|one| one.label.total_cmp(&0.5).is_eq()).count() as u64;
        report.tokens += self.counts.tokens - before;
        report.shared_tokens += group.shared as u64;
        report.max_tokens = report.max_tokens.max(longest as u64);
        Ok(())
    }

    /// End a window: whoever is interrupted from now on need not do it again.
    ///
    /// # Errors
    /// [`Error::Io`] where nothing can be written.
    pub fn commit(&mut self, groups: u64, reader: Position, entered: &[u128]) -> Result<()> {
        for hash in entered {
            self.files.entered.write(&hash.to_le_bytes())?;
        }
        let report = std::mem::take(&mut self.window);
        let entry =
            Entry { files: self.files.flush()?, counts: self.counts, groups, careful: self.careful, reader, report };
        self.journal.write(&entry)?;
        self.place.keep(true);
        self.total.add(entry.report);
        Ok(())
    }

    /// Write the manifest with these entries added, and move the store to its place. The report as JSON.
    ///
    /// # Errors
    /// [`Error::Taken`] if something else is there, [`Error::Argument`] for an entry that would hide one of the store's.
    pub fn finish(mut self, entries: Map<String, Value>) -> Result<String> {
        let report = json!(self.total.sorted());
        let mut files = self.files.flush()?;
        files.remove(ENTERED);
        let own = json!({"schema": SCHEMA, "counts": self.counts, "files": files, "report": report});
        let mut manifest = entries;
        if let Value::Object(own) = own {
            for (name, value) in own {
                if manifest.insert(name.clone(), value).is_some() {
                    return Err(Error::Argument(format!("manifest entry {name} is the store's own; use another name")));
                }
            }
        }
        self.files.finish()?;
        let manifest_path = self.place.folder().join(MANIFEST);
        // A builder that died while it wrote this one left a part of it.
        let _ = std::fs::remove_file(&manifest_path);
        let mut file = HashedFile::create(manifest_path)?;
        file.write(format!("{}\n", Value::Object(manifest)).as_bytes())?;
        file.finish()?;
        self.place.publish()?;
        Ok(report.to_string())
    }

    /// Remove everything.
    pub fn discard(mut self) {
        self.place.keep(false);
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
