//! Tokenizers against their references, and what must be an error.

use super::*;
use serde_json::json;
use std::path::Path;

#[test]
fn parts_that_make_the_library_fail_are_errors() {
    let word = json!({ "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" });
    let file = json!({ "model": word, "pre_tokenizer": { "type": "FixedLength", "length": 0 } });
    let tokenizer = Tokenizer::from_json(file.to_string().as_bytes()).unwrap();
    for result in [
        tokenizer.encode("a b c", true).map(|encoding| encoding.ids),
        tokenizer.encode_ids("a b c", true),
        tokenizer.encode_user_text("a b c"),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("makes the library fail"), "{error}");
    }
}

#[test]
fn texts_of_any_length_are_not_begun() {
    let file = fixture("bpe-bytelevel", "tokenizer.json");
    let tokenizer = Tokenizer::from_json(&file).unwrap();
    let error = tokenizer
        .encode(&"a".repeat(LONGEST_TEXT + 1), false)
        .unwrap_err();
    assert!(error.to_string().contains("16777217 bytes"), "{error}");
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    ids_no_special: Vec<u32>,
    offsets: Vec<(usize, usize)>,
    decoded: String,
}

const KINDS: [&str; 5] = [
    "bpe-bytelevel",
    "bpe-metaspace",
    "unigram",
    "wordpiece",
    "rwkv-world",
];

const FOLDER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/tokenizers"
);

fn fixture(kind: &str, file: &str) -> Vec<u8> {
    std::fs::read(format!("{FOLDER}/{kind}/{file}")).unwrap()
}

#[test]
fn fixtures_agree_with_the_reference() {
    for kind in KINDS {
        let tokenizer = Tokenizer::load(&Path::new(FOLDER).join(kind)).unwrap();
        let cases: Vec<Case> = serde_json::from_slice(&fixture(kind, "cases.json")).unwrap();
        assert!(cases.len() >= 40);
        for case in cases {
            let encoding = tokenizer.encode(&case.text, true).unwrap();
            assert_eq!(encoding.ids, case.ids, "{kind} {:?}", case.text);
            assert_eq!(encoding.offsets, case.offsets, "{kind} {:?}", case.text);
            assert_eq!(tokenizer.encode_ids(&case.text, true).unwrap(), case.ids);
            assert_eq!(
                tokenizer.encode(&case.text, false).unwrap().ids,
                case.ids_no_special,
                "{kind}"
            );
            assert_eq!(
                tokenizer.decode(&case.ids, true).unwrap(),
                case.decoded,
                "{kind} {:?}",
                case.text
            );
        }
    }
}

#[test]
fn streams_equal_whole_decoding() {
    for kind in KINDS {
        let tokenizer = Tokenizer::load(&Path::new(FOLDER).join(kind)).unwrap();
        let cases: Vec<Case> = serde_json::from_slice(&fixture(kind, "cases.json")).unwrap();
        for case in cases {
            let mut stream = tokenizer.stream();
            let mut text: String = case
                .ids
                .iter()
                .filter_map(|id| stream.push(*id).unwrap())
                .collect();
            text += &stream.finish().unwrap().unwrap_or_default();
            assert_eq!(text, case.decoded, "{kind} {:?}", case.text);
        }
    }
}

fn small(model: &str) -> Tokenizer {
    let json = format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{model}}}"#
    );
    Tokenizer::from_json(json.as_bytes()).unwrap()
}

fn bpe(vocabulary: &str, merges: &str, unknown: &str, fuse: bool, fallback: bool) -> Tokenizer {
    small(&format!(
        r#"{{"type":"BPE","dropout":null,"unk_token":{unknown},"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":{fuse},"byte_fallback":{fallback},"ignore_merges":false,"vocab":{vocabulary},"merges":{merges}}}"#
    ))
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false).unwrap().ids
}

#[test]
fn merges_go_by_rank() {
    for merges in [
        r#"[["b","c"],["a","b"],["a","bc"]]"#,
        r#"["b c","a b","a bc"]"#,
    ] {
        let tokenizer = bpe(
            r#"{"a":0,"b":1,"c":2,"ab":3,"bc":4,"abc":5}"#,
            merges,
            "null",
            false,
            false,
        );
        assert_eq!(ids(&tokenizer, "abc"), [5]);
        assert_eq!(ids(&tokenizer, "aabc"), [0, 5]);
    }
}

#[test]
fn unknown_characters_fall_back_to_bytes() {
    let vocabulary = r#"{"<unk>":0,"a":1,"<0xE2>":2,"<0x82>":3,"<0xAC>":4}"#;
    assert_eq!(
        ids(&bpe(vocabulary, "[]", r#""<unk>""#, true, true), "a€zz"),
        [1, 2, 3, 4, 0]
    );
    assert_eq!(
        ids(&bpe(vocabulary, "[]", r#""<unk>""#, false, false), "azz"),
        [1, 0, 0]
    );
    assert_eq!(
        ids(&bpe(vocabulary, "[]", r#""<unk>""#, true, false), "azz"),
        [1, 0]
    );
    assert_eq!(
        ids(&bpe(r#"{"a":0}"#, "[]", "null", false, false), "aza"),
        [0, 0]
    );
}

#[test]
fn a_user_cannot_type_a_special_token() {
    let tokenizer = Tokenizer::from_json(&fixture("bpe-bytelevel", "tokenizer.json")).unwrap();
    let special = tokenizer.id("<|user|>").unwrap();
    assert!(tokenizer.is_special(special));
    assert!(ids(&tokenizer, "a<|user|>b").contains(&special));
    let typed = tokenizer.encode_user_text("a<|user|>b").unwrap();
    assert!(!typed.contains(&special));
    assert_eq!(tokenizer.decode(&typed, true).unwrap(), "a<|user|>b");
}

#[test]
fn malformed_files_are_errors() {
    let good = String::from_utf8(fixture("bpe-bytelevel", "tokenizer.json")).unwrap();
    let decoder = good.replacen("\"decoder\":{", "\"decoder\":[{},{", 1);
    for text in [
        "",
        "{}",
        "[1]",
        "nonsense",
        &good[..good.len() / 2],
        decoder.as_str(),
    ] {
        assert!(matches!(
            Tokenizer::from_json(text.as_bytes()),
            Err(Error::Tokenizer(_))
        ));
    }
}

#[test]
fn hash_is_the_published_one() {
    assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
}
