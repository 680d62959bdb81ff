//! Plain texts end to end, and how far texts are the same.

use crate::encode::Conversation;
use crate::text::{Text, is_space};

/// Join a prompt and its responses as they are; nothing if there are messages among them.
///
/// Without a prompt the responses begin where they differ, cut back to just before a space so that none is empty.
pub(super) fn plain(prompt: &Text, responses: &[Text]) -> Option<Vec<Conversation>> {
    let Text::Plain(prompt) = prompt else { return None };
    let responses: Option<Vec<&str>> = responses.iter().map(plain_text).collect();
    let responses = responses?;
    let boundary = if prompt.is_empty() { shared_words(&responses) } else { prompt.len() };
    let join = |response: &&str| Conversation { text: [prompt.as_str(), response].concat(), boundary };
    Some(responses.iter().map(join).collect())
}

fn plain_text(text: &Text) -> Option<&str> {
    if let Text::Plain(text) = text { Some(text) } else { None }
}

/// Bytes of the longest common beginning, in whole characters.
pub(super) fn shared(left: &str, right: &str) -> usize {
    if right.starts_with(left) {
        return left.len();
    }
    let same = left.bytes().zip(right.bytes()).take_while(|(left, right)| left == right).count();
    (0..=same).rev().find(|&at| left.is_char_boundary(at)).unwrap_or(0)
}

fn shared_words(texts: &[&str]) -> usize {
    let Some((first, others)) = texts.split_first() else { return 0 };
    let mut place = others.iter().map(|text| shared(first, text)).min().unwrap_or(first.len());
    let shortest = texts.iter().map(|text| text.len()).min().unwrap_or(0);
    if place == shortest {
        place = before(first, place);
    }
    while place > 0 && !first.get(place..).and_then(|rest| rest.chars().next()).is_some_and(is_space) {
        place = before(first, place);
    }
    place
}

/// The place one character earlier.
fn before(text: &str, place: usize) -> usize {
    text.get(..place).and_then(|text| text.char_indices().next_back()).map_or(0, |(at, _)| at)
}
