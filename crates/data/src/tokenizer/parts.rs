//! A pipeline in the parts of a `tokenizer.json`, as it is put together from older files.

use serde_json::{Map, Value, json};

use super::{Tokenizer, added_tokens::Added};
use crate::Result;

/// The parts of a pipeline, each as `tokenizer.json` writes it.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts {
    /// What happens to a text first.
    pub(super) normalizer: Value,
    /// How it is cut into words.
    pub(super) pre_tokenizer: Value,
    /// What is put around the ids of a text.
    pub(super) post_processor: Value,
    /// How tokens become text.
    pub(super) decoder: Value,
    /// The vocabulary and how a word is cut.
    pub(super) model: Value,
}

impl Parts {
    /// The tokenizer, with tokens that are found before a text is cut.
    pub(super) fn build(self, added: &[Added]) -> Result<Tokenizer> {
        let added: Vec<Value> = added.iter().map(Added::to_json).collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer, "post_processor": self.post_processor, "decoder": self.decoder,
            "model": self.model,
        });
        Tokenizer::from_json(file.to_string().as_bytes())
    }
}

/// Several steps one after another; `kind` names the list: `normalizers`, `pretokenizers` or `decoders`.
pub(super) fn sequence(kind: &str, steps: Vec<Value>) -> Value {
    json!({ "type": "Sequence", kind: steps })
}

/// Writes one text for another.
pub(super) fn replace(pattern: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
}

/// Writes a text for what a regular expression finds.
pub(super) fn replace_all(pattern: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "Regex": pattern }, "content": content })
}

/// Spaces as marks, with one before a text (`always`, `first` or `never`).
pub(super) fn metaspace(prepend_scheme: &str, split: bool) -> Value {
    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme, "split": split })
}

/// Tokens around a text, each with its id.
pub(super) fn around(before: &[(&str, u32)], after: &[(&str, u32)]) -> Value {
    let mark = |(token, _): &(&str, u32)| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let one = |name: &str| {
        let parts = before.iter().map(mark).chain([text(name)]);
        parts.chain(after.iter().map(mark)).collect::<Vec<_>>()
    };
    let tokens: Map<String, Value> = before
        .iter()
        .chain(after)
        .map(|(token, id)| {
            (
                (*token).to_owned(),
                json!({ "id": token, "ids": [id], "tokens": [token] }),
            )
        })
        .collect();
    let pair = [one("A"), one("B")].concat();
    json!({ "type": "TemplateProcessing", "single": one("A"), "pair": pair, "special_tokens": tokens })
}
