//! One row in any pair format to a prompt with two responses.

use serde_json::{Map, Value};

use crate::reason::Reason;
use crate::text::{Message, Text, is_blank, is_space, is_transcript, parse_messages, parse_transcript};

/// The formats, as an error names them.
pub const FORMATS: &str = "chosen and rejected, with or without prompt (text or messages), \
                           or conv_A, conv_B, conv_A_rating and conv_B_rating";

/// What the GRM authors put before the first message of summarization rows, whose white space they strip.
pub const SUMMARIZE: &str = "Generate one-sentence summary for the following post: ";

type Row = Map<String, Value>;

/// A pair, normalized.
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
    /// The prompt.
    pub prompt: Text,
    /// The better response, then the worse one; text if the prompt is text, messages if it is messages.
    pub responses: [Text; 2],
    /// Strength of the preference; 0 if unknown.
    pub margin: f32,
    /// Weight in the objective.
    pub weight: f32,
    /// Probability that the first response is better.
    pub label: f32,
    /// Whether the sides were swapped as label noise.
    pub flipped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Explicit,
    Implicit,
    Ratings,
}

struct Sides {
    prompt: Text,
    responses: [Text; 2],
    margin: Option<f64>,
}

/// Whether a row has the columns of a pair format.
#[must_use]
pub fn is_known(row: &Row) -> bool {
    format_of(row).is_some()
}

/// Normalize a row.
///
/// # Errors
/// Why it is no pair.
pub fn normalize(mut row: Row, number: u64, paper_text: bool) -> Result<Record, Reason> {
    let format = format_of(&row).ok_or(Reason::UnknownColumns)?;
    let margin = number_of(&row, "margin")?;
    let weight = number_of(&row, "weight")?.unwrap_or(1.0);
    let label = number_of(&row, "soft_label")?.unwrap_or(1.0);
    if weight < 0.0 || !(0.0..=1.0).contains(&label) {
        return Err(Reason::BadNumber);
    }
    let id = match row.remove("id") {
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) if id.is_i64() || id.is_u64() => id.to_string(),
        _ => number.to_string(),
    };
    let source = string_of(&mut row, "source");
    let category = string_of(&mut row, "category");
    let sides = match format {
        Format::Explicit => explicit(&mut row)?,
        Format::Implicit => implicit(&mut row)?,
        Format::Ratings => ratings(&mut row, paper_text && source.as_deref().is_some_and(is_summarize))?,
    };
    let margin = narrow(margin.or(sides.margin).unwrap_or(0.0))?;
    let (weight, label) = (narrow(weight)?, narrow(label)?);
    let Sides { prompt, responses, .. } = sides;
    Ok(Record { row: number, id, source, category, prompt, responses, margin, weight, label, flipped: false })
}

fn format_of(row: &Row) -> Option<Format> {
    let has = |names: &[&str]| names.iter().all(|name| row.contains_key(*name));
    if has(&["chosen", "rejected"]) {
        return Some(if has(&["prompt"]) { Format::Explicit } else { Format::Implicit });
    }
    has(&["conv_A", "conv_B", "conv_A_rating", "conv_B_rating"]).then_some(Format::Ratings)
}

fn explicit(row: &mut Row) -> Result<Sides, Reason> {
    let margin = score_difference(row)?;
    let prompt = text_of(row, "prompt")?;
    let responses = [text_of(row, "chosen")?, text_of(row, "rejected")?];
    match (prompt, responses) {
        (prompt @ Text::Plain(_), responses @ [Text::Plain(_), Text::Plain(_)]) => {
            Ok(Sides { prompt, responses, margin })
        }
        // The prompt column only repeats what both conversations begin with.
        (Text::Plain(_), [Text::Chat(chosen), Text::Chat(rejected)]) if !answers(&chosen) && !answers(&rejected) => {
            conversations(chosen, rejected, margin)
        }
        (Text::Plain(prompt), _) if is_blank(&prompt) => Err(Reason::Empty),
        (prompt, responses) => Ok(Sides {
            prompt: Text::Chat(prompt.into_messages("user")),
            responses: responses.map(|response| Text::Chat(response.into_messages("assistant"))),
            margin,
        }),
    }
}

fn answers(messages: &[Message]) -> bool {
    messages.first().is_none_or(|message| message.role == "assistant")
}

fn implicit(row: &mut Row) -> Result<Sides, Reason> {
    let margin = score_difference(row)?;
    match (text_of(row, "chosen")?, text_of(row, "rejected")?) {
        (Text::Chat(chosen), Text::Chat(rejected)) => conversations(chosen, rejected, margin),
        (Text::Plain(chosen), Text::Plain(rejected)) if is_transcript(&chosen) && is_transcript(&rejected) => {
            conversations(parse_transcript(&chosen), parse_transcript(&rejected), margin)
        }
        (Text::Plain(chosen), Text::Plain(rejected)) => {
            Ok(Sides { prompt: Text::Plain(String::new()), responses: [chosen, rejected].map(Text::Plain), margin })
        }
        _ => Err(Reason::NonString),
    }
}

fn ratings(row: &mut Row, summarize: bool) -> Result<Sides, Reason> {
    let rating = |name| number_of(row, name)?.ok_or(Reason::BadNumber);
    let (rating_a, rating_b) = (rating("conv_A_rating")?, rating("conv_B_rating")?);
    let mut conversation = |name| parse_messages(row.remove(name).unwrap_or_default());
    let (mut chosen, mut rejected) = (conversation("conv_A")?, conversation("conv_B")?);
    let margin = rating_a - rating_b;
    // Equality of the two ratings as written, so no tolerance.
    if margin == 0.0 {
        return Err(Reason::Tie);
    }
    if margin < 0.0 {
        std::mem::swap(&mut chosen, &mut rejected);
    }
    if summarize {
        instruct(&mut chosen);
        instruct(&mut rejected);
    }
    conversations(chosen, rejected, Some(margin.abs()))
}

fn is_summarize(source: &str) -> bool {
    source.to_lowercase().contains("summarize")
}

fn instruct(messages: &mut [Message]) {
    if let Some(message) = messages.iter_mut().find(|message| message.role == "user") {
        message.content = format!("{SUMMARIZE}{}", message.content.trim_matches(is_space));
    }
}

fn conversations(mut chosen: Vec<Message>, mut rejected: Vec<Message>, margin: Option<f64>) -> Result<Sides, Reason> {
    let (Some(better), Some(worse)) = (chosen.pop(), rejected.pop()) else { return Err(Reason::Empty) };
    if chosen != rejected {
        return Err(Reason::PromptDiffers);
    }
    Ok(Sides { prompt: Text::Chat(chosen), responses: [better, worse].map(|last| Text::Chat(vec![last])), margin })
}

fn score_difference(row: &Row) -> Result<Option<f64>, Reason> {
    Ok(match (number_of(row, "chosen_score")?, number_of(row, "rejected_score")?) {
        (Some(chosen), Some(rejected)) => Some(chosen - rejected),
        _ => None,
    })
}

fn text_of(row: &mut Row, name: &str) -> Result<Text, Reason> {
    Text::parse(row.remove(name).unwrap_or_default())
}

fn string_of(row: &mut Row, name: &str) -> Option<String> {
    match row.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// A number of the row, nothing if the column is missing or null.
fn number_of(row: &Row, name: &str) -> Result<Option<f64>, Reason> {
    match row.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => number.as_f64().ok_or(Reason::BadNumber).map(Some),
        Some(_) => Err(Reason::BadNumber),
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the loss of precision is wanted, an overflow is refused")]
fn narrow(number: f64) -> Result<f32, Reason> {
    let narrow = number as f32;
    if narrow.is_finite() { Ok(narrow) } else { Err(Reason::BadNumber) }
}
