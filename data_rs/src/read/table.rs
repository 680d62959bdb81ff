//! Rows of Arrow tables, without a copy but that of their texts.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowDictionaryKeyType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, OffsetSizeTrait, RecordBatch, RecordBatchReader, StructArray};
use arrow_schema::{DataType, Field, Schema};

use crate::error::{Error, Result};
use crate::row::{Cell, Column, Items, Row};

/// Rows of a table.
#[derive(Clone)]
pub struct Table {
    columns: Vec<(Column, ArrayRef)>,
    len: usize,
    names: Arc<[String]>,
}

impl Table {
    /// The columns of a batch that are read; `names` are those of all.
    #[must_use]
    pub fn new(batch: &RecordBatch, names: &Arc<[String]>) -> Self {
        let schema = batch.schema();
        let fields = schema.fields().iter().zip(batch.columns());
        let known = |(field, array): (&Arc<Field>, &ArrayRef)| Some((Column::named(field.name())?, Arc::clone(array)));
        let columns = fields.filter_map(known).collect();
        Self { columns, len: batch.num_rows(), names: Arc::clone(names) }
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The names of all columns, ascending.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A row.
    #[must_use]
    pub fn row(&self, index: usize) -> Row {
        let mut row = Row::default();
        for (column, array) in &self.columns {
            row.set(*column, cell(array, index));
        }
        row
    }

    fn slice(&self, start: usize, len: usize) -> Self {
        let columns = self.columns.iter().map(|(column, array)| (*column, array.slice(start, len))).collect();
        Self { columns, len, names: Arc::clone(&self.names) }
    }

    fn bytes(&self, index: usize) -> usize {
        self.columns.iter().map(|(_, array)| bytes_of(array, index, index + 1)).sum()
    }
}

/// The names of a schema's columns, ascending.
#[must_use]
pub fn names_of(schema: &Schema) -> Arc<[String]> {
    let mut names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    names.sort_unstable();
    names.into()
}

type Batches = Box<dyn Iterator<Item = Result<Table>> + Send>;

/// Tables one behind the other, cut into windows.
pub struct Tables {
    batches: Batches,
    rest: Option<Table>,
    offset: u64,
}

impl Tables {
    /// Tables that begin with row `offset` of their source.
    pub fn of(batches: impl Iterator<Item = Result<Table>> + Send + 'static, offset: u64) -> Self {
        Self { batches: Box::new(batches), rest: None, offset }
    }

    /// Rows that were given out or passed over.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Add tables of up to `most` rows, until they have `bytes` bytes.
    ///
    /// # Errors
    /// What is wrong with the next table; the rows before are there.
    pub fn fill(&mut self, window: &mut Vec<Table>, most: usize, bytes: usize) -> Result<()> {
        let (mut rows, mut size) = (0, 0);
        while rows < most && size < bytes {
            let Some(table) = self.rest.take().map(Ok).or_else(|| self.batches.next()).transpose()? else { break };
            let mut cut = 0;
            while cut < table.len() && rows + cut < most && size < bytes {
                size += table.bytes(cut);
                cut += 1;
            }
            if cut < table.len() {
                self.rest = Some(table.slice(cut, table.len() - cut));
            }
            rows += cut;
            self.offset += cut as u64;
            window.push(table.slice(0, cut));
        }
        Ok(())
    }
}

/// The tables of a stream behind its first `skip` rows. Its makers are not trusted: their texts and offsets are checked.
pub fn stream(
    reader: Box<dyn RecordBatchReader + Send>,
    name: &str,
    skip: u64,
) -> impl Iterator<Item = Result<Table>> + use<> {
    let (names, name) = (names_of(&reader.schema()), name.to_owned());
    let mut row = 0u64;
    let table = move |batch: std::result::Result<RecordBatch, arrow_schema::ArrowError>| {
        let from = row + 1;
        let broken = |error: arrow_schema::ArrowError| {
            let message = error.to_string();
            let first = message.lines().next().unwrap_or_default();
            Error::Table { name: name.clone(), problem: format!("broken at row {from} or later ({first})") }
        };
        let batch = batch.map_err(broken)?;
        row += batch.num_rows() as u64;
        let table = Table::new(&batch, &names);
        for (column, array) in &table.columns {
            array.to_data().validate_full().map_err(|error| {
                let problem = format!("column {} is broken at row {from} or later ({error})", column.name());
                Error::Table { name: name.clone(), problem }
            })?;
        }
        Ok(table)
    };
    behind(reader.map(table), skip)
}

/// Tables behind their first rows.
pub fn behind(tables: impl Iterator<Item = Result<Table>>, mut skip: u64) -> impl Iterator<Item = Result<Table>> {
    tables.filter_map(move |table| {
        let table = match table {
            Ok(table) => table,
            Err(error) => return Some(Err(error)),
        };
        let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(table.len());
        skip -= passed as u64;
        (passed < table.len()).then(|| Ok(table.slice(passed, table.len() - passed)))
    })
}

fn cell(array: &dyn Array, index: usize) -> Cell {
    if array.is_null(index) {
        return Cell::Null;
    }
    if let Some(text) = text(array, index) {
        return Cell::Text(text.to_owned());
    }
    if let Some(number) = whole(array, index) {
        return Cell::Whole(number);
    }
    if let Some((items, start, end)) = items(array, index) {
        return list(items, start, end);
    }
    if let Some((values, index)) = entry(array, index) {
        return cell(values, index);
    }
    let number = match array.data_type() {
        DataType::Null => return Cell::Null,
        DataType::Float16 => array.as_primitive::<Float16Type>().value(index).to_f64(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(index).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(index),
        _ => return Cell::Other,
    };
    if number.is_finite() { Cell::Number(number) } else { Cell::Other }
}

fn text(array: &dyn Array, index: usize) -> Option<&str> {
    match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().value(index)),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(index)),
        DataType::Utf8View => Some(array.as_string_view().value(index)),
        _ => None,
    }
}

fn whole(array: &dyn Array, index: usize) -> Option<i128> {
    Some(match array.data_type() {
        DataType::Int8 => array.as_primitive::<Int8Type>().value(index).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(index).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(index).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(index).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(index).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(index).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(index).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(index).into(),
        _ => return None,
    })
}

/// The items of a list: where they are, from and up to where.
fn items(array: &dyn Array, index: usize) -> Option<(&ArrayRef, usize, usize)> {
    fn offsets<O: OffsetSizeTrait>(offsets: &[O], index: usize) -> Option<(usize, usize)> {
        Some((offsets.get(index)?.as_usize(), offsets.get(index + 1)?.as_usize()))
    }
    let (values, (start, end)) = match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            (list.values(), offsets(list.value_offsets(), index)?)
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            (list.values(), offsets(list.value_offsets(), index)?)
        }
        DataType::FixedSizeList(_, size) => {
            let size = usize::try_from(*size).ok()?;
            (array.as_fixed_size_list().values(), (index * size, (index + 1) * size))
        }
        _ => return None,
    };
    Some((values, start, end))
}

/// The value that an entry of a dictionary stands for.
fn entry(array: &dyn Array, index: usize) -> Option<(&ArrayRef, usize)> {
    fn at<K: ArrowDictionaryKeyType>(array: &dyn Array, index: usize) -> Option<(&ArrayRef, usize)> {
        let dictionary = array.as_dictionary::<K>();
        Some((dictionary.values(), dictionary.key(index)?))
    }
    let DataType::Dictionary(key, _) = array.data_type() else { return None };
    match key.as_ref() {
        DataType::Int8 => at::<Int8Type>(array, index),
        DataType::Int16 => at::<Int16Type>(array, index),
        DataType::Int32 => at::<Int32Type>(array, index),
        DataType::Int64 => at::<Int64Type>(array, index),
        DataType::UInt8 => at::<UInt8Type>(array, index),
        DataType::UInt16 => at::<UInt16Type>(array, index),
        DataType::UInt32 => at::<UInt32Type>(array, index),
        DataType::UInt64 => at::<UInt64Type>(array, index),
        _ => None,
    }
}

fn list(items: &ArrayRef, start: usize, end: usize) -> Cell {
    let mut list = Items::default();
    let objects = items.as_struct_opt();
    for index in start..end {
        match objects.filter(|objects| objects.is_valid(index)) {
            Some(objects) => list.push_object(field(objects, "role", index), field(objects, "content", index)),
            None => list.push(cell(items, index)),
        }
    }
    list.finish()
}

fn field(objects: &StructArray, name: &str, index: usize) -> Option<String> {
    match cell(objects.column_by_name(name)?, index) {
        Cell::Text(text) => Some(text),
        _ => None,
    }
}

/// How much memory entries from `start` to `end` take, or a little more.
fn bytes_of(array: &dyn Array, start: usize, end: usize) -> usize {
    let ends = |offset: Option<&i32>| offset.and_then(|&offset| usize::try_from(offset).ok()).unwrap_or(0);
    match array.data_type() {
        DataType::Utf8 => {
            let offsets = array.as_string::<i32>().value_offsets();
            ends(offsets.get(end)) - ends(offsets.get(start))
        }
        DataType::Struct(_) => array.as_struct().columns().iter().map(|field| bytes_of(field, start, end)).sum(),
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) if start < end => {
            match (items(array, start), items(array, end - 1)) {
                (Some((values, first, _)), Some((.., last))) => bytes_of(values, first, last),
                _ => 0,
            }
        }
        _ => (start..end).map(|index| bytes_at(array, index)).sum(),
    }
}

fn bytes_at(array: &dyn Array, index: usize) -> usize {
    match (text(array, index), entry(array, index)) {
        (Some(text), _) => text.len(),
        (None, Some((values, index))) => bytes_of(values, index, index + 1),
        (None, None) => size_of::<u64>(),
    }
}
