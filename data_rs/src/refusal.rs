//! Why a row is not used, and where in it that stands.

use crate::error::Error;
use crate::reason::Reason;
use crate::row::Column;

/// A row that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Row,
    Column(Column),
    Byte(usize, String),
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, place: Place::Row }
    }
}

impl Refusal {
    /// Because of what stands at a byte of the row, counted from 1.
    #[must_use]
    pub fn at_byte(reason: Reason, byte: usize, problem: &str) -> Self {
        Self { reason, place: Place::Byte(byte, problem.to_owned()) }
    }

    /// The error of it, for one who asked to stop.
    #[must_use]
    pub fn into_error(self, name: &str, row: u64) -> Error {
        let (name, reason) = (name.to_owned(), self.reason);
        match self.place {
            Place::Row => Error::Row { name, row, reason, detail: String::new() },
            Place::Column(column) => Error::Row { name, row, reason, detail: format!(" in column {}", column.name()) },
            Place::Byte(column, problem) => Error::Byte { name, row, column, reason, problem },
        }
    }
}

/// Says in which column a reason was found.
pub trait InColumn<T> {
    /// The refusal because of a column.
    ///
    /// # Errors
    /// The same as before, with the column.
    fn in_column(self, column: Column) -> Result<T, Refusal>;
}

impl<T> InColumn<T> for Result<T, Reason> {
    fn in_column(self, column: Column) -> Result<T, Refusal> {
        self.map_err(|reason| Refusal { reason, place: Place::Column(column) })
    }
}
