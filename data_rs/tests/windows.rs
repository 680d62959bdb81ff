//! A reading in windows: the same whatever the threads, the source, and where it was interrupted.

#![allow(clippy::unwrap_used, reason = "a test may stop")]

use std::io::Write;
use std::sync::Arc;

use _data_rs::options::ReadOptions;
use _data_rs::pairs::{Findings, PairReader, Position, read_all};
use _data_rs::read::Source;
use _data_rs::record::Record;
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, RecordBatchIterator, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::{Value, json};

/// Id, prompt, chosen, rejected and margin.
type Columns = (Option<i64>, Option<String>, Option<String>, Option<String>, Option<f64>);

/// Plain pairs with columns that may be null.
#[derive(Clone, Debug)]
struct Rows(Vec<Columns>);

impl Rows {
    fn lines(&self) -> Vec<u8> {
        let row = |(id, prompt, chosen, rejected, margin): &_| {
            let value: Value =
                json!({"id": id, "prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": margin, "x": 1});
            value.to_string()
        };
        self.0.iter().map(row).collect::<Vec<_>>().join("\n").into_bytes()
    }

    fn batch(&self) -> RecordBatch {
        let text =
            |of: fn(&Columns) -> Option<&str>| -> ArrayRef { Arc::new(self.0.iter().map(of).collect::<StringArray>()) };
        let columns: [(&str, ArrayRef); 6] = [
            ("id", Arc::new(self.0.iter().map(|row| row.0).collect::<Int64Array>())),
            ("prompt", text(|row| row.1.as_deref())),
            ("chosen", text(|row| row.2.as_deref())),
            ("rejected", text(|row| row.3.as_deref())),
            ("margin", Arc::new(self.0.iter().map(|row| row.4).collect::<Float64Array>())),
            ("x", text(|_| Some("1"))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap()
    }

    fn stream(&self, size: usize) -> Source {
        let batch = self.batch();
        let parts: Vec<_> = (0..batch.num_rows())
            .step_by(size)
            .map(|start| Ok(batch.slice(start, size.min(batch.num_rows() - start))))
            .collect();
        Source::Arrow(Box::new(RecordBatchIterator::new(parts, batch.schema())))
    }

    fn parquet(&self, group: usize) -> Vec<u8> {
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group)).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), self.batch().schema(), Some(properties)).unwrap();
        writer.write(&self.batch()).unwrap();
        writer.into_inner().unwrap()
    }
}

fn rows(most: usize) -> impl Strategy<Value = Rows> {
    let text = || prop_oneof![9 => "[ab]{1,2}".prop_map(Some), 1 => Just(Some(" ".to_owned())), 1 => Just(None)];
    let margin = prop_oneof![3 => Just(None), 1 => Just(Some(1.5)), 1 => Just(Some(1e300))];
    let id = prop_oneof![Just(None), any::<i64>().prop_map(Some)];
    let first = || Some("first".to_owned());
    prop::collection::vec((id, text(), text(), text(), margin), 0..most).prop_map(move |mut rows| {
        rows.insert(0, (None, first(), first(), Some("other".to_owned()), None));
        Rows(rows)
    })
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

fn rest(mut reader: PairReader, size: usize, pool: Option<&ThreadPool>) -> (Vec<Vec<Record>>, Findings) {
    let windows = std::iter::from_fn(|| reader.next_window(size, pool).unwrap()).collect();
    (windows, reader.findings().clone())
}

/// Interrupt a reading behind each of its windows, and go on with what JSON keeps of its position.
fn check_every_cut(open: impl Fn() -> Source, options: &ReadOptions, size: usize) {
    let (windows, findings) = rest(PairReader::open(open(), options.clone()).unwrap(), size, None);
    let (mut reader, mut entered) = (PairReader::open(open(), options.clone()).unwrap(), Vec::new());
    for cut in 0..=windows.len() {
        let position = serde_json::to_string(reader.position()).unwrap();
        let position: Position = serde_json::from_str(&position).unwrap();
        assert_eq!(&position, reader.position());
        let again = PairReader::open_at(open(), options.clone(), position, entered.iter().copied()).unwrap();
        let (found, all) = rest(again, size, Some(&pool(1 + cut % 3)));
        assert_eq!(found, windows[cut..]);
        assert_eq!(all, findings);
        reader.next_window(size, None).unwrap();
        entered.extend_from_slice(reader.entered());
    }
}

fn options() -> impl Strategy<Value = ReadOptions> {
    (1u64..3, any::<bool>(), any::<bool>()).prop_map(|(stride, drop, flip)| {
        let policy = if drop { "drop" } else { "keep" };
        let options = json!({"stride": stride, "on_duplicate": policy, "on_contradiction": policy,
                             "flip": f64::from(u8::from(flip)) / 2.0, "first_row": 3});
        ReadOptions::from_json(&options.to_string()).unwrap()
    })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn an_interrupted_reading_goes_on(rows in rows(25), options in options(), size in 1usize..9, batch in 1usize..9) {
        let lines = rows.lines();
        check_every_cut(|| Source::Bytes(lines.clone()), &options, size);
        check_every_cut(|| Source::Bytes(gzip(&lines)), &options, size);
        check_every_cut(|| rows.stream(batch), &options, size);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("a"), rows.parquet(batch)).unwrap();
        std::fs::write(path("b"), Rows(rows.0[1..].to_vec()).parquet(3)).unwrap();
        check_every_cut(|| Source::Parquet(vec![path("a"), path("b"), path("a")]), &options, size);
    }

    #[test]
    fn tables_and_lines_are_the_same_rows(rows in rows(25), options in options(), size in 1usize..9) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows").to_str().unwrap().to_owned();
        std::fs::write(&path, rows.parquet(size)).unwrap();
        let lines = read_all(Source::Bytes(rows.lines()), options.clone()).unwrap();
        for source in [rows.stream(size), Source::Parquet(vec![path])] {
            let found = read_all(source, options.clone()).unwrap();
            prop_assert_eq!(&found.records, &lines.records);
            prop_assert_eq!((found.rows, found.skipped, found.refused, found.noted),
                            (lines.rows, lines.skipped, lines.refused.clone(), lines.noted.clone()));
        }
    }

    #[test]
    fn any_damage_of_a_parquet_file_is_no_panic(rows in rows(12), place in any::<prop::sample::Index>(), bit in 0..8,
                                                cut in any::<bool>()) {
        let mut bytes = rows.parquet(4);
        let at = place.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1u8 << bit }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows").to_str().unwrap().to_owned();
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = read_all(Source::Parquet(vec![path.clone()]), ReadOptions::default()) {
            prop_assert!(error.to_string().starts_with(&path), "{error}");
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}

#[test]
fn a_window_ends_with_its_bytes() {
    let text = |length: usize| Some("p".repeat(length));
    let row = |number: i64| (Some(number), text(1 << 20), text(1), Some("r".to_owned()), None);
    let rows = Rows((0..150).map(row).collect());
    for source in [Source::Bytes(rows.lines()), rows.stream(150)] {
        let (windows, _) = rest(PairReader::open(source, ReadOptions::default()).unwrap(), 4096, None);
        assert_eq!(windows.iter().map(Vec::len).collect::<Vec<_>>(), [64, 64, 22]);
    }
}

#[test]
fn what_came_before_the_end_of_a_file_that_is_cut_off_is_not_lost() {
    let row = |number: i64| (Some(number), Some(format!("{number}")), Some("a".to_owned()), Some("b".to_owned()), None);
    let lines = Rows((0..500).map(row).collect()).lines();
    let whole = gzip(&lines);
    let cut = Source::Bytes(whole[..whole.len() / 2].to_vec());
    let mut reader = PairReader::open(cut, ReadOptions::default()).unwrap();
    let mut count = 0;
    let error = loop {
        match reader.next_window(100, None) {
            Ok(window) => count += window.unwrap().len() as u64,
            Err(error) => break error.to_string(),
        }
    };
    assert!(count > 100 && !count.is_multiple_of(100), "{count}");
    assert!(error.contains(&format!("cannot be read at row {}; the file is damaged or cut off", count + 1)), "{error}");
    // The whole file goes on there.
    let position = reader.position().clone();
    assert_eq!((position.row, position.findings.rows), (count + 1, count));
    let again = PairReader::open_at(Source::Bytes(whole), ReadOptions::default(), position, []).unwrap();
    assert_eq!(rest(again, 100, None).1.rows, 500);
}
