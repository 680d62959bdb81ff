//! The methods of Python's strings and dictionaries that templates call.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind};

use super::environment::unsupported;
use super::strings::{self, Sides};

/// Call a method.
///
/// # Errors
/// For all that is not certain to do what Python does.
pub(super) fn call(value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => of_string(text, method, arguments),
        (None, ValueKind::Map) => of_dictionary(value, method, arguments),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_string(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    match method {
        "strip" => strip(text, Sides::Both, arguments),
        "lstrip" => strip(text, Sides::Left, arguments),
        "rstrip" => strip(text, Sides::Right, arguments),
        "split" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(arguments)?;
            strings::split(text, separator, most.and_then(|most| usize::try_from(most).ok())).map(Value::from)
        }
        "startswith" => from_args(arguments).map(|(start,): (&str,)| text.starts_with(start).into()),
        "endswith" => from_args(arguments).map(|(end,): (&str,)| text.ends_with(end).into()),
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(arguments)?;
            let count = count.and_then(|count| usize::try_from(count).ok());
            strings::replace(text, old, new, count).map(Value::from)
        }
        "find" => from_args(arguments).map(|(part,): (&str,)| index(text, text.find(part))),
        "rfind" => from_args(arguments).map(|(part,): (&str,)| index(text, text.rfind(part))),
        "count" => match from_args(arguments)? {
            ("",) => Err(unsupported("counting nothing")),
            (part,) => Ok(text.matches(part).count().into()),
        },
        "upper" => from_args(arguments).and_then(|()| strings::upper(text)).map(Value::from),
        "lower" => from_args(arguments).and_then(|()| strings::lower(text)).map(Value::from),
        "capitalize" => from_args(arguments).and_then(|()| strings::capitalize(text)).map(Value::from),
        "join" => from_args(arguments).and_then(|(items,): (Value,)| join(text, &items)),
        _ => Err(unsupported(format!("str.{method}"))),
    }
}

fn strip(text: &str, sides: Sides, arguments: &[Value]) -> Result<Value, Error> {
    let (characters,): (Option<&str>,) = from_args(arguments)?;
    Ok(strings::strip(text, characters, sides).into())
}

/// A place in bytes as Python's in characters, or -1.
fn index(text: &str, found: Option<usize>) -> Value {
    let characters = found.and_then(|bytes| text.get(..bytes)).map(|before| before.chars().count());
    characters.map_or(Value::from(-1), Value::from)
}

/// Unlike the filter, the method joins strings only.
fn join(separator: &str, items: &Value) -> Result<Value, Error> {
    if items.try_iter()?.any(|item| item.as_str().is_none()) {
        return Err(unsupported("joining what is no text"));
    }
    strings::join(separator, items).map(Value::from)
}

fn of_dictionary(value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    match method {
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(arguments)?;
            let found = value.get_item(&key)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }
        "keys" => from_args(arguments).and_then(|()| Ok(value.try_iter()?.collect())),
        "values" => from_args(arguments).and_then(|()| value.try_iter()?.map(|key| value.get_item(&key)).collect()),
        "items" => from_args(arguments).and_then(|()| minijinja::filters::items(value)),
        _ => Err(unsupported(format!("dict.{method}"))),
    }
}
