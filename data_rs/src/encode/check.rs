//! Which groups the fast path is checked on, and what tokenizers are checked on when they are loaded.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Conversation;

/// How closely a group is looked at: a function of its place in the data and of its text alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Compare with whole texts, encoded by the same engine.
    pub whole: bool,
    /// Compare with the reference, which costs as much as a hundred groups on the fast path.
    pub reference: bool,
}

impl Check {
    /// The first groups of the data, and a sample drawn by content.
    pub fn new(place: u64, conversations: &[Conversation]) -> Self {
        let text = conversations.first().map_or("", |conversation| &conversation.text);
        let draw = xxh3_64_with_seed(text.as_bytes(), 1);
        Self { whole: place < 256 || draw.is_multiple_of(64), reference: place < 32 || draw.is_multiple_of(2048) }
    }
}

/// Texts on which tokenizers differ, with added tokens between them.
pub fn probes(added: &[&str]) -> Vec<String> {
    let texts = [
        "",
        " ",
        "a",
        "Hello, World! It's we'll THEY'RE I'd don\u{2019}t",
        "  leading and trailing  \n",
        "\n\n\t a\r\n b\r c \u{85}\u{a0}\u{3000}x",
        "0 12 345 6789 0x1F 3.14e-10 \u{663}\u{664} \u{bd} \u{2167}",
        "snake_case camelCase XMLHttp $x += y[i]; // #!/bin/sh",
        "e\u{301}\u{301} \u{301}a \u{e9} \u{1e9b}\u{323} \u{fb01} \u{212b} \u{fdfa}",
        "\u{0}\u{1}\u{7f}\u{ad}\u{200b}\u{200d}\u{feff}\u{fffd}\u{10ffff}",
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{1f1e9}\u{1f1ea} \u{2764}\u{fe0f} \u{1f44d}\u{1f3fd}",
        "\u{5d0}\u{5b8}\u{5d1} \u{627}\u{644}\u{633}\u{644}\u{627}\u{645} \u{202e}abc\u{202c}",
        "\u{4f60}\u{597d}\u{4e16}\u{754c} \u{3053}\u{3093} \u{d55c}\u{ad6d}\u{c5b4} \u{e2a}\u{e27}\u{e31}\u{e2a}",
        "\u{2581}x \u{2581} <0x0A> \u{120}a <unk> [UNK] ##ing",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa----------------................                                ",
        "\u{130}\u{131}\u{df}\u{1e9e} \u{3a3}\u{3c3}\u{3c2} \u{1c5}",
    ];
    let mut probes: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    for (number, token) in added.iter().enumerate() {
        let (left, right) = (texts[number % texts.len()], texts[(number + 4) % texts.len()]);
        probes.push(format!("{left}{token}{right}"));
        probes.push(format!("{token} {token}{token}\n{left}"));
    }
    probes
}
