//! Where rows come from, and the rows of a window, whatever they come from.

pub mod json;
pub mod lines;
pub mod parquet;
pub mod table;

use arrow_array::RecordBatchReader;

use crate::error::{Error, Result};
use crate::reason::Reason;
use crate::refusal::Refusal;
use crate::row::Row;
use lines::{Block, Lines};
use table::{Table, Tables};

/// Bytes of rows after which a window ends, whatever its number of rows.
pub const WINDOW_BYTES: usize = 64 << 20;

/// Where rows come from.
pub enum Source {
    /// A file of JSON lines, plain or gzip by its first bytes.
    Path(String),
    /// The same, in memory.
    Bytes(Vec<u8>),
    /// Parquet files, one behind the other.
    Parquet(Vec<String>),
    /// Tables in memory, or made as they are read.
    Arrow(Box<dyn RecordBatchReader + Send>),
}

impl Source {
    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Path(path) => path.clone(),
            Self::Bytes(_) => "<bytes>".to_owned(),
            Self::Parquet(paths) => paths.first().cloned().unwrap_or_default(),
            Self::Arrow(_) => "<table>".to_owned(),
        }
    }
}

/// Reads windows.
pub(crate) enum Reader {
    Lines(Lines),
    Tables(Tables),
}

impl Reader {
    /// Open a source behind its first `offset` bytes, of a table behind its first rows.
    pub(crate) fn open(source: Source, name: &str, offset: u64) -> Result<Self> {
        Ok(match source {
            Source::Path(path) => Self::Lines(Lines::open_file(&path, name, offset)?),
            Source::Bytes(bytes) => Self::Lines(Lines::open_bytes(bytes, name, offset)?),
            Source::Parquet(paths) => Self::Tables(Tables::of(parquet::tables(paths, offset)?, offset)),
            Source::Arrow(stream) => Self::Tables(Tables::of(table::stream(stream, name, offset), offset)),
        })
    }

    /// Where the next row begins.
    pub(crate) fn offset(&self) -> u64 {
        match self {
            Self::Lines(lines) => lines.offset(),
            Self::Tables(tables) => tables.offset(),
        }
    }

    /// The next rows, at most `most` and, but for the last of them, fewer bytes than a window has. The rows before an error
    /// are there. The first one is row `row` of what messages call `name`.
    pub(crate) fn fill(&mut self, window: &mut Window, most: usize, name: &str, row: u64) -> Result<()> {
        window.lines.clear(2 * WINDOW_BYTES);
        window.tables.clear();
        match self {
            Self::Lines(lines) => lines.fill(&mut window.lines, most, WINDOW_BYTES).map(|_| ()).map_err(|error| {
                let row = row + window.lines.len() as u64;
                let problem = format!("cannot be read at row {row}; the file is damaged or cut off, get it again");
                Error::io(name, &problem, error)
            }),
            Self::Tables(tables) => tables.fill(&mut window.tables, most, WINDOW_BYTES),
        }
    }
}

/// Rows that are read together; of one kind.
#[derive(Default)]
pub(crate) struct Window {
    lines: Block,
    tables: Vec<Table>,
}

impl Window {
    pub(crate) fn len(&self) -> usize {
        self.lines.len() + self.tables.iter().map(Table::len).sum::<usize>()
    }

    /// A row; nothing for a line that is blank.
    pub(crate) fn row(&self, index: usize) -> Option<std::result::Result<Row, Refusal>> {
        if let Some((table, index)) = self.place(index) {
            return Some(Ok(table.row(index)));
        }
        match self.lines.line(index) {
            Some(line) if line.iter().all(u8::is_ascii_whitespace) => None,
            Some(line) => Some(json::parse_line(line)),
            None => Some(Err(Refusal::at_byte(Reason::InvalidJson, lines::LINE_LIMIT + 1, "a line without an end"))),
        }
    }

    /// The names of a row's columns, ascending.
    pub(crate) fn names(&self, index: usize) -> Vec<String> {
        match self.place(index) {
            Some((table, _)) => table.names().to_vec(),
            None => json::names(self.lines.line(index).unwrap_or_default()),
        }
    }

    fn place(&self, mut index: usize) -> Option<(&Table, usize)> {
        for table in &self.tables {
            if index < table.len() {
                return Some((table, index));
            }
            index -= table.len();
        }
        None
    }
}
