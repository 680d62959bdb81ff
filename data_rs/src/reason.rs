//! Why a row is not used, or what is noted about a row that is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The closed list of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No JSON object: a syntax error, another JSON value, invalid UTF-8, a lone surrogate, too deep or too long.
    InvalidJson,
    /// The columns of no pair format.
    UnknownColumns,
    /// A text, a role or a content that is no string, or a message that is no object.
    NonString,
    /// A response of white space only, or without any message; a conversation without a prompt.
    Empty,
    /// Two responses are the same, as text or as tokens.
    Identical,
    /// Fewer than 2 responses, or more than [`crate::record::MOST_RESPONSES`].
    ResponseCount,
    /// The two sides answer different prompts.
    PromptDiffers,
    /// Not: an optional system message, then user and assistant in turn, the response an assistant's.
    RoleOrder,
    /// Nothing but equal ratings or ranks; noted of a row that is used without its equal ones.
    Tie,
    /// Ratings and ranks that order two responses differently.
    RankingDiffers,
    /// A rating, rank, score, margin, weight or label that is no number, not finite or out of range.
    BadNumber,
    /// The same pair was seen before.
    Duplicate,
    /// The same pair was seen before, with its sides swapped.
    Contradiction,
    /// More tokens than `max_length`, and the policy or the length of the responses forbids to cut the prompt.
    OverLength,
    /// The responses are the same once the prompt was cut.
    IdenticalAfterTruncation,
    /// The chat template refused the conversation.
    Template,
    /// No token of the text ends after the start of the response.
    EmptyResponseTokens,
}

impl Reason {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// The reason in words.
    #[must_use]
    pub fn says(self) -> &'static str {
        self.words().1
    }

    /// What a user may do about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Duplicate => "remove the row or use on_duplicate=keep or drop",
            Self::Contradiction => "remove the row or use on_contradiction=keep or drop",
            Self::OverLength => "raise max_length or use on_overlong=drop or truncate_prompt",
            _ => "fix the row or use on_bad_row=drop",
        }
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::InvalidJson => ("invalid_json", "not a JSON object in UTF-8"),
            Self::UnknownColumns => ("unknown_columns", "columns of no known pair format"),
            Self::NonString => ("non_string", "a text, role or content that is no string"),
            Self::Empty => ("empty", "an empty response or an empty prompt"),
            Self::Identical => ("identical", "identical responses"),
            Self::ResponseCount => ("response_count", "fewer than 2 responses, or more than 256"),
            Self::PromptDiffers => ("prompt_differs", "the two sides have different prompts"),
            Self::RoleOrder => ("role_order", "roles that do not alternate from user to assistant"),
            Self::Tie => ("tie", "equal ratings or ranks"),
            Self::RankingDiffers => ("ranking_differs", "ratings and ranks that order two responses differently"),
            Self::BadNumber => ("bad_number", "a number that is missing, not finite or out of range"),
            Self::Duplicate => ("duplicate", "the same pair as in an earlier row"),
            Self::Contradiction => ("contradiction", "the pair of an earlier row with its sides swapped"),
            Self::OverLength => ("over_length", "more tokens than max_length"),
            Self::IdenticalAfterTruncation => ("identical_after_truncation", "identical responses after truncation"),
            Self::Template => ("template", "the chat template refused the conversation"),
            Self::EmptyResponseTokens => ("empty_response_tokens", "a response without any token"),
        }
    }
}

/// Row numbers by reason.
pub type RowsByReason = BTreeMap<&'static str, Vec<u64>>;

/// Enter a row under its reason.
pub fn enter(rows: &mut RowsByReason, reason: Reason, row: u64) {
    rows.entry(reason.name()).or_default().push(row);
}
