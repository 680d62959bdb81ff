//! Conversations to text, exactly as transformers renders a tokenizer's chat template, and where the scored response
//! begins in it.
//!
//! A rendering is exact or is left to transformers ([`Unrendered::Unsupported`]); what is rendered does not depend on
//! threads or on what was rendered before.

mod environment;
mod join;
mod methods;
mod moment;
mod plan;
mod planned;
mod source;
mod strings;
mod template;
#[cfg(test)]
mod tests;
mod tojson;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::encode::{Conversation, Rendered};
use crate::error::{Error, Result};
use crate::text::Text;

pub use moment::Moment;
use planned::{Planned, Say};
pub use template::{ChatTemplate, Failure, Turn};

/// What to do with prompts and responses given as plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextRows {
    /// As `Chat` if the tokenizer has a template, else as `Plain`.
    #[default]
    Auto,
    /// Make a user's and an assistant's message of them.
    Chat,
    /// Join them as they are.
    Plain,
}

/// How to render.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RenderOptions {
    /// What to do with plain text.
    pub text_rows: TextRows,
    /// Score from the end of the first user message on.
    pub paper_mask: bool,
    /// What messages call the tokenizer.
    pub name: String,
    /// The time that templates print, as `datetime.isoformat` writes it.
    pub now: Option<String>,
    /// Whether conversations may be joined up by a plan.
    pub plan: bool,
}

impl Default for RenderOptions {
    fn default() -> Self {
        let name = "this tokenizer".to_owned();
        Self { text_rows: TextRows::default(), paper_mask: false, name, now: None, plan: true }
    }
}

/// Why a group has neither texts nor the template's refusal.
#[derive(Debug, thiserror::Error)]
pub enum Unrendered {
    /// Transformers must render it.
    #[error("the chat template is left to transformers: {0}")]
    Unsupported(String),
    /// A plan did not hold, so that everything rendered so far is in doubt: begin again with `plan` off.
    #[error("the plan for the chat template does not hold for conversations of {0}; render without plans")]
    Plan(String),
    /// The rows and the options do not go together.
    #[error(transparent)]
    Data(#[from] Error),
}

/// Renders groups with a tokenizer's chat template. Counterpart of `grmlight.data.render.Renderer`.
#[derive(Debug)]
pub struct Renderer {
    template: Option<Planned>,
    wrap_text: bool,
    options: RenderOptions,
}

impl Renderer {
    /// A renderer for a tokenizer's template, if it has one, and its map of special tokens.
    ///
    /// # Errors
    /// [`Unrendered::Unsupported`] for a template that cannot be rendered exactly, [`Unrendered::Data`] if messages are
    /// asked for without a template, or `now` is no time.
    pub fn new(
        template: Option<&str>,
        special_tokens: &Map<String, Json>,
        options: RenderOptions,
    ) -> std::result::Result<Self, Unrendered> {
        let template = template.filter(|template| !template.is_empty());
        let wrap_text = match options.text_rows {
            TextRows::Auto => template.is_some(),
            TextRows::Chat => true,
            TextRows::Plain => false,
        };
        if wrap_text && template.is_none() {
            return Err(missing_template(&options).into());
        }
        let now = options.now.as_deref().map(moment).transpose()?;
        let template = template.map(|template| ChatTemplate::new(template, special_tokens, now)).transpose();
        let template = template.map_err(|failure| match failure {
            Failure::Refused(problem) | Failure::Unsupported(problem) => Unrendered::Unsupported(problem),
        })?;
        let template = template.map(|template| Planned::new(template, options.plan));
        Ok(Self { template, wrap_text, options })
    }

    /// The texts of a group with the bytes at which their scored responses begin, or the template's refusal.
    ///
    /// row: any number of the row; it chooses the rows on which plans are proven.
    ///
    /// # Errors
    /// An [`Unrendered`].
    pub fn render(&self, row: u64, prompt: &Text, responses: &[Text]) -> std::result::Result<Rendered, Unrendered> {
        let template = match &self.template {
            Some(template) if self.wrap_text => template,
            _ => return Ok(Ok(self.join(prompt, responses)?)),
        };
        let is_text = responses.iter().all(|response| matches!(response, Text::Plain(_)));
        if is_text && matches!(prompt, Text::Plain(text) if text.is_empty()) {
            let problem = "the rows hold whole texts without a prompt; set `text_rows: plain` to keep them as they are";
            return Err(Error::Argument(problem.into()).into());
        }
        let prompt = template.says(prompt, "user");
        let responses: Vec<Vec<Say>> = responses.iter().map(|response| template.says(response, "assistant")).collect();
        match self.render_chat(template, row, &prompt, &responses) {
            Ok(conversations) => Ok(Ok(conversations)),
            Err(planned::Failure::Template(Failure::Refused(message))) => Ok(Err(message)),
            Err(planned::Failure::Template(Failure::Unsupported(problem))) => Err(Unrendered::Unsupported(problem)),
            Err(planned::Failure::Plan(roles)) => Err(Unrendered::Plan(roles)),
        }
    }

    fn render_chat(
        &self,
        template: &Planned,
        row: u64,
        prompt: &[Say<'_>],
        responses: &[Vec<Say<'_>>],
    ) -> std::result::Result<Vec<Conversation>, planned::Failure> {
        let apply = |says: &[&[Say]], generate| template.render(row, &says.concat(), generate);
        let texts = responses.iter().map(|response| apply(&[prompt, response], false));
        let texts = texts.collect::<std::result::Result<Vec<String>, _>>()?;
        let mut shared_head: Option<String> = None;
        let mut conversations = Vec::with_capacity(texts.len());
        for (text, response) in texts.into_iter().zip(responses) {
            let before = response.split_last().map_or(&[] as &[Say], |(_, before)| before);
            let boundary = if self.options.paper_mask || before.is_empty() {
                let head = match shared_head.take() {
                    Some(head) => head,
                    None => apply(&[if self.options.paper_mask { first_question(prompt) } else { prompt }], true)?,
                };
                join::shared(shared_head.insert(head), &text)
            } else {
                join::shared(&apply(&[prompt, before], true)?, &text)
            };
            conversations.push(Conversation { text, boundary });
        }
        Ok(conversations)
    }

    /// Plain texts as they are.
    fn join(&self, prompt: &Text, responses: &[Text]) -> Result<Vec<Conversation>> {
        match join::plain(prompt, responses) {
            Some(conversations) => Ok(conversations),
            None if self.template.is_some() => {
                Err(Error::Argument("`text_rows` is plain and the rows hold messages; set it to auto or chat".into()))
            }
            None => Err(missing_template(&self.options)),
        }
    }
}

/// The prompt up to its first user message, or all of it if there is none.
fn first_question<'s, 'a>(prompt: &'s [Say<'a>]) -> &'s [Say<'a>] {
    let first = prompt.iter().position(|say| say.turn.role == "user");
    prompt.get(..first.map_or(prompt.len(), |first| first + 1)).unwrap_or_default()
}

fn moment(text: &str) -> Result<Moment> {
    Moment::parse(text).ok_or_else(|| Error::Argument(format!("now: {text:?} is no time like 2026-11-21T23:44:54")))
}

fn missing_template(options: &RenderOptions) -> Error {
    Error::Argument(format!(
        "{} has no chat template and the rows hold messages; set `chat_template` to a Jinja file, or use a tokenizer \
         that has one",
        options.name
    ))
}
