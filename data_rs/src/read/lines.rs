//! Lines from a file, plain or gzip, or from bytes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};

/// Longest line that is read; a longer one is passed over without being held.
pub const LINE_LIMIT: usize = 256 << 20;

const BUFFER: usize = 1 << 18;

trait ReadSeek: BufRead + Seek + Send {}
impl<T: BufRead + Seek + Send> ReadSeek for T {}

/// Lines without their ends, one behind the other.
#[derive(Debug, Default)]
pub struct Block {
    bytes: Vec<u8>,
    /// Where each line is; nothing for one that was longer than the limit.
    lines: Vec<Option<Range<usize>>>,
}

impl Block {
    /// How many lines there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// A line, or nothing for one that was longer than the limit.
    #[must_use]
    pub fn line(&self, index: usize) -> Option<&[u8]> {
        self.lines.get(index)?.clone().and_then(|place| self.bytes.get(place))
    }

    /// Make room for others. What one very long line took is given back.
    pub fn clear(&mut self, keep: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(keep);
        self.lines.clear();
    }
}

/// A source, line by line.
pub struct Lines {
    reader: Box<dyn BufRead + Send>,
    limit: usize,
    offset: u64,
}

impl Lines {
    /// Open a file.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be opened, or that ends before `offset`.
    pub fn open_file(path: &str, name: &str, offset: u64) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(name, UNREADABLE, error))?;
        Self::open(BufReader::with_capacity(BUFFER, file), name, offset)
    }

    /// The same, in memory.
    ///
    /// # Errors
    /// [`Error::Io`] for bytes that end before `offset`.
    pub fn open_bytes(bytes: Vec<u8>, name: &str, offset: u64) -> Result<Self> {
        Self::open(Cursor::new(bytes), name, offset)
    }

    fn open(plain: impl ReadSeek + 'static, name: &str, offset: u64) -> Result<Self> {
        let reader = place_at(plain, offset).map_err(|error| Error::io(name, UNREADABLE, error))?;
        Ok(Self { reader, limit: LINE_LIMIT, offset })
    }

    /// The same with another limit.
    #[must_use]
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// Where the next line begins: bytes from the beginning, as they are once inflated.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Add up to `most` lines to a block, until it has `bytes` bytes. Whether there may be more.
    ///
    /// # Errors
    /// What the system or the decompressor says; the lines before are in the block.
    pub fn fill(&mut self, block: &mut Block, most: usize, bytes: usize) -> io::Result<bool> {
        for _ in 0..most {
            if block.bytes.len() >= bytes {
                break;
            }
            if !self.next_line(block)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn next_line(&mut self, block: &mut Block) -> io::Result<bool> {
        let start = block.bytes.len();
        let line = self.read_line(&mut block.bytes);
        let used = match line {
            Ok(used) => used,
            Err(error) => {
                block.bytes.truncate(start);
                return Err(error);
            }
        };
        let mut begin = start;
        if self.offset == 0 && block.bytes.get(start..).is_some_and(|line| line.starts_with(b"\xEF\xBB\xBF")) {
            begin += 3;
        }
        let mut end = block.bytes.len();
        if block.bytes.get(start..).is_some_and(|line| line.last() == Some(&b'\n')) {
            end -= 1;
            block.bytes.truncate(end);
        }
        if end - start > self.limit {
            block.bytes.truncate(start);
            block.lines.push(None);
        } else if used > 0 {
            block.lines.push(Some(begin.min(end)..end));
        }
        self.offset += used;
        Ok(used > 0)
    }

    /// Read to the end of a line, of which one byte more than the limit is kept. The bytes that it has.
    fn read_line(&mut self, bytes: &mut Vec<u8>) -> io::Result<u64> {
        let most = u64::try_from(self.limit).unwrap_or(u64::MAX).saturating_add(1);
        let start = bytes.len();
        let mut used = (&mut self.reader).take(most).read_until(b'\n', bytes)? as u64;
        if bytes.len() - start > self.limit && bytes.last() != Some(&b'\n') {
            used += self.pass_over()?;
        }
        Ok(used)
    }

    fn pass_over(&mut self) -> io::Result<u64> {
        let mut passed = 0;
        loop {
            let block = self.reader.fill_buf()?;
            let end = block.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(block.len(), |at| at + 1);
            self.reader.consume(used);
            passed += used as u64;
            if end.is_some() || used == 0 {
                return Ok(passed);
            }
        }
    }
}

const UNREADABLE: &str = "cannot be read; check the path and its permissions";

fn place_at(mut plain: impl ReadSeek + 'static, offset: u64) -> io::Result<Box<dyn BufRead + Send>> {
    let shorter = || io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was");
    if plain.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        let mut inflated = BufReader::with_capacity(BUFFER, MultiGzDecoder::new(plain));
        if io::copy(&mut (&mut inflated).take(offset), &mut io::sink())? < offset {
            return Err(shorter());
        }
        return Ok(Box::new(inflated));
    }
    if offset > 0 {
        if plain.seek(SeekFrom::End(0))? < offset {
            return Err(shorter());
        }
        plain.seek(SeekFrom::Start(offset))?;
    }
    Ok(Box::new(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &mut Lines) -> Vec<Option<String>> {
        let mut block = Block::default();
        while lines.fill(&mut block, 2, usize::MAX).unwrap() {}
        (0..block.len()).map(|index| block.line(index).map(|line| String::from_utf8(line.to_vec()).unwrap())).collect()
    }

    fn lines(bytes: &[u8], limit: usize) -> Vec<Option<String>> {
        read(&mut Lines::open_bytes(bytes.to_vec(), "test", 0).unwrap().with_limit(limit))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn splits_lines_and_keeps_blank_ones() {
        assert_eq!(lines(b"a\n\nb", 9), [Some("a".to_owned()), Some(String::new()), Some("b".to_owned())]);
        assert_eq!(lines(b"\xEF\xBB\xBFa\n", 9), [Some("a".to_owned())]);
        assert_eq!(lines(b"", 9), []);
    }

    #[test]
    fn passes_over_long_lines() {
        assert_eq!(lines(b"abcd\nabc\n", 3), [None, Some("abc".to_owned())]);
        assert_eq!(lines(b"abcd", 3), [None]);
        assert_eq!(lines(b"abc", 3), [Some("abc".to_owned())]);
    }

    #[test]
    fn goes_on_where_it_stopped() {
        let bytes = b"\xEF\xBB\xBFone\n\nlonger\nfour".to_vec();
        for bytes in [gzip(&bytes), bytes] {
            let open = |offset| Lines::open_bytes(bytes.clone(), "test", offset).unwrap().with_limit(6);
            let whole = read(&mut open(0));
            assert_eq!(whole.len(), 4);
            for cut in 0..=4 {
                let (mut first, mut block) = (open(0), Block::default());
                first.fill(&mut block, cut, usize::MAX).unwrap();
                assert_eq!(read(&mut open(first.offset())), whole[cut..]);
            }
            assert!(Lines::open_bytes(bytes.clone(), "test", 99).is_err());
        }
    }

    #[test]
    fn a_block_ends_with_the_line_that_fills_it() {
        let mut lines = Lines::open_bytes(b"aaaa\nbb\ncc".to_vec(), "test", 0).unwrap();
        let mut block = Block::default();
        assert!(lines.fill(&mut block, 9, 5).unwrap());
        assert_eq!((block.len(), lines.offset()), (2, 8));
    }

    #[test]
    fn a_cut_off_stream_is_an_error_behind_its_lines() {
        let bytes = gzip(b"one\ntwo\n");
        assert_eq!(lines(&bytes, 9).len(), 2);
        let mut cut = Lines::open_bytes(bytes[..bytes.len() - 9].to_vec(), "test", 0).unwrap();
        let mut block = Block::default();
        let error = std::iter::repeat_with(|| cut.fill(&mut block, 9, 99)).find_map(std::result::Result::err);
        assert_eq!(error.unwrap().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(block.len() as u64 * 4, cut.offset());
    }
}
