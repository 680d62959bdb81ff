//! The Jinja environment that transformers gives to chat templates.
//!
//! Only what is known to do the same as in Jinja is there. Whatever else a template asks for, and arguments that the two
//! engines treat differently, are errors, so that a template is rendered exactly or not at all.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, filters, functions, tests};

use super::methods;
use super::moment::Moment;
use super::strings::{self, Sides, as_text};
use super::tojson::tojson;

/// A template's own refusal of a conversation, with its message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An error that hands the conversation to another engine.
pub(super) fn unsupported(problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// The environment, in which it is always `now`.
///
/// # Errors
/// None that can happen: the syntax is Jinja's own.
pub(super) fn environment(now: Option<Moment>) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::empty();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_formatter(|out, _, value| out.write_str(&as_text(value)?).map_err(Error::from));
    environment.set_unknown_method_callback(|_, value, method, arguments| methods::call(value, method, arguments));
    add_filters(&mut environment);
    add_tests(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| match &now {
        Some(moment) => moment.format(format).ok_or_else(|| unsupported(format!("strftime_now('{format}')"))),
        None => Err(unsupported("strftime_now without a time")),
    });
    environment.add_function("namespace", functions::namespace);
    environment.add_function("dict", functions::dict);
    environment.add_function("range", functions::range);
    Ok(environment)
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = as_text(message)?.into_owned();
    Err(Error::new(ErrorKind::InvalidOperation, "refused").with_source(Raised(message)))
}

fn add_filters(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", trim);
    environment.add_filter("string", |value: &Value| as_text(value).map(|text| Value::from(text.into_owned())));
    environment.add_filter("upper", |value: &Value| strings::upper(&as_text(value)?));
    environment.add_filter("lower", |value: &Value| strings::lower(&as_text(value)?));
    environment.add_filter("capitalize", |value: &Value| strings::capitalize(&as_text(value)?));
    environment.add_filter("replace", replace);
    environment.add_filter("join", join);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("first", filters::first);
    environment.add_filter("last", filters::last);
    environment.add_filter("list", filters::list);
    environment.add_filter("items", filters::items);
    environment.add_filter("map", filters::map);
    environment.add_filter("select", filters::select);
    environment.add_filter("reject", filters::reject);
    environment.add_filter("selectattr", filters::selectattr);
    environment.add_filter("rejectattr", filters::rejectattr);
}

fn trim(value: &Value, characters: Option<&str>) -> Result<String, Error> {
    let text = as_text(value)?;
    Ok(strings::strip(&text, characters, Sides::Both).to_owned())
}

fn replace(value: &Value, old: &Value, new: &Value) -> Result<String, Error> {
    strings::replace(&as_text(value)?, &as_text(old)?, &as_text(new)?, None)
}

fn join(value: &Value, separator: Option<&str>) -> Result<String, Error> {
    strings::join(separator.unwrap_or_default(), value)
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(0),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().chars().count()),
        ValueKind::Seq | ValueKind::Map => value.len().ok_or_else(|| unsupported("the length of an object")),
        ValueKind::Iterable => Ok(value.try_iter()?.count()),
        kind => Err(unsupported(format!("the length of a {kind}"))),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "arguments are extracted by value")]
fn default(value: &Value, other: Option<Value>, boolean: Option<bool>, options: Kwargs) -> Result<Value, Error> {
    let named: Option<Value> = options.get("default_value")?;
    let boolean = boolean.or(options.get("boolean")?).unwrap_or(false);
    options.assert_all_used()?;
    let replaced = value.is_undefined() || (boolean && !value.is_true());
    Ok(if replaced { other.or(named).unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

fn add_tests(environment: &mut Environment<'static>) {
    environment.add_test("defined", tests::is_defined);
    environment.add_test("undefined", tests::is_undefined);
    environment.add_test("none", tests::is_none);
    environment.add_test("boolean", tests::is_boolean);
    environment.add_test("true", tests::is_true);
    environment.add_test("false", tests::is_false);
    environment.add_test("string", tests::is_string);
    environment.add_test("number", tests::is_number);
    environment.add_test("integer", tests::is_integer);
    environment.add_test("float", tests::is_float);
    environment.add_test("mapping", tests::is_mapping);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_test("odd", tests::is_odd);
    environment.add_test("even", tests::is_even);
    environment.add_test("divisibleby", tests::is_divisibleby);
    environment.add_test("in", tests::is_in);
    for name in ["eq", "equalto", "=="] {
        environment.add_test(name, tests::is_eq);
    }
    for name in ["ne", "!="] {
        environment.add_test(name, tests::is_ne);
    }
}

/// Python iterates over strings, dictionaries and what is undefined, too.
fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Undefined | String | Seq | Map | Iterable)
}

/// Whatever has a length and items is a sequence to Jinja.
fn is_sequence(value: &Value) -> Result<bool, Error> {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    match value.kind() {
        Undefined | String | Seq | Map => Ok(true),
        Iterable => Err(unsupported("whether a part of a list is a sequence")),
        _ => Ok(false),
    }
}
