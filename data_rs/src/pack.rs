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
    pub chosen: Vec<i64>,
    pub table: Vec<i64>,
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
    let known = |&group: &i64| {
        let problem = || Error::Argument(format!("there is no group {group}, the store has {}", store.groups()));
        usize::try_from(group).ok().filter(|&group| group < store.groups()).ok_or_else(problem)
    };
    let groups = groups.iter().map(known).collect::<Result<Vec<usize>>>()?;
    pack.reserve(store, &groups);
    for (place, group) in groups.into_iter().enumerate() {
        pack.add(store, group, int(place));
    }
    Ok(pack)
}

impl Pack {
    /// Growing would copy the tokens a few times.
    fn reserve(&mut self, store: &Store, groups: &[usize]) {
        let (mut tokens, mut scored) = (0, 0);
        for &group in groups {
            let mut segments = store.segments_of(group).map(|segment| segment.len() / 4);
            let prompt = segments.next().unwrap_or_default();
            tokens += prompt;
            for (length, start) in segments.zip(store.starts_of(group)) {
                tokens += length;
                scored += (prompt + length).saturating_sub(start.max(1));
            }
        }
        self.input_ids.reserve_exact(tokens);
        self.positions.reserve_exact(tokens);
        for values in [&mut self.source, &mut self.target, &mut self.response, &mut self.chosen] {
            values.reserve_exact(scored);
        }
    }

    fn add(&mut self, store: &Store, group: usize, place: i64) {
        let first_response = self.last.len();
        let comparisons = self.better.len();
        for comparison in store.comparisons_of(group) {
            self.better.push(int(first_response) + i64::from(comparison.better));
            self.worse.push(int(first_response) + i64::from(comparison.worse));
            self.comparison_group.push(place);
            self.label.push(comparison.label);
            self.margin.push(comparison.margin);
            self.weight.push(comparison.weight);
            self.row.push(i64::try_from(comparison.row).unwrap_or(i64::MAX));
        }
        let mut segments = store.segments_of(group);
        let prompt = self.input_ids.len();
        let prompt_segment = int(self.prefix.len());
        self.add_segment(segments.next().unwrap_or_default(), 0, -1);
        let shared = self.input_ids.len() - prompt;
        for (segment, start) in segments.zip(store.starts_of(group)) {
            let begin = self.input_ids.len();
            self.responses.push(int(self.prefix.len()));
            self.add_segment(segment, shared, prompt_segment);
            let better = self.better.iter().skip(comparisons).any(|&better| better == int(self.last.len()));
            self.score(prompt, shared, begin, start.max(1), better);
            self.last.push(int(self.input_ids.len()) - 1);
            self.group.push(place);
        }
    }

    /// Score the response that begins there from a place on, which like its prompt's length counts from the prompt.
    fn score(&mut self, prompt: usize, shared: usize, begin: usize, start: usize, better: bool) {
        let (first, end) = (self.source.len(), self.input_ids.len());
        let own = |place: usize| begin + place.saturating_sub(shared);
        self.source.extend(int(prompt + start - 1)..int(prompt + shared));
        self.source.extend(int(own(start - 1))..int(end) - 1);
        let ids = |range: std::ops::Range<usize>| self.input_ids.get(range).unwrap_or_default();
        self.target.extend_from_slice(ids(prompt + start..prompt + shared.max(start)));
        self.target.extend_from_slice(ids(own(start)..end));
        self.response.resize(self.source.len(), int(self.last.len()));
        if better {
            self.chosen.extend(int(first)..int(self.source.len()));
        }
    }

    fn add_segment(&mut self, tokens: &[u8], position: usize, prefix: i64) {
        let start = int(self.input_ids.len());
        let id = |bytes: &[u8]| i64::from(bytes.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes)));
        self.input_ids.extend(tokens.chunks_exact(4).map(id));
        let end = int(self.input_ids.len());
        self.positions.extend(int(position)..int(position) + end - start);
        self.bounds.push(end);
        self.prefix.push(prefix);
        self.table.extend([start, end, prefix]);
    }
}

#[allow(clippy::cast_possible_wrap, reason = "an index into memory fits")]
fn int(number: usize) -> i64 {
    number as i64
}
