//! Groups whose prompt is encoded once have the tokens of conversations that are encoded whole, whatever the text.

#![no_main]

use std::sync::LazyLock;

use _data_rs::encode::{Conversation, Encoder};
use _data_rs::options::WriteOptions;
use _data_rs::share::shared_prefix;
use libfuzzer_sys::fuzz_target;

/// A byte-level BPE with merges across spaces, letters and line ends, GPT-2's split and special tokens.
fn tokenizer() -> String {
    let mut vocabulary = serde_json::Map::new();
    let mut add = |token: String| {
        let next = vocabulary.len();
        vocabulary.entry(token).or_insert_with(|| next.into());
    };
    // The characters that stand for bytes.
    let printable =
        |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || (174..=255).contains(&byte);
    let others = (0..=255).filter(|&byte| !printable(byte)).zip(256..).map(|(_, stand_in)| stand_in);
    (0..=255)
        .filter(|&byte| printable(byte))
        .chain(others)
        .filter_map(char::from_u32)
        .for_each(|each| add(each.into()));
    let merges = ["a a", "Ġ a", "aa a", "\u{10a} \u{10a}", "\u{10a} a", "Ġ Ġ", "s >", "< s", "' s", "Ã ģ"];
    merges.iter().for_each(|merge| add(merge.replace(' ', "")));
    let specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];
    let added: Vec<_> = specials
        .iter()
        .zip(vocabulary.len()..)
        .map(|(token, id)| {
            serde_json::json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true,
            })
        })
        .collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": merges},
        "added_tokens": added,
    })
    .to_string()
}

fn encoder(options: &str) -> Encoder {
    Encoder::new(&tokenizer(), WriteOptions::from_json(options).unwrap()).unwrap()
}

static FAST: LazyLock<Encoder> = LazyLock::new(|| {
    let fast = encoder(r#"{"threads": 1}"#);
    assert!(fast.prompt_once(), "the fast way is not taken: {:?}", fast.why_reference());
    fast
});
static REFERENCE: LazyLock<Encoder> = LazyLock::new(|| encoder(r#"{"threads": 1, "engine": "reference"}"#));

fuzz_target!(|texts: (String, String, String, u16)| {
    let (prompt, chosen, rejected, place) = texts;
    let group =
        [chosen, rejected].map(|answer| Conversation { text: format!("{prompt}{answer}"), boundary: prompt.len() });
    let expected = REFERENCE.encode(0, &[Ok(group.to_vec())]).unwrap().remove(0);
    // The first groups of the data are all checked; the others by chance.
    let found = FAST.encode(u64::from(place) + 1_000, &[Ok(group.to_vec())]).expect("the ids of both engines differ");
    assert_eq!(found[0], expected);
    if let Ok(group) = expected {
        let tokens: Vec<&[i32]> = group.responses.iter().map(|response| response.tokens.as_slice()).collect();
        assert_eq!(group.shared, shared_prefix(&tokens));
        assert!(
            tokens.iter().all(|each| each.len() > group.shared && each[..group.shared] == tokens[0][..group.shared])
        );
    }
});
