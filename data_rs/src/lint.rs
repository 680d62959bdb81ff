//! What a normalized row must hold, and which rows were seen before.

use std::cmp::Ordering;
use std::collections::HashSet;

use xxhash_rust::xxh3::Xxh3;

use crate::reason::Reason;
use crate::record::{Comparison, Record};
use crate::text::{Message, Text, is_blank};

/// Check a record by itself.
///
/// # Errors
/// The first reason why it cannot be used.
pub fn check(record: &Record) -> Result<(), Reason> {
    for response in &record.responses {
        match (&record.prompt, response) {
            (Text::Chat(prompt), Text::Chat(response)) => check_turns(prompt, response)?,
            (_, Text::Plain(response)) if !is_blank(response) => {}
            _ => return Err(Reason::Empty),
        }
    }
    let mut rest = record.responses.as_slice();
    while let Some((first, others)) = rest.split_first() {
        if others.contains(first) {
            return Err(Reason::Identical);
        }
        rest = others;
    }
    Ok(())
}

fn check_turns(prompt: &[Message], response: &[Message]) -> Result<(), Reason> {
    let Some(last) = response.last().filter(|_| !prompt.is_empty()) else { return Err(Reason::Empty) };
    let first_turn = usize::from(prompt.first().is_some_and(|message| message.role == "system"));
    let turns = prompt.iter().skip(first_turn).chain(response);
    let alternate = turns.zip(["user", "assistant"].iter().cycle()).all(|(turn, role)| turn.role == *role);
    let asked = prompt.last().is_some_and(|message| message.role == "user");
    if !alternate || !asked || last.role != "assistant" {
        return Err(Reason::RoleOrder);
    }
    if is_blank(&last.content) { Err(Reason::Empty) } else { Ok(()) }
}

/// A comparison as it is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    said: u128,
    /// The same with its sides swapped; nothing for a tie, which has no sides.
    opposite: Option<u128>,
}

/// The marks of a record's comparisons. Labels for different capabilities say different things of the same responses.
#[must_use]
pub fn marks(record: &Record) -> Vec<Mark> {
    let prompt = asked(&record.prompt, record.capability.as_deref());
    let responses: Vec<u128> = record.responses.iter().map(fingerprint).collect();
    let of = |index: u32| usize::try_from(index).ok().and_then(|index| responses.get(index)).copied().unwrap_or(0);
    let mark = |one: &Comparison| {
        let (better, worse) = (of(one.better), of(one.worse));
        let join = |first, second, tie| join(prompt, first, second, tie);
        match one.label.total_cmp(&0.5) {
            Ordering::Greater => Mark { said: join(better, worse, 0), opposite: Some(join(worse, better, 0)) },
            Ordering::Less => Mark { said: join(worse, better, 0), opposite: Some(join(better, worse, 0)) },
            Ordering::Equal => Mark { said: join(better.min(worse), better.max(worse), 1), opposite: None },
        }
    };
    record.comparisons.iter().map(mark).collect()
}

/// The comparisons seen so far: 16 bytes for each, which is all that grows with the rows that are used.
#[derive(Debug, Default)]
pub struct Seen(HashSet<u128>);

impl Seen {
    /// Whether all of these comparisons, or one of them with its sides swapped, were entered before.
    #[must_use]
    pub fn find(&self, marks: &[Mark]) -> Option<Reason> {
        if marks.iter().all(|mark| self.0.contains(&mark.said)) {
            return Some(Reason::Duplicate);
        }
        let swapped = |mark: &Mark| mark.opposite.is_some_and(|opposite| self.0.contains(&opposite));
        marks.iter().any(swapped).then_some(Reason::Contradiction)
    }

    /// Enter comparisons; those that were not there before are added to `entered`.
    pub fn enter(&mut self, marks: &[Mark], entered: &mut Vec<u128>) {
        entered.extend(marks.iter().map(|mark| mark.said).filter(|&said| self.0.insert(said)));
    }
}

impl FromIterator<u128> for Seen {
    fn from_iter<I: IntoIterator<Item = u128>>(hashes: I) -> Self {
        Self(hashes.into_iter().collect())
    }
}

/// A prompt, and what its responses were compared for.
fn asked(prompt: &Text, capability: Option<&str>) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&fingerprint(prompt).to_le_bytes());
    if let Some(name) = capability {
        add(&mut hasher, name);
    }
    hasher.digest128()
}

fn join(prompt: u128, first: u128, second: u128, tie: u8) -> u128 {
    let mut hasher = Xxh3::new();
    for part in [prompt, first, second] {
        hasher.update(&part.to_le_bytes());
    }
    hasher.update(&[tie]);
    hasher.digest128()
}

fn fingerprint(text: &Text) -> u128 {
    let mut hasher = Xxh3::new();
    match text {
        Text::Plain(text) => add(&mut hasher, text),
        Text::Chat(messages) => {
            hasher.update(&u64::MAX.to_le_bytes());
            for message in messages {
                add(&mut hasher, &message.role);
                add(&mut hasher, &message.content);
            }
        }
    }
    hasher.digest128()
}

/// Lengths come first, so that no two sequences of texts feed the same bytes.
fn add(hasher: &mut Xxh3, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}
