//! Texts and conversations.

use crate::reason::Reason;
use crate::row::Cell;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// "system", "user" or "assistant"; any other is refused by the lint.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn.
    #[must_use]
    pub fn new(role: &str, content: String) -> Self {
        Self { role: role.to_owned(), content }
    }
}

/// A prompt or a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// As it is.
    Plain(String),
    /// As messages.
    Chat(Vec<Message>),
}

impl Text {
    /// A text or a list of messages.
    ///
    /// # Errors
    /// [`Reason::NonString`] for anything else.
    pub fn of(cell: Cell) -> Result<Self, Reason> {
        match cell {
            Cell::Text(text) => Ok(Self::Plain(text)),
            cell => messages_of(cell).map(Self::Chat),
        }
    }

    /// The text as messages; a plain one becomes a single message of `role`.
    #[must_use]
    pub fn into_messages(self, role: &str) -> Vec<Message> {
        match self {
            Self::Plain(content) => vec![Message::new(role, content)],
            Self::Chat(messages) => messages,
        }
    }
}

/// A list of messages.
///
/// # Errors
/// [`Reason::NonString`] if it is none.
pub fn messages_of(cell: Cell) -> Result<Vec<Message>, Reason> {
    if let Cell::Messages(messages) = cell { Ok(messages) } else { Err(Reason::NonString) }
}

/// Whether a character is white space: Unicode's, and the four ASCII separators that Python counts too.
#[must_use]
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// Whether there is nothing but white space.
#[must_use]
pub fn is_blank(text: &str) -> bool {
    text.chars().all(is_space)
}

const TURNS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];

/// Whether a text is a raw transcript of hh-rlhf.
#[must_use]
pub fn is_transcript(text: &str) -> bool {
    text.starts_with(TURNS[0].0)
}

/// Cut a raw transcript of hh-rlhf into messages; one space after a turn's colon is dropped.
#[must_use]
pub fn parse_transcript(text: &str) -> Vec<Message> {
    let turns: Vec<_> = text.match_indices('\n').filter_map(|(at, _)| turn_at(text, at)).collect();
    let ends = turns.iter().skip(1).map(|&(at, ..)| at).chain([text.len()]);
    let cut = |(&(_, start, role), end): (&(usize, usize, &str), usize)| {
        let content = text.get(start..end).unwrap_or_default();
        Message::new(role, content.strip_prefix(' ').unwrap_or(content).to_owned())
    };
    turns.iter().zip(ends).map(cut).collect()
}

/// The turn whose marker is at a place: where it is, where its content begins, and whose it is.
fn turn_at(text: &str, at: usize) -> Option<(usize, usize, &'static str)> {
    let rest = text.get(at..)?;
    let (marker, role) = TURNS.iter().find(|(marker, _)| rest.starts_with(marker))?;
    Some((at, at + marker.len(), role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transcripts_become_turns() {
        let turns = parse_transcript("\n\nHuman: a\n\n\nAssistant:  b\n\nHuman:\n\nAssistant:c");
        let flat: Vec<_> = turns.iter().map(|turn| (turn.role.as_str(), turn.content.as_str())).collect();
        assert_eq!(flat, [("user", "a\n"), ("assistant", " b"), ("user", ""), ("assistant", "c")]);
    }
}
