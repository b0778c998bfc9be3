//! Tokenizers without a `tokenizer.json`: ids and texts are those of transformers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::fs;
use std::path::{Path, PathBuf};

use espalier_data::tokenizer::Tokenizer;

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/tokenizers"
    ))
}

/// The folders of older files, found by looking.
fn older() -> Vec<PathBuf> {
    let entries = fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_older = |path: &PathBuf| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("older-")
    };
    let mut folders: Vec<PathBuf> = entries.filter(is_older).collect();
    folders.sort();
    folders
}

fn cases(folder: &Path) -> Vec<Case> {
    serde_json::from_slice(&fs::read(folder.join("cases.json")).unwrap()).unwrap()
}

fn check(tokenizer: &Tokenizer, folder: &Path) {
    for case in cases(folder) {
        let name = folder.file_name().unwrap();
        let ids = tokenizer.encode(&case.text, true).unwrap().ids;
        assert_eq!(ids, case.ids, "{name:?} {:?}", case.text);
        assert_eq!(
            tokenizer.encode_ids(&case.text, true).unwrap(),
            case.ids,
            "{name:?}"
        );
        let decoded = tokenizer.decode(&case.ids, true).unwrap();
        assert_eq!(decoded, case.decoded, "{name:?} {:?}", case.text);
    }
}

#[test]
fn ids_and_texts_are_the_reference_s() {
    let folders = older();
    assert!(folders.len() >= 18, "{folders:?}");
    for folder in folders {
        check(&Tokenizer::load(&folder).unwrap(), &folder);
    }
}

#[test]
fn what_is_saved_is_the_same_tokenizer() {
    for folder in older() {
        let tokenizer = Tokenizer::load(&folder).unwrap();
        let saved = tempfile::tempdir().unwrap();
        tokenizer.save(saved.path()).unwrap();
        let again = Tokenizer::load(saved.path()).unwrap();
        assert_eq!(again.fingerprint(), tokenizer.fingerprint(), "{folder:?}");
        assert_eq!(again.special(), tokenizer.special(), "{folder:?}");
        check(&again, &folder);
    }
}

#[test]
fn roles_come_from_the_folder_then_from_the_class() {
    let load = |name: &str| Tokenizer::load(&fixtures().join(name)).unwrap();
    let roles = |name: &str| {
        let special = load(name).special().clone();
        [special.bos, special.eos, special.pad].map(|token| token.unwrap_or_default())
    };
    assert_eq!(
        roles("older-gpt2-added"),
        ["<|endoftext|>", "<|im_end|>", ""]
    );
    assert_eq!(roles("older-llama"), ["<s>", "</s>", ""]);
    assert_eq!(roles("older-mistral"), ["<s>", "</s>", "<pad>"]);
    assert_eq!(roles("older-gemma"), ["<bos>", "<eos>", "<pad>"]);
    assert_eq!(
        load("older-roberta").special().extra["mask_token"],
        "<mask>"
    );
    let qwen = load("older-qwen2");
    assert!(qwen.is_special(330) && qwen.id("<|im_end|>") == Some(331));
}

/// A folder with one of the fixtures' files and a few small ones.
fn folder_of(file: &str, more: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let name = Path::new(file).file_name().unwrap();
    fs::copy(fixtures().join(file), folder.path().join(name)).unwrap();
    for (name, text) in more {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn a_lone_tokenizer_json_takes_the_tokens_that_the_model_names() {
    let file = "bpe-bytelevel/tokenizer.json";
    let eos = |more: &[(&str, &str)]| {
        let folder = folder_of(file, more);
        Tokenizer::load(folder.path())
            .unwrap()
            .special()
            .eos
            .clone()
    };
    assert_eq!(eos(&[]), None);
    assert_eq!(
        eos(&[("config.json", r#"{"eos_token_id":2}"#)]).as_deref(),
        Some("</s>")
    );
    assert_eq!(
        eos(&[("generation_config.json", r#"{"eos_token_id":[5,2]}"#)]).as_deref(),
        Some("<|end|>")
    );
    // An ordinary piece under the id of a forgotten default is no end.
    assert_eq!(eos(&[("config.json", r#"{"eos_token_id":40}"#)]), None);
    let named = [
        ("config.json", r#"{"eos_token_id":2}"#),
        ("tokenizer_config.json", r#"{"eos_token":"<|end|>"}"#),
    ];
    assert_eq!(eos(&named).as_deref(), Some("<|end|>"));
}

#[test]
fn tokens_beside_a_tokenizer_json_are_added_under_their_ids() {
    let file = "bpe-bytelevel/tokenizer.json";
    let plain = Tokenizer::load(folder_of(file, &[]).path()).unwrap();
    let next = plain.vocabulary_size();
    let list = format!(r#"{{"<|new|>":{next}}}"#);
    let folder = folder_of(file, &[("added_tokens.json", &list)]);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(
        tokenizer.encode("<|new|>", false).unwrap().ids,
        [next as u32]
    );
    let wrong = folder_of(file, &[("added_tokens.json", r#"{"<|new|>":9999}"#)]);
    let message = Tokenizer::load(wrong.path()).unwrap_err().to_string();
    assert!(
        message.contains("`<|new|>` has id 9999") && message.contains("do not belong together"),
        "{message}"
    );
}

#[test]
fn an_id_far_behind_the_vocabulary_stays_that_id() {
    let more = [
        ("merges.txt", "#version: 0.2\na b\n"),
        ("vocab.json", r#"{"a":0,"b":1,"ab":2}"#),
        ("added_tokens.json", r#"{"<|far|>":20}"#),
        (
            "tokenizer_config.json",
            r#"{"tokenizer_class":"GPT2Tokenizer"}"#,
        ),
    ];
    let folder = folder_of("older-gpt2/config.json", &more);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(
        tokenizer.encode("ab<|far|>a", false).unwrap().ids,
        [2, 20, 0]
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let message = |file: &str, more: &[(&str, &str)]| {
        let folder = folder_of(file, more);
        Tokenizer::load(folder.path()).unwrap_err().to_string()
    };
    let unknown = message(
        "older-gpt2/vocab.json",
        &[
            ("merges.txt", ""),
            (
                "tokenizer_config.json",
                r#"{"tokenizer_class":"CLIPTokenizer"}"#,
            ),
        ],
    );
    assert!(
        unknown.contains("`CLIPTokenizer` is not read without one"),
        "{unknown}"
    );
    let own_order = message(
        "older-xlm-roberta/sentencepiece.bpe.model",
        &[("config.json", r#"{"model_type":"camembert"}"#)],
    );
    assert!(own_order.contains("CamembertTokenizer"), "{own_order}");
    let missing = message(
        "older-gpt2/vocab.json",
        &[("config.json", r#"{"model_type":"t5"}"#)],
    );
    assert!(
        missing.contains("`T5Tokenizer` reads") && missing.contains("spiece.model"),
        "{missing}"
    );
    let damaged = message(
        "older-gpt2/config.json",
        &[
            ("tokenizer.model", "not a model"),
            (
                "tokenizer_config.json",
                r#"{"tokenizer_class":"LlamaTokenizer"}"#,
            ),
        ],
    );
    assert!(damaged.contains("no SentencePiece model"), "{damaged}");
    let language = message(
        "older-mbart/sentencepiece.bpe.model",
        &[(
            "tokenizer_config.json",
            r#"{"tokenizer_class":"MBartTokenizer","src_lang":"deu"}"#,
        )],
    );
    assert!(
        language.contains("`src_lang` is `deu`") && language.contains("de_DE"),
        "{language}"
    );
}

#[test]
fn the_space_between_a_prompt_and_what_follows_stays() {
    for name in [
        "older-llama",
        "older-mistral",
        "older-t5",
        "bpe-metaspace",
        "older-gemma",
        "older-gpt2-added",
    ] {
        let tokenizer = Tokenizer::load(&fixtures().join(name)).unwrap();
        let whole = tokenizer
            .encode_ids("the cat sat on the mat", false)
            .unwrap();
        for cut in 1..whole.len() {
            let (prompt, rest) = whole.split_at(cut);
            let before = tokenizer.decode(prompt, true).unwrap();
            let after = tokenizer.decode_after(prompt, rest).unwrap();
            assert_eq!(
                format!("{before}{after}"),
                "the cat sat on the mat",
                "{name} {cut}"
            );
            let mut stream = tokenizer.stream_after(prompt);
            let mut streamed: String = rest
                .iter()
                .filter_map(|id| stream.push(*id).unwrap())
                .collect();
            streamed.extend(stream.finish().unwrap());
            assert_eq!(streamed, after, "{name} {cut}");
        }
    }
    // BERT's puts a mark behind the prompt too, and the words on both sides of it are parted.
    let tokenizer = Tokenizer::load(&fixtures().join("wordpiece")).unwrap();
    let prompt = tokenizer.encode_ids("the cat", true).unwrap();
    assert!(tokenizer.is_special(prompt[prompt.len() - 1]));
    let answer = tokenizer.encode_ids("sat on the mat", false).unwrap();
    assert_eq!(
        tokenizer.decode_after(&prompt, &answer).unwrap(),
        " sat on the mat"
    );
    let mut stream = tokenizer.stream_after(&prompt);
    let mut streamed: String = answer
        .iter()
        .filter_map(|id| stream.push(*id).unwrap())
        .collect();
    streamed.extend(stream.finish().unwrap());
    assert_eq!(streamed, " sat on the mat");
    // Behind a special token a text begins anew.
    let tokenizer = Tokenizer::load(&fixtures().join("older-llama-legacy")).unwrap();
    let prompt = tokenizer.encode_ids("x<|im_start|>", false).unwrap();
    let answer = tokenizer.encode_ids("the cat", false).unwrap();
    assert_eq!(tokenizer.decode_after(&prompt, &answer).unwrap(), "the cat");
}

#[test]
fn a_long_text_keeps_its_marks() {
    let tokenizer = Tokenizer::load(&fixtures().join("older-bert")).unwrap();
    let whole = tokenizer.encode_ids("hello world the cat", true).unwrap();
    let cut = tokenizer.encode_within("hello world the cat", 4).unwrap();
    assert_eq!(cut, [&whole[..3], &whole[whole.len() - 1..]].concat());
    assert_eq!(
        tokenizer.encode_within("hello world the cat", 100).unwrap(),
        whole
    );
    assert_eq!(tokenizer.encode_within("hello", 1).unwrap(), [2, 3]);
}
