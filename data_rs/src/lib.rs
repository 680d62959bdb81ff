//! Preference pairs from rows to packs: read, normalize, lint, encode, share the prompt, store, order, deal and pack.
//!
//! The modules are plain Rust; only `py` (feature `python`) knows about Python. Bad data is never a panic: a bad row is
//! refused with a [`reason::Reason`], a bad file or option is an [`error::Error`].

pub mod bins;
pub mod chat;
pub mod deal;
pub mod encode;
pub mod error;
pub mod lint;
pub mod options;
pub mod order;
pub mod pack;
pub mod pairs;
pub mod prepare;
#[cfg(feature = "python")]
mod py;
pub mod read;
pub mod reason;
pub mod record;
pub mod refusal;
pub mod report;
pub mod row;
pub mod share;
pub mod store;
pub mod text;
