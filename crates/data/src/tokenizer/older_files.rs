//! Tokenizers in the files that were there before `tokenizer.json`: `vocab.json` with `merges.txt` (GPT-2, RoBERTa, Qwen), `vocab.txt`
//! (BERT), and SentencePiece models (LLaMA, Gemma, T5, XLM-RoBERTa, ALBERT).
//!
//! Each becomes the pipeline that transformers builds of it; ids are the same, text by text.
//!
//! Source: transformers 5, `tokenization_utils_tokenizers.py` and the classes that [`class`] lists.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::added_tokens::{Added, Sources};
use super::class::{self, Chosen, Form};
use super::files::{SmallFiles, in_folder, read, read_bytes};
use super::parts::{Parts, around, sequence};
use super::sentencepiece::{self, Pieces};
use super::{SpecialTokens, Tokenizer, rwkv_world};
use crate::{Error, Result};

/// Qwen's words: as GPT-4's, with digits one by one.
const QWEN_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A vocabulary as its files hold it.
enum Vocabulary {
    /// `vocab.json` and `merges.txt`.
    Merges(HashMap<String, u32>, Vec<(String, String)>),
    /// `vocab.txt`.
    Words(HashMap<String, u32>),
    /// A SentencePiece model.
    Pieces(Pieces),
}

impl Vocabulary {
    fn id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Merges(ids, _) | Self::Words(ids) => ids.get(token).copied(),
            Self::Pieces(pieces) => pieces.id(token),
        }
    }

    /// One above the largest id.
    fn size(&self) -> u32 {
        match self {
            Self::Merges(ids, _) | Self::Words(ids) => ids.values().max().map_or(0, |id| id + 1),
            Self::Pieces(pieces) => pieces.size(),
        }
    }

    /// Added tokens get their ids one after another behind the vocabulary; those that want others become words of it.
    fn make_room(&mut self, added: &[Added]) -> Result<()> {
        let new: Vec<&Added> = added
            .iter()
            .filter(|token| self.id(&token.content).is_none())
            .collect();
        let size = self.size();
        match self {
            Self::Merges(ids, _) | Self::Words(ids) => {
                let in_a_row = new.iter().zip(size..).all(|(token, id)| token.id == id);
                if in_a_row && ids.len() == size as usize {
                    Ok(())
                } else {
                    insert(ids, &new)
                }
            }
            Self::Pieces(pieces) => pieces.make_room(&new),
        }
    }
}

fn insert(ids: &mut HashMap<String, u32>, new: &[&Added]) -> Result<()> {
    for token in new {
        if let Some((other, _)) = ids.iter().find(|(_, id)| **id == token.id) {
            let (content, id) = (&token.content, token.id);
            return Err(Error::Tokenizer(format!(
                "the added token `{content}` has id {id}, which is `{other}`'s"
            )));
        }
        ids.insert(token.content.clone(), token.id);
    }
    Ok(())
}

/// Reads whichever of the older files a folder has; `special` gets the roles that its class gives.
pub(super) fn load(
    folder: &Path,
    small: &SmallFiles,
    special: &mut SpecialTokens,
) -> Result<Tokenizer> {
    let (mut vocabulary, class, form) = find(folder, small)?;
    let listed = small.listed_tokens();
    let known = |token: &str| vocabulary.id(token).is_some() || listed.contains(token);
    class::fill_special(class, &small.config, &known, special);
    if let Vocabulary::Pieces(pieces) = &vocabulary {
        pieces.fill_special(form, special);
    }
    let sources = Sources {
        config: &small.config,
        special_map: &small.special_map,
        added: &small.added,
        special,
    };
    let more = match &vocabulary {
        Vocabulary::Pieces(pieces) => pieces.added(),
        _ => Vec::new(),
    };
    let mut added = sources.tokens(&|token| vocabulary.id(token), vocabulary.size(), more);
    if let Vocabulary::Pieces(pieces) = &mut vocabulary
        && form == Form::AsWritten
    {
        pieces.rename(&mut added);
    }
    vocabulary
        .make_room(&added)
        .map_err(|reason| in_folder(folder, reason))?;
    let id = |token: &str| {
        let of_added = added
            .iter()
            .find(|added| added.content == token)
            .map(|added| added.id);
        vocabulary.id(token).or(of_added)
    };
    let marks = Marks {
        config: &small.config,
        special,
        id: &id,
    };
    let parts = match &vocabulary {
        Vocabulary::Merges(ids, merges) => byte_level(form, ids, merges, &marks),
        Vocabulary::Words(ids) => word_piece(form, ids, &marks),
        Vocabulary::Pieces(pieces) => sentencepiece::parts(form, pieces, &marks),
    };
    parts
        .and_then(|parts| parts.build(&added))
        .map_err(|reason| in_folder(folder, reason))
}

/// The vocabulary of a folder with the class that reads it.
fn find(folder: &Path, small: &SmallFiles) -> Result<(Vocabulary, &'static str, Form)> {
    let chosen = class::choose(&small.config, &small.model).map_err(|name| {
        let fix = "save it with transformers, which writes one";
        Error::Tokenizer(format!(
            "{}: no tokenizer.json here, and `{name}` is not read without one: {fix}",
            folder.display()
        ))
    })?;
    let there = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    let merges = there("vocab.json").zip(there("merges.txt"));
    let words = there("vocab.txt");
    let pieces = sentencepiece::FILES.iter().find_map(|name| there(name));
    match (chosen, merges, pieces, words) {
        (Chosen::Known(name, form), _, Some(path), _) if form.is_sentencepiece() => {
            Ok((read_pieces(&path, form, small)?, name, form))
        }
        (Chosen::Known(name, form @ (Form::Bert | Form::MpNet)), _, _, Some(path)) => {
            Ok((read_words(&path)?, name, form))
        }
        (
            Chosen::Known(name, form @ (Form::Gpt2 | Form::GptNeoX | Form::Qwen2 | Form::Roberta)),
            Some(paths),
            _,
            _,
        ) => Ok((read_merges(&paths.0, &paths.1)?, name, form)),
        (Chosen::Open, Some(paths), _, _) => Ok((
            read_merges(&paths.0, &paths.1)?,
            "GPT2Tokenizer",
            Form::Gpt2,
        )),
        (Chosen::Open, None, Some(path), _) => Ok((
            read_pieces(&path, Form::AsWritten, small)?,
            "",
            Form::AsWritten,
        )),
        (Chosen::Open, None, None, Some(path)) => match read_words(&path)? {
            words if words.id("[CLS]").is_some() => Ok((words, "BertTokenizer", Form::Bert)),
            // Others call their tables so too.
            _ => Err(nothing(folder, chosen)),
        },
        (chosen, ..) => Err(nothing(folder, chosen)),
    }
}

fn nothing(folder: &Path, chosen: Chosen) -> Error {
    let (folder, table) = (folder.display(), rwkv_world::VOCABULARY);
    Error::Tokenizer(match chosen {
        Chosen::Open => format!(
            "{folder}: no tokenizer.json here (nor vocab.json with merges.txt, nor a SentencePiece model such as tokenizer.model, nor vocab.txt, nor {table}); name the folder of a model or train a tokenizer"
        ),
        Chosen::Known(name, form) => {
            let files = match form {
                Form::Bert | Form::MpNet => "vocab.txt".to_owned(),
                form if form.is_sentencepiece() => sentencepiece::FILES.join(" or "),
                _ => "vocab.json with merges.txt".to_owned(),
            };
            format!("{folder}: no tokenizer.json here, nor {files}, which `{name}` reads")
        }
    })
}

fn read_pieces(path: &Path, form: Form, small: &SmallFiles) -> Result<Vocabulary> {
    let bytes = read_bytes(path)?;
    let extra = small
        .config
        .get("extra_ids")
        .and_then(Value::as_u64)
        .unwrap_or(100);
    Pieces::read(path, &bytes, form, extra.min(1 << 16) as u32).map(Vocabulary::Pieces)
}

fn read_words(path: &Path) -> Result<Vocabulary> {
    let text = read(path)?;
    let words = text
        .lines()
        .zip(0..)
        .map(|(word, id)| (word.to_owned(), id));
    Ok(Vocabulary::Words(words.collect()))
}

fn read_merges(vocabulary: &Path, merges: &Path) -> Result<Vocabulary> {
    let ids = serde_json::from_str(&read(vocabulary)?)
        .map_err(|reason| Error::Tokenizer(format!("{}: {reason}", vocabulary.display())))?;
    Ok(Vocabulary::Merges(
        ids,
        parse_merges(merges, &read(merges)?)?,
    ))
}

/// One "left right" a line, after an optional `#version` line.
fn parse_merges(path: &Path, text: &str) -> Result<Vec<(String, String)>> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    let parse = |(number, line): (usize, &str)| {
        let pair = line
            .split_once(' ')
            .filter(|(_, right)| !right.contains(' '));
        let (left, right) = pair.ok_or_else(|| {
            Error::Tokenizer(format!(
                "{}:{}: expected two tokens with a space between",
                path.display(),
                number + 1
            ))
        })?;
        Ok((left.to_string(), right.to_string()))
    };
    lines.map(parse).collect()
}

/// What stands around a text, and the switches of `tokenizer_config.json`.
pub(super) struct Marks<'a> {
    config: &'a Map<String, Value>,
    special: &'a SpecialTokens,
    id: &'a dyn Fn(&str) -> Option<u32>,
}

impl<'a> Marks<'a> {
    /// Those of a configuration, of roles, and of what gives the ids of tokens.
    pub(super) fn new(
        config: &'a Map<String, Value>,
        special: &'a SpecialTokens,
        id: &'a dyn Fn(&str) -> Option<u32>,
    ) -> Self {
        Self {
            config,
            special,
            id,
        }
    }

    /// A switch of the configuration.
    pub(super) fn switch(&self, key: &str) -> Option<bool> {
        self.config.get(key)?.as_bool()
    }

    /// A text of the configuration.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.config.get(key)?.as_str()
    }

    /// The token of a role, with its id.
    pub(super) fn role(&self, role: &str) -> Result<(&str, u32)> {
        self.token(role).ok_or_else(|| {
            Error::Tokenizer(format!("`{role}` is none of its tokens, but it stands around every text: name it in tokenizer_config.json"))
        })
    }

    fn token(&self, role: &str) -> Option<(&str, u32)> {
        let (_, token) = self.special.named().find(|(name, _)| *name == role)?;
        Some((token, (self.id)(token)?))
    }

    /// The id of a token by its text.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        (self.id)(token)
    }

    /// Beginning and end where `add_bos_token` and `add_eos_token` ask for them.
    pub(super) fn asked_for(&self) -> Value {
        let token = |key, role| {
            self.switch(key)
                .filter(|asked| *asked)
                .and_then(|_| self.token(role))
        };
        match (
            token("add_bos_token", "bos_token"),
            token("add_eos_token", "eos_token"),
        ) {
            (None, None) => Value::Null,
            (bos, eos) => around(bos.as_slice(), eos.as_slice()),
        }
    }

    /// RoBERTa's marks.
    fn roberta(&self, trim_offsets: bool, add_prefix_space: bool) -> Result<Value> {
        let ((sep, sep_id), (cls, cls_id)) = (self.role("sep_token")?, self.role("cls_token")?);
        Ok(json!({
            "type": "RobertaProcessing", "sep": [sep, sep_id], "cls": [cls, cls_id], "trim_offsets": trim_offsets,
            "add_prefix_space": add_prefix_space,
        }))
    }
}

fn byte_level(
    form: Form,
    ids: &HashMap<String, u32>,
    merges: &[(String, String)],
    marks: &Marks<'_>,
) -> Result<Parts> {
    let space = marks.switch("add_prefix_space").unwrap_or(false);
    let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": use_regex });
    let qwen = json!({ "type": "Split", "pattern": { "Regex": QWEN_WORDS }, "behavior": "Isolated", "invert": false });
    let pre_tokenizer = match form {
        Form::Qwen2 => sequence("pretokenizers", vec![qwen, bytes(false)]),
        _ => bytes(true),
    };
    let post_processor = match form {
        Form::Roberta => marks.roberta(marks.switch("trim_offsets").unwrap_or(true), space)?,
        _ => marks.asked_for(),
    };
    let composed = json!({ "type": "NFC" });
    Ok(Parts {
        normalizer: if matches!(form, Form::Qwen2 | Form::GptNeoX) {
            composed
        } else {
            Value::Null
        },
        pre_tokenizer,
        post_processor,
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": ids, "merges": merges,
        }),
    })
}

pub(super) fn word_piece(
    form: Form,
    ids: &HashMap<String, u32>,
    marks: &Marks<'_>,
) -> Result<Parts> {
    let post_processor = match form {
        Form::MpNet => marks.roberta(true, false)?,
        _ => {
            let (cls, sep) = (marks.role("cls_token")?, marks.role("sep_token")?);
            bert_pair(around(&[cls], &[sep]), sep.0)
        }
    };
    Ok(Parts {
        normalizer: json!({
            "type": "BertNormalizer", "clean_text": true, "strip_accents": marks.switch("strip_accents"),
            "handle_chinese_chars": marks.switch("tokenize_chinese_chars").unwrap_or(true),
            "lowercase": marks.switch("do_lower_case").unwrap_or(true),
        }),
        pre_tokenizer: json!({ "type": "BertPreTokenizer" }),
        post_processor,
        decoder: json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
        model: json!({
            "type": "WordPiece", "unk_token": marks.role("unk_token")?.0, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids,
        }),
    })
}

/// Of two texts, the second has the other type and no mark before it.
fn bert_pair(mut template: Value, separator: &str) -> Value {
    let single = template["single"].as_array().cloned().unwrap_or_default();
    let second = [
        json!({ "Sequence": { "id": "B", "type_id": 1 } }),
        json!({ "SpecialToken": { "id": separator, "type_id": 1 } }),
    ];
    template["pair"] = single.into_iter().chain(second).collect();
    template
}
