//! The journal of an unfinished store: after every window a line that says how far its files are good.
//!
//! A line is the 16 hexadecimal digits of its xxh3, a space, and a JSON object. A line that was cut off ends the journal.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::files::cannot_write;
use super::manifest::{Counts, FileEntry};
use crate::error::{Error, Result};
use crate::pairs::Position;
use crate::report::Report;

/// The journal's file name.
pub const JOURNAL: &str = "journal";
/// The file of hashes that the reader entered; see [`crate::pairs::PairReader::entered`].
pub const ENTERED: &str = "entered";

/// The state after a window.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Length and checksum of each file so far.
    pub files: BTreeMap<String, FileEntry>,
    /// How much they hold.
    pub counts: Counts,
    /// Groups that came from the reader so far, stored or not.
    pub groups: u64,
    /// Whether no fast ways were taken; then none may be taken later.
    pub careful: bool,
    /// Where the reader stands.
    pub reader: Position,
    /// What was found in this window.
    pub report: Report,
}

/// A journal that is being written.
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Begin one.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(JOURNAL);
        let file = File::create_new(&path).map_err(|error| cannot_write(&path, error))?;
        Ok(Self { path, file })
    }

    /// Go on with the one of a folder, and what it says: its last entry, and the reports of all of them added up.
    /// Nothing where it has no whole entry.
    pub fn resume(folder: &Path) -> Result<Option<(Self, Entry)>> {
        let path = folder.join(JOURNAL);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| Error::io(path.display(), "cannot be read; check its permissions", error))?,
        };
        let (mut length, mut last, mut report) = (0, None, Report::default());
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let Some(mut entry) = parse(line) else { break };
            report.add(std::mem::take(&mut entry.report));
            length += line.len() as u64;
            last = Some(entry);
        }
        let Some(entry) = last else { return Ok(None) };
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.and_then(|file| file.set_len(length).map(|()| file));
        let file = file.map_err(|error| cannot_write(&path, error))?;
        Ok(Some((Self { path, file }, Entry { report, ..entry })))
    }

    /// Append an entry.
    pub fn write(&mut self, entry: &Entry) -> Result<()> {
        let json = serde_json::to_string(entry).map_err(|error| Error::Argument(error.to_string()))?;
        let line = format!("{:016x} {json}\n", xxh3_64(json.as_bytes()));
        self.file.write_all(line.as_bytes()).map_err(|error| cannot_write(&self.path, error))
    }
}

fn parse(line: &[u8]) -> Option<Entry> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (hash, json) = line.split_once(' ')?;
    (hash == format!("{:016x}", xxh3_64(json.as_bytes()))).then(|| serde_json::from_str(json).ok())?
}
