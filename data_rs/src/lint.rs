//! What a normalized row must hold, and which rows were seen before.

use std::collections::HashSet;

use xxhash_rust::xxh3::Xxh3;

use crate::reason::Reason;
use crate::record::Record;
use crate::text::{Message, Text, is_blank};

/// Check a record by itself.
///
/// # Errors
/// The first reason why it cannot be used.
pub fn check(record: &Record) -> Result<(), Reason> {
    let [chosen, rejected] = &record.responses;
    for response in [chosen, rejected] {
        match (&record.prompt, response) {
            (Text::Chat(prompt), Text::Chat(response)) => check_turns(prompt, response)?,
            (_, Text::Plain(response)) if !is_blank(response) => {}
            _ => return Err(Reason::Empty),
        }
    }
    if chosen == rejected { Err(Reason::Identical) } else { Ok(()) }
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

/// Fingerprints of the pairs seen so far.
#[derive(Debug, Default)]
pub struct Seen(HashSet<u128>);

impl Seen {
    /// Whether the same pair, or the same with its sides swapped, was entered before.
    #[must_use]
    pub fn find(&self, record: &Record) -> Option<Reason> {
        let [chosen, rejected] = &record.responses;
        if self.0.contains(&fingerprint(&record.prompt, chosen, rejected)) {
            return Some(Reason::Duplicate);
        }
        self.0.contains(&fingerprint(&record.prompt, rejected, chosen)).then_some(Reason::Contradiction)
    }

    /// Enter a pair.
    pub fn enter(&mut self, record: &Record) {
        let [chosen, rejected] = &record.responses;
        self.0.insert(fingerprint(&record.prompt, chosen, rejected));
    }
}

fn fingerprint(prompt: &Text, chosen: &Text, rejected: &Text) -> u128 {
    let mut hasher = Xxh3::new();
    for text in [prompt, chosen, rejected] {
        match text {
            Text::Plain(text) => add(&mut hasher, text),
            Text::Chat(messages) => {
                hasher.update(&u64::MAX.to_le_bytes());
                hasher.update(&(messages.len() as u64).to_le_bytes());
                for message in messages {
                    add(&mut hasher, &message.role);
                    add(&mut hasher, &message.content);
                }
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
