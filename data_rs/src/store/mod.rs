//! The store: a prepared data set as a folder of flat little-endian files (docs/store-format.md).

mod files;
mod journal;
mod manifest;
mod place;
mod reader;
mod writer;

pub use manifest::{Counts, SCHEMA};
pub use reader::{Lengths, RowInfo, Store};
pub use writer::{Progress, StoreWriter};
