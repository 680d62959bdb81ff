//! Rendered conversations to a group of tokens.

use std::collections::HashSet;

use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::options::{Overlong, WriteOptions};
use crate::reason::Reason;
use crate::share::shared_prefix;

/// A rendered group, or why the template refused it.
pub type Rendered = std::result::Result<Vec<Conversation>, String>;

/// A rendered conversation and the character at which its scored response begins.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// All of it.
    pub text: String,
    /// Where the response begins, in characters.
    pub boundary: usize,
}

/// The tokens of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Leading tokens that all responses share.
    pub shared: usize,
    /// Each response with its prompt.
    pub responses: Vec<Response>,
}

/// The tokens of a response with its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// All tokens.
    pub tokens: Vec<i32>,
    /// The first scored one.
    pub start: usize,
}

/// A tokenizer with its own threads.
pub struct Encoder {
    tokenizer: Tokenizer,
    special: HashSet<i32>,
    options: WriteOptions,
    pool: rayon::ThreadPool,
}

impl Encoder {
    /// Load a tokenizer from the text of its tokenizer.json. Its truncation and padding are switched off.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it is none.
    pub fn new(tokenizer_json: &str, options: WriteOptions) -> Result<Self> {
        let refuse = |error: &dyn std::fmt::Display| Error::Tokenizer(one_line(error));
        let mut tokenizer: Tokenizer = tokenizer_json.parse().map_err(|error| refuse(&error))?;
        tokenizer.with_truncation(None).map_err(|error| refuse(&error))?.with_padding(None);
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).filter_map(|(&id, _)| i32::try_from(id).ok());
        let special = special.collect();
        let pool = rayon::ThreadPoolBuilder::new().build().map_err(|error| refuse(&error))?;
        Ok(Self { tokenizer, special, options, pool })
    }

    /// What the encoder was made with.
    #[must_use]
    pub fn options(&self) -> &WriteOptions {
        &self.options
    }

    /// Its threads.
    #[must_use]
    pub fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// Encode groups on all threads; the result does not depend on how many there are.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a text that the tokenizer cannot encode.
    pub fn encode(&self, groups: &[Rendered]) -> Result<Vec<std::result::Result<Group, Reason>>> {
        self.pool.install(|| groups.par_iter().map(|group| self.encode_group(group)).collect())
    }

    fn encode_group(&self, rendered: &Rendered) -> Result<std::result::Result<Group, Reason>> {
        let Ok(conversations) = rendered else { return Ok(Err(Reason::Template)) };
        let mut responses = Vec::with_capacity(conversations.len());
        for conversation in conversations {
            match self.encode_response(conversation)? {
                Some(response) => responses.push(response),
                None => return Ok(Err(Reason::EmptyResponseTokens)),
            }
        }
        Ok(self.fit(responses).map(|responses| {
            let tokens: Vec<&[i32]> = responses.iter().map(|response| response.tokens.as_slice()).collect();
            Group { shared: shared_prefix(&tokens), responses }
        }))
    }

    fn encode_response(&self, conversation: &Conversation) -> Result<Option<Response>> {
        let encoding = self.tokenizer.encode_char_offsets(conversation.text.as_str(), self.options.add_special_tokens);
        let encoding = encoding.map_err(|error| Error::Tokenizer(one_line(&error)))?;
        let Some(start) = encoding.get_offsets().iter().position(|&(_, end)| end > conversation.boundary) else {
            return Ok(None);
        };
        let ids = encoding.get_ids().iter().copied();
        let appended = self.options.append_token.filter(|id| encoding.get_ids().last() != Some(id));
        let tokens: std::result::Result<Vec<i32>, _> = ids.chain(appended).map(i32::try_from).collect();
        let tokens = tokens.map_err(|_| Error::Tokenizer("it has ids above 2147483647".into()))?;
        Ok(Some(Response { tokens, start }))
    }

    /// Refuse equal responses, and apply the policy for long ones.
    fn fit(&self, mut responses: Vec<Response>) -> std::result::Result<Vec<Response>, Reason> {
        if any_equal(&responses) {
            return Err(Reason::Identical);
        }
        let longest = responses.iter().map(|response| response.tokens.len()).max().unwrap_or(0);
        let cut = longest.saturating_sub(self.options.max_length.unwrap_or(usize::MAX));
        if cut == 0 {
            return Ok(responses);
        }
        if self.options.on_overlong != Overlong::TruncatePrompt {
            return Err(Reason::OverLength);
        }
        for response in &mut responses {
            let kept = self.leading_specials(&response.tokens);
            if kept + cut > response.start {
                return Err(Reason::OverLength);
            }
            response.tokens.drain(kept..kept + cut);
            response.start -= cut;
        }
        if any_equal(&responses) { Err(Reason::IdenticalAfterTruncation) } else { Ok(responses) }
    }

    /// How often the first token stands at the front, if it is a special one: a BOS, or the doubled BOS of the authors.
    fn leading_specials(&self, tokens: &[i32]) -> usize {
        match tokens.first() {
            Some(first) if self.special.contains(first) => tokens.iter().take_while(|&token| token == first).count(),
            _ => 0,
        }
    }
}

fn any_equal(responses: &[Response]) -> bool {
    let mut seen = HashSet::new();
    !responses.iter().all(|response| seen.insert(&response.tokens))
}

fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().collect::<Vec<_>>().join(" ")
}
