//! Tokenizers of GGUF files, on the inputs by which llama.cpp tests its own (`models/ggml-vocab-*` of its source).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::path::{Path, PathBuf};

use espalier_data::{
    gguf::{Metadata, Value},
    tokenizer::Tokenizer,
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/gguf");
/// Where the other vocabularies of llama.cpp are.
const VARIABLE: &str = "LLAMA_CPP_MODELS";

/// What differs on the inputs of a vocabulary.
fn differences(file: &Path) -> Vec<String> {
    let tokenizer = Tokenizer::load(file).unwrap();
    let beside =
        |ending: &str| std::fs::read_to_string(format!("{}.{ending}", file.display())).unwrap();
    let (inputs, outputs) = (beside("inp"), beside("out"));
    let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    let outputs: Vec<&str> = outputs.lines().collect();
    assert!(
        inputs.len() >= 40 && outputs.len() >= inputs.len() - 1,
        "{} {}",
        inputs.len(),
        outputs.len()
    );
    let mut found = Vec::new();
    for (input, output) in inputs.iter().zip(outputs) {
        let expected: Vec<u32> = output
            .split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect();
        let ids = tokenizer.encode_user_text(input).unwrap();
        if ids != expected {
            found.push(format!("{input:?}: {ids:?}, expected {expected:?}"));
        }
    }
    found
}

#[test]
fn sentencepiece_and_word_piece_are_llama_cpps() {
    for name in ["llama-spm", "bert-bge"] {
        let file = PathBuf::from(format!("{FIXTURES}/ggml-vocab-{name}.gguf"));
        assert_eq!(differences(&file), Vec::<String>::new(), "{name}");
    }
}

#[test]
#[ignore = "needs the folder `models` of llama.cpp's source, named by LLAMA_CPP_MODELS"]
fn every_vocabulary_is_llama_cpps() {
    let folder = PathBuf::from(std::env::var(VARIABLE).unwrap());
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut wrong = Vec::new();
    for file in files.filter(|file| file.extension().is_some_and(|ending| ending == "gguf")) {
        if !Path::new(&format!("{}.inp", file.display())).is_file() {
            continue;
        }
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        match std::panic::catch_unwind(|| differences(&file)) {
            Ok(different) => {
                println!("{name}: {} differ", different.len());
                different
                    .iter()
                    .take(3)
                    .for_each(|line| println!("  {line}"));
                if !different.is_empty() {
                    wrong.push(name);
                }
            }
            Err(_) => wrong.push(name),
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn marks_and_text_come_back() {
    let tokenizer =
        Tokenizer::load(format!("{FIXTURES}/ggml-vocab-llama-spm.gguf").as_ref()).unwrap();
    let ids = tokenizer.encode_ids("Hello world", true).unwrap();
    assert_eq!(ids, [1, 15043, 3186]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "Hello world");
    assert_eq!(tokenizer.special().eos.as_deref(), Some("</s>"));
}

/// A byte-level vocabulary of its 256 bytes, a merge and a mark.
fn words(changes: &[(&str, Option<Value>)]) -> Metadata {
    let letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            let before =
                (0..byte).filter(|b| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff));
            char::from_u32(256 + before.count() as u32).unwrap()
        }
    };
    let tokens: Vec<String> = (0..=255u8)
        .map(|byte| letter(byte).to_string())
        .chain(["at".into(), "<|end|>".into()])
        .collect();
    let kinds = (0..258).map(|id| if id == 257 { 3 } else { 1 });
    let mut metadata = Metadata::from([
        ("tokenizer.ggml.model".into(), Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::Text("qwen2".into())),
        ("tokenizer.ggml.tokens".into(), Value::texts(tokens)),
        ("tokenizer.ggml.token_type".into(), Value::integers(kinds)),
        ("tokenizer.ggml.merges".into(), Value::texts(["a t".into()])),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(257)),
        (
            "tokenizer.chat_template".into(),
            Value::Text("{{ messages[0].content }}".into()),
        ),
    ]);
    for (key, value) in changes {
        match value {
            Some(value) => metadata.insert((*key).into(), value.clone()),
            None => metadata.remove(*key),
        };
    }
    metadata
}

#[test]
fn byte_level_words_are_cut_and_marked() {
    let tokenizer = Tokenizer::from_gguf(&words(&[])).unwrap();
    assert_eq!(
        tokenizer.encode_ids("cat<|end|>", true).unwrap(),
        [99, 256, 257]
    );
    assert_eq!(tokenizer.encode_user_text("<|end|>").unwrap().len(), 7);
    assert_eq!(tokenizer.decode(&[99, 256, 257], true).unwrap(), "cat");
    assert!(tokenizer.template().is_some());
    let marked = words(&[("tokenizer.ggml.add_eos_token", Some(Value::Bool(true)))]);
    let tokenizer = Tokenizer::from_gguf(&marked).unwrap();
    assert_eq!(tokenizer.encode_ids("at", true).unwrap(), [256, 257]);
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let text = |text: &str| Some(Value::Text(text.into()));
    let cases = [
        (("tokenizer.ggml.model", None), "has no tokenizer"),
        (("tokenizer.ggml.model", text("none")), "has no tokenizer"),
        (
            ("tokenizer.ggml.model", text("plamo2")),
            "`plamo2`; llama, gpt2, bert and t5 are read",
        ),
        (
            ("tokenizer.ggml.pre", text("qwen3")),
            "`qwen3`, whose words are not known here",
        ),
        (
            ("tokenizer.ggml.merges", None),
            "`tokenizer.ggml.merges` is missing",
        ),
        (
            ("tokenizer.ggml.merges", Some(Value::texts(["a  t".into()]))),
            "no pair of tokens",
        ),
        (
            ("tokenizer.ggml.token_type", Some(Value::integers([1]))),
            "1 entries for 258 tokens",
        ),
        (
            ("tokenizer.ggml.tokens", Some(Value::integers([1]))),
            "no list of texts",
        ),
        (
            ("tokenizer.chat_template", text("{% if %}")),
            "chat template",
        ),
    ];
    for (change, expected) in cases {
        let error = Tokenizer::from_gguf(&words(&[change]))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

/// Every tokenizer of the fixtures that can be written cuts the same texts the same afterwards.
#[test]
fn written_tokenizers_cut_the_same() {
    const TEXTS: [&str; 8] = [
        "the cat sat on the mat",
        " Two  spaces,\tand\n\nlines",
        "I'm 12345 years old; you're not.",
        "Größe, naïve, 東京, 🦀!",
        "a",
        "",
        "<s>not a mark</s>",
        "x = [1, 2.5]; // code_with_names",
    ];
    let folder = format!("{FIXTURES}/../tokenizers");
    let mut written = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(tokenizer) = Tokenizer::load(&path) else {
            continue;
        };
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let rows = tokenizer.vocabulary_size() + 3;
        let metadata = match tokenizer.to_gguf(rows) {
            Ok(metadata) => metadata,
            Err(error) => {
                assert!(
                    error.to_string().contains("cannot be written as GGUF"),
                    "{name}: {error}"
                );
                continue;
            }
        };
        let again =
            Tokenizer::from_gguf(&metadata).unwrap_or_else(|error| panic!("{name}: {error}"));
        for text in TEXTS {
            for special in [false, true] {
                let ids = |tokenizer: &Tokenizer| tokenizer.encode_ids(text, special).unwrap();
                assert_eq!(ids(&again), ids(&tokenizer), "{name}: {text:?}");
            }
        }
        // BERT's texts end with its separator, which llama.cpp calls their end.
        if let Some(end) = &tokenizer.special().eos {
            assert_eq!(again.special().eos.as_ref(), Some(end), "{name}");
        }
        // Rows without a token have names, but in the whole file of a pipeline that llama.cpp does not have.
        let whole = metadata.contains_key("tokenizer.huggingface.json");
        let expected = if whole {
            tokenizer.vocabulary_size()
        } else {
            rows
        };
        assert_eq!(again.vocabulary_size(), expected, "{name}");
        written.push(name);
    }
    written.sort();
    println!("{written:?}");
    assert!(written.len() >= 3, "{written:?}");
}
