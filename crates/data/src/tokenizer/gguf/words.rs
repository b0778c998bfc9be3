//! Byte-level BPE over words, which the regular expressions of `tokenizer.ggml.pre` cut.
//!
//! Expressions are applied one after another, each to what those before left in one piece. Texts are not normalised, but to NFC for Qwen 2
//! and 3, which were trained so; llama.cpp leaves that out.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::Vocabulary;
use crate::{
    Error, Result,
    nearest::suggestion,
    tokenizer::{
        Tokenizer,
        parts::{Parts, around, sequence},
    },
};

const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
pub(super) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
pub(super) const DIGIT: &str = r"\p{N}";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";
const CHINESE: &str = "[一-龥ࠀ-一가-퟿]+";
/// Letters of scripts with cases; those that composition would change are escaped.
const DEEPSEEK_WORDS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_MARKS: &str = "\\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK3_WORDS: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const UPPER: &str = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
const LOWER: &str = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";

/// How a text is cut into words.
struct Words {
    expressions: Vec<String>,
    /// Whether a whole word that is a token needs no merges.
    whole_words: bool,
    /// Whether texts are composed first.
    composed: bool,
}

/// GPT-4's words, with so many digits together.
fn gpt4(letters: &str, digits: &str, others: &str) -> String {
    format!(
        r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s{others}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// Words that begin anew at capital letters.
fn by_case(contractions: &str, digits: &str) -> String {
    format!(
        r"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{contractions}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{contractions}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// The names of `tokenizer.ggml.pre` that cut as the first of their line does.
const NAMES: &[&[&str]] = &[
    &[
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "jina-v5-nano",
    ],
    &[
        "qwen2",
        "deepseek-r1-qwen",
        "kormo",
        "f2llmv2",
        "megrez",
        "stablelm2",
        "hunyuan",
        "solar-open",
        "grok-2",
    ],
    &[
        "gpt-2",
        "phi-2",
        "jina-es",
        "jina-de",
        "jina-v2-es",
        "jina-v2-de",
        "jina-v1-en",
        "jina-v2-code",
        "roberta-bpe",
        "gigachat",
        "a.x-4.0",
        "mellum",
        "modern-bert",
        "mpt",
        "olmo",
        "jais",
        "trillion",
        "granite-docling",
        "exaone4",
    ],
    &[
        "starcoder",
        "refact",
        "command-r",
        "smollm",
        "codeshell",
        "exaone",
        "minerva-7b",
        "mellum2",
    ],
    &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
    &["glm4", "glm5"],
    &["dbrx", "smaug-bpe", "chatglm-bpe"],
    &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
    &["tekken"],
    &["qwen35"],
    &["falcon"],
    &["deepseek-llm"],
    &["deepseek-coder"],
    &["default"],
    &["poro-chat", "bloom", "gpt3-finnish"],
    &["viking"],
    &["seed-coder"],
    &["bailingmoe", "bailingmoe2", "llada-moe"],
];

/// The first name of the line that has this one.
fn family(name: &str) -> Option<&'static str> {
    let line = NAMES.iter().find(|names| names.contains(&name))?;
    line.first().copied()
}

/// Whether a beginning stands before a text where the file does not say.
pub(super) fn begin(name: &str) -> bool {
    matches!(family(name), Some("llama-bpe" | "tekken"))
}

fn words(name: &str) -> Option<Words> {
    let digits = r"\p{N}{1,3}";
    let poro = " ?[^(\\s|.,!?…。，、।۔،)]+";
    let letters = (r"\p{L}", r"\p{L}");
    let first = family(name)?;
    let expressions = match first {
        "llama-bpe" | "glm4" | "dbrx" => vec![gpt4(letters.0, digits, letters.1)],
        "qwen2" => vec![gpt4(letters.0, DIGIT, letters.1)],
        "qwen35" => vec![gpt4(r"[\p{L}\p{M}]", DIGIT, r"\p{L}\p{M}")],
        "gpt-2" => vec![GPT2.into()],
        "starcoder" => vec![DIGIT.into(), GPT2.into()],
        "deepseek-v3" => vec![digits.into(), "[一-龥぀-ゟ゠-ヿ]+".into(), DEEPSEEK3_WORDS.into()],
        "deepseek-llm" => vec![
            r"[\r\n]".into(), DEEPSEEK_WORDS.into(), DEEPSEEK_MARKS.into(), r"\s+$".into(), CHINESE.into(), r"\p{N}+".into(),
        ],
        "deepseek-coder" => vec![r"[\r\n]".into(), r"\s?\p{L}+".into(), r"\s?\p{P}+".into(), CHINESE.into(), DIGIT.into()],
        "falcon" => vec![r"[\p{P}\$\+<=>\^~\|`]+".into(), GPT2.into(), THREE_DIGITS.into()],
        "default" => vec![r"[\p{P}\$\+<=>\^~\|]+".into(), GPT2.into(), r"\p{N}+".into(), THREE_DIGITS.into()],
        "gpt-4o" => vec![by_case(&format!("{CONTRACTIONS}?"), digits)],
        "tekken" => vec![by_case("", DIGIT)],
        "poro-chat" => vec![poro.into()],
        "viking" => vec![poro.into(), DIGIT.into()],
        "seed-coder" => vec![format!(
            r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        "bailingmoe" => vec![
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+".into(),
        ],
        _ => return None,
    };
    Some(Words {
        expressions,
        whole_words: matches!(first, "llama-bpe" | "tekken" | "glm4"),
        composed: first == "qwen2",
    })
}

/// The name under which words are cut by these expressions.
pub(super) fn name(expressions: &[String]) -> Option<&'static str> {
    let mut lines = NAMES.iter().filter_map(|names| names.first().copied());
    lines.find(|name| words(name).is_some_and(|words| words.expressions == expressions))
}

pub(super) fn tokenizer(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer> {
    let name = vocabulary.text("pre").unwrap_or("default");
    let words = words(name).ok_or_else(|| {
        let hint = suggestion(name, NAMES.iter().flat_map(|names| names.iter().copied()));
        Error::Tokenizer(format!(
            "`tokenizer.ggml.pre` is `{name}`, whose words are not known here{hint}; put the model's tokenizer.json beside the file"
        ))
    })?;
    let ids: HashMap<&str, u32> = vocabulary
        .tokens
        .iter()
        .map(String::as_str)
        .zip(0..)
        .collect();
    let merges = vocabulary.list("merges").ok_or_else(|| {
        Error::Tokenizer("`tokenizer.ggml.merges` is missing; convert the model again".into())
    })?;
    let split = |expression: &String| json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false });
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let steps = words.expressions.iter().map(split).chain([bytes]);
    let [begin, end] = vocabulary.marks();
    let mark = |role: &str, asked: bool| vocabulary.role(role).filter(|_| asked);
    let (bos, eos) = (mark("bos", begin), mark("eos", end));
    let parts = Parts {
        normalizer: match words.composed {
            true => json!({ "type": "NFC" }),
            false => Json::Null,
        },
        pre_tokenizer: sequence("pretokenizers", steps.collect()),
        post_processor: match (bos, eos) {
            (None, None) => Json::Null,
            _ => around(bos.as_slice(), eos.as_slice()),
        },
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": words.whole_words, "vocab": ids,
            "merges": pairs(merges, &ids)?,
        }),
    };
    parts.build(&vocabulary.added())
}

/// Each merge as its two parts, which a space divides.
fn pairs<'a>(
    merges: &'a [crate::gguf::Value],
    ids: &HashMap<&str, u32>,
) -> Result<Vec<[&'a str; 2]>> {
    let pair = |merge: &'a crate::gguf::Value| {
        let text = merge.as_text().unwrap_or_default();
        // A part may itself be a space in files that write no bytes as letters.
        let cuts = text
            .char_indices()
            .skip(1)
            .filter(|(_, letter)| *letter == ' ');
        let parts = cuts.map(|(place, _)| [&text[..place], &text[place + 1..]]);
        let mut known = parts.filter(|parts| parts.iter().all(|part| ids.contains_key(part)));
        known.next()
    };
    merges
        .iter()
        .map(|merge| {
            pair(merge).ok_or_else(|| {
                Error::Tokenizer(format!(
                    "`tokenizer.ggml.merges` has {merge:?}, which is no pair of tokens"
                ))
            })
        })
        .collect()
}
