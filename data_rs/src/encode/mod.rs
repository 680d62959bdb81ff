//! Rendered conversations to a group of tokens.
//!
//! The ids are those of the Hugging Face tokenizer, and nothing but the tokenizer and the data decides them: neither
//! threads, nor chunks, nor where a preparation was resumed. Two ways lead there, and the slow one is the definition: the
//! reference engine encodes each conversation whole and finds the response by offsets. The fast way has another engine
//! encode what the conversations of a group begin with once, and their rests apart ([`cut`]), and finds the response by
//! what the tokens spell ([`starts`]).
//!
//! Which way is taken follows from tokenizer.json when it is loaded, from probe texts among other things. Since no such
//! test is complete, the fast way is checked on the go, on groups that their place in the data and their text choose
//! ([`check`]). Where a check fails, nothing that was encoded can be trusted: [`Error::Engine`] asks the caller to drop
//! it and to start over with the reference, which then makes the whole of the data. As the choice of groups knows nothing
//! of threads, chunks and resumption, whether that happens does not depend on them either.

mod check;
mod cut;
mod engine;
mod fast;
mod starts;

use std::collections::HashSet;

use rayon::prelude::*;

use self::check::Check;
use self::engine::{Engine, Fast, Reference, one_line};
use self::fast::{Encoded, FastPath};
use crate::error::{Error, Result};
use crate::options::{EngineChoice, Overlong, WriteOptions};
use crate::reason::Reason;
use crate::share::shared_prefix;

/// A rendered group, or why the template refused it.
pub type Rendered = std::result::Result<Vec<Conversation>, String>;

/// A rendered conversation and the byte at which its scored response begins.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// All of it.
    pub text: String,
    /// Where the response begins, in bytes.
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
    reference: Reference,
    fast: std::result::Result<FastPath, String>,
    special: HashSet<i32>,
    options: WriteOptions,
    pool: rayon::ThreadPool,
    /// The process that has the threads of the pool; a forked child has none.
    process: u32,
}

impl Encoder {
    /// Load a tokenizer from the text of its tokenizer.json. Its truncation and padding are switched off.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it is none.
    pub fn new(tokenizer_json: &str, options: WriteOptions) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads.unwrap_or(0)).build();
        let pool = pool.map_err(|error| Error::Tokenizer(one_line(&error)))?;
        let reference = Reference::new(tokenizer_json)?;
        // What engines do on several threads when they are loaded, they do on these.
        let fast = pool.install(|| load_fast(tokenizer_json, &reference, &options));
        let special = reference.special_ids();
        Ok(Self { reference, fast, special, options, pool, process: std::process::id() })
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

    /// The name of its engine.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        if self.fast.is_ok() { Fast::NAME } else { Reference::NAME }
    }

    /// Why the engine is the reference, if it is.
    #[must_use]
    pub fn why_reference(&self) -> Option<&str> {
        self.fast.as_ref().err().map(String::as_str)
    }

    /// Whether the beginning that the conversations of a group share is encoded once.
    #[must_use]
    pub fn prompt_once(&self) -> bool {
        self.fast.as_ref().is_ok_and(FastPath::cuts)
    }

    /// The ids of texts as they are, without what a post-processor adds.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a text that the tokenizer cannot encode.
    pub fn encode_texts(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let engine = self.fast.as_ref().map_or(&self.reference as &dyn Engine, FastPath::engine);
        self.map(texts, |_, text| {
            let mut ids = Vec::new();
            engine.encode(text, &mut ids).map_err(Error::Tokenizer)?;
            Ok(ids)
        })
    }

    /// Encode groups on all threads, of which the first has the number `place` in the data; the result does not depend on
    /// how many threads there are.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a text that the tokenizer cannot encode, [`Error::Engine`] where nothing that was encoded
    /// can be kept.
    pub fn encode(&self, place: u64, groups: &[Rendered]) -> Result<Vec<std::result::Result<Group, Reason>>> {
        self.map(groups, |index, group| self.encode_group(place + index as u64, group))
    }

    fn map<T: Sync, R: Send>(&self, items: &[T], work: impl Fn(usize, &T) -> Result<R> + Sync) -> Result<Vec<R>> {
        if self.process == std::process::id() {
            self.pool.install(|| items.par_iter().enumerate().map(|(index, item)| work(index, item)).collect())
        } else {
            items.iter().enumerate().map(|(index, item)| work(index, item)).collect()
        }
    }

    fn encode_group(&self, place: u64, rendered: &Rendered) -> Result<std::result::Result<Group, Reason>> {
        let Ok(conversations) = rendered else { return Ok(Err(Reason::Template)) };
        let encoded: Vec<Encoded> = if let Ok(fast) = &self.fast {
            fast.encode(conversations, &self.reference, Check::new(place, conversations))?
        } else {
            let special = self.options.add_special_tokens;
            let encode = |one: &Conversation| self.reference.encode_from(&one.text, one.boundary, special);
            conversations.iter().map(encode).collect::<Result<_>>()?
        };
        let mut responses = Vec::with_capacity(encoded.len());
        for (ids, start) in encoded {
            let Some(start) = start else { return Ok(Err(Reason::EmptyResponseTokens)) };
            responses.push(Response { tokens: self.tokens(ids)?, start });
        }
        Ok(self.fit(responses).map(|responses| {
            let tokens: Vec<&[i32]> = responses.iter().map(|response| response.tokens.as_slice()).collect();
            Group { shared: shared_prefix(&tokens), responses }
        }))
    }

    fn tokens(&self, mut ids: Vec<u32>) -> Result<Vec<i32>> {
        ids.extend(self.options.append_token.filter(|id| ids.last() != Some(id)));
        let tokens: std::result::Result<Vec<i32>, _> = ids.into_iter().map(i32::try_from).collect();
        tokens.map_err(|_| Error::Tokenizer("it has ids above 2147483647".into()))
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

fn load_fast(text: &str, reference: &Reference, options: &WriteOptions) -> std::result::Result<FastPath, String> {
    if options.engine == EngineChoice::Reference {
        return Err("the options ask for it".into());
    }
    let json = reference.to_json().map_err(|error| error.to_string())?;
    FastPath::new(Box::new(Fast::new(text, &json)?), reference, &json, options.add_special_tokens)
}

fn any_equal(responses: &[Response]) -> bool {
    let earlier =
        |(index, response): (usize, &Response)| responses[..index].iter().any(|one| one.tokens == response.tokens);
    responses.iter().enumerate().any(earlier)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = "a rare word";

    /// Right but for one word.
    struct Wrong(Reference);

    impl Engine for Wrong {
        fn encode(&self, text: &str, ids: &mut Vec<u32>) -> std::result::Result<(), String> {
            self.0.encode(&text.replace("rare", "mare"), ids)
        }
    }

    fn tokenizer() -> String {
        let letters = (0x21..=0x7e).chain(0xa1..=0xac).chain(0xae..=0x143).filter_map(char::from_u32);
        let vocabulary: serde_json::Map<_, _> =
            letters.enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
        let added = json!([{"id": 256, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}]);
        let spelling = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let model = json!({"type": "BPE", "vocab": vocabulary, "merges": []});
        json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": spelling, "model": model}).to_string()
    }

    fn encoder(wrong: bool, threads: usize) -> Encoder {
        let options = WriteOptions { threads: Some(threads), ..WriteOptions::default() };
        let mut encoder = Encoder::new(&tokenizer(), options).unwrap();
        if wrong {
            let reference = Reference::new(&tokenizer()).unwrap();
            let json = reference.to_json().unwrap();
            let engine = Box::new(Wrong(Reference::new(&tokenizer()).unwrap()));
            encoder.fast = FastPath::new(engine, &reference, &json, false);
        }
        assert!(encoder.fast.is_ok());
        encoder
    }

    fn group(text: &str) -> Vec<Conversation> {
        let conversation = |text: String| Conversation { text, boundary: 3 };
        vec![conversation(format!("q<|end|>{text}")), conversation(format!("q<|end|>{text}."))]
    }

    #[test]
    fn a_wrong_engine_is_found_among_the_first_groups() {
        for threads in [1, 3] {
            let fails = |place: u64, text: &str| {
                matches!(
                    encoder(true, threads).encode(place, &[Ok(group("fine")), Ok(group(text))]),
                    Err(Error::Engine(_))
                )
            };
            assert!(fails(0, TEXT));
            assert!(fails(30, TEXT));
            assert!(!fails(31, TEXT));
            assert!(!fails(0, "as it should be"));
        }
    }

    #[test]
    fn beginnings_are_cut_and_the_rest_is_found_by_what_it_spells() {
        let (fast, groups) = (encoder(false, 2), [Ok(group("some words")), Ok(group(TEXT))]);
        let reference = WriteOptions { engine: EngineChoice::Reference, ..WriteOptions::default() };
        let reference = Encoder::new(&tokenizer(), reference).unwrap();
        assert!(fast.prompt_once());
        assert_eq!(fast.encode(0, &groups).unwrap(), reference.encode(0, &groups).unwrap());
        assert_eq!(fast.encode(0, &groups).unwrap()[0].as_ref().unwrap().shared, 11);
    }
}
