//! What Python's strings do, where it can be done exactly; anything else is an error.

use std::borrow::Cow;

use minijinja::Error;
use minijinja::value::{Value, ValueKind};

use super::environment::unsupported;
use crate::text::is_space;

/// The sides of a string that are stripped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sides {
    Left,
    Right,
    Both,
}

/// A value as Python's `str` writes it.
///
/// # Errors
/// For floats and containers, which the two engines may write differently.
pub(super) fn as_text(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    match value.kind() {
        ValueKind::Undefined => Ok(Cow::Borrowed("")),
        ValueKind::None => Ok(Cow::Borrowed("None")),
        ValueKind::Bool => Ok(Cow::Borrowed(if value.is_true() { "True" } else { "False" })),
        ValueKind::Number if value.is_integer() => Ok(Cow::Owned(value.to_string())),
        kind => Err(unsupported(format!("a {kind} as text"))),
    }
}

/// `str.strip` and its one-sided forms.
pub(super) fn strip<'a>(text: &'a str, characters: Option<&str>, sides: Sides) -> &'a str {
    let is_stripped = |character: char| match characters {
        Some(set) => set.contains(character),
        None => is_space(character),
    };
    let text = if sides == Sides::Right { text } else { text.trim_start_matches(is_stripped) };
    if sides == Sides::Left { text } else { text.trim_end_matches(is_stripped) }
}

/// `str.upper`. Unicode's tables differ with their version, so only ASCII.
pub(super) fn upper(text: &str) -> Result<String, Error> {
    ascii(text).map(str::to_ascii_uppercase)
}

/// `str.lower`, of ASCII.
pub(super) fn lower(text: &str) -> Result<String, Error> {
    ascii(text).map(str::to_ascii_lowercase)
}

/// `str.capitalize`, of ASCII.
pub(super) fn capitalize(text: &str) -> Result<String, Error> {
    let mut text = lower(text)?;
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    Ok(text)
}

fn ascii(text: &str) -> Result<&str, Error> {
    if text.is_ascii() { Ok(text) } else { Err(unsupported("the case of letters outside ASCII")) }
}

/// `str.replace`.
pub(super) fn replace(text: &str, old: &str, new: &str, count: Option<usize>) -> Result<String, Error> {
    if old.is_empty() {
        return Err(unsupported("replacing nothing"));
    }
    Ok(count.map_or_else(|| text.replace(old, new), |count| text.replacen(old, new, count)))
}

/// `str.join`, and the filter, of what can be written as text.
pub(super) fn join(separator: &str, value: &Value) -> Result<String, Error> {
    let mut joined = String::new();
    for (index, item) in value.try_iter()?.enumerate() {
        joined.push_str(if index == 0 { "" } else { separator });
        joined.push_str(&as_text(&item)?);
    }
    Ok(joined)
}

/// `str.split` with a separator, or at white space.
pub(super) fn split(text: &str, separator: Option<&str>, most: Option<usize>) -> Result<Vec<String>, Error> {
    match (separator, most) {
        (Some(""), _) => Err(unsupported("splitting at nothing")),
        (Some(separator), None) => Ok(text.split(separator).map(str::to_owned).collect()),
        (Some(separator), Some(most)) => Ok(text.splitn(most + 1, separator).map(str::to_owned).collect()),
        (None, None) => {
            let words = text.split(is_space).filter(|word| !word.is_empty());
            Ok(words.map(str::to_owned).collect())
        }
        (None, Some(_)) => Err(unsupported("splitting at white space a number of times")),
    }
}
