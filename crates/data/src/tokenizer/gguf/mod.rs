//! The tokenizer and the chat templates of a GGUF file, as llama.cpp's converters write them into its metadata.
//!
//! `tokenizer.ggml.model` says how texts are cut: `llama` is SentencePiece's BPE by the scores of pieces, `gpt2` byte-level BPE by merges
//! over words that `tokenizer.ggml.pre` cuts (see [`words`]), `bert` WordPiece, `t5` SentencePiece's unigram, `rwkv` the table of RWKV.
//! Where a file has the whole `tokenizer.json`, that is read.
//!
//! Which token stands before or behind a text is llama.cpp's rule: `add_bos_token` and `add_eos_token` where the file has them, else a
//! beginning for SentencePiece and Llama 3's words, both marks for WordPiece, an end for `t5`.

mod pieces;
mod word_piece;
mod words;
mod write;

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value as Json, json};

use super::{
    Companion, DEFAULT_TEMPLATE, SpecialTokens, Tokenizer, added_tokens::Added, files::in_folder,
};
use crate::{
    Error, Result,
    gguf::{self, Metadata, ReadError, Value},
    template::ChatTemplate,
};

/// How the names of such files end.
const ENDING: &str = "gguf";
/// Kinds of tokens.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// The GGUF file that `path` is, or the only one of a folder.
pub(super) fn file_in(path: &Path) -> Option<PathBuf> {
    let ends =
        |path: &Path| path.extension().is_some_and(|ending| ending == ENDING) && path.is_file();
    if ends(path) {
        return Some(path.to_path_buf());
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut found = entries.map(|entry| entry.path()).filter(|path| ends(path));
    found.next().filter(|_| found.next().is_none())
}

/// The metadata of a file.
fn metadata(path: &Path) -> Result<Metadata> {
    let file = File::open(path).map_err(|source| Error::file(path, source))?;
    let length = file
        .metadata()
        .map_err(|source| Error::file(path, source))?
        .len();
    let header = gguf::read_header(file, length).map_err(|error| match error {
        ReadError::Io(source) => Error::file(path, source),
        ReadError::Broken(reason) => Error::Tokenizer(format!("{}: {reason}", path.display())),
    })?;
    Ok(header.metadata)
}

/// As [`file_in`], where the file says that it has a tokenizer, or is damaged.
pub(super) fn file_with_tokenizer_in(path: &Path) -> Option<PathBuf> {
    let has_one =
        |path: &PathBuf| metadata(path).map_or(true, |metadata| model(&metadata).is_some());
    file_in(path).filter(has_one)
}

/// The kind of the tokenizer in a file's metadata, where it has one.
fn model(metadata: &Metadata) -> Option<&str> {
    let model = metadata
        .get("tokenizer.ggml.model")
        .and_then(Value::as_text);
    model.filter(|model| !["none", "no_vocab"].contains(model))
}

/// Reads the tokenizer of a file.
///
/// # Errors
/// When the file is damaged, has no tokenizer, or one of a kind that is not read.
pub(super) fn load(path: &Path) -> Result<Tokenizer> {
    Tokenizer::from_gguf(&metadata(path)?).map_err(|error| in_folder(path, error))
}

impl Tokenizer {
    /// The tokenizer and the chat templates in the metadata of a GGUF file.
    ///
    /// # Errors
    /// When there is none, a part is missing, or it is of a kind that is not read.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let vocabulary = Vocabulary::read(metadata)?;
        let special = vocabulary.special();
        let json = metadata
            .get("tokenizer.huggingface.json")
            .and_then(Value::as_text);
        let mut tokenizer = match (json, vocabulary.model) {
            (Some(json), _) => Self::from_json(json.as_bytes())?,
            (None, "llama") => pieces::by_merges(&vocabulary, &special)?,
            (None, "t5") => pieces::by_likelihood(&vocabulary, &special)?,
            (None, "gpt2") => words::tokenizer(&vocabulary)?,
            (None, "bert") => word_piece::tokenizer(&vocabulary)?,
            (None, other) => {
                return Err(Error::Tokenizer(format!(
                    "`tokenizer.ggml.model` is `{other}`; llama, gpt2, bert and t5 are read: put the model's tokenizer.json beside the file"
                )));
            }
        };
        tokenizer.companion = Arc::new(Companion {
            special,
            templates: templates(metadata)?,
            config: vocabulary.config(),
        });
        Ok(tokenizer)
    }
}

/// `tokenizer.chat_template`, and those with a name behind it.
fn templates(metadata: &Metadata) -> Result<BTreeMap<String, ChatTemplate>> {
    const KEY: &str = "tokenizer.chat_template";
    let named = metadata.iter().filter_map(|(key, value)| {
        let name = match key.strip_prefix(KEY)? {
            "" => DEFAULT_TEMPLATE,
            rest => rest.strip_prefix('.')?,
        };
        Some((name.to_owned(), value.as_text()?))
    });
    named
        .map(|(name, source)| Ok((name, ChatTemplate::new(source)?)))
        .collect()
}

/// What the metadata says of the vocabulary.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    model: &'a str,
    /// By id.
    tokens: Vec<String>,
    kinds: Vec<u64>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let tokens = metadata
            .get("tokenizer.ggml.tokens")
            .and_then(Value::as_list);
        let (Some(model), Some(tokens)) = (model(metadata), tokens) else {
            return Err(Error::Tokenizer(
                "the file has no tokenizer; put the model's tokenizer.json beside it".into(),
            ));
        };
        // An empty token would be found everywhere.
        let token = |(id, token): (usize, &Value)| match token.as_text() {
            Some("") => Ok(format!("[EMPTY_{id}]")),
            Some(token) => Ok(token.to_owned()),
            None => Err(Error::Tokenizer(
                "`tokenizer.ggml.tokens` is no list of texts".into(),
            )),
        };
        let tokens = tokens
            .iter()
            .enumerate()
            .map(token)
            .collect::<Result<Vec<_>>>()?;
        let kinds = metadata
            .get("tokenizer.ggml.token_type")
            .and_then(Value::as_list);
        let kinds: Vec<u64> = kinds
            .unwrap_or_default()
            .iter()
            .map(|kind| kind.as_u64().unwrap_or(0))
            .collect();
        if !kinds.is_empty() && kinds.len() < tokens.len() {
            return Err(Error::Tokenizer(format!(
                "`tokenizer.ggml.token_type` has {} entries for {} tokens",
                kinds.len(),
                tokens.len()
            )));
        }
        Ok(Self {
            metadata,
            model,
            tokens,
            kinds,
        })
    }

    fn kind(&self, id: usize) -> u64 {
        self.kinds.get(id).copied().unwrap_or(1)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.metadata
            .get(&format!("tokenizer.ggml.{key}"))?
            .as_bool()
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.metadata
            .get(&format!("tokenizer.ggml.{key}"))?
            .as_text()
    }

    fn list(&self, key: &str) -> Option<&'a [Value]> {
        self.metadata
            .get(&format!("tokenizer.ggml.{key}"))?
            .as_list()
    }

    /// The token under the id that a key names, with that id.
    fn role(&self, key: &str) -> Option<(&str, u32)> {
        let id = self
            .metadata
            .get(&format!("tokenizer.ggml.{key}_token_id"))?
            .as_u64()?;
        let token = self.tokens.get(usize::try_from(id).ok()?)?;
        Some((token, u32::try_from(id).ok()?))
    }

    fn special(&self) -> SpecialTokens {
        let token = |key: &str| self.role(key).map(|(token, _)| token.to_owned());
        let extra = [
            ("cls_token", "cls"),
            ("sep_token", "seperator"),
            ("mask_token", "mask"),
        ];
        let extra = extra
            .into_iter()
            .filter_map(|(name, key)| Some((name.to_owned(), token(key)?)));
        SpecialTokens {
            bos: token("bos"),
            eos: token("eos"),
            pad: token("padding"),
            unk: token("unknown"),
            extra: extra.collect(),
        }
    }

    /// Whether a beginning stands before a text, and an end behind it.
    fn marks(&self) -> [bool; 2] {
        let words_begin = self.text("pre").is_some_and(words::begin);
        let usual = match self.model {
            "llama" => [true, false],
            "bert" => [true, true],
            "t5" => [false, true],
            _ => [words_begin, false],
        };
        ["add_bos_token", "add_eos_token"]
            .iter()
            .zip(usual)
            .map(|(key, usual)| self.flag(key).unwrap_or(usual))
            .collect::<Vec<_>>()
            .try_into()
            .unwrap_or(usual)
    }

    /// What a `tokenizer_config.json` would say.
    fn config(&self) -> Map<String, Json> {
        let [begin, end] = self.marks();
        let flags = [
            ("add_bos_token", Some(begin)),
            ("add_eos_token", Some(end)),
            ("do_lower_case", self.flag("normalizer.lowercase")),
            ("strip_accents", self.flag("normalizer.strip_accents")),
        ];
        let given = flags
            .into_iter()
            .filter_map(|(key, flag)| Some((key.to_owned(), json!(flag?))));
        given.collect()
    }

    /// Tokens that are found before a text is cut: marks are special, what users defined is not.
    fn added(&self) -> Vec<Added> {
        let added = self.tokens.iter().enumerate().filter_map(|(id, token)| {
            let special = match self.kind(id) {
                CONTROL | UNKNOWN => true,
                USER_DEFINED => false,
                _ => return None,
            };
            let id = u32::try_from(id).ok()?;
            Some(Added {
                special,
                ..Added::special(id, token)
            })
        });
        added.collect()
    }
}
