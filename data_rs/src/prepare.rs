//! One pipeline from an input to a store, window by window: read, lint, render, encode, share, write.
//!
//! One window is in memory at a time. After each the writer's journal says how far the store is good, so that an
//! interrupted preparation goes on there. The store is the same whatever the windows, chunks, threads and interruptions.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_128;

use crate::chat::{RenderOptions, Renderer, Unrendered};
use crate::encode::{Encoder, Rendered};
use crate::error::{Error, Result};
use crate::options::{BadRow, EngineChoice, Overlong, ReadOptions, WriteOptions, parse};
use crate::pairs::{Findings, PairReader, Position};
use crate::read::Source;
use crate::reason::{Reason, RowsByReason};
use crate::record::Record;
use crate::report::Report;
use crate::store::StoreWriter;
use crate::text::Text;

/// Time between two pauses, about: an interruption is noticed that soon.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes of text that are encoded at once, at least and at first; it follows the speed of the tokenizer.
const CHUNK: usize = 1 << 16;

/// What a preparation does.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How rows are read.
    #[serde(default)]
    pub read: ReadOptions,
    /// How groups become tokens.
    #[serde(default)]
    pub write: WriteOptions,
    /// Groups left out at the beginning.
    #[serde(default)]
    pub offset: u64,
    /// Groups used after that; nothing for all.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Lines of a window.
    #[serde(default = "default_window")]
    pub window: usize,
    /// How conversations become text; without it the caller renders.
    #[serde(default)]
    pub chat: Option<Chat>,
    /// Take no fast way that is checked on the go: where such a check failed, everything is prepared anew like this.
    #[serde(default)]
    pub careful: bool,
}

/// How conversations become text.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// The tokenizer's chat template.
    pub template: Option<String>,
    /// The tokenizer's special tokens by name.
    pub special_tokens: Map<String, Value>,
    /// The rest.
    pub options: RenderOptions,
}

fn default_window() -> usize {
    1000
}

impl Settings {
    /// Read and check settings.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name or a value out of range.
    pub fn from_json(json: &str) -> Result<Self> {
        let settings: Self = parse(json)?;
        settings.read.check()?;
        settings.write.check()?;
        Ok(settings)
    }
}

/// A store that is being prepared.
pub struct Preparation {
    reader: PairReader,
    chat: Option<Renderer>,
    /// Why groups are left to the caller to render, if some are.
    left: Option<String>,
    encoder: Encoder,
    writer: StoreWriter,
    told: Told,
    tokenizer_hash: String,
    /// The groups that are stored, by number.
    wanted: Range<u64>,
    /// Number of the next group.
    next: u64,
    window: usize,
    chunk: usize,
    resumed: bool,
    /// Whether a window was begun and not finished.
    broken: bool,
}

impl Preparation {
    /// Start, or go on where an interrupted preparation of the same identity stopped. Nothing if another one is at work,
    /// or the store is there already; then `source` is not asked for.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a text that is no tokenizer.json, [`Error::Io`] for what cannot be read or written,
    /// [`Error::Taken`] if something else is at the target.
    pub fn begin<E: From<Error>>(
        source: impl FnOnce() -> std::result::Result<Source, E>,
        target: &Path,
        identity: &str,
        tokenizer_json: &str,
        mut settings: Settings,
    ) -> std::result::Result<Option<Self>, E> {
        let Some((writer, progress)) = StoreWriter::begin(target, identity, settings.careful)? else {
            return Ok(None);
        };
        if writer.careful() {
            settings.write.engine = EngineChoice::Reference;
        }
        let (chat, left) = renderer(settings.chat, writer.careful())?;
        let encoder = Encoder::new(tokenizer_json, settings.write)?;
        let (resumed, next) = (progress.is_some(), progress.as_ref().map_or(0, |progress| progress.groups));
        let reader = match progress {
            Some(progress) => PairReader::open_at(source()?, settings.read, progress.reader, progress.entered)?,
            None => PairReader::open(source()?, settings.read)?,
        };
        let end = settings.limit.map_or(u64::MAX, |limit| settings.offset.saturating_add(limit));
        Ok(Some(Self {
            reader,
            chat,
            left,
            encoder,
            writer,
            told: Told::default(),
            tokenizer_hash: format!("{:032x}", xxh3_128(tokenizer_json.as_bytes())),
            wanted: settings.offset..end,
            next,
            window: settings.window.max(1),
            chunk: CHUNK,
            resumed,
            broken: false,
        }))
    }

    /// Whether it goes on with what an interrupted one left.
    #[must_use]
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Why groups are left to the caller to render, if some were.
    #[must_use]
    pub fn left(&self) -> Option<&str> {
        self.left.as_deref()
    }

    /// What was found so far.
    #[must_use]
    pub fn report(&self) -> &Report {
        self.writer.total()
    }

    /// Where the next window begins, see [`crate::pairs::Position`].
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.reader.position().offset
    }

    /// Prepare the next window; whether there was one.
    ///
    /// `render` gives the text of each group that is not rendered here; `pause` is called every now and then and may end the work.
    ///
    /// # Errors
    /// What the reader finds wrong with the input, [`Error::Row`] where the options ask to stop, what `render` and `pause`
    /// say. After an error the preparation can only be discarded or dropped.
    pub fn advance<E: From<Error>>(
        &mut self,
        mut render: impl FnMut(&[Record]) -> std::result::Result<Vec<Rendered>, E>,
        mut pause: impl FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        self.check()?;
        self.broken = true;
        let records = self.reader.next_window(self.window, Some(self.encoder.pool()))?;
        pause()?;
        let findings = self.told.news(self.reader.findings());
        let (more, (mut place, records)) = (records.is_some(), self.wanted_of(records.unwrap_or_default()));
        let mut rest = records.as_slice();
        let mut paused = Instant::now();
        while !rest.is_empty() {
            let started = Instant::now();
            let (chunk, after) = rest.split_at(first_of(rest, self.chunk));
            let rendered = match self.render(chunk)? {
                Some(rendered) => filled(chunk, rendered, &mut render)?,
                None => render(chunk)?,
            };
            self.write(place, chunk, &rendered, &findings)?;
            self.fit_chunk(started.elapsed());
            rest = after;
            place += chunk.len() as u64;
            if paused.elapsed() > PAUSE {
                pause()?;
                paused = Instant::now();
            }
        }
        self.writer.report().enter(&findings);
        // What was found so far is in the reports of the windows.
        let position = Position { findings: Findings::default(), ..self.reader.position().clone() };
        self.writer.commit(self.next, position, self.reader.entered())?;
        self.broken = false;
        Ok(more)
    }

    /// Write the manifest with these entries added, and move the store to its place. The report as JSON.
    ///
    /// # Errors
    /// As [`StoreWriter::finish`].
    pub fn finish(self, mut entries: Map<String, Value>) -> Result<String> {
        self.check()?;
        let encoding = json!({"options": self.encoder.options(), "tokenizer_xxh3": self.tokenizer_hash});
        if entries.insert("encoding".into(), encoding).is_some() {
            return Err(Error::Argument("manifest entry encoding is the store's own; use another name".into()));
        }
        self.writer.finish(entries)
    }

    /// Remove everything.
    pub fn discard(self) {
        self.writer.discard();
    }

    fn check(&self) -> Result<()> {
        if self.broken {
            return Err(Error::Argument("this preparation was interrupted; begin it again".into()));
        }
        Ok(())
    }

    /// Those of the next groups that offset and limit leave, and the number of the first of them.
    fn wanted_of(&mut self, mut records: Vec<Record>) -> (u64, Vec<Record>) {
        let (first, count) = (self.next, records.len() as u64);
        self.next += count;
        let place = |group: u64| usize::try_from(group.saturating_sub(first).min(count)).unwrap_or(usize::MAX);
        records.truncate(place(self.wanted.end));
        records.drain(..place(self.wanted.start).min(records.len()));
        self.writer.report().skipped += count - records.len() as u64;
        (first.max(self.wanted.start), records)
    }

    /// What is rendered here: nothing at all, or all groups but those that are left to the caller.
    fn render(&mut self, records: &[Record]) -> Result<Option<Vec<Option<Rendered>>>> {
        let Some(chat) = &self.chat else { return Ok(None) };
        let one = |record: &Record| chat.render(record.row, &record.prompt, &record.responses);
        let found: Vec<_> = self.encoder.pool().install(|| records.par_iter().map(one).collect());
        let mut rendered = Vec::with_capacity(found.len());
        for found in found {
            match found {
                Ok(texts) => rendered.push(Some(texts)),
                Err(Unrendered::Unsupported(problem)) => {
                    self.left.get_or_insert(problem);
                    rendered.push(None);
                }
                Err(Unrendered::Plan(problem)) => return Err(Error::Plan(problem)),
                Err(Unrendered::Data(error)) => return Err(error),
            }
        }
        Ok(Some(rendered))
    }

    fn write(&mut self, place: u64, records: &[Record], rendered: &[Rendered], findings: &Findings) -> Result<()> {
        check_texts(records, rendered)?;
        let encoded = self.encoder.encode(place, rendered)?;
        for ((record, rendered), group) in records.iter().zip(rendered).zip(encoded) {
            match group {
                Ok(group) => {
                    self.writer.store(record, &group)?;
                    self.writer.report().note(&findings.noted, record.row);
                }
                Err(reason) => self.refuse(record.row, reason, rendered.as_ref().err())?,
            }
        }
        Ok(())
    }

    fn refuse(&mut self, row: u64, reason: Reason, message: Option<&String>) -> Result<()> {
        let options = self.encoder.options();
        let stop = match reason {
            Reason::OverLength => options.on_overlong == Overlong::Raise,
            _ => options.on_bad_row == BadRow::Raise,
        };
        if stop {
            let detail = message.map(|message| format!(" ({message})")).unwrap_or_default();
            return Err(Error::Row { name: self.reader.name().to_owned(), row, reason, detail });
        }
        self.writer.report().refuse(row, reason, message.map(String::as_str));
        Ok(())
    }

    /// Chunks of about the time between two pauses keep all threads at work and let nobody wait.
    fn fit_chunk(&mut self, took: Duration) {
        if took < PAUSE / 2 {
            self.chunk = self.chunk.saturating_mul(2);
        } else if took > PAUSE * 2 {
            self.chunk = (self.chunk / 2).max(CHUNK);
        }
    }
}

/// What renders, or why nothing here can.
fn renderer(chat: Option<Chat>, careful: bool) -> Result<(Option<Renderer>, Option<String>)> {
    let Some(Chat { template, special_tokens, mut options }) = chat else { return Ok((None, None)) };
    options.plan &= !careful;
    match Renderer::new(template.as_deref(), &special_tokens, options) {
        Ok(renderer) => Ok((Some(renderer), None)),
        Err(Unrendered::Data(error)) => Err(error),
        Err(Unrendered::Unsupported(problem) | Unrendered::Plan(problem)) => Ok((None, Some(problem))),
    }
}

/// Have what is missing rendered.
fn filled<E>(
    records: &[Record],
    rendered: Vec<Option<Rendered>>,
    mut render: impl FnMut(&[Record]) -> std::result::Result<Vec<Rendered>, E>,
) -> std::result::Result<Vec<Rendered>, E> {
    let mut all = Vec::with_capacity(rendered.len());
    for (record, found) in records.iter().zip(rendered) {
        match found {
            Some(found) => all.push(found),
            None => all.extend(render(std::slice::from_ref(record))?),
        }
    }
    Ok(all)
}

/// How much of a reader's findings is known.
#[derive(Debug, Default)]
struct Told {
    rows: u64,
    skipped: u64,
    refused: BTreeMap<&'static str, usize>,
    noted: BTreeMap<&'static str, usize>,
}

impl Told {
    /// What was found since the last time.
    fn news(&mut self, findings: &Findings) -> Findings {
        Findings {
            rows: findings.rows - std::mem::replace(&mut self.rows, findings.rows),
            skipped: findings.skipped - std::mem::replace(&mut self.skipped, findings.skipped),
            refused: behind(&findings.refused, &mut self.refused),
            noted: behind(&findings.noted, &mut self.noted),
        }
    }
}

fn behind(found: &RowsByReason, known: &mut BTreeMap<&'static str, usize>) -> RowsByReason {
    let news = found.iter().map(|(&reason, rows)| {
        let first = known.insert(reason, rows.len()).unwrap_or(0);
        (reason, rows.get(first..).unwrap_or_default().to_vec())
    });
    news.filter(|(_, rows)| !rows.is_empty()).collect()
}

/// How many of the first records hold about so many bytes, at least one.
fn first_of(records: &[Record], bytes: usize) -> usize {
    let mut room = bytes;
    let fits = |record: &&Record| {
        let fits = room > 0;
        room = room.saturating_sub(bytes_of(record));
        fits
    };
    records.iter().take_while(fits).count()
}

fn bytes_of(record: &Record) -> usize {
    let bytes = |text: &Text| match text {
        Text::Plain(text) => text.len(),
        Text::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
    };
    record.responses.iter().map(|response| bytes(&record.prompt) + bytes(response)).sum()
}

fn check_texts(records: &[Record], rendered: &[Rendered]) -> Result<()> {
    if records.len() != rendered.len() {
        return Err(Error::Argument(format!("{} rendered groups for {}", rendered.len(), records.len())));
    }
    for (record, texts) in records.iter().zip(rendered) {
        if let Ok(texts) = texts
            && texts.len() != record.responses.len()
        {
            let (row, responses) = (record.row, record.responses.len());
            return Err(Error::Argument(format!("row {row}: {} texts for {responses} responses", texts.len())));
        }
    }
    Ok(())
}
