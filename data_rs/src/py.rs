//! The Python face of the crate. It only converts; all work happens without the interpreter lock.

#![allow(clippy::needless_pass_by_value, reason = "arguments are extracted by value")]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::{PyIndexError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMapping, PyString, PyType};

use crate::encode::{Conversation, Rendered};
use crate::error::{Error, Result};
use crate::options::{ReadOptions, WriteOptions};
use crate::pack::Pack;
use crate::pairs::PairReader;
use crate::read::Source;
use crate::reason::RowsByReason;
use crate::text::Text;
use crate::{bins, deal, order, pack, pairs, store};

/// Lines or groups between two looks for Ctrl-C.
const CHUNK: usize = 256;

pyo3::create_exception!(
    _data_rs,
    DataError,
    PyValueError,
    "Data that cannot be used, named by file and row, with what to do."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Io { source, .. } => match PyErr::from(std::io::Error::new(source.kind(), message.clone())) {
                specific if Python::attach(|py| specific.is_instance_of::<PyOSError>(py)) => specific,
                _ => PyOSError::new_err(message),
            },
            _ => DataError::new_err(message),
        }
    }
}

/// Rows read, normalized and linted: the usable groups, and what was refused and why.
#[pyclass(frozen, module = "grmlight._data_rs")]
struct Pairs(pairs::Pairs);

#[pymethods]
impl Pairs {
    /// Rows seen in the input.
    #[getter]
    fn rows(&self) -> u64 {
        self.0.rows
    }

    /// Usable rows left out by the stride.
    #[getter]
    fn skipped(&self) -> u64 {
        self.0.skipped
    }

    /// Reason to row numbers (1-based) of rows that are not used.
    #[getter]
    fn refused(&self) -> RowsByReason {
        self.0.refused.clone()
    }

    /// Finding to row numbers of rows that are used nevertheless (duplicates, contradictions, ties left out).
    #[getter]
    fn noted(&self) -> RowsByReason {
        self.0.noted.clone()
    }

    fn __len__(&self) -> usize {
        self.0.records.len()
    }

    /// The prompt and its responses, a pair's chosen one first: messages for chats, text for plain pairs.
    fn group<'py>(&self, py: Python<'py>, index: usize) -> PyResult<(Bound<'py, PyAny>, Vec<Bound<'py, PyAny>>)> {
        let record = self.record(index)?;
        let responses: PyResult<_> = record.responses.iter().map(|response| text_to_python(py, response)).collect();
        Ok((text_to_python(py, &record.prompt)?, responses?))
    }

    /// The source row (1-based) of a group.
    fn row(&self, index: usize) -> PyResult<u64> {
        Ok(self.record(index)?.row)
    }

    /// The `id` of a group, or its row as text.
    fn id(&self, index: usize) -> PyResult<&str> {
        Ok(&self.record(index)?.id)
    }

    /// The `category` of a group.
    fn category(&self, index: usize) -> PyResult<Option<&str>> {
        Ok(self.record(index)?.category.as_deref())
    }
}

impl Pairs {
    fn record(&self, index: usize) -> PyResult<&crate::record::Record> {
        let problem = || PyIndexError::new_err(format!("there is no group {index} among {}", self.0.records.len()));
        self.0.records.get(index).ok_or_else(problem)
    }
}

fn text_to_python<'py>(py: Python<'py>, text: &Text) -> PyResult<Bound<'py, PyAny>> {
    match text {
        Text::Plain(text) => Ok(PyString::new(py, text).into_any()),
        Text::Chat(messages) => {
            let list = PyList::empty(py);
            for message in messages {
                let entry = PyDict::new(py);
                entry.set_item("role", &message.role)?;
                entry.set_item("content", &message.content)?;
                list.append(entry)?;
            }
            Ok(list.into_any())
        }
    }
}

fn to_json(mapping: &Bound<'_, PyMapping>) -> PyResult<String> {
    let json = mapping.py().import("json")?;
    let entries = mapping.py().import("builtins")?.getattr("dict")?.call1((mapping,))?;
    json.call_method1("dumps", (entries,))?.extract()
}

/// Read JSON lines from a path (plain or gz) or from bytes.
#[pyfunction]
fn read_pairs(py: Python<'_>, source: &Bound<'_, PyAny>, options: &Bound<'_, PyMapping>) -> PyResult<Pairs> {
    let options = ReadOptions::from_json(&to_json(options)?)?;
    let source = match source.cast::<PyBytes>() {
        Ok(bytes) => Source::Bytes(bytes.as_bytes().to_vec()),
        Err(_) => Source::Path(source.extract()?),
    };
    let mut reader = py.detach(|| PairReader::open(source, options))?;
    while py.detach(|| reader.read(CHUNK))? {
        py.check_signals()?;
    }
    Ok(Pairs(reader.finish()))
}

/// Writes a store under a temporary name; `finish` renames it into place.
#[pyclass(frozen, module = "grmlight._data_rs")]
struct StoreWriter(Mutex<Option<store::StoreWriter>>);

#[pymethods]
impl StoreWriter {
    #[new]
    fn new(py: Python<'_>, directory: &str, tokenizer_json: &str, options: &Bound<'_, PyMapping>) -> PyResult<Self> {
        let options = WriteOptions::from_json(&to_json(options)?)?;
        let writer = py.detach(|| {
            let text = read_tokenizer(tokenizer_json)?;
            store::StoreWriter::create(directory, &text, options)
        })?;
        Ok(Self(Mutex::new(Some(writer))))
    }

    /// Encode groups start, start + 1, ... of `pairs`.
    fn append(
        &self,
        py: Python<'_>,
        pairs: &Bound<'_, Pairs>,
        start: usize,
        texts: Vec<Bound<'_, PyAny>>,
        boundaries: Vec<Vec<usize>>,
    ) -> PyResult<()> {
        if texts.len() != boundaries.len() {
            return Err(PyValueError::new_err("texts and boundaries differ in length"));
        }
        let groups: PyResult<Vec<Rendered>> =
            texts.iter().zip(boundaries).map(|(text, at)| rendered(text, at)).collect();
        let (groups, pairs) = (groups?, &pairs.get().0);
        py.detach(|| self.with(|writer| writer.begin(pairs, start, groups.len())))?;
        for (number, chunk) in groups.chunks(CHUNK).enumerate() {
            py.detach(|| self.with(|writer| writer.append(pairs, start + number * CHUNK, chunk)))?;
            py.check_signals()?;
        }
        Ok(())
    }

    /// Write the manifest (with these entries added), rename into place, and return the report as JSON.
    fn finish(&self, py: Python<'_>, manifest: &Bound<'_, PyMapping>) -> PyResult<String> {
        let entries = to_json(manifest)?;
        let entries = serde_json::from_str(&entries).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(py.detach(|| match self.lock().take() {
            Some(writer) => writer.finish(entries),
            None => Err(finished()),
        })?)
    }
}

impl StoreWriter {
    fn lock(&self) -> MutexGuard<'_, Option<store::StoreWriter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&mut store::StoreWriter) -> Result<T>) -> Result<T> {
        self.lock().as_mut().ok_or_else(finished).and_then(work)
    }
}

fn finished() -> Error {
    Error::Argument("this StoreWriter is finished; make another one".into())
}

/// The text itself, or the file it names.
fn read_tokenizer(tokenizer_json: &str) -> Result<String> {
    if tokenizer_json.trim_start().starts_with('{') {
        return Ok(tokenizer_json.to_owned());
    }
    std::fs::read_to_string(tokenizer_json)
        .map_err(|error| Error::io(tokenizer_json, "cannot be read as a tokenizer.json", error))
}

fn rendered(text: &Bound<'_, PyAny>, boundaries: Vec<usize>) -> PyResult<Rendered> {
    if let Ok(problem) = text.cast::<PyString>() {
        return Ok(Err(problem.to_str()?.to_owned()));
    }
    let texts: Vec<String> = text.extract()?;
    if texts.len() != boundaries.len() {
        return Err(PyValueError::new_err("a group needs a boundary for each of its texts"));
    }
    let pairs = texts.into_iter().zip(boundaries);
    Ok(Ok(pairs.map(|(text, boundary)| Conversation { text, boundary }).collect()))
}

/// A prepared data set on disk, memory-mapped.
#[pyclass(frozen, module = "grmlight._data_rs")]
struct Store(store::Store);

#[pymethods]
impl Store {
    #[new]
    fn new(py: Python<'_>, directory: &str) -> PyResult<Self> {
        Ok(Self(py.detach(|| store::Store::open(directory))?))
    }

    /// A process that gets it opens its own.
    fn __reduce__<'py>(&self, py: Python<'py>) -> (Bound<'py, PyType>, (String,)) {
        (py.get_type::<Store>(), (self.0.directory().to_string_lossy().into_owned(),))
    }

    fn __len__(&self) -> usize {
        self.0.groups()
    }

    /// The manifest as JSON.
    #[getter]
    fn manifest(&self) -> &str {
        self.0.manifest()
    }

    /// Tokens of each group, the shared prompt counted once.
    #[getter]
    fn costs<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        py.detach(|| self.0.costs()).into_pyarray(py)
    }

    /// For each group: row, id, source, category, flipped.
    fn rows<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let rows = py.detach(|| self.0.rows())?;
        let convert = |row: store::RowInfo| {
            let entry = PyDict::new(py);
            entry.set_item("row", row.row)?;
            entry.set_item("id", row.id)?;
            entry.set_item("source", row.source)?;
            entry.set_item("category", row.category)?;
            entry.set_item("flipped", row.flipped)?;
            Ok(entry)
        };
        rows.into_iter().map(convert).collect()
    }

    /// Lay groups end to end: the arrays of `GroupBatch.from_arrays`.
    fn pack<'py>(
        &self,
        py: Python<'py>,
        groups: PyReadonlyArray1<'py, i64>,
        counts: PyReadonlyArray1<'py, f32>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let groups: Vec<i64> = groups.as_array().iter().copied().collect();
        let counts: Vec<f32> = counts.as_array().iter().copied().collect();
        arrays(py, py.detach(|| pack::pack(&self.0, &groups, &counts))?)
    }
}

fn arrays(py: Python<'_>, pack: Pack) -> PyResult<Bound<'_, PyDict>> {
    let segments = pack.prefix.len();
    let integers = BTreeMap::from([
        ("input_ids_T", pack.input_ids),
        ("positions_T", pack.positions),
        ("bounds", pack.bounds),
        ("prefix", pack.prefix),
        ("responses", pack.responses),
        ("last_N", pack.last),
        ("group_N", pack.group),
        ("source_L", pack.source),
        ("target_L", pack.target),
        ("response_L", pack.response),
        ("chosen_L", pack.chosen),
        ("better_C", pack.better),
        ("worse_C", pack.worse),
        ("group_C", pack.comparison_group),
        ("row_C", pack.row),
    ]);
    let floats =
        [("label_C", pack.label), ("margin_C", pack.margin), ("weight_C", pack.weight), ("count_G", pack.count)];
    let result = PyDict::new(py);
    result.set_item("table_S3", pack.table.into_pyarray(py).reshape([segments, 3])?)?;
    for (name, values) in integers {
        result.set_item(name, values.into_pyarray(py))?;
    }
    for (name, values) in floats {
        result.set_item(name, values.into_pyarray(py))?;
    }
    Ok(result)
}

/// A permutation of the groups: a pure function of its arguments, the same on every machine.
#[pyfunction]
fn epoch_order(py: Python<'_>, groups: usize, seed: u64, epoch: u64) -> PyResult<Bound<'_, PyArray1<i64>>> {
    Ok(py.detach(|| order::epoch_order(groups, seed, epoch))?.into_pyarray(py))
}

type PyDeal<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f32>>);

/// Deal one step's groups to ranks, and each share into `accumulate` packs, balanced by cost.
#[pyfunction]
fn deal_step<'py>(
    py: Python<'py>,
    costs: PyReadonlyArray1<'py, i64>,
    ranks: usize,
    accumulate: usize,
) -> PyResult<Vec<Vec<PyDeal<'py>>>> {
    let costs: Vec<i64> = costs.as_array().iter().copied().collect();
    let plan = deal::Plan { groups_per_step: costs.len().max(1), ranks, accumulate };
    let deals = py.detach(|| deal::deal_steps(&costs, plan))?;
    let packs: Vec<PyDeal> =
        deals.packs().map(|(positions, counts)| (to_array(py, positions), to_array(py, counts))).collect();
    Ok(packs.chunks(accumulate).map(<[PyDeal]>::to_vec).collect())
}

fn to_array<'py, T: numpy::Element + Copy>(py: Python<'py>, values: &[T]) -> Bound<'py, PyArray1<T>> {
    PyArray1::from_slice(py, values)
}

/// Positions, counts and bounds.
type PyDeals<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f32>>, Bound<'py, PyArray1<i64>>);

/// Deal many steps at once, each as `deal_step` does.
#[pyfunction]
fn deal_steps<'py>(
    py: Python<'py>,
    costs: PyReadonlyArray1<'py, i64>,
    groups_per_step: usize,
    ranks: usize,
    accumulate: usize,
) -> PyResult<PyDeals<'py>> {
    let costs: Vec<i64> = costs.as_array().iter().copied().collect();
    let deals = py.detach(|| deal::deal_steps(&costs, deal::Plan { groups_per_step, ranks, accumulate }))?;
    Ok((deals.positions.into_pyarray(py), deals.counts.into_pyarray(py), deals.bounds.into_pyarray(py)))
}

/// Positions and bounds.
type PyBins<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>);

/// Fill bins with groups up to a number of tokens, window by window, and shuffle the bins.
#[pyfunction]
fn pack_bins<'py>(
    py: Python<'py>,
    costs: PyReadonlyArray1<'py, i64>,
    tokens_per_pack: usize,
    window: usize,
    seed: u64,
    epoch: u64,
) -> PyResult<PyBins<'py>> {
    let costs: Vec<i64> = costs.as_array().iter().copied().collect();
    let bins = py.detach(|| bins::pack_bins(&costs, tokens_per_pack, window, seed, epoch))?;
    Ok((bins.positions.into_pyarray(py), bins.bounds.into_pyarray(py)))
}

/// The Rust extension: read, normalize and lint pairs; encode; share the prompt; store; deal; pack.
#[pymodule(gil_used = false)]
fn _data_rs(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DataError", module.py().get_type::<DataError>())?;
    module.add_class::<Pairs>()?;
    module.add_class::<StoreWriter>()?;
    module.add_class::<Store>()?;
    module.add_function(wrap_pyfunction!(read_pairs, module)?)?;
    module.add_function(wrap_pyfunction!(epoch_order, module)?)?;
    module.add_function(wrap_pyfunction!(deal_step, module)?)?;
    module.add_function(wrap_pyfunction!(deal_steps, module)?)?;
    module.add_function(wrap_pyfunction!(pack_bins, module)?)
}
