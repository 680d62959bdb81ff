//! The Python face of the crate. It only converts; all work happens without the interpreter lock.

#![allow(clippy::needless_pass_by_value, reason = "arguments are extracted by value")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::{PyIndexError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMapping, PyString, PyType};
use pyo3_arrow::PyRecordBatchReader;
use serde_json::json;

use crate::chat::{RenderOptions, Renderer, Unrendered};
use crate::encode::{Conversation, Rendered};
use crate::error::{Error, Result};
use crate::options::{ReadOptions, WriteOptions};
use crate::pack::Pack;
use crate::pairs::PairReader;
use crate::prepare::Settings;
use crate::read::Source;
use crate::reason::RowsByReason;
use crate::record::Record;
use crate::text::{Message, Text};
use crate::{bins, deal, encode, order, pack, pairs, prepare, store};

/// Lines between two looks for Ctrl-C.
const CHUNK: usize = 256;

pyo3::create_exception!(
    _data_rs,
    DataError,
    PyValueError,
    "Data that cannot be used, named by file and row, with what to do."
);

pyo3::create_exception!(
    _data_rs,
    EngineError,
    DataError,
    "The fast engine gave other ids than the reference: all that was encoded must be encoded again, with the reference."
);
pyo3::create_exception!(
    _data_rs,
    UnsupportedTemplateError,
    PyValueError,
    "A chat template, or a conversation with it, that is left to transformers."
);
pyo3::create_exception!(
    _data_rs,
    BrokenPlanError,
    PyValueError,
    "A plan for a chat template that did not hold: render everything again with the option `plan` off."
);

impl From<Unrendered> for PyErr {
    fn from(error: Unrendered) -> Self {
        match error {
            Unrendered::Unsupported(_) => UnsupportedTemplateError::new_err(error.to_string()),
            Unrendered::Plan(_) => BrokenPlanError::new_err(error.to_string()),
            Unrendered::Data(error) => error.into(),
        }
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Io { source, .. } => match PyErr::from(std::io::Error::new(source.kind(), message.clone())) {
                specific if Python::attach(|py| specific.is_instance_of::<PyOSError>(py)) => specific,
                _ => PyOSError::new_err(message),
            },
            Error::Plan(_) => BrokenPlanError::new_err(message),
            Error::Engine(_) => EngineError::new_err(message),
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
    fn group<'py>(&self, py: Python<'py>, index: usize) -> PyResult<PyGroup<'py>> {
        group_to_python(py, self.record(index)?)
    }

    /// The source row (1-based) of a group.
    fn row(&self, index: usize) -> PyResult<u64> {
        Ok(self.record(index)?.row)
    }

    /// The `id` of a group, or its row as text.
    fn id(&self, index: usize) -> PyResult<&str> {
        Ok(&self.record(index)?.id)
    }

    /// For each comparison of a group the places of the better and the worse response.
    fn comparisons(&self, index: usize) -> PyResult<Vec<(u32, u32)>> {
        Ok(self.record(index)?.comparisons.iter().map(|one| (one.better, one.worse)).collect())
    }

    /// The `category` of a group.
    fn category(&self, index: usize) -> PyResult<Option<&str>> {
        Ok(self.record(index)?.category.as_deref())
    }
}

impl Pairs {
    fn record(&self, index: usize) -> PyResult<&Record> {
        let problem = || PyIndexError::new_err(format!("there is no group {index} among {}", self.0.records.len()));
        self.0.records.get(index).ok_or_else(problem)
    }
}

type PyGroup<'py> = (Bound<'py, PyAny>, Vec<Bound<'py, PyAny>>);

fn group_to_python<'py>(py: Python<'py>, record: &Record) -> PyResult<PyGroup<'py>> {
    let responses: PyResult<_> = record.responses.iter().map(|response| text_to_python(py, response)).collect();
    Ok((text_to_python(py, &record.prompt)?, responses?))
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

/// JSON lines by their path or as bytes, Parquet files by their paths, or whatever gives Arrow tables.
fn source_of(source: &Bound<'_, PyAny>) -> PyResult<Source> {
    if let Ok(bytes) = source.cast::<PyBytes>() {
        return Ok(Source::Bytes(bytes.as_bytes().to_vec()));
    }
    if source.hasattr("__arrow_c_stream__")? {
        return Ok(Source::Arrow(source.extract::<PyRecordBatchReader>()?.into_reader()?));
    }
    if source.is_instance_of::<PyString>() {
        return Ok(Source::Path(source.extract()?));
    }
    Ok(Source::Parquet(source.extract()?))
}

/// Read rows into memory.
#[pyfunction]
fn read_pairs(py: Python<'_>, source: &Bound<'_, PyAny>, options: &Bound<'_, PyMapping>) -> PyResult<Pairs> {
    let options = ReadOptions::from_json(&to_json(options)?)?;
    let source = source_of(source)?;
    let mut reader = py.detach(|| PairReader::open(source, options))?;
    let mut records = Vec::new();
    while let Some(window) = py.detach(|| reader.next_window(CHUNK, None))? {
        records.extend(window);
        py.check_signals()?;
    }
    Ok(Pairs(reader.into_pairs(records)))
}

/// A store that is being prepared, window by window.
#[pyclass(frozen, module = "grmlight._data_rs")]
struct Preparation(Mutex<Option<prepare::Preparation>>);

#[pymethods]
impl Preparation {
    /// Start, or go on where an interrupted preparation stopped; None if another one is at work or has finished.
    #[staticmethod]
    fn begin(
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        directory: PathBuf,
        identity: &str,
        tokenizer_json: &str,
        settings: &Bound<'_, PyMapping>,
    ) -> PyResult<Option<Self>> {
        let settings = Settings::from_json(&to_json(settings)?)?;
        let source = source.clone().unbind();
        let found = py.detach(|| {
            let text = read_tokenizer(tokenizer_json)?;
            let open = || Python::attach(|py| called_source(source.bind(py)));
            prepare::Preparation::begin(open, &directory, identity, &text, settings)
        })?;
        Ok(found.map(|preparation| Self(Mutex::new(Some(preparation)))))
    }

    /// Whether it goes on with what an interrupted one left.
    #[getter]
    fn resumed(&self) -> PyResult<bool> {
        Ok(self.lock().as_ref().ok_or_else(finished)?.resumed())
    }

    /// Rows read and stored so far, and where the next one begins: bytes from the beginning, as they are once inflated,
    /// or rows of tables.
    #[getter]
    fn progress(&self) -> PyResult<(u64, u64, u64)> {
        let guard = self.lock();
        let preparation = guard.as_ref().ok_or_else(finished)?;
        let report = preparation.report();
        Ok((report.rows, report.used, preparation.offset()))
    }

    /// Why groups are left to `render`, if some were.
    #[getter]
    fn left(&self) -> PyResult<Option<String>> {
        Ok(self.lock().as_ref().ok_or_else(finished)?.left().map(str::to_owned))
    }

    /// What was found so far, as JSON.
    fn report(&self, py: Python<'_>) -> PyResult<String> {
        let report = py.detach(|| self.lock().as_ref().map(|preparation| json!(preparation.report()).to_string()));
        Ok(report.ok_or_else(finished)?)
    }

    /// Prepare the next window; whether there was one. Errors and Ctrl-C end the preparation.
    fn advance(&self, py: Python<'_>, render: &Bound<'_, PyAny>) -> PyResult<bool> {
        let render = render.clone().unbind();
        py.detach(|| {
            // Taken out, so that nobody waits for this lock with the interpreter's in hand.
            let mut preparation = self.lock().take().ok_or_else(finished)?;
            let more = preparation.advance(
                |records| Python::attach(|py| records.iter().map(|record| render_one(py, &render, record)).collect()),
                look_for_signals,
            );
            *self.lock() = Some(preparation);
            more
        })
    }

    /// Write the manifest (with these entries added), rename into place, and return the report as JSON.
    fn finish(&self, py: Python<'_>, manifest: &Bound<'_, PyMapping>) -> PyResult<String> {
        let entries = to_json(manifest)?;
        let entries = serde_json::from_str(&entries).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(py.detach(|| match self.lock().take() {
            Some(preparation) => preparation.finish(entries),
            None => Err(finished()),
        })?)
    }

    /// Remove what was prepared so far.
    fn discard(&self, py: Python<'_>) {
        py.detach(|| self.lock().take().map(prepare::Preparation::discard));
    }

    /// Let go of it; what was prepared stays for the next one.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.lock().take()));
    }
}

impl Preparation {
    fn lock(&self) -> MutexGuard<'_, Option<prepare::Preparation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn finished() -> Error {
    Error::Argument("this preparation has ended; begin another one".into())
}

#[allow(clippy::redundant_closure_for_method_calls, reason = "the method does not hold for every lifetime")]
fn look_for_signals() -> PyResult<()> {
    Python::attach(|py| py.check_signals())
}

/// A source, or what a function gives as one.
fn called_source(source: &Bound<'_, PyAny>) -> PyResult<Source> {
    if source.is_callable() { source_of(&source.call0()?) } else { source_of(source) }
}

fn render_one(py: Python<'_>, render: &Py<PyAny>, record: &Record) -> PyResult<Rendered> {
    let (prompt, responses) = group_to_python(py, record)?;
    let found = render.bind(py).call1((prompt, responses))?;
    match found.extract() {
        Ok((text, boundaries)) => rendered(&text, boundaries),
        Err(_) => rendered(&found, Vec::new()),
    }
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
    Ok(Ok(pairs.map(|(text, boundary)| conversation(text, boundary)).collect()))
}

/// Python counts characters.
fn conversation(text: String, boundary: usize) -> Conversation {
    let boundary = text.char_indices().nth(boundary).map_or(text.len(), |(at, _)| at);
    Conversation { text, boundary }
}

/// Text to token ids, as a store is written.
#[pyclass(frozen, module = "grmlight._data_rs")]
struct Encoder(encode::Encoder);

#[pymethods]
impl Encoder {
    #[new]
    fn new(py: Python<'_>, tokenizer_json: &str, options: &Bound<'_, PyMapping>) -> PyResult<Self> {
        let options = WriteOptions::from_json(&to_json(options)?)?;
        Ok(Self(py.detach(|| encode::Encoder::new(&read_tokenizer(tokenizer_json)?, options))?))
    }

    /// What makes ids of text.
    #[getter]
    fn engine(&self) -> &'static str {
        self.0.engine()
    }

    /// Why that is the slow reference, if it is.
    #[getter]
    fn why_reference(&self) -> Option<&str> {
        self.0.why_reference()
    }

    /// Whether what the conversations of a group begin with is encoded once.
    #[getter]
    fn prompt_once(&self) -> bool {
        self.0.prompt_once()
    }

    /// The ids of texts end to end, and where each text's end.
    fn encode<'py>(&self, py: Python<'py>, texts: Vec<String>) -> PyResult<Flat<'py>> {
        let ids = py.detach(|| self.0.encode_texts(&texts))?;
        let bounds = ids.iter().scan(0_usize, |end, ids| {
            *end += ids.len();
            i64::try_from(*end).ok()
        });
        let bounds: Vec<i64> = bounds.collect();
        Ok((ids.concat().into_pyarray(py), bounds.into_pyarray(py)))
    }

    /// The groups as tokens, of which the first has the number `place` in the data.
    fn encode_groups<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Bound<'py, PyAny>>,
        boundaries: Vec<Vec<usize>>,
        place: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let groups: PyResult<Vec<Rendered>> =
            texts.iter().zip(boundaries).map(|(text, at)| rendered(text, at)).collect();
        let groups = groups?;
        let encoded = py.detach(|| self.0.encode(place, &groups))?;
        let list = PyList::empty(py);
        for group in encoded {
            match group {
                Ok(group) => list.append(tokens_to_python(py, group))?,
                Err(reason) => list.append(reason.name())?,
            }
        }
        Ok(list)
    }
}

type Flat<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<i64>>);
type PyTokens<'py> = (usize, Vec<(Bound<'py, PyArray1<i32>>, usize)>);

fn tokens_to_python(py: Python<'_>, group: encode::Group) -> PyTokens<'_> {
    let responses = group.responses.into_iter().map(|one| (one.tokens.into_pyarray(py), one.start));
    (group.shared, responses.collect())
}

/// Renders groups with a chat template.
#[pyclass(frozen, module = "grmlight._data_rs")]
struct ChatRenderer(Renderer);

#[pymethods]
impl ChatRenderer {
    #[new]
    fn new(
        template: Option<&str>,
        special_tokens: &Bound<'_, PyMapping>,
        options: &Bound<'_, PyMapping>,
    ) -> PyResult<Self> {
        let problem = |error: serde_json::Error| PyValueError::new_err(error.to_string());
        let tokens = serde_json::from_str(&to_json(special_tokens)?).map_err(problem)?;
        let options: RenderOptions = serde_json::from_str(&to_json(options)?).map_err(problem)?;
        Ok(Self(Renderer::new(template, &tokens, options)?))
    }

    /// Render a group: its texts and boundaries in characters, or the template's refusal.
    #[pyo3(signature = (prompt, responses, row = 0))]
    fn render<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        responses: Vec<Bound<'py, PyAny>>,
        row: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let prompt = text_from_python(prompt)?;
        let responses = responses.iter().map(text_from_python).collect::<PyResult<Vec<Text>>>()?;
        match py.detach(|| self.0.render(row, &prompt, &responses))? {
            Err(message) => Ok(PyString::new(py, &message).into_any()),
            Ok(conversations) => {
                let before =
                    |found: &Conversation| found.text.get(..found.boundary).map_or(0, |text| text.chars().count());
                let boundaries: Vec<usize> = conversations.iter().map(before).collect();
                let texts: Vec<String> = conversations.into_iter().map(|found| found.text).collect();
                Ok((texts, boundaries).into_pyobject(py)?.into_any())
            }
        }
    }
}

fn text_from_python(text: &Bound<'_, PyAny>) -> PyResult<Text> {
    if let Ok(text) = text.cast::<PyString>() {
        return Ok(Text::Plain(text.to_str()?.to_owned()));
    }
    let message = |item: Bound<'_, PyAny>| -> PyResult<Message> {
        Ok(Message { role: item.get_item("role")?.extract()?, content: item.get_item("content")?.extract()? })
    };
    text.try_iter()?.map(|item| message(item?)).collect::<PyResult<_>>().map(Text::Chat)
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

    /// Lengths in tokens, see `store::Lengths`.
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = py.detach(|| self.0.lengths());
        let result = PyDict::new(py);
        for (name, values) in [("prompt_G", found.prompt), ("better_C", found.better), ("worse_C", found.worse)] {
            result.set_item(name, values.into_pyarray(py))?;
        }
        result.set_item("unshared", found.unshared)?;
        Ok(result)
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
    module.add("EngineError", module.py().get_type::<EngineError>())?;
    module.add_class::<Encoder>()?;
    module.add("UnsupportedTemplateError", module.py().get_type::<UnsupportedTemplateError>())?;
    module.add("BrokenPlanError", module.py().get_type::<BrokenPlanError>())?;
    module.add_class::<ChatRenderer>()?;
    module.add_class::<Pairs>()?;
    module.add_class::<Preparation>()?;
    module.add_class::<Store>()?;
    module.add_function(wrap_pyfunction!(read_pairs, module)?)?;
    module.add_function(wrap_pyfunction!(epoch_order, module)?)?;
    module.add_function(wrap_pyfunction!(deal_step, module)?)?;
    module.add_function(wrap_pyfunction!(deal_steps, module)?)?;
    module.add_function(wrap_pyfunction!(pack_bins, module)?)
}
