//! Tests: encodings that the reference library gives, one for every part of the pipeline.

use serde_json::{Value, json};

use super::Tokenizer;

/// A pipeline of one part each, around a model.
fn pipeline(normalizer: Value, pre_tokenizer: Value, decoder: Value, model: Value) -> Tokenizer {
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "post_processor": null,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model,
    });
    Tokenizer::from_json(file.to_string().as_bytes()).unwrap()
}

/// A model that knows these words, by their place, and no others.
fn words(list: &[&str]) -> Value {
    let vocabulary: serde_json::Map<_, _> = list
        .iter()
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    json!({ "type": "WordLevel", "unk_token": list[0], "vocab": vocabulary })
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false).unwrap().ids
}

#[test]
fn bert_cleans_its_text() {
    let normalizer = json!({
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": true, "lowercase": true,
    });
    let tokenizer = pipeline(
        normalizer,
        Value::Null,
        Value::Null,
        words(&["?", "hello  中  文  a"]),
    );
    assert_eq!(ids(&tokenizer, "Héllo\t中文\u{0} A"), [1]);
}

#[test]
fn bert_isolates_punctuation() {
    let pre_tokenizer = json!({ "type": "BertPreTokenizer" });
    let list = ["?", "don", "'", "t", "$", "5", ".", "0"];
    let tokenizer = pipeline(Value::Null, pre_tokenizer, Value::Null, words(&list));
    assert_eq!(ids(&tokenizer, "don't $5.0"), [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn metaspace_marks_every_space() {
    let pre_tokenizer = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let tokenizer = pipeline(
        Value::Null,
        pre_tokenizer,
        Value::Null,
        words(&["?", "▁Hey", "▁", "▁you"]),
    );
    assert_eq!(ids(&tokenizer, "Hey  you"), [1, 2, 3]);
}

#[test]
fn gpt2_cuts_words() {
    let pre_tokenizer = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let list = ["?", "Hello", "Ġ", "Ġworld", "'s", "Ġ123", "ĊĊ", "Ġx"];
    let tokenizer = pipeline(Value::Null, pre_tokenizer, Value::Null, words(&list));
    assert_eq!(
        ids(&tokenizer, "Hello  world's 123\n\n x"),
        [1, 2, 3, 4, 5, 6, 7]
    );
}

#[test]
fn bytes_have_their_stand_ins() {
    // Printable ones stand for themselves; the other 68 are the characters from U+0100 on, in order, 0xAD the last.
    let pre_tokenizer = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let list = ["?", "\u{120}\u{10A}\u{109}\u{121}Â\u{143}Ã¿"];
    let tokenizer = pipeline(Value::Null, pre_tokenizer, Value::Null, words(&list));
    assert_eq!(ids(&tokenizer, " \n\t\u{7F}\u{AD}ÿ"), [1]);
}

#[test]
fn bytes_that_are_no_character_are_replaced_one_by_one() {
    let decoder =
        json!({ "type": "Sequence", "decoders": [{ "type": "ByteFallback" }, { "type": "Fuse" }] });
    let list = ["a", "<0xE2>", "<0x82>", "<0xAC>", "b"];
    let tokenizer = pipeline(Value::Null, Value::Null, decoder, words(&list));
    assert_eq!(tokenizer.decode(&[0, 1, 2, 3, 4], false).unwrap(), "a€b");
    assert_eq!(
        tokenizer.decode(&[0, 1, 2, 4], false).unwrap(),
        "a\u{FFFD}\u{FFFD}b"
    );
}

#[test]
fn unigram_takes_the_likeliest_path() {
    let vocabulary = json!([
        ["<unk>", 0.0],
        ["a", -1.0],
        ["b", -1.5],
        ["ab", -2.2],
        ["abc", -9.0],
        ["c", -3.0]
    ]);
    let model =
        json!({ "type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": false });
    let tokenizer = pipeline(Value::Null, Value::Null, Value::Null, model);
    assert_eq!(ids(&tokenizer, "ab"), [3]);
    assert_eq!(ids(&tokenizer, "abc"), [3, 5]);
    assert_eq!(ids(&tokenizer, "axb"), [1, 0, 2]);
    // Unknown characters side by side are one token.
    assert_eq!(ids(&tokenizer, "axxb"), [1, 0, 2]);
    assert_eq!(
        tokenizer.encode("axxb", false).unwrap().offsets,
        [(0, 1), (1, 3), (3, 4)]
    );
}

#[test]
fn wordpiece_takes_the_longest_pieces() {
    let vocabulary =
        json!({ "[UNK]": 0, "un": 1, "##aff": 2, "##able": 3, "##a": 4, "##ffable": 5 });
    let model = json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": vocabulary,
    });
    let decoder = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    let tokenizer = pipeline(
        Value::Null,
        json!({ "type": "BertPreTokenizer" }),
        decoder,
        model,
    );
    assert_eq!(ids(&tokenizer, "unaffable"), [1, 2, 3]);
    assert_eq!(ids(&tokenizer, "unx"), [0]);
    assert_eq!(ids(&tokenizer, "una"), [1, 4]);
    assert_eq!(tokenizer.decode(&[1, 2, 3], false).unwrap(), "unaffable");
}

#[test]
fn wordpiece_takes_spaces_before_marks_away() {
    let decoder = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    let list = [
        "I", "'m", "in", ",", "they", "'ve", "gone", ".", "is", "n't", "it", "?", "he", "'s",
        "here", "!",
    ];
    let tokenizer = pipeline(Value::Null, Value::Null, decoder, words(&list));
    let all: Vec<u32> = (0..list.len() as u32).collect();
    assert_eq!(
        tokenizer.decode(&all, false).unwrap(),
        "I'm in, they've gone. isn't it? he's here!"
    );
}
