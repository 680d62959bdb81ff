//! What a template makes of conversations with the same roles: literal text around the contents.
//!
//! A plan is found by rendering conversations whose contents mark their own edges, and holds for contents that nothing
//! in the template looks at: it is joined up some ten times faster than the template is rendered.

use super::strings::{Sides, strip};
use super::template::{ChatTemplate, Turn};

/// A recipe for the conversations of one sequence of roles.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pieces: Vec<Piece>,
    literals: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// A message's content, with what is stripped on its left and right.
    Content(usize, Trim, Trim),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trim {
    Nothing,
    Newlines,
    Space,
}

/// White space on the left of a probe; mirrored on its right. What is left of it tells what was stripped; it is longer
/// than what literals end with.
const EDGE: &str = "\n\n\n\n\n \t";
/// Characters of the long probe, beyond what a template might cut.
const LONG: usize = 3000;

impl Plan {
    /// Find the plan for these roles, if there is one.
    pub(super) fn derive(template: &ChatTemplate, roles: &[&str], generate: bool) -> Option<Self> {
        let mirrored: String = EDGE.chars().rev().collect();
        let marked = contents(roles, |core| format!("{EDGE}{core}{mirrored}"));
        let plan = Self::read(&render(template, roles, &marked, generate)?, roles.len())?;
        let probes = [
            contents(roles, |core| format!("{core} {}x {core}", "7 words, or so.\n".repeat(LONG / 16))),
            contents(roles, |core| format!("{{{{ {core} }}}}<|{{% if %}}|>")),
            contents(roles, |core| format!(" {core}\t\n")),
            contents(roles, |_| "\t0".to_owned()),
            marked,
        ];
        let holds =
            |probe: &Vec<String>| render(template, roles, probe, generate) == Some(plan.join(&turns(roles, probe)));
        probes.iter().all(holds).then_some(plan)
    }

    /// Read the pieces off a rendering of the marked contents.
    fn read(rendered: &str, messages: usize) -> Option<Self> {
        let mirrored: String = EDGE.chars().rev().collect();
        let mut places: Vec<(usize, usize)> = Vec::with_capacity(messages);
        for message in 0..messages {
            let core = core(message);
            let mut found = rendered.match_indices(&core).map(|(at, _)| at);
            places.push((found.next()?, message));
            if found.next().is_some() {
                return None;
            }
        }
        places.sort_unstable();
        let (mut pieces, mut rest, mut start) = (Vec::new(), rendered, 0);
        for (at, message) in places {
            let before = rest.get(..at.checked_sub(start)?)?;
            let (literal, left) = cut(before, |edge| before.strip_suffix(edge), EDGE, " \t")?;
            let after = rest.get(at - start + core(message).len()..)?;
            let (following, right) = cut(after, |edge| after.strip_prefix(edge), &mirrored, "\t ")?;
            pieces.push(Piece::Literal(literal.to_owned()));
            pieces.push(Piece::Content(message, left, right));
            (start, rest) = (rendered.len() - following.len(), following);
        }
        pieces.push(Piece::Literal(rest.to_owned()));
        let literals = pieces.iter().map(|piece| if let Piece::Literal(text) = piece { text.len() } else { 0 }).sum();
        Some(Self { pieces, literals })
    }

    /// Render by the plan.
    pub(super) fn join(&self, turns: &[Turn<'_>]) -> String {
        let contents: usize = turns.iter().map(|turn| turn.content.len()).sum();
        let mut text = String::with_capacity(self.literals + contents);
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Content(message, left, right) => {
                    let content = turns.get(*message).map_or("", |turn| turn.content);
                    text.push_str(right.apply(left.apply(content, Sides::Left), Sides::Right));
                }
            }
        }
        text
    }
}

impl Trim {
    fn apply(self, content: &str, sides: Sides) -> &str {
        match self {
            Self::Nothing => content,
            Self::Newlines => strip(content, Some("\n"), sides),
            Self::Space => strip(content, None, sides),
        }
    }
}

/// Take off what is left of an edge; all of it first, since a literal may look like a part.
fn cut<'a>(
    text: &'a str,
    without: impl Fn(&str) -> Option<&'a str>,
    edge: &str,
    inner: &str,
) -> Option<(&'a str, Trim)> {
    let found = without(edge).map(|literal| (literal, Trim::Nothing));
    let found = found.or_else(|| without(inner).map(|literal| (literal, Trim::Newlines)));
    found.or(Some((text, Trim::Space)))
}

/// A mark that no template and no role holds.
fn core(message: usize) -> String {
    format!("\u{f0f0}{message}\u{f0f1}")
}

fn contents(roles: &[&str], wrap: impl Fn(&str) -> String) -> Vec<String> {
    (0..roles.len()).map(|message| wrap(&core(message))).collect()
}

fn turns<'a>(roles: &[&'a str], contents: &'a [String]) -> Vec<Turn<'a>> {
    roles.iter().zip(contents).map(|(role, content)| Turn { role, content }).collect()
}

fn render(template: &ChatTemplate, roles: &[&str], contents: &[String], generate: bool) -> Option<String> {
    template.render(&turns(roles, contents), generate).ok()
}
