//! Open a store: verify everything once, then read without looking back.

use std::fs;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::Deserialize;

use super::files::{broken, map_verified};
use super::manifest::{
    COMPARISON_BYTES, COMPARISONS, Checked, Counts, FILES, GROUPS, MANIFEST, ROWS, SCHEMA, SEGMENTS, STARTS, TOKENS,
};
use crate::error::{Error, Result};
use crate::record::Comparison;

/// Where a group came from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RowInfo {
    /// Row in the input.
    pub row: u64,
    /// Its id.
    pub id: String,
    /// Its source.
    pub source: Option<String>,
    /// Its category.
    pub category: Option<String>,
    /// Whether its sides were swapped.
    pub flipped: bool,
}

/// Lengths in tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// What each group's first response follows.
    pub prompt: Vec<i64>,
    /// The scored tokens of each comparison's better response.
    pub better: Vec<i64>,
    /// Of its worse one.
    pub worse: Vec<i64>,
    /// All responses with their prompts, as they would be without sharing.
    pub unshared: u64,
}

/// A prepared data set, mapped into memory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    manifest: String,
    counts: Counts,
    tokens: Mmap,
    segments: Mmap,
    groups: Mmap,
    starts: Mmap,
    comparisons: Mmap,
    rows: Mmap,
}

impl Store {
    /// Open and verify.
    ///
    /// # Errors
    /// [`Error::Store`] naming a file that is missing, cut off, changed or inconsistent.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        let path = directory.join(MANIFEST);
        let manifest = fs::read(&path).map_err(|error| {
            Error::io(path.display(), "cannot be read; name a folder that `grmlight prepare` wrote", error)
        })?;
        let manifest = String::from_utf8(manifest).map_err(|_| broken(&path, "is not UTF-8"))?;
        let checked = read_manifest(&path, &manifest)?;
        let open = |name: &str| {
            let entry = checked.files.get(name).ok_or_else(|| broken(&path, format!("does not list {name}")))?;
            map_verified(&directory.join(name), entry)
        };
        let store = Self {
            directory: std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned()),
            counts: checked.counts,
            tokens: open(TOKENS)?,
            segments: open(SEGMENTS)?,
            groups: open(GROUPS)?,
            starts: open(STARTS)?,
            comparisons: open(COMPARISONS)?,
            rows: open(ROWS)?,
            manifest,
        };
        store.verify()?;
        Ok(store)
    }

    /// Where it lies.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The manifest's text.
    #[must_use]
    pub fn manifest(&self) -> &str {
        &self.manifest
    }

    /// Groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        (self.groups.len() / 16).saturating_sub(1)
    }

    /// Tokens of each group, its shared prompt counted once.
    #[must_use]
    #[allow(clippy::cast_possible_wrap, reason = "bounded by the length of a file")]
    pub fn costs(&self) -> Vec<i64> {
        let place = |group| self.segment_start(self.group_start(group).0);
        (0..self.groups()).map(|group| (place(group + 1) - place(group)) as i64).collect()
    }

    /// How long things are.
    #[must_use]
    #[allow(clippy::cast_possible_wrap, reason = "bounded by the length of a file")]
    pub fn lengths(&self) -> Lengths {
        let mut found = Lengths::default();
        for group in 0..self.groups() {
            let starts: Vec<usize> = self.starts_of(group).collect();
            let segments: Vec<usize> = self.segments_of(group).map(|segment| segment.len() / 4).collect();
            let (shared, own) = segments.split_first().map_or((0, &[][..]), |(first, rest)| (*first, rest));
            let whole = |index: usize| shared + own.get(index).copied().unwrap_or(0);
            let start = |index: usize| starts.get(index).copied().unwrap_or(0);
            let scored = |index: u32| usize::try_from(index).map_or(0, |index| (whole(index) - start(index)) as i64);
            found.prompt.push(start(0) as i64);
            found.unshared += (0..own.len()).map(whole).sum::<usize>() as u64;
            for comparison in self.comparisons_of(group) {
                found.better.push(scored(comparison.better));
                found.worse.push(scored(comparison.worse));
            }
        }
        found
    }

    /// Where each group came from.
    ///
    /// # Errors
    /// [`Error::Store`] for a line that is no such record.
    pub fn rows(&self) -> Result<Vec<RowInfo>> {
        self.parse_rows().collect()
    }

    fn parse_rows(&self) -> impl Iterator<Item = Result<RowInfo>> {
        let lines = self.rows.split_inclusive(|&byte| byte == b'\n');
        lines.enumerate().map(|(number, line)| {
            serde_json::from_slice(line).map_err(|_| self.broken(ROWS, format!("line {} is no row", number + 1)))
        })
    }

    /// The prompt of a group, then its responses without it.
    #[must_use]
    pub fn segments_of(&self, group: usize) -> impl ExactSizeIterator<Item = &[u8]> {
        let segments = self.group_start(group).0..self.group_start(group + 1).0;
        segments.map(|segment| {
            let (start, end) = (self.segment_start(segment) * 4, self.segment_start(segment + 1) * 4);
            self.tokens.get(start..end).unwrap_or_default()
        })
    }

    /// The first scored token of each response of a group, counted from its prompt's beginning.
    pub fn starts_of(&self, group: usize) -> impl Iterator<Item = usize> {
        let responses = self.group_start(group).0 - group..self.group_start(group + 1).0 - group - 1;
        responses.map(|response| number(&self.starts, response))
    }

    /// The comparisons of a group.
    pub fn comparisons_of(&self, group: usize) -> impl Iterator<Item = Comparison> {
        let places = self.group_start(group).1..self.group_start(group + 1).1;
        places.filter_map(|place| {
            let start = place * COMPARISON_BYTES;
            parse_comparison(self.comparisons.get(start..start + COMPARISON_BYTES)?)
        })
    }

    fn group_start(&self, group: usize) -> (usize, usize) {
        (number(&self.groups, 2 * group), number(&self.groups, 2 * group + 1))
    }

    fn segment_start(&self, segment: usize) -> usize {
        number(&self.segments, segment)
    }

    fn broken(&self, name: &str, problem: impl Into<String>) -> Error {
        broken(&self.directory.join(name), problem)
    }

    fn verify(&self) -> Result<()> {
        let counts = self.counts;
        for (name, map) in FILES
            .iter()
            .zip([&self.tokens, &self.segments, &self.groups, &self.starts, &self.comparisons, &self.rows].iter())
        {
            if *name != ROWS && counts.bytes_of(name) != Some(map.len() as u64) {
                return Err(self.broken(name, "does not have the length that the manifest's counts ask for"));
            }
        }
        let tokens = self.tokens.len() / 4;
        let segments = self.segments.len() / 8 - 1;
        if self.segment_start(0) != 0 || self.segment_start(segments) != tokens {
            return Err(self.broken(SEGMENTS, "does not span the tokens"));
        }
        if (0..segments).any(|segment| self.segment_start(segment) > self.segment_start(segment + 1)) {
            return Err(self.broken(SEGMENTS, "has offsets that go back"));
        }
        if self.tokens.chunks_exact(4).any(|token| token.last().is_some_and(|byte| byte & 0x80 != 0)) {
            return Err(self.broken(TOKENS, "has negative token ids"));
        }
        let comparisons = self.comparisons.len() / COMPARISON_BYTES;
        if self.group_start(0) != (0, 0) || self.group_start(self.groups()) != (segments, comparisons) {
            return Err(self.broken(GROUPS, "does not span the segments and comparisons"));
        }
        for group in 0..self.groups() {
            let (now, next) = (self.group_start(group), self.group_start(group + 1));
            if now.0.saturating_add(2) > next.0 || now.1 > next.1 {
                return Err(self.broken(GROUPS, format!("group {group} has no responses, or offsets that go back")));
            }
        }
        (0..self.groups()).try_for_each(|group| self.verify_group(group))?;
        // Counted without being kept: there may be more of them than one wants in memory.
        if self.parse_rows().try_fold(0, |count, row| row.map(|_| count + 1))? != self.groups() {
            return Err(self.broken(ROWS, "does not have a line for each group"));
        }
        Ok(())
    }

    fn verify_group(&self, group: usize) -> Result<()> {
        let lengths: Vec<usize> = self.segments_of(group).map(|segment| segment.len() / 4).collect();
        let (prompt, responses) = lengths.split_first().map_or((0, &[][..]), |(first, rest)| (*first, rest));
        if responses.contains(&0) {
            return Err(self.broken(SEGMENTS, format!("group {group} has an empty response")));
        }
        if responses.iter().zip(self.starts_of(group)).any(|(length, start)| start >= prompt + length) {
            return Err(self.broken(STARTS, format!("group {group} has a response without scored tokens")));
        }
        let known = |index: u32| usize::try_from(index).is_ok_and(|index| index < responses.len());
        let sound = |one: Comparison| {
            known(one.better)
                && known(one.worse)
                && one.better != one.worse
                && (0.0..=1.0).contains(&one.label)
                && one.margin.is_finite()
                && one.weight.is_finite()
                && one.weight >= 0.0
                && i64::try_from(one.row).is_ok()
        };
        if !self.comparisons_of(group).all(sound) {
            return Err(self.broken(COMPARISONS, format!("group {group} has a comparison that makes no sense")));
        }
        Ok(())
    }
}

fn read_manifest(path: &Path, text: &str) -> Result<Checked> {
    #[derive(Deserialize)]
    struct Versioned {
        schema: u64,
    }
    let refuse = |error: serde_json::Error| broken(path, format!("is no manifest of a store ({error})"));
    let Versioned { schema } = serde_json::from_str(text).map_err(refuse)?;
    if schema != SCHEMA {
        return Err(broken(path, format!("has schema {schema}, this version reads schema {SCHEMA}")));
    }
    serde_json::from_str(text).map_err(refuse)
}

/// The u64 at a place of a file; too large for anything where it is not there or does not fit.
fn number(bytes: &[u8], place: usize) -> usize {
    let start = place.saturating_mul(8);
    let found = bytes.get(start..).and_then(|rest| rest.first_chunk::<8>());
    found.and_then(|bytes| usize::try_from(u64::from_le_bytes(*bytes)).ok()).unwrap_or(usize::MAX)
}

fn parse_comparison(bytes: &[u8]) -> Option<Comparison> {
    let (row, rest) = bytes.split_first_chunk::<8>()?;
    let (better, rest) = rest.split_first_chunk::<4>()?;
    let (worse, rest) = rest.split_first_chunk::<4>()?;
    let (label, rest) = rest.split_first_chunk::<4>()?;
    let (margin, rest) = rest.split_first_chunk::<4>()?;
    let weight = rest.first_chunk::<4>()?;
    Some(Comparison {
        row: u64::from_le_bytes(*row),
        better: u32::from_le_bytes(*better),
        worse: u32::from_le_bytes(*worse),
        label: f32::from_le_bytes(*label),
        margin: f32::from_le_bytes(*margin),
        weight: f32::from_le_bytes(*weight),
    })
}
