//! The filter that transformers puts in the place of Jinja's: Python's `json.dumps`, without escapes for HTML.

use minijinja::Error;
use minijinja::value::{Kwargs, Value, ValueKind};

use super::environment::unsupported;

/// Write a value as JSON; options `indent` and `sort_keys`.
///
/// # Errors
/// For floats, for keys that are no strings, and for other options.
#[allow(clippy::needless_pass_by_value, reason = "arguments are extracted by value")]
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let style =
        Style { indent: options.get("indent")?, sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false) };
    if options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) || options.has("separators") {
        return Err(unsupported("other options of tojson than indent and sort_keys"));
    }
    options.assert_all_used()?;
    let mut json = String::new();
    style.write(&mut json, value, 1)?;
    Ok(json)
}

struct Style {
    indent: Option<usize>,
    sort_keys: bool,
}

impl Style {
    fn write(&self, json: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => json.push_str("null"),
            ValueKind::Bool => json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => json.push_str(&value.to_string()),
            ValueKind::String => write_string(json, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                return self.write_all(json, ['[', ']'], depth, &items, |json, item| self.write(json, item, depth + 1));
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if keys.iter().any(|key| key.as_str().is_none()) {
                    return Err(unsupported("JSON with keys that are no strings"));
                }
                if self.sort_keys {
                    keys.sort_by(|left, right| left.as_str().cmp(&right.as_str()));
                }
                return self.write_all(json, ['{', '}'], depth, &keys, |json, key| {
                    write_string(json, key.as_str().unwrap_or_default());
                    json.push_str(": ");
                    self.write(json, &value.get_item(key)?, depth + 1)
                });
            }
            kind => return Err(unsupported(format!("a {kind} as JSON"))),
        }
        Ok(())
    }

    fn write_all(
        &self,
        json: &mut String,
        [open, close]: [char; 2],
        depth: usize,
        items: &[Value],
        write: impl Fn(&mut String, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        json.push(open);
        for (index, item) in items.iter().enumerate() {
            json.push_str(if index == 0 { "" } else { "," });
            match self.indent {
                Some(_) => self.break_line(json, depth),
                None => json.push_str(if index == 0 { "" } else { " " }),
            }
            write(json, item)?;
        }
        if !items.is_empty() {
            self.break_line(json, depth - 1);
        }
        json.push(close);
        Ok(())
    }

    fn break_line(&self, json: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            json.push('\n');
            json.push_str(&" ".repeat(indent * depth));
        }
    }
}

fn write_string(json: &mut String, text: &str) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\u{8}' => json.push_str("\\b"),
            '\u{c}' => json.push_str("\\f"),
            '\0'..'\u{20}' => {
                let code = u32::from(character);
                json.push_str(if code < 16 { "\\u000" } else { "\\u001" });
                json.extend(char::from_digit(code % 16, 16));
            }
            _ => json.push(character),
        }
    }
    json.push('"');
}
