//! One row in any format to a prompt, its responses, and which of them is better.

use crate::options::{ReadOptions, Tie};
use crate::reason::Reason;
use crate::refusal::{InColumn, Refusal};
use crate::row::{Cell, Column, Row};
use crate::text::{Message, Text, is_blank, is_space, is_transcript, messages_of, parse_transcript};

/// The formats, as an error names them.
pub const FORMATS: &str = "chosen and rejected, with or without prompt (text or messages), \
                           or conv_A, conv_B, conv_A_rating and conv_B_rating, or prompt, responses, and ratings or ranks";

/// Responses of a row, at most: each two of them are a comparison.
pub const MOST_RESPONSES: usize = 256;

/// What the GRM authors put before the first message of summarization rows, whose white space they strip.
pub const SUMMARIZE: &str = "Generate one-sentence summary for the following post: ";

/// The prompt and its responses: text if all of it is text, messages if any of it is messages.
type Texts = (Text, Vec<Text>);

/// Which response of a group is better.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Row in the input.
    pub row: u64,
    /// Index of the better response in its group.
    pub better: u32,
    /// Index of the worse one.
    pub worse: u32,
    /// Probability that it is better; one half for a tie.
    pub label: f32,
    /// How far the response that the label prefers is ahead; 0 if unknown.
    pub margin: f32,
    /// Weight in the objective.
    pub weight: f32,
}

/// A group, normalized.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its row in the input.
    pub row: u64,
    /// The `id` column, or the row number.
    pub id: String,
    /// The `source` column.
    pub source: Option<String>,
    /// The `category` column.
    pub category: Option<String>,
    /// The `capability` column: what the responses were compared for; nothing for all in all.
    pub capability: Option<String>,
    /// The prompt.
    pub prompt: Text,
    /// The chosen response and the rejected one, or those of a ranking in the row's order.
    pub responses: Vec<Text>,
    /// At least one; by the smaller index of its responses, then by the larger.
    pub comparisons: Vec<Comparison>,
    /// Whether ties were left out of the comparisons.
    pub partial: bool,
    /// Whether the comparisons were turned around as label noise.
    pub flipped: bool,
}

impl Record {
    /// Turn all comparisons around. The responses are reversed, so that the better one of a pair stays the first.
    pub fn flip(&mut self) {
        self.responses.reverse();
        let last = self.responses.len().saturating_sub(1);
        let mirrored = |index: u32| u32::try_from(last).unwrap_or(u32::MAX).saturating_sub(index);
        for comparison in &mut self.comparisons {
            (comparison.better, comparison.worse) = (mirrored(comparison.worse), mirrored(comparison.better));
        }
        self.comparisons.sort_by_key(|one| (one.better.min(one.worse), one.better.max(one.worse)));
        self.flipped = true;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Explicit,
    Implicit,
    Ratings,
    Ranking,
}

/// A comparison as its format tells it.
struct Said {
    better: u32,
    worse: u32,
    tie: bool,
    /// How far `better` is ahead.
    margin: Option<f64>,
}

/// What a format tells of a row.
struct Told {
    texts: Texts,
    said: Vec<Said>,
    partial: bool,
}

impl Told {
    fn pair(texts: Texts, tie: bool, margin: Option<f64>) -> Self {
        Self { texts, said: vec![Said { better: 0, worse: 1, tie, margin }], partial: false }
    }
}

/// Normalize a row.
///
/// # Errors
/// Why it cannot be used; [`Reason::UnknownColumns`] only for the columns of no known format.
pub fn normalize(mut row: Row, number: u64, options: &ReadOptions) -> Result<Record, Refusal> {
    let format = format_of(&row).ok_or(Reason::UnknownColumns)?;
    let margin = number_of(&row, Column::Margin)?;
    let weight = number_of(&row, Column::Weight)?.unwrap_or(1.0);
    let label = number_of(&row, Column::SoftLabel)?.unwrap_or(1.0);
    if weight < 0.0 {
        return Err(Reason::BadNumber).in_column(Column::Weight);
    }
    if !(0.0..=1.0).contains(&label) {
        return Err(Reason::BadNumber).in_column(Column::SoftLabel);
    }
    let id = match row.take(Column::Id) {
        Cell::Text(id) => id,
        Cell::Whole(id) => id.to_string(),
        _ => number.to_string(),
    };
    let source = string_of(&mut row, Column::Source);
    let category = string_of(&mut row, Column::Category);
    let capability = string_of(&mut row, Column::Capability).filter(|name| !name.is_empty());
    let told = match format {
        Format::Explicit => explicit(&mut row)?,
        Format::Implicit => implicit(&mut row)?,
        Format::Ratings => {
            ratings(&mut row, options.on_tie, options.paper_text && source.as_deref().is_some_and(is_summarize))?
        }
        Format::Ranking => ranking(&mut row, options.on_tie)?,
    };
    // A margin belongs to the better one, which a label below one half says is the other.
    let belongs = |lead: f64| if label < 0.5 { 0.0 - lead } else { lead };
    let weight = narrow(weight).in_column(Column::Weight)?;
    let narrow_label = narrow(label).in_column(Column::SoftLabel)?;
    let compare = |said: Said| {
        let Said { better, worse, tie, margin: lead } = said;
        let margin = margin.or(lead.map(belongs)).unwrap_or(0.0);
        let (label, margin) = if tie { (0.5, 0.0) } else { (narrow_label, narrow(margin).in_column(Column::Margin)?) };
        Ok(Comparison { row: number, better, worse, label, margin, weight })
    };
    let comparisons = told.said.into_iter().map(compare).collect::<Result<_, Refusal>>()?;
    let (prompt, responses) = told.texts;
    let partial = told.partial;
    let flipped = false;
    Ok(Record { row: number, id, source, category, capability, prompt, responses, comparisons, partial, flipped })
}

/// A column that is null counts as absent: tables have one for all columns of any of their rows. Where no format is
/// left without these, they say what the row was to be.
fn format_of(row: &Row) -> Option<Format> {
    let filled = |column| row.get(column).is_some_and(|cell| *cell != Cell::Null);
    format_by(filled).or_else(|| format_by(|column| row.get(column).is_some()))
}

fn format_by(is_there: impl Fn(Column) -> bool) -> Option<Format> {
    use Column::{Chosen, ConversationA, ConversationB, Prompt, Ranks, RatingA, RatingB, Ratings, Rejected, Responses};
    let has = |columns: &[Column]| columns.iter().all(|&column| is_there(column));
    if has(&[Chosen, Rejected]) {
        return Some(if has(&[Prompt]) { Format::Explicit } else { Format::Implicit });
    }
    if has(&[ConversationA, ConversationB, RatingA, RatingB]) {
        return Some(Format::Ratings);
    }
    (has(&[Prompt, Responses]) && (has(&[Ratings]) || has(&[Ranks]))).then_some(Format::Ranking)
}

fn explicit(row: &mut Row) -> Result<Told, Refusal> {
    let margin = score_difference(row)?;
    let prompt = text_of(row, Column::Prompt)?;
    let responses = vec![text_of(row, Column::Chosen)?, text_of(row, Column::Rejected)?];
    Ok(Told::pair(answer(prompt, responses)?, false, margin))
}

/// Responses to a prompt of a column of its own.
fn answer(prompt: Text, responses: Vec<Text>) -> Result<Texts, Reason> {
    if let Text::Plain(text) = &prompt {
        if responses.iter().all(|response| matches!(response, Text::Plain(_))) {
            return Ok((prompt, responses));
        }
        // The prompt column only repeats what all conversations begin with.
        if responses.iter().all(is_conversation) {
            return conversations(responses.into_iter().map(|response| response.into_messages("assistant")).collect());
        }
        if is_blank(text) {
            return Err(Reason::Empty);
        }
    }
    let chat = |response: Text| Text::Chat(response.into_messages("assistant"));
    Ok((Text::Chat(prompt.into_messages("user")), responses.into_iter().map(chat).collect()))
}

fn is_conversation(response: &Text) -> bool {
    matches!(response, Text::Chat(messages) if messages.first().is_some_and(|message| message.role != "assistant"))
}

fn implicit(row: &mut Row) -> Result<Told, Refusal> {
    let margin = score_difference(row)?;
    let texts = match (text_of(row, Column::Chosen)?, text_of(row, Column::Rejected)?) {
        (Text::Chat(chosen), Text::Chat(rejected)) => conversations(vec![chosen, rejected])?,
        (Text::Plain(chosen), Text::Plain(rejected)) if is_transcript(&chosen) && is_transcript(&rejected) => {
            conversations(vec![parse_transcript(&chosen), parse_transcript(&rejected)])?
        }
        // A null prompt beside plain text: what they answer is not known.
        (chosen @ Text::Plain(_), rejected @ Text::Plain(_)) if row.get(Column::Prompt).is_none() => {
            (Text::Plain(String::new()), vec![chosen, rejected])
        }
        _ => return Err(Reason::NonString.into()),
    };
    Ok(Told::pair(texts, false, margin))
}

fn ratings(row: &mut Row, on_tie: Tie, summarize: bool) -> Result<Told, Refusal> {
    let rating = |column| number_of(row, column)?.ok_or(Reason::BadNumber).in_column(column);
    let (rating_a, rating_b) = (rating(Column::RatingA)?, rating(Column::RatingB)?);
    let mut conversation = |column| messages_of(row.take(column)).in_column(column);
    let (mut chosen, mut rejected) = (conversation(Column::ConversationA)?, conversation(Column::ConversationB)?);
    let margin = rating_a - rating_b;
    // Equality of the two ratings as written, so no tolerance.
    let tie = margin == 0.0;
    if tie && on_tie == Tie::Drop {
        return Err(Reason::Tie.into());
    }
    if margin < 0.0 {
        std::mem::swap(&mut chosen, &mut rejected);
    }
    if summarize {
        instruct(&mut chosen);
        instruct(&mut rejected);
    }
    Ok(Told::pair(conversations(vec![chosen, rejected])?, tie, Some(margin.abs())))
}

fn ranking(row: &mut Row, on_tie: Tie) -> Result<Told, Refusal> {
    let responses = match row.take(Column::Responses) {
        Cell::List(responses) => responses,
        // Not one of them is a response.
        Cell::Messages(messages) => vec![Cell::Other; messages.len().min(MOST_RESPONSES + 1)],
        _ => return Err(Reason::NonString).in_column(Column::Responses),
    };
    let count = responses.len();
    if !(2..=MOST_RESPONSES).contains(&count) {
        return Err(Reason::ResponseCount.into());
    }
    let prompt = text_of(row, Column::Prompt)?;
    let responses = responses.into_iter().map(Text::of).collect::<Result<_, _>>().in_column(Column::Responses)?;
    let ratings = numbers_of(row, Column::Ratings, count)?;
    // Rank 1 is the best.
    let ranks = numbers_of(row, Column::Ranks, count)?.map(|ranks| ranks.iter().map(|rank| -rank).collect::<Vec<_>>());
    let mut said = match (&ratings, &ranks) {
        (Some(ratings), _) => compare_all(ratings),
        (None, Some(ranks)) => compare_all(ranks).into_iter().map(|one| Said { margin: None, ..one }).collect(),
        (None, None) => return Err(Reason::BadNumber.into()),
    };
    let order = |one: &Said| (one.better, one.worse, one.tie);
    if ratings.is_some()
        && ranks
            .is_some_and(|ranks| said.iter().zip(&compare_all(&ranks)).any(|(one, other)| order(one) != order(other)))
    {
        return Err(Reason::RankingDiffers.into());
    }
    let texts = answer(prompt, responses)?;
    let all = said.len();
    said.retain(|one| !one.tie || on_tie == Tie::Keep);
    if said.is_empty() { Err(Reason::Tie.into()) } else { Ok(Told { texts, partial: said.len() < all, said }) }
}

/// Every comparison of two scores, of which the higher one is better.
fn compare_all(scores: &[f64]) -> Vec<Said> {
    let mut said = Vec::with_capacity(scores.len() * scores.len() / 2);
    let numbered: Vec<(u32, f64)> = (0..).zip(scores.iter().copied()).collect();
    let mut rest = numbered.as_slice();
    while let Some((&(left, first), others)) = rest.split_first() {
        rest = others;
        said.extend(others.iter().map(|&(right, second)| {
            let margin = first - second;
            let (better, worse) = if margin < 0.0 { (right, left) } else { (left, right) };
            Said { better, worse, tie: margin == 0.0, margin: Some(margin.abs()) }
        }));
    }
    said
}

fn is_summarize(source: &str) -> bool {
    source.to_lowercase().contains("summarize")
}

fn instruct(messages: &mut [Message]) {
    if let Some(message) = messages.iter_mut().find(|message| message.role == "user") {
        message.content = format!("{SUMMARIZE}{}", message.content.trim_matches(is_space));
    }
}

fn conversations(mut sides: Vec<Vec<Message>>) -> Result<Texts, Reason> {
    let lasts = sides.iter_mut().map(|side| side.pop().map(|last| Text::Chat(vec![last])));
    let responses = lasts.collect::<Option<Vec<_>>>().ok_or(Reason::Empty)?;
    let mut prompts = sides.into_iter();
    let prompt = prompts.next().unwrap_or_default();
    if prompts.any(|other| other != prompt) {
        return Err(Reason::PromptDiffers);
    }
    Ok((Text::Chat(prompt), responses))
}

fn score_difference(row: &Row) -> Result<Option<f64>, Refusal> {
    Ok(match (number_of(row, Column::ChosenScore)?, number_of(row, Column::RejectedScore)?) {
        (Some(chosen), Some(rejected)) => Some(chosen - rejected),
        _ => None,
    })
}

fn text_of(row: &mut Row, column: Column) -> Result<Text, Refusal> {
    Text::of(row.take(column)).in_column(column)
}

fn string_of(row: &mut Row, column: Column) -> Option<String> {
    if let Cell::Text(text) = row.take(column) { Some(text) } else { None }
}

/// A number of the row, nothing if the column is missing or null.
fn number_of(row: &Row, column: Column) -> Result<Option<f64>, Refusal> {
    match row.get(column) {
        None | Some(Cell::Null) => Ok(None),
        Some(cell) => cell.number().ok_or(Reason::BadNumber).in_column(column).map(Some),
    }
}

/// A number for each response, nothing if the column is missing or null.
fn numbers_of(row: &Row, column: Column, count: usize) -> Result<Option<Vec<f64>>, Refusal> {
    let numbers = match row.get(column) {
        None | Some(Cell::Null) => return Ok(None),
        Some(Cell::List(numbers)) if numbers.len() == count => numbers,
        Some(_) => return Err(Reason::BadNumber).in_column(column),
    };
    let numbers = numbers.iter().map(|number| number.number().ok_or(Reason::BadNumber));
    numbers.collect::<Result<_, _>>().in_column(column).map(Some)
}

#[allow(clippy::cast_possible_truncation, reason = "the loss of precision is wanted, an overflow is refused")]
fn narrow(number: f64) -> Result<f32, Reason> {
    let narrow = number as f32;
    if narrow.is_finite() { Ok(narrow) } else { Err(Reason::BadNumber) }
}
