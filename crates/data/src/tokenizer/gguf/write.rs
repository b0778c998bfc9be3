//! A tokenizer as the metadata of a GGUF file, from which llama.cpp and this crate cut texts the same.
//!
//! Merges of a SentencePiece vocabulary become scores, the first merge that makes a piece the highest; words of byte-level BPE must be among
//! those that llama.cpp has a name for. A pipeline that llama.cpp's rules do not say in full is written as its whole `tokenizer.json` besides.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::{CONTROL, UNKNOWN, USER_DEFINED, words};
use crate::{
    Error, Result,
    gguf::{Metadata, Value},
    tokenizer::{DEFAULT_TEMPLATE, Tokenizer},
};

/// The kinds of tokens that [`super`] does not name.
const NORMAL: u64 = 1;
const UNUSED: u64 = 5;
const BYTE: u64 = 6;

/// Texts that pipelines cut differently which are alike elsewhere.
const PROBES: [&str; 8] = [
    "a",
    " a",
    "  a b",
    "a  b ",
    "\n a\tb",
    "A1234 é e\u{301}",
    "<s> a</s> b",
    "it's 東京. \r\n",
];

impl Tokenizer {
    /// The metadata for a model with so many rows, at least as many as there are tokens. Rows without a token get names of their own.
    ///
    /// # Errors
    /// When the tokenizer is of a kind that llama.cpp does not have, or cuts words as it does not.
    pub fn to_gguf(&self, rows: usize) -> Result<Metadata> {
        let file: Json =
            serde_json::from_str(&self.main_file()?).map_err(|_| refused("it is RWKV's table"))?;
        let mut metadata = Metadata::new();
        let mut set =
            |key: &str, value: Value| _ = metadata.insert(format!("tokenizer.{key}"), value);
        let model = &file["model"];
        let mut tokens: Vec<String> = (0..rows as u32)
            .map(|id| self.token(id).unwrap_or_else(|| format!("[PAD{id}]")))
            .collect();
        match (model["type"].as_str(), is_byte_level(&file)) {
            (Some("BPE"), true) => {
                let name = words::name(&expressions(&file["pre_tokenizer"])?)
                    .ok_or_else(|| refused("llama.cpp has no name for the words that it cuts"))?;
                set("ggml.model", Value::Text("gpt2".into()));
                set("ggml.pre", Value::Text(name.into()));
                let merges = merges(model)?
                    .into_iter()
                    .map(|[left, right]| format!("{left} {right}"));
                set("ggml.merges", Value::texts(merges));
            }
            (Some("BPE"), false) => {
                set("ggml.model", Value::Text("llama".into()));
                set("ggml.pre", Value::Text("default".into()));
                let scores = scores(&tokens, &merges(model)?);
                set("ggml.scores", Value::floats(scores));
                set(
                    "ggml.add_space_prefix",
                    Value::Bool(self.begins_with_space()?),
                );
            }
            (Some("WordPiece"), _) => {
                set("ggml.model", Value::Text("bert".into()));
                for key in ["lowercase", "strip_accents"] {
                    if let Some(flag) = file["normalizer"][key].as_bool() {
                        set(&format!("ggml.normalizer.{key}"), Value::Bool(flag));
                    }
                }
                tokens = tokens
                    .into_iter()
                    .map(|token| word_piece(self, token))
                    .collect();
            }
            (other, _) => {
                let name = other.unwrap_or("unknown");
                return Err(refused(&format!(
                    "its model is {name}; BPE and WordPiece are written"
                )));
            }
        }
        let kinds = (0..rows as u32).map(|id| self.kind(id) as i32);
        set("ggml.token_type", Value::integers(kinds));
        set("ggml.tokens", Value::texts(tokens));
        for (key, value) in self.roles()? {
            set(&format!("ggml.{key}"), value);
        }
        for (name, template) in &self.companion.templates {
            let key = match name.as_str() {
                DEFAULT_TEMPLATE => "chat_template".to_owned(),
                name => format!("chat_template.{name}"),
            };
            set(&key, Value::Text(template.source().to_owned()));
        }
        // What llama.cpp's rules cannot say is said to those who read the whole file.
        let again = Self::from_gguf(&metadata)?;
        for text in PROBES {
            if again.encode_ids(text, true)? != self.encode_ids(text, true)? {
                let file = Value::Text(self.main_file()?);
                metadata.insert("tokenizer.huggingface.json".into(), file);
                break;
            }
        }
        Ok(metadata)
    }

    fn kind(&self, id: u32) -> u64 {
        let Some(token) = self.token(id) else {
            return UNUSED;
        };
        let is_byte = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        match () {
            _ if self.special().unk.as_deref() == Some(&token) => UNKNOWN,
            _ if self.is_special(id) => CONTROL,
            _ if self.is_added(id) => USER_DEFINED,
            _ if is_byte => BYTE,
            _ => NORMAL,
        }
    }

    /// The ids of special tokens, and which of them stand around a text.
    fn roles(&self) -> Result<Vec<(String, Value)>> {
        let special = self.special();
        let extra = |key: &str| special.extra.get(key);
        let id = |token: Option<&String>| token.and_then(|token| self.id(token));
        let ids = [
            ("bos", id(special.bos.as_ref()).or(id(extra("cls_token")))),
            ("eos", id(special.eos.as_ref()).or(id(extra("sep_token")))),
            ("unknown", id(special.unk.as_ref())),
            ("padding", id(special.pad.as_ref())),
            ("seperator", id(extra("sep_token"))),
            ("mask", id(extra("mask_token"))),
        ];
        let with = self.encode_ids("a", true)?;
        let begins = ids[0].1.is_some_and(|id| with.first() == Some(&id));
        let ends = ids[1].1.is_some_and(|id| with.last() == Some(&id));
        let named = ids
            .into_iter()
            .filter_map(|(role, id)| Some((format!("{role}_token_id"), Value::U32(id?))));
        Ok(named
            .chain([
                ("add_bos_token".to_owned(), Value::Bool(begins)),
                ("add_eos_token".to_owned(), Value::Bool(ends)),
            ])
            .collect())
    }

    /// Whether the text of a letter becomes a piece that begins with a space.
    fn begins_with_space(&self) -> Result<bool> {
        let ids = self.encode_ids("a", false)?;
        let first = ids.first().and_then(|id| self.token(*id));
        Ok(first.is_some_and(|token| token.starts_with('▁')))
    }
}

fn refused(reason: &str) -> Error {
    Error::Tokenizer(format!("cannot be written as GGUF: {reason}"))
}

/// The steps of a part of the pipeline.
fn steps(part: &Json) -> Vec<&Json> {
    let inner = ["pretokenizers", "decoders", "normalizers"]
        .iter()
        .find_map(|key| part[*key].as_array());
    match inner {
        Some(inner) => inner.iter().flat_map(steps).collect(),
        None => vec![part],
    }
}

fn is_byte_level(file: &Json) -> bool {
    let is = |part: &&Json| part["type"] == "ByteLevel";
    steps(&file["pre_tokenizer"]).iter().any(is) || steps(&file["normalizer"]).iter().any(is)
}

/// The regular expressions that cut words.
fn expressions(part: &Json) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for step in steps(part) {
        match step["type"].as_str() {
            Some("Split") if step["behavior"] == "Isolated" => {
                let pattern = step["pattern"]["Regex"].as_str();
                found.push(
                    pattern
                        .ok_or_else(|| refused("it cuts at a text"))?
                        .to_owned(),
                );
            }
            Some("Digits") if step["individual_digits"] == true => found.push(words::DIGIT.into()),
            Some("ByteLevel") if step["add_prefix_space"] == true => {
                return Err(refused("it puts a space before a text"));
            }
            Some("ByteLevel") if step["use_regex"] != false => found.push(words::GPT2.into()),
            Some("ByteLevel") => {}
            other => {
                return Err(refused(&format!(
                    "its words are cut by {}",
                    other.unwrap_or("nothing known")
                )));
            }
        }
    }
    Ok(found)
}

/// Merges as pairs, in either form of `tokenizer.json`.
fn merges(model: &Json) -> Result<Vec<[String; 2]>> {
    let pair = |merge: &Json| match merge {
        Json::String(text) => text
            .split_once(' ')
            .map(|(left, right)| [left.to_owned(), right.to_owned()]),
        Json::Array(parts) => match &parts[..] {
            [Json::String(left), Json::String(right)] => Some([left.clone(), right.clone()]),
            _ => None,
        },
        _ => None,
    };
    let merges = model["merges"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let pairs: Option<Vec<_>> = merges.iter().map(pair).collect();
    pairs.ok_or_else(|| refused("a merge is no pair"))
}

/// A piece's score is minus the place of the first merge that makes it; what no merge makes comes last.
fn scores(tokens: &[String], merges: &[[String; 2]]) -> Vec<f32> {
    let mut first: HashMap<String, usize> = HashMap::new();
    for (place, parts) in merges.iter().enumerate() {
        first.entry(parts.concat()).or_insert(place);
    }
    let score = |token: &String| first.get(token).map_or(-1e6, |place| -(*place as f32));
    tokens.iter().map(score).collect()
}

/// A word of BERT's as llama.cpp has it.
fn word_piece(tokenizer: &Tokenizer, token: String) -> String {
    let is_mark = tokenizer
        .id(&token)
        .is_some_and(|id| tokenizer.is_added(id))
        || token.starts_with("[PAD");
    match token.strip_prefix("##") {
        Some(rest) => rest.to_owned(),
        None if is_mark || token.starts_with('[') && token.ends_with(']') && token.len() > 2 => {
            token
        }
        None => format!("▁{token}"),
    }
}
