//! The fast way: another engine, the beginning of a group once, the start of a response from what its tokens spell.

use serde_json::Value;

use super::Conversation;
use super::check::{Check, probes};
use super::cut::Cutter;
use super::engine::{Engine, Reference};
use super::starts::Spelling;
use crate::error::{Error, Result};

/// The ids of a conversation, and the first that ends beyond its boundary.
pub type Encoded = (Vec<u32>, Option<usize>);

/// An engine with what makes groups of its ids.
pub struct FastPath {
    engine: Box<dyn Engine>,
    /// What the post-processor adds before and behind.
    frame: [Vec<u32>; 2],
    cutter: Option<Cutter>,
    spelling: Spelling,
    add_special: bool,
}

impl FastPath {
    /// What the tokenizer allows, of which `json` is the whole tokenizer.json.
    ///
    /// # Errors
    /// In words, why the reference must be taken.
    pub fn new(
        engine: Box<dyn Engine>,
        reference: &Reference,
        json: &Value,
        add_special: bool,
    ) -> std::result::Result<Self, String> {
        let spelling = Spelling::new(json, reference.tokenizer()).ok_or("its tokens do not spell the text")?;
        let frame = if add_special {
            reference.frame().ok_or("its post-processor rewrites texts")?
        } else {
            Default::default()
        };
        let cutter = Cutter::new(json);
        let path = Self { engine, frame, cutter, spelling, add_special };
        path.probe(reference).map_err(|_| "it fails on probe texts")?;
        Ok(path)
    }

    /// Whether groups are cut.
    pub fn cuts(&self) -> bool {
        self.cutter.is_some()
    }

    /// The engine alone.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Encode a group.
    ///
    /// # Errors
    /// [`Error::Engine`] where a check fails.
    pub fn encode(&self, conversations: &[Conversation], reference: &Reference, check: Check) -> Result<Vec<Encoded>> {
        let cut = match &self.cutter {
            Some(cutter) => cutter.cut(conversations.iter().map(|conversation| conversation.text.as_str())),
            None => 0,
        };
        let mut beginning = self.frame[0].clone();
        if let Some(first) = conversations.first() {
            self.extend(&mut beginning, &first.text[..cut])?;
        }
        conversations
            .iter()
            .map(|conversation| {
                let encoded = self.encode_rest(&beginning, cut, conversation, reference)?;
                self.check(conversation, &encoded, reference, check)?;
                Ok(encoded)
            })
            .collect()
    }

    fn encode_rest(&self, beginning: &[u32], cut: usize, one: &Conversation, reference: &Reference) -> Result<Encoded> {
        let mut ids = Vec::with_capacity(beginning.len() + (one.text.len() - cut) / 3 + 2);
        ids.extend_from_slice(beginning);
        self.extend(&mut ids, &one.text[cut..])?;
        // What ends before the boundary need not be looked at.
        let (from, skipped) = if one.boundary >= cut { (cut, beginning.len()) } else { (0, self.frame[0].len()) };
        let start = self.spelling.start(&ids[skipped..], &one.text, from, one.boundary);
        ids.extend_from_slice(&self.frame[1]);
        match start {
            Ok(start) => Ok((ids, start.map(|start| skipped + start))),
            Err(_) => self.encode_by_offsets(&ids, one, reference),
        }
    }

    fn encode_by_offsets(&self, ids: &[u32], one: &Conversation, reference: &Reference) -> Result<Encoded> {
        let encoded = reference.encode_from(&one.text, one.boundary, self.add_special)?;
        if encoded.0 == ids { Ok(encoded) } else { Err(differs(&one.text)) }
    }

    fn extend(&self, ids: &mut Vec<u32>, text: &str) -> Result<()> {
        self.engine.encode(text, ids).map_err(|_| differs(text))
    }

    fn check(&self, one: &Conversation, encoded: &Encoded, reference: &Reference, check: Check) -> Result<()> {
        if check.whole {
            let mut whole = self.frame[0].clone();
            self.extend(&mut whole, &one.text)?;
            whole.extend_from_slice(&self.frame[1]);
            if whole != encoded.0 {
                return Err(differs(&one.text));
            }
        }
        if check.reference && reference.encode_from(&one.text, one.boundary, self.add_special)? != *encoded {
            return Err(differs(&one.text));
        }
        Ok(())
    }

    fn probe(&self, reference: &Reference) -> Result<()> {
        let added: Vec<String> = reference.added_tokens().into_iter().take(16).collect();
        let texts = probes(&added.iter().map(String::as_str).collect::<Vec<_>>());
        for (text, other) in texts.iter().zip(texts.iter().skip(1)) {
            let boundary = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
            let group = [text.clone(), format!("{text}{other}")].map(|text| Conversation { text, boundary });
            self.encode(&group, reference, Check { whole: true, reference: true })?;
        }
        Ok(())
    }
}

fn differs(text: &str) -> Error {
    let beginning: String = text.chars().take(40).collect();
    Error::Engine(format!("{beginning:?}..."))
}
