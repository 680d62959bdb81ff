//! Files that are hashed while they are written, and mapped and verified when they are read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::manifest::FileEntry;
use crate::error::{Error, Result};

/// A file under construction.
pub struct HashedFile {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Box<Xxh3>,
    bytes: u64,
}

impl HashedFile {
    /// Create it.
    pub fn create(path: PathBuf) -> Result<Self> {
        let file = File::create_new(&path).map_err(|error| cannot_write(&path, error))?;
        Ok(Self { path, file: BufWriter::with_capacity(1 << 18, file), hasher: Box::default(), bytes: 0 })
    }

    /// Go on with one that was written up to here. Nothing if it is not what the entry says.
    pub fn resume(path: PathBuf, entry: &FileEntry) -> Result<Option<Self>> {
        let failed = |error| cannot_write(&path, error);
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let mut hasher = Box::<Xxh3>::default();
        let mut block = vec![0; 1 << 18];
        let mut rest = (&mut file).take(entry.bytes);
        let mut bytes = 0;
        loop {
            let read = rest.read(&mut block).map_err(failed)?;
            if read == 0 {
                break;
            }
            hasher.update(block.get(..read).unwrap_or_default());
            bytes += read as u64;
        }
        if bytes != entry.bytes || digits(hasher.digest()) != entry.xxh3 {
            return Ok(None);
        }
        file.set_len(bytes).map_err(failed)?;
        Ok(Some(Self { file: BufWriter::with_capacity(1 << 18, file), path, hasher, bytes }))
    }

    /// All of it, once flushed.
    pub fn read_back(&self) -> Result<Vec<u8>> {
        fs::read(&self.path)
            .map_err(|error| Error::io(self.path.display(), "cannot be read; check its permissions", error))
    }

    /// Hand what was written to the system. Its length and checksum so far.
    pub fn flush(&mut self) -> Result<FileEntry> {
        self.file.flush().map_err(|error| cannot_write(&self.path, error))?;
        Ok(FileEntry { bytes: self.bytes, xxh3: digits(self.hasher.digest()) })
    }

    /// Append bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| cannot_write(&self.path, error))
    }

    /// Bring it to the disk.
    pub fn finish(mut self) -> Result<FileEntry> {
        let entry = self.flush()?;
        self.file.get_ref().sync_all().map_err(|error| cannot_write(&self.path, error))?;
        Ok(entry)
    }
}

fn digits(hash: u64) -> String {
    format!("{hash:016x}")
}

/// Wrap a failure to write.
pub fn cannot_write(path: &Path, error: io::Error) -> Error {
    Error::io(path.display(), "cannot be written; check permissions and free space", error)
}

/// Bring a folder's entries to the disk, where the system can.
pub fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = File::open(path).and_then(|folder| folder.sync_all());
        synced.map_err(|error| cannot_write(path, error))?;
    }
    Ok(())
}

/// Wrap what is wrong with a file of a store.
pub fn broken(path: &Path, problem: impl Into<String>) -> Error {
    Error::Store { path: path.display().to_string(), problem: problem.into() }
}

/// Map a file whose length and checksum the manifest tells.
pub fn map_verified(path: &Path, entry: &FileEntry) -> Result<Mmap> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(broken(path, "is missing")),
        file => file.map_err(|error| Error::io(path.display(), "cannot be read; check its permissions", error))?,
    };
    let map = map(&file).map_err(|error| Error::io(path.display(), "cannot be mapped into memory", error))?;
    if map.len() as u64 != entry.bytes {
        let problem = format!("is cut off or grown: it has {} bytes, its manifest says {}", map.len(), entry.bytes);
        return Err(broken(path, problem));
    }
    if digits(xxh3_64(&map)) != entry.xxh3 {
        return Err(broken(path, "was changed: its checksum is not the manifest's"));
    }
    Ok(map)
}

/// Sound as long as nobody changes the file: a store is written under another name, renamed once and never written
/// again. Somebody who cuts it off while it is open can still end the process, as with any mapped file.
#[allow(unsafe_code, reason = "a memory map cannot be made without it")]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: see above; all bytes are read as plain numbers, and every offset among them is checked before its use.
    unsafe { Mmap::map(file) }
}
