//! What can go wrong with data as a whole. A single bad row is a [`Reason`], unless the caller asked to stop at it.

use crate::reason::Reason;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that stops the work, each in one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused, or a compressed stream is damaged.
    #[error("{name}: {problem} ({source})")]
    Io {
        /// The file or folder.
        name: String,
        /// What could not be done, and what to do about it.
        problem: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The first row has the columns of no known pair format.
    #[error("{name}: its columns are {found}; a pair needs {accepted}")]
    Columns {
        /// The input.
        name: String,
        /// The columns of its first row.
        found: String,
        /// The accepted formats.
        accepted: &'static str,
    },
    /// A row that cannot be used, where the caller asked to stop at the first one.
    #[error("{name}:{row}: {}{detail}; {}", .reason.says(), .reason.advice())]
    Row {
        /// The input.
        name: String,
        /// Its row, from 1.
        row: u64,
        /// Why the row cannot be used.
        reason: Reason,
        /// More about it, or nothing.
        detail: String,
    },
    /// The same, of a row that is broken in a place.
    #[error("{name}:{row}:{column}: {} ({problem}); {}", .reason.says(), .reason.advice())]
    Byte {
        /// The input.
        name: String,
        /// Its row, from 1.
        row: u64,
        /// The byte of the row, from 1.
        column: usize,
        /// Why the row cannot be used.
        reason: Reason,
        /// What stands there.
        problem: String,
    },
    /// A table that is damaged, or not what it should be.
    #[error("{name}: {problem}; write it again")]
    Table {
        /// The input.
        name: String,
        /// What is wrong with it, and where.
        problem: String,
    },
    /// A tokenizer that cannot be loaded or cannot encode.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A plan for a chat template did not hold, see [`crate::chat`].
    #[error("chat template: a plan does not hold for it ({0}); render it without plans")]
    Plan(String),
    /// The fast engine gave other ids than the reference, see [`crate::encode`].
    #[error("tokenizer: the fast engine fails on a text of this data ({0}); encode it with engine=reference")]
    Engine(String),
    /// An argument that makes no sense.
    #[error("{0}")]
    Argument(String),
    /// A store that is missing, cut off, changed or of another kind.
    #[error("{path}: {problem}; remove the store and prepare it again")]
    Store {
        /// The file of the store.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The place for a new store is taken.
    #[error("{path}: {problem}; remove it or name another folder")]
    Taken {
        /// The folder.
        path: String,
        /// What is there.
        problem: &'static str,
    },
}

impl Error {
    /// Wrap what the system said about `name`.
    pub fn io(name: impl std::fmt::Display, problem: &str, source: std::io::Error) -> Self {
        Self::Io { name: name.to_string(), problem: problem.to_owned(), source }
    }
}
