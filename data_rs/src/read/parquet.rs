//! Rows of Parquet files, a few at a time, and no column of them that does not count.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

use crate::error::{Error, Result};
use crate::read::table::{Table, names_of};
use crate::row::Column;

/// Rows that are decoded together, at most.
const BATCH_ROWS: usize = 1024;
/// Bytes that are decoded together, as far as the file tells its sizes.
const BATCH_BYTES: u64 = 16 << 20;

/// The tables of files one behind the other, behind their first `skip` rows.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be opened, [`Error::Table`] for one that is no Parquet, as far as the first file
/// with rows to read.
pub fn tables(paths: Vec<String>, mut skip: u64) -> Result<impl Iterator<Item = Result<Table>> + Send + use<>> {
    let mut rest = paths.into_iter();
    let mut next = move || loop {
        let Some(path) = rest.next() else { return Ok(None) };
        if let Some(found) = FileTables::open(path, &mut skip)? {
            return Ok(Some(found));
        }
    };
    let mut now = next()?;
    Ok(std::iter::from_fn(move || {
        loop {
            if let Some(table) = now.as_mut()?.next() {
                return Some(table);
            }
            match next() {
                Ok(found) => now = found,
                Err(error) => {
                    now = None;
                    return Some(Err(error));
                }
            }
        }
    }))
}

struct FileTables {
    path: String,
    row: u64,
    names: Arc<[String]>,
    batches: ParquetRecordBatchReader,
}

impl FileTables {
    /// Open a file, unless all its rows are passed over.
    fn open(path: String, skip: &mut u64) -> Result<Option<Self>> {
        let unreadable = "cannot be read; check the path and its permissions";
        let file = File::open(&path).map_err(|error| Error::io(&path, unreadable, error))?;
        // Parquet's own types are all that is needed; what Arrow's writer adds about them is one thing more to be damaged.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder = guarded(&path, 1, || ParquetRecordBatchReaderBuilder::try_new_with_options(file, options))?;
        let (mut groups, mut batch, mut row) = (Vec::new(), BATCH_ROWS as u64, 0);
        for (index, group) in builder.metadata().row_groups().iter().enumerate() {
            let rows = u64::try_from(group.num_rows()).unwrap_or(0);
            if groups.is_empty() && *skip >= rows {
                *skip -= rows;
                row += rows;
                continue;
            }
            groups.push(index);
            let known = |name: &str| Column::named(name).is_some();
            let read = group
                .columns()
                .iter()
                .filter(|column| column.column_path().parts().first().is_some_and(|name| known(name)));
            let bytes: i64 = read.map(parquet::file::metadata::ColumnChunkMetaData::uncompressed_size).sum();
            let row_bytes = u64::try_from(bytes).unwrap_or(0) / rows.max(1);
            batch = batch.min(BATCH_BYTES / row_bytes.max(1)).max(1);
        }
        if groups.is_empty() {
            return Ok(None);
        }
        let names = names_of(builder.schema());
        let roots = builder.schema().fields().iter().enumerate();
        let roots = roots.filter(|(_, field)| Column::named(field.name()).is_some()).map(|(index, _)| index);
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots.collect::<Vec<_>>());
        let passed = usize::try_from(std::mem::take(skip)).unwrap_or(usize::MAX);
        let batch = usize::try_from(batch).unwrap_or(BATCH_ROWS);
        let builder = builder.with_row_groups(groups).with_projection(mask).with_offset(passed).with_batch_size(batch);
        let batches = guarded(&path, row + 1, || builder.build())?;
        Ok(Some(Self { path, row: row + passed as u64, names, batches }))
    }
}

impl Iterator for FileTables {
    type Item = Result<Table>;

    fn next(&mut self) -> Option<Self::Item> {
        let batches = &mut self.batches;
        let batch = match guarded(&self.path, self.row + 1, || batches.next().transpose().map_err(ParquetError::from)) {
            Ok(batch) => batch?,
            Err(error) => return Some(Err(error)),
        };
        self.row += batch.num_rows() as u64;
        Some(Ok(Table::new(&batch, &self.names)))
    }
}

/// Damage that the decoder does not foresee makes it panic.
fn guarded<T>(path: &str, row: u64, decode: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    let message = match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(decoded)) => return Ok(decoded),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "damaged".to_owned(),
    };
    let first = message.lines().next().unwrap_or_default();
    Err(Error::Table {
        name: path.to_owned(),
        problem: format!("cannot be read as Parquet from row {row} on ({first})"),
    })
}
