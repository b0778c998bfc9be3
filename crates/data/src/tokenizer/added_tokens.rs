//! Tokens that are found in a text before it is cut: those that `tokenizer_config.json`, `added_tokens.json` and
//! `special_tokens_map.json` add to a vocabulary.
//!
//! Source: transformers 5, `PreTrainedTokenizerBase._from_pretrained`: `added_tokens_decoder` says everything where it is there;
//! the two other files are read where it is not.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::SpecialTokens;

/// A token that is found before a text is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Added {
    /// Its id.
    pub(super) id: u32,
    /// Its text.
    pub(super) content: String,
    /// Decoding may leave it out.
    pub(super) special: bool,
    /// It is looked for behind the normaliser.
    pub(super) normalized: bool,
    /// It takes the spaces before it.
    pub(super) lstrip: bool,
    /// It takes the spaces behind it.
    pub(super) rstrip: bool,
    /// It is no part of a word.
    pub(super) single_word: bool,
}

impl Added {
    /// A special token without further wishes.
    pub(super) fn special(id: u32, content: &str) -> Self {
        Self {
            id,
            content: content.to_owned(),
            special: true,
            normalized: false,
            lstrip: false,
            rstrip: false,
            single_word: false,
        }
    }

    /// As `tokenizer_config.json` writes one; nothing where it has no text.
    fn from_config(id: u32, token: &Value) -> Option<Self> {
        let special = flag(token, "special").unwrap_or(false);
        Some(Self {
            id,
            content: token.get("content")?.as_str()?.to_owned(),
            special,
            normalized: flag(token, "normalized").unwrap_or(!special),
            lstrip: flag(token, "lstrip").unwrap_or(false),
            rstrip: flag(token, "rstrip").unwrap_or(false),
            single_word: flag(token, "single_word").unwrap_or(false),
        })
    }

    /// As `tokenizer.json` writes one.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "id": self.id, "content": self.content, "single_word": self.single_word, "lstrip": self.lstrip,
            "rstrip": self.rstrip, "normalized": self.normalized, "special": self.special,
        })
    }
}

fn flag(token: &Value, key: &str) -> Option<bool> {
    token.get(key)?.as_bool()
}

/// What a folder says of added tokens.
pub(super) struct Sources<'a> {
    /// `tokenizer_config.json`.
    pub(super) config: &'a Map<String, Value>,
    /// `special_tokens_map.json`.
    pub(super) special_map: &'a Map<String, Value>,
    /// `added_tokens.json`: ids by text.
    pub(super) added: &'a Map<String, Value>,
    /// The roles of special tokens.
    pub(super) special: &'a SpecialTokens,
}

impl Sources<'_> {
    /// The added tokens by id. `ids` are those of the vocabulary; a token that neither it nor a file gives an id is left out,
    /// unless the folder names it, when it gets the next one.
    pub(super) fn tokens(
        &self,
        ids: &dyn Fn(&str) -> Option<u32>,
        size: u32,
        more: Vec<Added>,
    ) -> Vec<Added> {
        let extra = self.extra();
        let mut tokens: BTreeMap<u32, Added> = BTreeMap::new();
        match self
            .config
            .get("added_tokens_decoder")
            .and_then(Value::as_object)
        {
            Some(listed) => tokens.extend(listed.iter().filter_map(|(id, token)| {
                let id = id.parse().ok()?;
                Some((id, Added::from_config(id, token)?))
            })),
            None => tokens.extend(self.legacy(&extra)),
        }
        for token in more {
            tokens.entry(token.id).or_insert(token);
        }
        let named = self
            .special
            .named()
            .map(|(role, token)| (role, token.to_owned()));
        let further = extra.into_iter().map(|token| ("", token));
        for (role, content) in named.chain(further) {
            if let Some(known) = tokens.values_mut().find(|token| token.content == content) {
                known.special |= !role.is_empty();
                continue;
            }
            let after = tokens
                .keys()
                .next_back()
                .map_or(size, |last| size.max(last + 1));
            let wanted = role.is_empty() || self.names(role);
            if let Some(id) = ids(&content).or(wanted.then_some(after)) {
                tokens.insert(id, self.described(id, role, &content));
            }
        }
        tokens.into_values().collect()
    }

    /// Whether the folder, and not only the class, gives a role.
    fn names(&self, role: &str) -> bool {
        [self.config, self.special_map]
            .iter()
            .any(|map| map.get(role).is_some_and(|token| !token.is_null()))
    }

    /// A special token with what the folder says of its spaces.
    fn described(&self, id: u32, role: &str, content: &str) -> Added {
        let object = [self.config, self.special_map]
            .into_iter()
            .filter_map(|map| map.get(role))
            .find(|token| token.is_object());
        let described = object.and_then(|token| Added::from_config(id, token));
        match described {
            Some(token) => Added {
                special: true,
                normalized: object.and_then(|t| flag(t, "normalized")).unwrap_or(false),
                ..token
            },
            None => Added::special(id, content),
        }
    }

    /// `added_tokens.json`: what has a role is special.
    fn legacy(&self, extra: &[String]) -> impl Iterator<Item = (u32, Added)> {
        let special: BTreeSet<&str> = self
            .special
            .named()
            .map(|(_, token)| token)
            .chain(extra.iter().map(String::as_str))
            .collect();
        let token = |(content, id): (&String, &Value)| {
            let id = u32::try_from(id.as_u64()?).ok()?;
            let is_special = special.contains(content.as_str());
            let token = Added {
                special: is_special,
                normalized: !is_special,
                ..Added::special(id, content)
            };
            Some((id, token))
        };
        self.added
            .iter()
            .filter_map(token)
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Special tokens without a role.
    fn extra(&self) -> Vec<String> {
        let keys = ["extra_special_tokens", "additional_special_tokens"];
        let lists = [self.config, self.special_map]
            .into_iter()
            .flat_map(|map| keys.iter().filter_map(move |key| map.get(*key)));
        let text = |token: &Value| {
            let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
            Some(text.to_owned())
        };
        let mut all: Vec<String> = Vec::new();
        for list in lists {
            let tokens: Vec<&Value> = match list {
                Value::Array(tokens) => tokens.iter().collect(),
                Value::Object(tokens) => tokens.values().collect(),
                _ => Vec::new(),
            };
            for token in tokens.into_iter().filter_map(text) {
                if !all.contains(&token) {
                    all.push(token);
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn the_older_files_count_where_the_newer_key_is_missing() {
        let (config, special_map) = (
            map(json!({ "eos_token": "</s>" })),
            map(json!({ "pad_token": { "content": "<pad>", "rstrip": true } })),
        );
        let added = map(json!({ "<pad>": 7, "hello": 6 }));
        let mut special = SpecialTokens::default();
        special.fill_from(&config);
        special.fill_from(&special_map);
        let sources = Sources {
            config: &config,
            special_map: &special_map,
            added: &added,
            special: &special,
        };
        let ids = |token: &str| (token == "</s>").then_some(2);
        let tokens = sources.tokens(&ids, 6, Vec::new());
        let seen: Vec<_> = tokens
            .iter()
            .map(|t| (t.id, t.content.as_str(), t.special, t.normalized))
            .collect();
        assert_eq!(
            seen,
            [
                (2, "</s>", true, false),
                (6, "hello", false, true),
                (7, "<pad>", true, false)
            ]
        );
        let newer = map(
            json!({ "eos_token": "</s>", "added_tokens_decoder": { "8": { "content": "<x>", "lstrip": true } } }),
        );
        let sources = Sources {
            config: &newer,
            special_map: &special_map,
            added: &added,
            special: &special,
        };
        let tokens = sources.tokens(&ids, 6, Vec::new());
        let seen: Vec<_> = tokens
            .iter()
            .map(|t| (t.id, t.content.as_str(), t.special, t.lstrip))
            .collect();
        // The padding that the folder names has no id, and gets the next one.
        assert_eq!(
            seen,
            [
                (2, "</s>", true, false),
                (8, "<x>", false, true),
                (9, "<pad>", true, false)
            ]
        );
    }
}
