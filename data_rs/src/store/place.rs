//! Where a store is built, and how it comes to its place.
//!
//! A store is built in `.<name>.tmp-<pid>-<number>` beside its target. A lock on `<that>.lock` says that its builder is
//! alive, on other machines too, where a process id would say nothing.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::files::{cannot_write, sync_folder};
use super::manifest::MANIFEST;
use crate::error::{Error, Result};

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// The folder in which a store is built; removed again when dropped.
pub struct Workplace {
    target: PathBuf,
    folder: PathBuf,
    lock: PathBuf,
    held: Option<File>,
    owner: u32,
}

impl Workplace {
    /// Make it beside the target, and sweep away what dead builders of the same target left.
    pub fn create(target: &Path) -> Result<Self> {
        let Some(name) = target.file_name() else {
            return Err(Error::Argument(format!("{}: names no folder for a store", target.display())));
        };
        let parent = parent_of(target);
        fs::create_dir_all(&parent).map_err(|error| cannot_write(&parent, error))?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".tmp-");
        sweep(&parent, &prefix);
        let owner = std::process::id();
        loop {
            let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
            let mut temporary = prefix.clone();
            temporary.push(format!("{owner}-{number}"));
            let folder = parent.join(&temporary);
            temporary.push(".lock");
            let lock = parent.join(temporary);
            if folder.exists() {
                continue;
            }
            let held = File::create(&lock).map_err(|error| cannot_write(&lock, error))?;
            // A file system without locks leaves the file unlocked, and its leftovers are not swept while it is there.
            let _ = held.try_lock();
            fs::create_dir(&folder).map_err(|error| cannot_write(&folder, error))?;
            return Ok(Self { target: target.to_owned(), folder, lock, held: Some(held), owner });
        }
    }

    /// Where to build.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Move the finished store to its place. If one with an equal manifest is there already, that one stays.
    pub fn publish(&mut self, manifest: &str) -> Result<()> {
        sync_folder(&self.folder)?;
        // An empty folder may have been made for the store.
        let _ = fs::remove_dir(&self.target);
        match fs::rename(&self.folder, &self.target) {
            Ok(()) => sync_folder(&parent_of(&self.target)),
            Err(_) if self.target.exists() => self.compare(manifest),
            Err(error) => Err(cannot_write(&self.target, error)),
        }
    }

    fn compare(&self, manifest: &str) -> Result<()> {
        let taken = |problem| Error::Taken { path: self.target.display().to_string(), problem };
        let existing = fs::read_to_string(self.target.join(MANIFEST)).map_err(|_| taken("exists and is no store"))?;
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        if parse(&existing) == parse(manifest) {
            return Ok(());
        }
        Err(taken("holds a store of other data, tokenizer or options"))
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // A forked child drops its copy too.
        if std::process::id() == self.owner {
            let _ = fs::remove_dir_all(&self.folder);
            self.held = None;
            let _ = fs::remove_file(&self.lock);
        }
    }
}

fn parent_of(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Nothing here is worth an error: what cannot be removed stays.
fn sweep(parent: &Path, prefix: &OsString) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().map(|name| name.as_encoded_bytes().to_owned()).unwrap_or_default();
        if !name.starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        let folder = if name.ends_with(b".lock") { path.with_extension("") } else { path };
        let lock = with_lock(&folder);
        if is_abandoned(&lock) {
            let _ = fs::remove_dir_all(&folder);
            let _ = fs::remove_file(&lock);
        }
    }
}

fn with_lock(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

fn is_abandoned(lock: &Path) -> bool {
    match OpenOptions::new().write(true).open(lock) {
        Ok(file) => !matches!(file.try_lock(), Err(TryLockError::WouldBlock | TryLockError::Error(_))),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}
