//! Lines from a file, plain or gzip, or from bytes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};

/// Longest line that is read; a longer one is passed over without being held.
pub const LINE_LIMIT: usize = 256 << 20;

/// Where rows come from.
#[derive(Debug)]
pub enum Source {
    /// A file, plain or gzip by its first bytes.
    Path(String),
    /// The same, in memory.
    Bytes(Vec<u8>),
}

/// One line without its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// It was longer than the limit.
    TooLong,
}

/// A source, line by line.
pub struct Lines {
    reader: Box<dyn BufRead + Send>,
    limit: usize,
    first: bool,
}

impl Lines {
    /// Open a source.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be opened.
    pub fn open(source: Source, name: &str) -> Result<Self> {
        let refuse = |error| Error::io(name, "cannot be read; check the path and its permissions", error);
        let plain: Box<dyn BufRead + Send> = match source {
            Source::Path(path) => Box::new(BufReader::with_capacity(1 << 18, File::open(path).map_err(refuse)?)),
            Source::Bytes(bytes) => Box::new(Cursor::new(bytes)),
        };
        let reader = inflate(plain).map_err(refuse)?;
        Ok(Self { reader, limit: LINE_LIMIT, first: true })
    }

    /// The same with another limit.
    #[must_use]
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// The next line, or nothing at the end.
    ///
    /// # Errors
    /// What the system or the decompressor says.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        let most = u64::try_from(self.limit).unwrap_or(u64::MAX).saturating_add(1);
        if (&mut self.reader).take(most).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(None);
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        } else if bytes.len() > self.limit {
            self.pass_over()?;
            return Ok(Some(Line::TooLong));
        }
        if std::mem::take(&mut self.first) && bytes.starts_with(b"\xEF\xBB\xBF") {
            bytes.drain(..3);
        }
        Ok(Some(Line::Bytes(bytes)))
    }

    fn pass_over(&mut self) -> io::Result<()> {
        loop {
            let block = self.reader.fill_buf()?;
            let end = block.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(block.len(), |at| at + 1);
            self.reader.consume(used);
            if end.is_some() || used == 0 {
                return Ok(());
            }
        }
    }
}

fn inflate(mut plain: Box<dyn BufRead + Send>) -> io::Result<Box<dyn BufRead + Send>> {
    if plain.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(BufReader::with_capacity(1 << 18, MultiGzDecoder::new(plain))));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], limit: usize) -> Vec<Line> {
        let mut lines = Lines::open(Source::Bytes(bytes.to_vec()), "test").unwrap().with_limit(limit);
        std::iter::from_fn(|| lines.next_line().unwrap()).collect()
    }

    #[test]
    fn splits_lines_and_keeps_blank_ones() {
        let text = |line: &str| Line::Bytes(line.as_bytes().to_vec());
        assert_eq!(lines(b"a\n\nb", 9), [text("a"), text(""), text("b")]);
        assert_eq!(lines(b"\xEF\xBB\xBFa\n", 9), [text("a")]);
        assert_eq!(lines(b"", 9), []);
    }

    #[test]
    fn passes_over_long_lines() {
        let text = |line: &str| Line::Bytes(line.as_bytes().to_vec());
        assert_eq!(lines(b"abcd\nabc\n", 3), [Line::TooLong, text("abc")]);
        assert_eq!(lines(b"abcd", 3), [Line::TooLong]);
        assert_eq!(lines(b"abc", 3), [text("abc")]);
    }

    #[test]
    fn a_cut_off_stream_is_an_error() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, b"one\ntwo\n").unwrap();
        let bytes = encoder.finish().unwrap();
        assert_eq!(lines(&bytes, 9).len(), 2);
        let mut cut = Lines::open(Source::Bytes(bytes[..bytes.len() - 9].to_vec()), "test").unwrap();
        let error = std::iter::repeat_with(|| cut.next_line()).find_map(std::result::Result::err);
        assert_eq!(error.unwrap().kind(), io::ErrorKind::UnexpectedEof);
    }
}
