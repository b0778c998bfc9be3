//! Whose tokens a merge has, and where their rows come from.
//!
//! The tables of tokens of all models are put into the order of the output's vocabulary before they are merged. A token that a model lacks
//! gets the row that the recipe names for it, else the base's, else the only owner's, else the mean of the owners'.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::model::Model;
use super::plan::Models;
use super::recipe::Document;
use crate::{Error, Result};

/// The file with a tokenizer.
pub const FILE: &str = "tokenizer.json";

/// Whose tokens a merge has.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerChoice {
    /// The vocabulary.
    pub source: Vocabulary,
    /// Tokens whose row is said, and which are added where they are missing.
    pub tokens: BTreeMap<String, TokenChoice>,
    /// The tables' rows are a multiple of this.
    pub multiple: usize,
}

/// A vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vocabulary {
    /// The tokens of all models.
    Union,
    /// Those of the base, or of the first model.
    Base,
    /// Those of this model.
    Of(String),
}

/// Where the row of a token comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenChoice {
    /// The row; as for any token when absent.
    pub row: Option<Row>,
    /// Whether models that have the token get that row as well.
    pub force: bool,
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// Zeros.
    Zero,
    /// This model's row of the token.
    Of(String),
    /// This model's row of another token.
    Token(String, String),
    /// This model's row of this number.
    Number(String, usize),
}

type Wrong = (String, String);

impl TokenizerChoice {
    /// Reads `tokenizer_source` or `tokenizer`.
    ///
    /// # Errors
    /// A key and what is wrong with it.
    pub fn read(keys: &Map<String, Value>) -> std::result::Result<Option<Self>, Wrong> {
        let given = |key: &str| keys.get(key).filter(|value| !value.is_null());
        match (given("tokenizer_source"), given("tokenizer")) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err((
                "tokenizer".into(),
                "cannot stand beside `tokenizer_source`".into(),
            )),
            (Some(source), None) => Ok(Some(Self {
                source: vocabulary("tokenizer_source", source)?,
                tokens: BTreeMap::new(),
                multiple: 1,
            })),
            (None, Some(value)) => Self::table(value).map(Some),
        }
    }

    fn table(value: &Value) -> std::result::Result<Self, Wrong> {
        let keys = table(
            value,
            "tokenizer",
            &["source", "tokens", "pad_to_multiple_of"],
        )?;
        let source = keys
            .get("source")
            .map_or(Ok(Vocabulary::Union), |value| vocabulary("source", value))?;
        let mut tokens = BTreeMap::new();
        for (token, choice) in keys
            .get("tokens")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            tokens.insert(token.clone(), TokenChoice::read(choice)?);
        }
        let multiple = match keys.get("pad_to_multiple_of") {
            None | Some(Value::Null) => 1,
            Some(value) => {
                let multiple = value
                    .as_u64()
                    .filter(|multiple| (1..=1 << 20).contains(multiple));
                let wrong = || {
                    (
                        "pad_to_multiple_of".to_owned(),
                        format!("{value} is no number from 1 to 1048576"),
                    )
                };
                multiple.ok_or_else(wrong)? as usize
            }
        };
        Ok(Self {
            source,
            tokens,
            multiple,
        })
    }
}

fn table<'v>(
    value: &'v Value,
    key: &str,
    known: &[&str],
) -> std::result::Result<&'v Map<String, Value>, Wrong> {
    let Value::Object(keys) = value else {
        return Err((key.into(), format!("{value} is no table of keys")));
    };
    match keys.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(keys),
        Some(unknown) => Err((
            unknown.clone(),
            format!("unknown key; expected one of `{}`", known.join("`, `")),
        )),
    }
}

fn vocabulary(key: &str, value: &Value) -> std::result::Result<Vocabulary, Wrong> {
    match value.as_str() {
        Some("union") => Ok(Vocabulary::Union),
        Some("base") => Ok(Vocabulary::Base),
        Some(model) => Ok(Vocabulary::Of(
            model.strip_prefix("model:").unwrap_or(model).to_owned(),
        )),
        None => Err((
            key.into(),
            format!("{value} is none of `union`, `base` and a model"),
        )),
    }
}

impl TokenChoice {
    fn read(value: &Value) -> std::result::Result<Self, Wrong> {
        let keys = table(value, "tokens", &["source", "force"])?;
        let row = match keys.get("source") {
            None | Some(Value::Null) => None,
            Some(Value::String(model)) => Some(Row::Of(model.clone())),
            Some(source) => Some(Row::read(source)?),
        };
        let force = keys.get("force").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self { row, force })
    }
}

impl Row {
    fn read(value: &Value) -> std::result::Result<Self, Wrong> {
        let keys = table(value, "source", &["kind", "model", "token", "token_id"])?;
        let text = |key: &str| keys.get(key).and_then(Value::as_str).map(str::to_owned);
        match (
            keys.get("kind").and_then(Value::as_str),
            text("model"),
            text("token"),
        ) {
            (Some("zero"), None, None) => Ok(Self::Zero),
            (Some("model_token"), Some(model), Some(token)) => Ok(Self::Token(model, token)),
            (Some("model_token"), Some(model), None) => {
                let number = keys.get("token_id").and_then(Value::as_u64);
                let wrong = || {
                    (
                        "source".to_owned(),
                        format!("{value} needs `token` or `token_id`"),
                    )
                };
                Ok(Self::Number(model, number.ok_or_else(wrong)? as usize))
            }
            _ => Err((
                "source".into(),
                format!(
                    "{value} is neither a model, `{{kind: zero}}` nor `{{kind: model_token, model, token}}`"
                ),
            )),
        }
    }
}

/// The vocabulary of a merge, and where every model has its tokens.
#[derive(Debug)]
pub struct Tokens {
    /// Rows of the merged tables.
    pub rows: usize,
    /// The output's `tokenizer.json`.
    pub tokenizer: Value,
    /// The model whose other files of the tokenizer are taken.
    pub donor: usize,
    /// The tokens by their numbers.
    tokens: Vec<(String, usize)>,
    /// For every model the number of each of its tokens.
    owned: Vec<HashMap<String, usize>>,
    base: Option<usize>,
    choices: BTreeMap<String, (Option<Origin>, bool)>,
}

/// A row, with its model found.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Zero,
    Row(usize, usize),
}

impl Tokens {
    /// Reads the models' tokenizers and puts the vocabulary together.
    ///
    /// # Errors
    /// When a tokenizer is missing or damaged, or a token that the recipe names is nowhere.
    pub fn gather(choice: &TokenizerChoice, document: &Document, models: &Models) -> Result<Self> {
        let place = |name: &str| models.iter().position(|(known, _)| known == name);
        let base = document.base.as_deref().and_then(place);
        let donor = match &choice.source {
            Vocabulary::Of(model) => {
                let fail = || {
                    document.error(
                        "tokenizer",
                        format!("`tokenizer`: {model} is none of the merged models"),
                    )
                };
                place(model).ok_or_else(fail)?
            }
            Vocabulary::Union | Vocabulary::Base => base.unwrap_or(0),
        };
        let mut tokenizers = Vec::new();
        for (_, model) in models {
            tokenizers.push(read(&model.folder)?);
        }
        let owned: Vec<HashMap<String, usize>> = models
            .iter()
            .zip(&tokenizers)
            .map(|((_, model), tokenizer)| known_rows(tokenizer, model))
            .collect();
        let mut tokenizer = tokenizers[donor].clone();
        if choice.source == Vocabulary::Union {
            for other in &tokenizers {
                append(&mut tokenizer, other);
            }
        }
        for token in choice.tokens.keys() {
            add(&mut tokenizer, json!({"content": token, "special": false}));
        }
        let mut tokens: Vec<(String, usize)> = vocabulary_of(&tokenizer).into_iter().collect();
        tokens.sort_by_key(|(_, number)| *number);
        let count = tokens.last().map_or(0, |(_, number)| number + 1);
        let rows = count.next_multiple_of(choice.multiple);
        let mut choices = BTreeMap::new();
        for (token, choice) in &choice.tokens {
            let row = choice.row.as_ref();
            let row = row.map(|row| origin(row, token, document, &owned, &place));
            choices.insert(token.clone(), (row.transpose()?, choice.force));
        }
        Ok(Self {
            rows,
            tokenizer,
            donor,
            tokens,
            owned,
            base,
            choices,
        })
    }

    /// A model's table of `width` columns in the order of the output's vocabulary.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub fn permuted(
        &self,
        model: usize,
        width: usize,
        row: &dyn Fn(usize, usize) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let mut table = vec![0.0; self.rows * width];
        for (token, number) in &self.tokens {
            let choice = self.choices.get(token);
            let own = self.owned[model].get(token);
            let found = match (own, choice) {
                (Some(own), Some((_, false)) | None) => row(model, *own)?,
                (_, Some((Some(Origin::Zero), _))) => continue,
                (_, Some((Some(Origin::Row(model, number)), _))) => row(*model, *number)?,
                _ => match self.usual(token, width, row)? {
                    Some(found) => found,
                    None => continue,
                },
            };
            table[number * width..][..width].copy_from_slice(&found[..width]);
        }
        self.fill_padding(&mut table, width);
        Ok(table)
    }

    /// The base's row of a token, the only owner's, or the mean of the owners'.
    fn usual(
        &self,
        token: &str,
        width: usize,
        row: &dyn Fn(usize, usize) -> Result<Vec<f32>>,
    ) -> Result<Option<Vec<f32>>> {
        let owners = self
            .owned
            .iter()
            .enumerate()
            .filter_map(|(model, owned)| Some((model, *owned.get(token)?)));
        let owners: Vec<(usize, usize)> = owners.collect();
        if let Some((model, number)) = owners.iter().find(|(model, _)| Some(*model) == self.base) {
            return row(*model, *number).map(Some);
        }
        if owners.is_empty() {
            return Ok(None);
        }
        let mut mean = vec![0.0; width];
        for (model, number) in &owners {
            for (sum, value) in mean.iter_mut().zip(row(*model, *number)?) {
                *sum += value;
            }
        }
        mean.iter_mut().for_each(|sum| *sum /= owners.len() as f32);
        Ok(Some(mean))
    }

    /// Rows behind the last token are the mean of those before.
    fn fill_padding(&self, table: &mut [f32], width: usize) {
        let count = self.tokens.last().map_or(0, |(_, number)| number + 1);
        let (used, padding) = table.split_at_mut(count * width);
        for row in padding.chunks_mut(width) {
            for (column, number) in row.iter_mut().enumerate() {
                let sum: f64 = used[column..]
                    .iter()
                    .step_by(width)
                    .map(|x| f64::from(*x))
                    .sum();
                *number = (sum / count.max(1) as f64) as f32;
            }
        }
    }
}

fn origin(
    row: &Row,
    token: &str,
    document: &Document,
    owned: &[HashMap<String, usize>],
    place: &dyn Fn(&str) -> Option<usize>,
) -> Result<Origin> {
    let wrong = |reason: String| document.error("tokens", format!("`tokens`: `{token}`: {reason}"));
    let model_of = |name: &str| {
        place(name).ok_or_else(|| wrong(format!("{name} is none of the merged models")))
    };
    let (name, wanted) = match row {
        Row::Zero => return Ok(Origin::Zero),
        Row::Number(name, number) => {
            let model = model_of(name)?;
            return match owned[model].values().any(|own| own == number) {
                true => Ok(Origin::Row(model, *number)),
                false => Err(wrong(format!("{name} has no token {number}"))),
            };
        }
        Row::Of(name) => (name, token),
        Row::Token(name, other) => (name, other.as_str()),
    };
    let model = model_of(name)?;
    let number = owned[model].get(wanted);
    let number = number.ok_or_else(|| wrong(format!("{name} has no token `{wanted}`")))?;
    Ok(Origin::Row(model, *number))
}

fn read(folder: &Path) -> Result<Value> {
    let path = folder.join(FILE);
    let text = std::fs::read(&path).map_err(Error::file(&path))?;
    let parsed = serde_json::from_slice(&text);
    parsed.map_err(|error| {
        Error::Invalid(format!(
            "{}: {error}; save the tokenizer again",
            path.display()
        ))
    })
}

/// A model's tokens that its tables have rows for.
fn known_rows(tokenizer: &Value, model: &Model) -> HashMap<String, usize> {
    let rows = model.vocabulary().map_or(usize::MAX, |rows| rows as usize);
    let mut tokens = vocabulary_of(tokenizer);
    tokens.retain(|_, number| *number < rows);
    tokens
}

/// The numbers of all tokens of a `tokenizer.json`.
fn vocabulary_of(tokenizer: &Value) -> HashMap<String, usize> {
    let mut tokens = HashMap::new();
    match &tokenizer["model"]["vocab"] {
        Value::Object(vocab) => {
            for (token, number) in vocab {
                tokens.extend(
                    number
                        .as_u64()
                        .map(|number| (token.clone(), number as usize)),
                );
            }
        }
        Value::Array(pieces) => {
            for (number, piece) in pieces.iter().enumerate() {
                tokens.extend(piece[0].as_str().map(|token| (token.to_owned(), number)));
            }
        }
        _ => {}
    }
    for added in added_tokens(tokenizer) {
        if let (Some(token), Some(number)) = (added["content"].as_str(), added["id"].as_u64()) {
            tokens.insert(token.to_owned(), number as usize);
        }
    }
    tokens
}

fn added_tokens(tokenizer: &Value) -> &[Value] {
    tokenizer["added_tokens"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

/// Adds another tokenizer's tokens, in the order of their numbers.
fn append(tokenizer: &mut Value, other: &Value) {
    let known = vocabulary_of(tokenizer);
    let mut missing: Vec<(String, usize)> = vocabulary_of(other)
        .into_iter()
        .filter(|(token, _)| !known.contains_key(token))
        .collect();
    missing.sort_by_key(|(_, number)| *number);
    for (token, _) in missing {
        let own = added_tokens(other)
            .iter()
            .find(|added| added["content"] == token.as_str());
        add(
            tokenizer,
            own.cloned()
                .unwrap_or_else(|| json!({"content": token, "special": false})),
        );
    }
}

/// Adds a token behind the last, unless it is there.
fn add(tokenizer: &mut Value, mut token: Value) {
    let known = vocabulary_of(tokenizer);
    if token["content"]
        .as_str()
        .is_none_or(|text| known.contains_key(text))
    {
        return;
    }
    token["id"] = json!(known.values().max().map_or(0, |last| last + 1));
    for (key, usual) in [
        ("single_word", false),
        ("lstrip", false),
        ("rstrip", false),
        ("normalized", true),
        ("special", false),
    ] {
        if token.get(key).is_none() {
            token[key] = json!(usual);
        }
    }
    if let Some(keys) = tokenizer.as_object_mut() {
        let list = keys.entry("added_tokens").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(token);
        }
    }
}
