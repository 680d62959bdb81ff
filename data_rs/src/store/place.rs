//! Where a store is built, who builds it, and how it comes to its place.
//!
//! A store is built in `.<name>.partial-<identity>` beside its target. Its builder holds a lock on `<that>.lock`, which
//! ends with the process. A folder that nobody holds is what an interrupted builder left: one of the same identity goes
//! on with it, one of another removes it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::files::{cannot_write, sync_folder};
use super::journal::{ENTERED, JOURNAL};
use super::manifest::MANIFEST;
use crate::error::{Error, Result};

static NEXT_CLAIM: AtomicU64 = AtomicU64::new(0);

/// Characters of an identity in a folder's name.
const IDENTITY: usize = 16;

/// The folder in which a store is built, held by this process. It stays when dropped, unless told otherwise.
pub struct Workplace {
    target: PathBuf,
    folder: PathBuf,
    lock: Lock,
    keep: bool,
}

impl Workplace {
    /// Make it, or go on with the one that an interrupted builder left. Nothing if another builder holds it, or the
    /// store is there already.
    ///
    /// # Errors
    /// [`Error::Taken`] if something else is at the target.
    pub fn claim(target: &Path, identity: &str) -> Result<Option<Self>> {
        let Some(name) = target.file_name() else {
            return Err(Error::Argument(format!("{}: names no folder for a store", target.display())));
        };
        let parent = parent_of(target);
        fs::create_dir_all(&parent).map_err(|error| cannot_write(&parent, error))?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".partial-");
        let mut own = prefix.clone();
        own.push(identity.chars().take(IDENTITY).collect::<String>());
        let folder = parent.join(own);
        let Some(lock) = Lock::take(&with_lock(&folder))? else { return Ok(None) };
        let place = Self { target: target.to_owned(), folder, lock, keep: true };
        if target.join(MANIFEST).exists() {
            return Ok(None);
        }
        refuse_other(target)?;
        sweep(&parent, &prefix, &place.folder);
        if place.folder.join(MANIFEST).exists() && !place.folder.join(JOURNAL).exists() {
            place.publish()?;
            return Ok(None);
        }
        Ok(Some(place))
    }

    /// Where to build.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Make the folder, empty.
    pub fn clear(&mut self) -> Result<()> {
        let _ = fs::remove_dir_all(&self.folder);
        self.keep = false;
        fs::create_dir(&self.folder).map_err(|error| cannot_write(&self.folder, error))
    }

    /// Whether the folder stays for the next builder.
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// Move the finished store to its place. Without its journal a folder with a manifest is whole: who finds one goes
    /// on here.
    pub fn publish(&self) -> Result<()> {
        for name in [JOURNAL, ENTERED] {
            let _ = fs::remove_file(self.folder.join(name));
        }
        sync_folder(&self.folder)?;
        // An empty folder may have been made for the store.
        let _ = fs::remove_dir(&self.target);
        match fs::rename(&self.folder, &self.target) {
            Ok(()) => sync_folder(&parent_of(&self.target)),
            Err(error) => refuse_other(&self.target).and(Err(cannot_write(&self.target, error))),
        }
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if !self.keep && self.lock.is_own() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A lock on a file, which is removed when dropped.
struct Lock {
    path: PathBuf,
    file: File,
    owner: u32,
}

impl Lock {
    /// Nothing if another process, or another builder of this one, holds it.
    fn take(path: &Path) -> Result<Option<Self>> {
        let failed = |error| Error::io(path.display(), "cannot be locked; name a folder on another disk", error);
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            let mut file = file.map_err(|error| cannot_write(path, error))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Ok(()) => {}
            }
            // The file may have been removed between opening and locking, and another one locked in its place.
            let owner = std::process::id();
            let claim = format!("process {owner}, claim {}\n", NEXT_CLAIM.fetch_add(1, Ordering::Relaxed));
            file.set_len(0).and_then(|()| file.write_all(claim.as_bytes())).map_err(failed)?;
            if fs::read(path).is_ok_and(|found| found == claim.as_bytes()) {
                return Ok(Some(Self { path: path.to_owned(), file, owner }));
            }
        }
    }

    /// A forked child has a copy that means nothing.
    fn is_own(&self) -> bool {
        std::process::id() == self.owner
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_own() {
            let _ = fs::remove_file(&self.path);
            let _ = self.file.unlock();
        }
    }
}

/// Whether something is at the target that is no empty folder.
fn refuse_other(target: &Path) -> Result<()> {
    let taken = |problem| Err(Error::Taken { path: target.display().to_string(), problem });
    if target.join(MANIFEST).exists() {
        return taken("holds a store of other data, tokenizer or options");
    }
    let is_empty = fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
    if target.exists() && !is_empty { taken("exists and is no store") } else { Ok(()) }
}

fn parent_of(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Remove what dead builders of other identities left. Nothing here is worth an error: what cannot be removed stays.
fn sweep(parent: &Path, prefix: &OsString, own: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().map(|name| name.as_encoded_bytes().to_owned()).unwrap_or_default();
        if !name.starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        let folder = if name.ends_with(b".lock") { path.with_extension("") } else { path };
        if folder != own
            && let Ok(Some(_held)) = Lock::take(&with_lock(&folder))
        {
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

fn with_lock(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}
