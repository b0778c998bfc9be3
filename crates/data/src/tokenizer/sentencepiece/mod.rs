//! SentencePiece models as pipelines of the `tokenizers` library, so that their ids are those of transformers.
//!
//! Source: transformers 5, `convert_slow_tokenizer.py` (the order of pieces, merges from pieces) and the classes of LLaMA, Gemma, T5,
//! XLM-RoBERTa and ALBERT.

mod model_file;

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::normalizers::Precompiled;

use super::SpecialTokens;
use super::added_tokens::Added;
use super::class::Form;
use super::older_files::Marks;
use super::parts::{Parts, around, metaspace, replace, replace_all, sequence};
use crate::{Error, Result};
pub(super) use model_file::{Algorithm, Ids, ModelFile, Piece, PieceKind};

/// The names of such files.
pub(super) const FILES: [&str; 4] = [
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
];

/// The pieces of a model in the order of their ids.
pub(super) struct Pieces {
    model: ModelFile,
    /// Text and score by id.
    entries: Vec<(String, f32)>,
    /// Id by text.
    ids: HashMap<String, u32>,
    /// The id of what no piece has.
    unknown: u32,
    /// Tokens that the class adds besides the model's own.
    sentinels: Vec<String>,
}

/// What Pegasus has before its pieces.
const PEGASUS_MARKS: u32 = 103;

/// mBART's languages.
#[rustfmt::skip]
const LANGUAGES: [&str; 25] = [
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT", "ja_XX", "kk_KZ",
    "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN",
];

/// The marks that a class has and its model lacks.
fn sentinels(form: Form, extra: u32) -> Vec<String> {
    match form {
        Form::T5 => (0..extra)
            .rev()
            .map(|i| format!("<extra_id_{i}>"))
            .collect(),
        Form::MBart => LANGUAGES.map(str::to_owned).to_vec(),
        Form::Pegasus => ["<mask_1>".to_owned(), "<mask_2>".to_owned()]
            .into_iter()
            .chain((2..PEGASUS_MARKS).map(|i| format!("<unk_{i}>")))
            .collect(),
        _ => Vec::new(),
    }
}

/// Texts and scores in the order of their ids, as the class has them.
fn in_order(form: Form, model: &ModelFile, sentinels: &[String]) -> Vec<(String, f32)> {
    let pieces = |from: usize| {
        let pieces = model.pieces.iter().skip(from);
        pieces.map(|piece| (piece.text.clone(), piece.score))
    };
    let marked = |tokens: &[&str], score: f32| {
        let tokens = tokens.iter().map(|token| ((*token).to_owned(), score));
        tokens.collect::<Vec<_>>()
    };
    let sentinels: Vec<&str> = sentinels.iter().map(String::as_str).collect();
    // fairseq's order has padding in front, and the mask at the end.
    let fairseq = marked(&["<s>", "<pad>", "</s>", "<unk>"], 0.0);
    let parts = match form {
        Form::XlmRoberta | Form::MBart => {
            let end = [marked(&sentinels, 0.0), marked(&["<mask>"], 0.0)].concat();
            [fairseq, pieces(3).collect(), end]
        }
        // A mark that no text should become is unlikely enough.
        Form::Pegasus => [
            marked(&["<pad>", "</s>"], 0.0),
            [
                marked(&sentinels[..2], 0.0),
                marked(&sentinels[2..], -100.0),
            ]
            .concat(),
            pieces(2).collect(),
        ],
        _ => [pieces(0).collect(), marked(&sentinels, 0.0), Vec::new()],
    };
    parts.concat()
}

impl Pieces {
    /// Reads a model; the class decides where its pieces stand. T5 adds `extra` sentinels.
    pub(super) fn read(path: &Path, bytes: &[u8], form: Form, extra: u32) -> Result<Self> {
        Ok(Self::of(ModelFile::parse(path, bytes)?, form, extra))
    }

    /// The pieces of a model; the class decides where they stand. T5 adds `extra` sentinels.
    pub(super) fn of(model: ModelFile, form: Form, extra: u32) -> Self {
        let sentinels = sentinels(form, extra);
        let entries = in_order(form, &model, &sentinels);
        let unknown = match form {
            Form::XlmRoberta | Form::MBart => 3,
            Form::T5 => 2,
            Form::Albert => 1,
            Form::Pegasus => model.ids.unknown.try_into().unwrap_or(2) + PEGASUS_MARKS,
            _ => u32::try_from(model.ids.unknown).unwrap_or(0),
        };
        let ids = entries
            .iter()
            .zip(0..)
            .map(|((text, _), id)| (text.clone(), id))
            .collect();
        Self {
            model,
            entries,
            ids,
            unknown,
            sentinels,
        }
    }

    /// The id of a piece.
    pub(super) fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// One above the largest id.
    pub(super) fn size(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Marks and what is never cut are found before a text is cut; the marks are special.
    pub(super) fn added(&self) -> Vec<Added> {
        let of_model = self.model.pieces.iter().filter_map(|piece| {
            let special = piece.kind == PieceKind::Control;
            let wanted = special || piece.kind == PieceKind::UserDefined;
            wanted.then_some((piece.text.as_str(), special))
        });
        let sentinels = self.sentinels.iter().map(|token| (token.as_str(), true));
        let added = |(text, special): (&str, bool)| {
            Some(Added {
                special,
                ..Added::special(self.id(text)?, text)
            })
        };
        of_model.chain(sentinels).filter_map(added).collect()
    }

    /// What the model itself says of beginning, end and the unknown, where no class does.
    pub(super) fn fill_special(&self, form: Form, special: &mut SpecialTokens) {
        if form != Form::AsWritten {
            return;
        }
        let piece = |id: i64| {
            let (text, _) = self.entries.get(usize::try_from(id).ok()?)?;
            Some(text.clone())
        };
        let ids = self.model.ids;
        for (role, id) in [
            (&mut special.bos, ids.beginning),
            (&mut special.eos, ids.end),
            (&mut special.unk, ids.unknown),
        ] {
            *role = role.take().or_else(|| piece(id));
        }
    }

    /// A folder may give placeholders of the model other names; added tokens then stand in the text as they are.
    pub(super) fn rename(&mut self, added: &mut [Added]) {
        if self.model.algorithm != Algorithm::Bpe {
            return;
        }
        for token in added {
            token.normalized &= !self.model.add_dummy_prefix;
            let taken = self.ids.contains_key(&token.content);
            if let Some(entry) = self.entries.get_mut(token.id as usize).filter(|_| !taken) {
                self.ids.remove(&entry.0);
                entry.0.clone_from(&token.content);
                self.ids.insert(token.content.clone(), token.id);
            }
        }
    }

    /// Added tokens stand behind the pieces.
    pub(super) fn make_room(&mut self, new: &[&Added]) -> Result<()> {
        for (token, id) in new.iter().zip(self.size()..) {
            if token.id != id {
                let (content, wanted) = (&token.content, token.id);
                return Err(Error::Tokenizer(format!(
                    "the added token `{content}` has id {wanted}, but the next free one is {id}"
                )));
            }
        }
        Ok(())
    }

    /// Every way to cut a piece in two others is a merge, in the order of the pieces that they make.
    fn merges(&self) -> Vec<(&str, &str)> {
        let mut merges = Vec::new();
        for (text, _) in &self.entries {
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if self.ids.contains_key(left) && self.ids.contains_key(right) {
                    merges.push((left, right));
                }
            }
        }
        merges
    }

    /// The merges of ordinary pieces alone, by the scores of the pieces that they make.
    fn scored_merges(&self) -> Vec<(&str, &str)> {
        let normal: HashMap<&str, f32> = self
            .entries
            .iter()
            .zip(&self.model.pieces)
            .filter(|(_, piece)| piece.kind == PieceKind::Normal)
            .map(|((text, score), _)| (text.as_str(), *score))
            .collect();
        let mut ranked = Vec::new();
        for ((text, score), id) in self.entries.iter().zip(0u32..) {
            if !normal.contains_key(text.as_str()) {
                continue;
            }
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if normal.contains_key(left) && normal.contains_key(right) {
                    ranked.push((-score, id, left, right));
                }
            }
        }
        ranked.sort_by(|a, b| {
            a.0.total_cmp(&b.0)
                .then_with(|| (a.1, a.2, a.3).cmp(&(b.1, b.2, b.3)))
        });
        ranked
            .into_iter()
            .map(|(_, _, left, right)| (left, right))
            .collect()
    }

    fn unigram(&self, byte_fallback: bool) -> Value {
        json!({ "type": "Unigram", "unk_id": self.unknown, "byte_fallback": byte_fallback, "vocab": self.entries })
    }

    fn bpe(
        &self,
        unknown: Option<&str>,
        byte_fallback: bool,
        ignore_merges: bool,
        merges: &[(&str, &str)],
    ) -> Value {
        json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": byte_fallback, "ignore_merges": ignore_merges, "vocab": self.ids, "merges": merges,
        })
    }

    /// The model's own table of characters, if it has one.
    fn charsmap(&self) -> Result<Option<Value>> {
        if self.model.charsmap.is_empty() {
            return Ok(None);
        }
        let damaged = |reason: String| {
            Error::Tokenizer(format!(
                "the SentencePiece model's table of characters: {reason}"
            ))
        };
        let table = Precompiled::from(&self.model.charsmap)
            .map_err(|reason| damaged(format!("{reason:?}")))?;
        serde_json::to_value(table)
            .map(Some)
            .map_err(|reason| damaged(reason.to_string()))
    }
}

/// The pipeline of a class.
pub(super) fn parts(form: Form, pieces: &Pieces, marks: &Marks<'_>) -> Result<Parts> {
    match form {
        Form::Llama => Ok(llama(pieces, marks)),
        Form::Gemma => gemma(pieces, marks),
        Form::T5 => t5(pieces, marks),
        Form::XlmRoberta => xlm_roberta(pieces, marks),
        Form::Albert => albert(pieces, marks),
        Form::MBart => mbart(pieces, marks),
        Form::Pegasus => pegasus(pieces, marks),
        _ => as_written(pieces, marks),
    }
}

/// Bytes to characters, and marks to spaces.
fn byte_decoders() -> Vec<Value> {
    vec![
        replace("▁", " "),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ]
}

/// Takes one space off the start.
fn strip_one() -> Value {
    json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 })
}

fn llama(pieces: &Pieces, marks: &Marks<'_>) -> Parts {
    let space = marks.switch("add_prefix_space").unwrap_or(true);
    let scheme = match (space, marks.switch("legacy").unwrap_or(false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let decoders = byte_decoders().into_iter().chain(space.then(strip_one));
    Parts {
        normalizer: Value::Null,
        pre_tokenizer: metaspace(scheme, false),
        post_processor: marks.asked_for(),
        decoder: sequence("decoders", decoders.collect()),
        model: pieces.bpe(None, true, false, &pieces.merges()),
    }
}

fn gemma(pieces: &Pieces, marks: &Marks<'_>) -> Result<Parts> {
    let unknown = marks.role("unk_token")?.0;
    Ok(Parts {
        normalizer: replace(" ", "▁"),
        pre_tokenizer: json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false }),
        post_processor: marks.asked_for(),
        decoder: sequence("decoders", byte_decoders()),
        model: pieces.bpe(Some(unknown), true, false, &pieces.merges()),
    })
}

/// Words between blanks, each with a mark before it.
fn marked_words(scheme: &str) -> Value {
    sequence(
        "pretokenizers",
        vec![
            json!({ "type": "WhitespaceSplit" }),
            metaspace(scheme, true),
        ],
    )
}

fn t5(pieces: &Pieces, marks: &Marks<'_>) -> Result<Parts> {
    Ok(Parts {
        normalizer: pieces.charsmap()?.unwrap_or_default(),
        pre_tokenizer: marked_words("always"),
        post_processor: around(&[], &[marks.role("eos_token")?]),
        decoder: metaspace("always", true),
        model: pieces.unigram(false),
    })
}

fn scheme(marks: &Marks<'_>) -> &'static str {
    match marks.switch("add_prefix_space") {
        Some(false) => "never",
        _ => "always",
    }
}

fn xlm_roberta(pieces: &Pieces, marks: &Marks<'_>) -> Result<Parts> {
    let (bos, eos) = (marks.role("bos_token")?, marks.role("eos_token")?);
    Ok(Parts {
        normalizer: pieces.charsmap()?.unwrap_or_default(),
        pre_tokenizer: marked_words(scheme(marks)),
        post_processor: around(&[bos], &[eos]),
        decoder: metaspace(scheme(marks), true),
        model: pieces.unigram(false),
    })
}

fn albert(pieces: &Pieces, marks: &Marks<'_>) -> Result<Parts> {
    let mut steps = vec![replace("``", "\""), replace("''", "\"")];
    if !marks.switch("keep_accents").unwrap_or(false) {
        steps.extend([json!({ "type": "NFKD" }), json!({ "type": "StripAccents" })]);
    }
    if marks.switch("do_lower_case").unwrap_or(true) {
        steps.push(json!({ "type": "Lowercase" }));
    }
    steps.extend(pieces.charsmap()?);
    let (cls, sep) = (marks.role("cls_token")?, marks.role("sep_token")?);
    Ok(Parts {
        normalizer: sequence("normalizers", steps),
        pre_tokenizer: marked_words(scheme(marks)),
        post_processor: around(&[cls], &[sep]),
        decoder: metaspace(scheme(marks), true),
        model: pieces.unigram(false),
    })
}

/// The text's language, English unless the folder says another, stands behind its end.
fn mbart(pieces: &Pieces, marks: &Marks<'_>) -> Result<Parts> {
    let language = marks.text("src_lang").unwrap_or("en_XX");
    let id = marks.id(language).ok_or_else(|| {
        Error::Tokenizer(format!(
            "`src_lang` is `{language}`; mBART's languages are {}",
            LANGUAGES.join(", ")
        ))
    })?;
    Ok(Parts {
        normalizer: Value::Null,
        pre_tokenizer: marked_words("always"),
        post_processor: around(&[], &[marks.role("eos_token")?, (language, id)]),
        decoder: metaspace("always", true),
        model: pieces.unigram(false),
    })
}

fn pegasus(pieces: &Pieces, marks: &Marks<'_>) -> Result<Parts> {
    let first = pieces
        .charsmap()?
        .unwrap_or_else(|| replace_all(r"\n", " "));
    Ok(Parts {
        normalizer: sequence("normalizers", vec![first, replace_all(" {2,}", " ")]),
        pre_tokenizer: metaspace("always", true),
        post_processor: around(&[], &[marks.role("eos_token")?]),
        decoder: metaspace("always", true),
        model: pieces.unigram(false),
    })
}

/// As SentencePiece itself would cut, by the settings of the model.
fn as_written(pieces: &Pieces, marks: &Marks<'_>) -> Result<Parts> {
    let model = &pieces.model;
    let legacy = marks.switch("legacy").unwrap_or(true);
    let mut normalizers: Vec<Value> = pieces.charsmap()?.into_iter().collect();
    if model.remove_extra_whitespaces {
        normalizers.extend([replace_all(r"\A +| +\z", ""), replace_all(" {2,}", " ")]);
    }
    if model.escape_whitespaces {
        normalizers.push(replace(" ", "▁"));
    }
    if model.add_dummy_prefix && legacy {
        // The pre-tokenizer puts no mark before a text that begins with one; SentencePiece does.
        normalizers.push(replace_all(r"\A▁", "▁▁"));
    }
    let whole = whole_pieces(pieces);
    let prefix = model
        .add_dummy_prefix
        .then(|| metaspace(if legacy { "always" } else { "first" }, false));
    let cut: Vec<Value> = prefix.into_iter().chain(whole.clone()).collect();
    let mut decoders = byte_decoders();
    if !model.byte_fallback {
        decoders.remove(1);
    }
    decoders.extend(model.add_dummy_prefix.then(strip_one));
    Ok(Parts {
        normalizer: sequence("normalizers", normalizers),
        pre_tokenizer: if cut.is_empty() {
            Value::Null
        } else {
            sequence("pretokenizers", cut)
        },
        post_processor: marks.asked_for(),
        decoder: sequence("decoders", decoders),
        model: match model.algorithm {
            Algorithm::Unigram => pieces.unigram(model.byte_fallback),
            Algorithm::Bpe => {
                let unknown =
                    Some(model.unknown_piece.as_str()).filter(|piece| marks.id(piece).is_some());
                pieces.bpe(
                    unknown,
                    model.byte_fallback,
                    whole.is_some(),
                    &pieces.scored_merges(),
                )
            }
        },
    })
}

/// Cuts around the pieces that are never cut themselves, the longest first.
fn whole_pieces(pieces: &Pieces) -> Option<Value> {
    let mut whole: Vec<&str> = pieces
        .model
        .pieces
        .iter()
        .zip(&pieces.entries)
        .filter(|(piece, _)| piece.kind == PieceKind::UserDefined)
        .map(|(_, (text, _))| text.as_str())
        .collect();
    whole.sort_by_key(|text| std::cmp::Reverse(text.chars().count()));
    let pattern = whole
        .iter()
        .map(|text| regex::escape(text))
        .collect::<Vec<_>>()
        .join("|");
    (!whole.is_empty()).then(|| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false }))
}
