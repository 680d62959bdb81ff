//! Lay groups end to end: the arrays of a `GroupBatch`.
//!
//! Each group is its prompt segment, which may be empty, then its responses. The scored token at place i of a response
//! with its prompt is predicted from place i - 1, which lies in the prompt segment if the prompt is longer than i - 1.

use crate::error::{Error, Result};
use crate::store::Store;

/// The arrays, named and explained as in `grmlight/data/batch.py`.
#[derive(Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "GroupBatch has the words")]
pub struct Pack {
    pub input_ids: Vec<i64>,
    pub positions: Vec<i64>,
    pub bounds: Vec<i64>,
    pub prefix: Vec<i64>,
    pub responses: Vec<i64>,
    pub last: Vec<i64>,
    pub group: Vec<i64>,
    pub source: Vec<i64>,
    pub target: Vec<i64>,
    pub response: Vec<i64>,
    pub better: Vec<i64>,
    pub worse: Vec<i64>,
    pub comparison_group: Vec<i64>,
    pub label: Vec<f32>,
    pub margin: Vec<f32>,
    pub weight: Vec<f32>,
    pub row: Vec<i64>,
    pub count: Vec<f32>,
}

/// Lay these groups of a store end to end, with a count for each.
///
/// # Errors
/// [`Error::Argument`] for a group that does not exist, or another number of counts.
pub fn pack(store: &Store, groups: &[i64], counts: &[f32]) -> Result<Pack> {
    if groups.len() != counts.len() {
        return Err(Error::Argument(format!("{} groups with {} counts", groups.len(), counts.len())));
    }
    let mut pack = Pack { bounds: vec![0], count: counts.to_vec(), ..Pack::default() };
    for (place, &group) in groups.iter().enumerate() {
        let known = usize::try_from(group).ok().filter(|&group| group < store.groups());
        let problem = || Error::Argument(format!("there is no group {group}, the store has {}", store.groups()));
        pack.add(store, known.ok_or_else(problem)?, int(place));
    }
    Ok(pack)
}

impl Pack {
    fn add(&mut self, store: &Store, group: usize, place: i64) {
        let first_response = int(self.last.len());
        let mut segments = store.segments_of(group);
        let prompt = self.input_ids.len();
        let prompt_segment = int(self.prefix.len());
        self.add_segment(segments.next().unwrap_or_default(), 0, -1);
        let shared = self.input_ids.len() - prompt;
        for (segment, start) in segments.zip(store.starts_of(group)) {
            let begin = self.input_ids.len();
            self.responses.push(int(self.prefix.len()));
            self.add_segment(segment, shared, prompt_segment);
            let length = shared + self.input_ids.len() - begin;
            let at = |place: usize| if place < shared { prompt + place } else { begin + place - shared };
            for scored in start.max(1)..length {
                self.source.push(int(at(scored - 1)));
                self.target.push(self.input_ids.get(at(scored)).copied().unwrap_or_default());
                self.response.push(int(self.last.len()));
            }
            self.last.push(int(self.input_ids.len()) - 1);
            self.group.push(place);
        }
        for comparison in store.comparisons_of(group) {
            self.better.push(first_response + i64::from(comparison.better));
            self.worse.push(first_response + i64::from(comparison.worse));
            self.comparison_group.push(place);
            self.label.push(comparison.label);
            self.margin.push(comparison.margin);
            self.weight.push(comparison.weight);
            self.row.push(i64::try_from(comparison.row).unwrap_or(i64::MAX));
        }
    }

    fn add_segment(&mut self, tokens: &[u8], position: usize, prefix: i64) {
        let ids = tokens.chunks_exact(4).filter_map(|bytes| bytes.first_chunk::<4>());
        self.input_ids.extend(ids.map(|bytes| i64::from(i32::from_le_bytes(*bytes))));
        self.positions.extend((int(position)..).take(tokens.len() / 4));
        self.bounds.push(int(self.input_ids.len()));
        self.prefix.push(prefix);
    }
}

#[allow(clippy::cast_possible_wrap, reason = "an index into memory fits")]
fn int(number: usize) -> i64 {
    number as i64
}
