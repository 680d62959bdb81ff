//! A chat template that renders as transformers' `apply_chat_template` does, or says that it cannot.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use minijinja::Environment;
use minijinja::value::{Enumerator, Object, Value};
use serde_json::{Map, Value as Json};

use super::environment::{Raised, environment};
use super::moment::Moment;
use super::source::Source;

/// Why a conversation has no rendering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The template refuses the conversation, with this message.
    Refused(String),
    /// The template asks for something that is not certain to be rendered exactly; transformers can.
    Unsupported(String),
}

/// A turn of a conversation, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Who speaks.
    pub role: &'a str,
    /// What is said.
    pub content: &'a str,
}

/// A compiled chat template with a tokenizer's special tokens.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Arc<HashMap<String, Value>>,
    pub(super) source: Source,
}

impl ChatTemplate {
    /// Compile a template.
    ///
    /// `special_tokens`: the tokenizer's map, such as `{"eos_token": "</s>"}`; `now`: what `strftime_now` prints.
    ///
    /// # Errors
    /// [`Failure::Unsupported`] for a template that cannot be rendered exactly.
    pub fn new(template: &str, special_tokens: &Map<String, Json>, now: Option<Moment>) -> Result<Self, Failure> {
        let source = Source::parse(template).map_err(failure)?;
        let mut environment = environment(now).map_err(failure)?;
        environment.add_template_owned("chat", source.text.clone()).map_err(failure)?;
        let tokens = special_tokens.iter().map(|(name, token)| (name.clone(), token_value(token))).collect();
        Ok(Self { environment, tokens: Arc::new(tokens), source })
    }

    /// Render a conversation, with the beginning of the assistant's turn if `generate`.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn render(&self, turns: &[Turn<'_>], generate: bool) -> Result<String, Failure> {
        if turns.is_empty() {
            return Err(Failure::Unsupported("an empty conversation".into()));
        }
        let messages: Vec<Value> = turns.iter().map(Message::value).collect();
        let variables = Variables { tokens: self.tokens.clone(), messages: messages.into(), generate };
        let variables = Value::from_object(variables);
        // The engine panics on a few slices of empty lists.
        let rendered = catch_unwind(AssertUnwindSafe(|| self.environment.get_template("chat")?.render(variables)));
        rendered.map_err(|_| Failure::Unsupported("the template engine failed".into()))?.map_err(failure)
    }
}

fn token_value(token: &Json) -> Value {
    match token {
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(token_value).collect(),
        _ => Value::from(()),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn failure(error: minijinja::Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return Failure::Refused(message.clone());
        }
        cause = current.source();
    }
    Failure::Unsupported(error.to_string().lines().collect::<Vec<_>>().join(" "))
}

/// What `apply_chat_template` passes.
#[derive(Debug)]
struct Variables {
    tokens: Arc<HashMap<String, Value>>,
    messages: Value,
    generate: bool,
}

impl Object for Variables {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match key {
            "messages" => Some(self.messages.clone()),
            "add_generation_prompt" => Some(Value::from(self.generate)),
            "tools" | "documents" => Some(Value::from(())),
            _ => self.tokens.get(key).cloned(),
        }
    }
}

/// A message as the dictionary that templates see.
#[derive(Debug)]
struct Message {
    role: Value,
    content: Value,
}

impl Message {
    fn value(turn: &Turn<'_>) -> Value {
        Value::from_object(Self { role: turn.role.into(), content: turn.content.into() })
    }
}

impl Object for Message {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match key {
            "role" => Some(self.role.clone()),
            "content" => Some(self.content.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["role", "content"])
    }
}
