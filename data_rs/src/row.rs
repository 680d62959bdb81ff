//! A row as it is read, whatever it is read from: the columns that count, as far as they can matter.

use crate::record::MOST_RESPONSES;
use crate::text::Message;

/// Items of a list that are kept, where they are no messages: one more than may be used, and the list is refused.
const MOST_ITEMS: usize = MOST_RESPONSES + 1;

macro_rules! columns {
    ($($column:ident = $name:literal,)*) => {
        /// The columns that are read; all others are passed over.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each is what it is called; docs/data.md says what they hold")]
        pub enum Column { $($column,)* }

        impl Column {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$column,)*];

            /// The column of a name.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$column),)* _ => None }
            }

            /// Its name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$column => $name,)* }
            }
        }
    };
}

columns! {
    Prompt = "prompt",
    Chosen = "chosen",
    Rejected = "rejected",
    Responses = "responses",
    Ratings = "ratings",
    Ranks = "ranks",
    ConversationA = "conv_A",
    ConversationB = "conv_B",
    RatingA = "conv_A_rating",
    RatingB = "conv_B_rating",
    ChosenScore = "chosen_score",
    RejectedScore = "rejected_score",
    Margin = "margin",
    Weight = "weight",
    SoftLabel = "soft_label",
    Id = "id",
    Source = "source",
    Category = "category",
    Capability = "capability",
}

/// What a column holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// A text.
    Text(String),
    /// A whole number.
    Whole(i128),
    /// Any other number.
    Number(f64),
    /// A list without anything but messages, or an empty one.
    Messages(Vec<Message>),
    /// Another list: its first items, one more than a ranking may have at most.
    List(Vec<Cell>),
    /// What nothing here can be: a truth value, an object by itself, a list of lists of anything else, bytes.
    Other,
}

impl Cell {
    /// The number it is, if it is one.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "JSON has no other numbers")]
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Whole(number) => Some(*number as f64),
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }
}

/// Collects a list item by item, in bounded memory: only messages are kept without a limit.
#[derive(Debug, Default)]
pub struct Items {
    messages: Vec<Message>,
    others: Vec<Cell>,
}

impl Items {
    /// The next item is an object: a message if it has a role and a content that are texts.
    pub fn push_object(&mut self, role: Option<String>, content: Option<String>) {
        match (role, content) {
            (Some(role), Some(content)) if self.others.is_empty() => self.messages.push(Message { role, content }),
            _ => self.push(Cell::Other),
        }
    }

    /// The next item is something else.
    pub fn push(&mut self, item: Cell) {
        for _ in self.messages.drain(..).take(MOST_ITEMS) {
            self.others.push(Cell::Other);
        }
        if self.others.len() < MOST_ITEMS {
            self.others.push(if matches!(item, Cell::List(_)) { Cell::Other } else { item });
        }
    }

    /// The list.
    #[must_use]
    pub fn finish(self) -> Cell {
        if self.others.is_empty() { Cell::Messages(self.messages) } else { Cell::List(self.others) }
    }
}

/// A row: what is in its columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row([Option<Cell>; Column::ALL.len()]);

impl Row {
    /// Put a cell in its column, in the place of one that was there.
    pub fn set(&mut self, column: Column, cell: Cell) {
        if let Some(place) = self.0.get_mut(column as usize) {
            *place = Some(cell);
        }
    }

    /// What is in a column; nothing for no such column.
    #[must_use]
    pub fn get(&self, column: Column) -> Option<&Cell> {
        self.0.get(column as usize).and_then(Option::as_ref)
    }

    /// The same, taken out; a null for no such column.
    pub fn take(&mut self, column: Column) -> Cell {
        self.0.get_mut(column as usize).and_then(Option::take).unwrap_or(Cell::Null)
    }
}
