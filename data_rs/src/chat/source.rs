//! What can be told of a template from its tokens: whether the engine at hand reads it as Jinja does, and which strings
//! in a message may change the way that it is rendered.

use std::ops::Range;

use minijinja::Error;
use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::environment::unsupported;
use crate::text::is_space;

/// The blocks that both engines know, and know alike.
const BLOCKS: [&str; 18] = [
    "if",
    "elif",
    "else",
    "endif",
    "for",
    "endfor",
    "break",
    "continue",
    "set",
    "endset",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "with",
    "endwith",
    "generation",
    "endgeneration",
];

/// Words that may stand before a string without being a test that takes it.
const KEYWORDS: [&str; 6] = ["if", "elif", "else", "and", "or", "not"];

/// A template as the engine at hand takes it.
#[derive(Debug)]
pub(super) struct Source {
    /// The template, with plain scopes in the place of transformers' generation blocks, and sums of texts in that of `~`.
    pub(super) text: String,
    /// Messages are looked through for these strings.
    pub(super) contained: Vec<String>,
    /// Messages are compared with these strings.
    pub(super) equal: Vec<String>,
}

impl Source {
    /// Look through a template.
    ///
    /// # Errors
    /// For what the two engines read in different ways.
    pub(super) fn parse(template: &str) -> Result<Self, Error> {
        let text = template.replace("\r\n", "\n").replace('\r', "\n");
        if text.chars().any(|character| is_space(character) && !" \n\t".contains(character)) {
            return Err(unsupported("white space of an unusual kind"));
        }
        let tokens: Vec<(Token, Span)> = tokenize(&text, false, SyntaxConfig::default()).collect::<Result<_, _>>()?;
        let edits = edits(&tokens)?;
        refuse_backward_slices(&tokens)?;
        let mut strings = Strings::default();
        strings.collect(&tokens);
        let mut replaced = text.clone();
        for (range, text) in edits.into_iter().rev() {
            replaced.replace_range(range, text);
        }
        Ok(Self { text: replaced, contained: strings.contained, equal: strings.equal })
    }
}

/// What to put in the place of parts of a template: scopes for generation blocks; and for `~`, which writes lists and
/// floats in another way than Python does, a sum of texts.
fn edits(tokens: &[(Token, Span)]) -> Result<Vec<(Range<usize>, &'static str)>, Error> {
    let mut edits = Vec::new();
    for (at, (token, span)) in tokens.iter().enumerate() {
        let before = tokens.get(..at).unwrap_or_default();
        let text = match token {
            Token::Tilde if follows_product(before) => return Err(unsupported("a product before `~`")),
            Token::Tilde => " | string + ",
            Token::Ident(name) if matches!(before.last(), Some((Token::BlockStart, _))) => match *name {
                "generation" => "with",
                "endgeneration" => "endwith",
                name if BLOCKS.contains(&name) => continue,
                name => return Err(unsupported(format!("a block of the kind {name}"))),
            },
            _ => continue,
        };
        edits.push((span.start_offset as usize..span.end_offset as usize, text));
    }
    Ok(edits)
}

/// Whether what ends here is a product or a power, to a part of which a filter would apply.
fn follows_product(before: &[(Token, Span)]) -> bool {
    let mut depth = 0_usize;
    for (token, _) in before.iter().rev() {
        match token {
            Token::ParenClose | Token::BracketClose | Token::BraceClose => depth += 1,
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen if depth == 0 => return false,
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => depth -= 1,
            Token::Mul | Token::Div | Token::FloorDiv | Token::Mod | Token::Pow if depth == 0 => return true,
            Token::VariableStart | Token::BlockStart => return false,
            _ => {}
        }
    }
    false
}

/// `[a:b:-1]`: the engine's idea of where such a slice ends is not Python's. `[::-1]` is the same.
fn refuse_backward_slices(tokens: &[(Token, Span)]) -> Result<(), Error> {
    for (at, window) in tokens.windows(3).enumerate() {
        let [(Token::Colon, _), (Token::Minus, _), (Token::Int(_), _)] = window else { continue };
        let before = tokens.get(..at).unwrap_or_default();
        let inside = before.iter().rev().take_while(|(token, _)| !matches!(token, Token::BracketOpen));
        let colons = inside.filter(|(token, _)| matches!(token, Token::Colon)).count();
        let follows_colon = matches!(before.last(), Some((Token::Colon, _)));
        if colons > 0 && !follows_colon {
            return Err(unsupported("a slice that runs backward to a given end"));
        }
    }
    Ok(())
}

/// The strings of a template that may decide how a message is rendered. In doubt a string is among them, which costs
/// the plan of messages that hold it, and nothing else.
#[derive(Default)]
struct Strings {
    contained: Vec<String>,
    equal: Vec<String>,
    open: Vec<Opener>,
}

/// What a string stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opener {
    /// Arguments of `.strip` and its kin: characters, which trimming takes care of where they are white space.
    Strip,
    /// Arguments that look nothing up in a message, and keys.
    Harmless,
    /// Arguments of any other method, filter or test.
    Arguments,
    /// Arguments of a function, or a list: the string may be used elsewhere.
    Value,
    /// A list that something is looked up in.
    Choices,
    /// Parentheses of an expression.
    Group,
}

impl Strings {
    fn collect(&mut self, tokens: &[(Token, Span)]) {
        for at in 0..tokens.len() {
            let token =
                |offset: isize| at.checked_add_signed(offset).and_then(|at| tokens.get(at)).map(|(token, _)| token);
            match token(0) {
                Some(Token::ParenOpen | Token::BracketOpen | Token::BraceOpen) => self.open.push(opener(token)),
                Some(Token::ParenClose | Token::BracketClose | Token::BraceClose) => {
                    self.open.pop();
                }
                Some(Token::VariableStart | Token::BlockStart) => self.open.clear(),
                Some(Token::Str(text)) => self.sort(text, token),
                Some(Token::String(text)) => self.sort(text, token),
                _ => {}
            }
        }
    }

    fn sort<'t>(&mut self, text: &str, token: impl Fn(isize) -> Option<&'t Token<'t>>) {
        use Opener::{Arguments, Choices, Group, Harmless, Strip, Value};
        let is_blank = text.chars().all(is_space);
        let compares = |offset| matches!(token(offset), Some(Token::Eq | Token::Ne));
        let looked_up = match token(1) {
            Some(Token::Ident("in")) => true,
            Some(Token::Ident("not")) => matches!(token(2), Some(Token::Ident("in"))),
            _ => false,
        };
        let tested = matches!(token(-1), Some(Token::Ident(word)) if !KEYWORDS.contains(word));
        let (contained, equal) = match self.open.last().copied().unwrap_or(Group) {
            _ if compares(-1) || compares(1) => (false, true),
            _ if looked_up || tested => (true, false),
            Strip => (!is_blank, false),
            Choices => (false, true),
            Arguments | Value => (true, false),
            Harmless => (false, false),
            Group => (matches!(token(-1), Some(Token::Assign)), false),
        };
        if text.is_empty() {
            return;
        }
        let place = match (contained, equal) {
            (true, _) => &mut self.contained,
            (_, true) => &mut self.equal,
            _ => return,
        };
        if !place.iter().any(|known| known == text) {
            place.push(text.to_owned());
        }
    }
}

/// What an opening bracket opens, seen from it.
fn opener<'t>(token: impl Fn(isize) -> Option<&'t Token<'t>>) -> Opener {
    let Some(Token::ParenOpen) = token(0) else {
        return match token(-1) {
            Some(Token::Ident("in")) => Opener::Choices,
            Some(Token::ParenClose | Token::BracketClose) => Opener::Harmless,
            Some(Token::Ident(word)) if !KEYWORDS.contains(word) => Opener::Harmless,
            _ => Opener::Value,
        };
    };
    match (token(-2), token(-1)) {
        (_, Some(Token::Ident("in")))
        | (Some(Token::Pipe), Some(Token::Ident("select" | "reject" | "selectattr" | "rejectattr"))) => Opener::Choices,
        (Some(Token::Dot), Some(Token::Ident("strip" | "lstrip" | "rstrip")))
        | (Some(Token::Pipe), Some(Token::Ident("trim"))) => Opener::Strip,
        (Some(Token::Dot), Some(Token::Ident("get")))
        | (Some(Token::Pipe), Some(Token::Ident("tojson" | "map" | "join")))
        | (_, Some(Token::Ident("raise_exception" | "strftime_now"))) => Opener::Harmless,
        (Some(Token::Dot | Token::Pipe), Some(Token::Ident(_))) => Opener::Arguments,
        (_, Some(Token::Ident(word))) if !KEYWORDS.contains(word) => Opener::Value,
        _ => Opener::Group,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn strings(template: &str) -> (Vec<String>, Vec<String>) {
        let source = Source::parse(template).unwrap();
        (source.contained, source.equal)
    }

    #[test]
    fn strings_that_messages_are_looked_through_for_are_found() {
        let looked =
            ["{{ 'x' in c }}", "{{ c.split('x')[0] }}", "{% set m = 'x' %}", "{{ f(m='x') }}", "{{ c is in 'x' }}"];
        for template in looked {
            assert_eq!(strings(template), (vec!["x".to_owned()], vec![]), "{template}");
        }
        for template in ["{{ c == 'x' }}", "{{ 'x' != c }}", "{% if c in ['x'] %}{% endif %}", "{{ c in ('x',) }}"] {
            assert_eq!(strings(template), (vec![], vec!["x".to_owned()]), "{template}");
        }
        for template in ["{{ 'x' + c['x'] }}", "{{ c.strip('\\n') }}", "{{ ('x' if c else 'x') }}", "x"] {
            assert_eq!(strings(template), (vec![], vec![]), "{template}");
        }
    }

    #[test]
    fn generation_blocks_become_scopes_except_in_text() {
        let source = Source::parse("{%- generation -%}{{ 'generation' }}{% endgeneration %} generation").unwrap();
        assert_eq!(source.text, "{%- with -%}{{ 'generation' }}{% endwith %} generation");
        assert_eq!(Source::parse("{{ a ~ b }} ~").unwrap().text, "{{ a  | string +  b }} ~");
    }

    #[test]
    fn what_is_read_in_another_way_is_refused() {
        for template in
            ["{{ 2 * 3 ~ c }}", "{% do f() %}", "{% include 'x' %}", "{{ m[3:0:-1] }}", "{{ m[:0:-2] }}", "a\u{a0}b"]
        {
            assert!(Source::parse(template).is_err(), "{template}");
        }
        for template in
            ["{{ (2 * 3) ~ c }}", "{{ m[::-1] }}", "{{ m[:-1] }}", "{{ m[1:-1] }}", "{{ {'a': -1} }}", "{{ m[2::-1] }}"]
        {
            assert!(Source::parse(template).is_ok(), "{template}");
        }
    }
}
