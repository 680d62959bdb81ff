//! Any template with any conversation is rendered, refused or left to transformers; with a plan it is rendered the same.

#![no_main]

use _data_rs::chat::{RenderOptions, Renderer, Unrendered};
use _data_rs::text::{Message, Text};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

const KNOWN: [&str; 3] = [
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}\
     {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
     {{ raise_exception('roles') }}{% endif %}{{ '<t>' + m['role'] + '\n' + m['content'] | trim + '<e>\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<t>model\n' }}{% endif %}",
    "{% for m in messages %}{% if m.role == 'assistant' and '</think>' in m.content %}\
     {{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}{{ loop.last }}{% endfor %}",
];

#[derive(arbitrary::Arbitrary, Debug)]
struct Input {
    /// One of the known ones, or its own.
    known: u8,
    template: String,
    turns: Vec<(bool, String)>,
    responses: [String; 2],
    plain: bool,
    row: u8,
}

fuzz_target!(|input: Input| {
    let template = KNOWN.get(usize::from(input.known) % 6).map_or(input.template.as_str(), |known| known);
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"}).as_object().cloned().unwrap_or_default();
    let renderer = |plan| Renderer::new(Some(template), &tokens, RenderOptions { plan, ..RenderOptions::default() });
    let (Ok(planned), Ok(full)) = (renderer(true), renderer(false)) else { return };
    let prompt = if input.plain {
        Text::Plain(input.turns.into_iter().map(|(_, text)| text).collect())
    } else {
        let role = |user| if user { "user" } else { "assistant" };
        Text::Chat(input.turns.into_iter().map(|(user, text)| Message::new(role(user), text)).collect())
    };
    let responses = input.responses.map(Text::Plain);
    // The rows that prove plans come first; a plan that fails there is not used.
    for row in [0, u64::from(input.row), 1 << 40] {
        let rendered = full.render(row, &prompt, &responses);
        match planned.render(row, &prompt, &responses) {
            // What it says then is that everything must be rendered again.
            Err(Unrendered::Plan(_)) => return,
            found => assert_eq!(format!("{found:?}"), format!("{rendered:?}")),
        }
    }
});
