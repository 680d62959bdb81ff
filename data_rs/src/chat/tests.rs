//! Renderings of small templates; `tests/data/test_chat*.py` compare with transformers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Map, json};

use super::*;
use crate::text::Message;

const TURNS: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}\
                     {% if add_generation_prompt %}<assistant>{% endif %}";

fn renderer(template: &str, plan: bool) -> Renderer {
    let tokens: Map<_, _> = json!({"bos_token": "<s>"}).as_object().unwrap().clone();
    let now = Some("2024-02-29T13:05:09".to_owned());
    Renderer::new(Some(template), &tokens, RenderOptions { now, plan, ..RenderOptions::default() }).unwrap()
}

fn plain(text: &str) -> Text {
    Text::Plain(text.to_owned())
}

fn texts(renderer: &Renderer, prompt: &str, response: &str) -> String {
    match renderer.render(300, &plain(prompt), &[plain(response)]).unwrap() {
        Ok(conversations) => conversations.into_iter().map(|found| found.text).collect(),
        Err(message) => panic!("refused: {message}"),
    }
}

#[test]
fn boundaries_count_bytes() {
    let found = renderer(TURNS, true).render(0, &plain("é"), &[plain("ü"), plain(" n ")]).unwrap().unwrap();
    assert_eq!(found[1].text, "<user>é\n<assistant>n\n");
    assert_eq!(&found[0].text[found[0].boundary..], "ü\n");
}

#[test]
fn plans_give_what_the_template_gives() {
    let templates = [
        TURNS,
        "{% for m in messages %}{{ m.content.strip('\\n') + '\\n' }}{% endfor %}",
        "{% for m in messages %}{% if '</t>' in m.content %}!{% endif %}{{ m.content.split('</t>')[-1] }}{% endfor %}",
        "{% for m in messages %}{{ m.content if m.content != 'a' else 'b' }} \t{% endfor %}",
        "{% for m in messages %}{{ m.content[:9] }}{{ m.content | length }}{% endfor %}",
        "{{ messages[-1].content }}{{ messages[0].content | upper }}",
    ];
    let contents =
        ["a", " a", "", " \n", "\n\u{1c}x\n\n", "y</t>z", "</t>", "\u{2003}q\u{3000}", "ordinary words here"];
    for template in templates {
        let (with, without) = (renderer(template, true), renderer(template, false));
        for prompt in &contents[1..] {
            for response in contents {
                let prompt = if prompt.is_empty() { "p" } else { prompt };
                let shown = |renderer: &Renderer| {
                    renderer.render(300, &plain(prompt), &[plain(response)]).map(|found| format!("{found:?}")).ok()
                };
                assert_eq!(shown(&with), shown(&without), "{template:?} {prompt:?} {response:?}");
            }
        }
    }
}

#[test]
fn a_plan_that_does_not_hold_is_found_out() {
    let template = "{% for m in messages %}{{ m.content }}{% if m.content | length > 5000 %}!{% endif %}{% endfor %}";
    let (renderer, long) = (renderer(template, true), plain(&"x".repeat(6000)));
    let outcome = renderer.render(0, &plain("why"), std::slice::from_ref(&long));
    assert!(matches!(outcome, Err(Unrendered::Plan(_))), "{outcome:?}");
}

#[test]
fn refusals_carry_the_message() {
    let found = renderer("{{ raise_exception('no ' ~ messages[0].role) }}", true);
    assert_eq!(found.render(0, &plain("why"), &[plain("so")]).unwrap().unwrap_err(), "no user");
}

#[test]
fn what_is_not_certain_is_left_to_transformers() {
    for template in [
        "{{ 1.5 }}",
        "{{ messages }}",
        "{{ x.y }}",
        "{{ 'a'|indent }}",
        "{{ 'ß'|upper }}",
        "{{ messages[1:][1:][1:][::-1] }}",
    ] {
        let outcome = renderer(template, true).render(0, &plain("why"), &[plain("so")]);
        assert!(matches!(outcome, Err(Unrendered::Unsupported(_))), "{template}: {outcome:?}");
    }
    let outcome = Renderer::new(Some("{% if %}"), &Map::new(), RenderOptions::default());
    assert!(matches!(outcome, Err(Unrendered::Unsupported(_))));
}

#[test]
fn times_are_written_as_in_c() {
    let template = "{{ strftime_now('%d %b %Y, %A %-H') }}";
    let outcome = renderer(template, true).render(0, &plain("why"), &[plain("so")]);
    assert!(matches!(outcome, Err(Unrendered::Unsupported(_))));
    let template = "{{ strftime_now('%a %A %d %e %b %B %Y %y %m %H %I %M %S %p %j %%') }}";
    let written = "Thu Thursday 29 29 Feb February 2024 24 02 13 01 05 09 PM 060 %";
    assert_eq!(texts(&renderer(template, true), "why", "so"), written);
}

#[test]
fn plain_texts_differ_from_a_word_on() {
    let options = RenderOptions { text_rows: TextRows::Plain, ..RenderOptions::default() };
    let renderer = Renderer::new(None, &Map::new(), options).unwrap();
    let boundary = |left: &str, right: &str| {
        renderer.render(0, &plain(""), &[plain(left), plain(right)]).unwrap().unwrap()[0].boundary
    };
    assert_eq!(boundary("The sky is blue", "The sky is bleak"), "The sky is".len());
    assert_eq!(boundary("é é", "é é é"), "é".len());
    assert_eq!(boundary("one", "two"), 0);
    assert_eq!(boundary("", "two"), 0);
}

#[test]
fn many_turns_and_unknown_roles_need_no_plan() {
    let turns: Vec<Message> = (0..10_000).map(|_| Message::new("user", "x".into())).collect();
    let found = renderer(TURNS, true).render(0, &Text::Chat(turns), &[plain("y")]).unwrap().unwrap();
    assert_eq!(found[0].text.lines().count(), 10_001);
}
