//! A line of JSON as a row, without anything in between: texts go from the line to where they stay.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::reason::Reason;
use crate::refusal::Refusal;
use crate::row::{Cell, Column, Items, Row};

/// Read a line.
///
/// # Errors
/// [`Reason::InvalidJson`], or [`Reason::BadNumber`] for a number that no double can hold, and where.
pub fn parse_line(line: &[u8]) -> Result<Row, Refusal> {
    let broken = |at: usize, problem: &str| Refusal::at_byte(Reason::InvalidJson, at + 1, problem);
    let text = std::str::from_utf8(line).map_err(|error| broken(error.valid_up_to(), "not UTF-8"))?;
    let parsed = parse(text).or_else(|error| match mark_non_finite(text) {
        Cow::Owned(marked) => parse(&marked),
        Cow::Borrowed(_) => Err(error),
    });
    parsed.map_err(|error| {
        let message = error.to_string();
        let problem = message.split(" at line ").next().unwrap_or_default();
        let reason = if problem == "number out of range" { Reason::BadNumber } else { Reason::InvalidJson };
        Refusal::at_byte(reason, error.column().max(1), problem)
    })
}

fn parse(text: &str) -> serde_json::Result<Row> {
    let parsed: serde_json::Result<Top> = serde_json::from_str(text);
    match parsed {
        Ok(Top(row)) => Ok(row),
        // Another value than an object may be no value at all: what is wrong behind its beginning comes first.
        Err(error) if error.is_data() => serde_json::from_str::<Checked>(text).and(Err(error)),
        Err(error) => Err(error),
    }
}

/// The names of a line's columns, ascending.
#[must_use]
pub fn names(line: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(line);
    let marked = mark_non_finite(&text);
    let columns: Map<String, Value> = serde_json::from_str(&marked).unwrap_or_default();
    let mut names: Vec<String> = columns.into_iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names
}

/// Replace the NaN and Infinity that Python writes by an object of the same length, which is refused wherever a number
/// or a text is expected.
fn mark_non_finite(text: &str) -> Cow<'_, str> {
    let mut marked = String::new();
    let (mut done, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'N' | b'I' | b'-' if !quoted && at >= done => {
                let rest = text.get(at..).unwrap_or_default();
                if let Some(token) = ["NaN", "Infinity", "-Infinity"].iter().find(|token| rest.starts_with(**token)) {
                    marked.push_str(text.get(done..at).unwrap_or_default());
                    marked.push('{');
                    marked.extend(std::iter::repeat_n(' ', token.len() - 2));
                    marked.push('}');
                    done = at + token.len();
                }
            }
            _ => {}
        }
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    marked.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(marked)
}

/// What a line holds.
struct Top(Row);
/// Any value, read as strictly as if it were kept: what is wrong in a column that is passed over is wrong, too.
struct Checked;
/// A column's name, nothing for one that is passed over.
struct Name(Option<Column>);
/// A value: an object as the message it may be.
enum Item {
    Object(Option<String>, Option<String>),
    Cell(Cell),
}

impl Item {
    fn into_cell(self) -> Cell {
        match self {
            Self::Cell(cell) => cell,
            Self::Object(..) => Cell::Other,
        }
    }

    fn into_text(self) -> Option<String> {
        match self {
            Self::Cell(Cell::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// The key of a message.
enum Key {
    Role,
    Content,
    Other,
}

/// Each kind of value that a visitor does not take becomes `$nothing`, once it has been read.
macro_rules! nothing {
    ($nothing:expr; $($method:ident($kind:ty)),*) => {
        $(fn $method<E>(self, _: $kind) -> Result<Self::Value, E> { Ok($nothing) })*
    };
}

macro_rules! visited {
    ($visited:ty, $visitor:ident) => {
        impl<'de> Deserialize<'de> for $visited {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any($visitor)
            }
        }
    };
}

fn check_items<'de, A: SeqAccess<'de>>(mut items: A) -> Result<(), A::Error> {
    while items.next_element::<Checked>()?.is_some() {}
    Ok(())
}

fn check_entries<'de, A: MapAccess<'de>>(mut entries: A) -> Result<(), A::Error> {
    while entries.next_entry::<Checked, Checked>()?.is_some() {}
    Ok(())
}

struct CheckedVisitor;
visited!(Checked, CheckedVisitor);

impl<'de> Visitor<'de> for CheckedVisitor {
    type Value = Checked;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    nothing!(Checked; visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));

    fn visit_unit<E>(self) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Checked, A::Error> {
        check_items(items).map(|()| Checked)
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Checked, A::Error> {
        check_entries(entries).map(|()| Checked)
    }
}

struct TopVisitor;
visited!(Top, TopVisitor);

impl<'de> Visitor<'de> for TopVisitor {
    type Value = Top;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Top, A::Error> {
        let mut row = Row::default();
        while let Some(Name(column)) = entries.next_key()? {
            match column {
                Some(column) => row.set(column, entries.next_value::<Item>()?.into_cell()),
                None => entries.next_value::<Checked>().map(|_| ())?,
            }
        }
        Ok(Top(row))
    }
}

struct NameVisitor;
visited!(Name, NameVisitor);

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(Name(Column::named(name)))
    }
}

struct KeyVisitor;
visited!(Key, KeyVisitor);

impl Visitor<'_> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Key, E> {
        Ok(match name {
            "role" => Key::Role,
            "content" => Key::Content,
            _ => Key::Other,
        })
    }
}

struct ItemVisitor;
visited!(Item, ItemVisitor);

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    nothing!(Item::Cell(Cell::Other); visit_bool(bool));

    fn visit_unit<E>(self) -> Result<Item, E> {
        Ok(Item::Cell(Cell::Null))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Item, E> {
        Ok(Item::Cell(Cell::Whole(number.into())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Item, E> {
        Ok(Item::Cell(Cell::Whole(number.into())))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Item, E> {
        Ok(Item::Cell(Cell::Number(number)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Cell(Cell::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Item, A::Error> {
        let mut list = Items::default();
        while let Some(item) = items.next_element()? {
            match item {
                Item::Object(role, content) => list.push_object(role, content),
                Item::Cell(cell) => list.push(cell),
            }
        }
        Ok(Item::Cell(list.finish()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Item, A::Error> {
        let (mut role, mut content) = (None, None);
        while let Some(key) = entries.next_key()? {
            match key {
                Key::Role => role = entries.next_value::<Item>()?.into_text(),
                Key::Content => content = entries.next_value::<Item>()?.into_text(),
                Key::Other => entries.next_value::<Checked>().map(|_| ())?,
            }
        }
        Ok(Item::Object(role, content))
    }
}
