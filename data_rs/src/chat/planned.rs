//! A chat template that is rendered by plans where they hold.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use memchr::memmem::Finder;
use xxhash_rust::xxh3::xxh3_64;

use super::plan::Plan;
use super::strings::{Sides, strip};
use super::template::{self, ChatTemplate, Turn};
use crate::text::Text;

/// Rows that prove the plans they use: all the first ones, then one in so many.
const FIRST: u64 = 256;
const ONE_IN: u64 = 256;
/// Longer conversations have no plans.
const MOST_TURNS: usize = 30;
/// Plans that are kept.
const MOST_PLANS: usize = 4096;

/// Why there is no text.
pub(super) enum Failure {
    Template(template::Failure),
    /// The plan for these roles gave another text than the template.
    Plan(String),
}

/// A turn, and whether it may be part of a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Say<'a> {
    pub(super) turn: Turn<'a>,
    /// Its role as a number from 1 to 3, or 0 if the template may look into it.
    code: u64,
}

/// A template with the plans found so far.
#[derive(Debug)]
pub(super) struct Planned {
    template: ChatTemplate,
    contained: Vec<Finder<'static>>,
    plans: Option<RwLock<HashMap<u64, Option<Arc<Plan>>>>>,
}

impl Planned {
    pub(super) fn new(template: ChatTemplate, plan: bool) -> Self {
        let contained = template.source.contained.iter().map(|text| Finder::new(text).into_owned()).collect();
        Self { template, contained, plans: plan.then(RwLock::default) }
    }

    /// The turns of a text; plain text is one of `role`.
    pub(super) fn says<'a>(&self, text: &'a Text, role: &'a str) -> Vec<Say<'a>> {
        let say = |role: &'a str, content: &'a str| {
            let code = if self.plans.is_some() { self.code(role, content) } else { 0 };
            Say { turn: Turn { role, content }, code }
        };
        match text {
            Text::Plain(content) => vec![say(role, content)],
            Text::Chat(messages) => messages.iter().map(|message| say(&message.role, &message.content)).collect(),
        }
    }

    fn code(&self, role: &str, content: &str) -> u64 {
        let stripped = strip(content, None, Sides::Both);
        let equals = |text: &String| text == content || strip(text, None, Sides::Both) == stripped;
        let is_seen = stripped.is_empty()
            || self.template.source.equal.iter().any(equals)
            || self.contained.iter().any(|finder| finder.find(content.as_bytes()).is_some());
        match role {
            _ if is_seen => 0,
            "system" => 1,
            "user" => 2,
            "assistant" => 3,
            _ => 0,
        }
    }

    /// Render a conversation.
    pub(super) fn render(&self, row: u64, says: &[Say<'_>], generate: bool) -> Result<String, Failure> {
        let turns: Vec<Turn> = says.iter().map(|say| say.turn).collect();
        let Some(plan) = self.plan(says, generate) else {
            return self.template.render(&turns, generate).map_err(Failure::Template);
        };
        let text = plan.join(&turns);
        if is_proof(row) && self.template.render(&turns, generate).as_ref() != Ok(&text) {
            let roles: Vec<&str> = turns.iter().map(|turn| turn.role).collect();
            return Err(Failure::Plan(roles.join(", ")));
        }
        Ok(text)
    }

    fn plan(&self, says: &[Say<'_>], generate: bool) -> Option<Arc<Plan>> {
        let plans = self.plans.as_ref()?;
        if says.is_empty() || says.len() > MOST_TURNS || says.iter().any(|say| say.code == 0) {
            return None;
        }
        let key = says.iter().fold(2 + u64::from(generate), |key, say| key << 2 | say.code);
        let known = plans.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = known.get(&key) {
            return plan.clone();
        }
        let is_full = known.len() >= MOST_PLANS;
        drop(known);
        if is_full {
            return None;
        }
        let roles: Vec<&str> = says.iter().map(|say| say.turn.role).collect();
        let plan = Plan::derive(&self.template, &roles, generate).map(Arc::new);
        plans.write().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(plan).clone()
    }
}

fn is_proof(row: u64) -> bool {
    row < FIRST || xxh3_64(&row.to_le_bytes()).is_multiple_of(ONE_IN)
}
