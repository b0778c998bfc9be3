//! Which token plays which role: beginning and end of a sequence, padding, unknown, and the rest.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Special tokens by role, as text.
///
/// ```
/// use espalier_data::tokenizer::SpecialTokens;
/// let special = SpecialTokens { eos: Some("</s>".into()), ..Default::default() };
/// assert_eq!(special.named().collect::<Vec<_>>(), [("eos_token", "</s>")]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecialTokens {
    /// Beginning of a sequence.
    pub bos: Option<String>,
    /// End of a sequence.
    pub eos: Option<String>,
    /// Padding.
    pub pad: Option<String>,
    /// Stand-in for what the vocabulary lacks.
    pub unk: Option<String>,
    /// Other named tokens under their full key, such as `cls_token`, `sep_token` and `mask_token`.
    pub extra: BTreeMap<String, String>,
}

impl SpecialTokens {
    /// Key (`bos_token`, ...) and text of every token that is there; chat templates see them under these names.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        let usual = [
            ("bos_token", &self.bos),
            ("eos_token", &self.eos),
            ("pad_token", &self.pad),
            ("unk_token", &self.unk),
        ];
        let usual = usual
            .into_iter()
            .filter_map(|(name, token)| Some((name, token.as_deref()?)));
        usual.chain(
            self.extra
                .iter()
                .map(|(name, token)| (name.as_str(), token.as_str())),
        )
    }

    /// Reads the keys that end in `_token` of `tokenizer_config.json` or `special_tokens_map.json`. Roles already known stay.
    pub(super) fn fill_from(&mut self, config: &Map<String, Value>) {
        for (key, token) in config
            .iter()
            .filter_map(|(key, value)| Some((key, token_text(value)?)))
        {
            match key.as_str() {
                "bos_token" => _ = self.bos.get_or_insert(token),
                "eos_token" => _ = self.eos.get_or_insert(token),
                "pad_token" => _ = self.pad.get_or_insert(token),
                "unk_token" => _ = self.unk.get_or_insert(token),
                other if other.ends_with("_token") => {
                    _ = self.extra.entry(key.clone()).or_insert(token)
                }
                _ => {}
            }
        }
    }
}

/// A special token is written as its text or as an added-token object.
fn token_text(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
    Some(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_strings_and_objects_and_the_first_file_wins() {
        let parse = |text| serde_json::from_str::<Map<String, Value>>(text).unwrap();
        let mut special = SpecialTokens::default();
        special.fill_from(&parse(
            r#"{"bos_token":{"content":"<s>","lstrip":false},"eos_token":"</s>","pad_token":null,"add_bos_token":true,"cls_token":"[CLS]"}"#,
        ));
        special.fill_from(&parse(r#"{"bos_token":"other","pad_token":"<pad>"}"#));
        assert_eq!(special.bos.as_deref(), Some("<s>"));
        let named: Vec<_> = special.named().collect();
        assert_eq!(
            named,
            [
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "[CLS]")
            ]
        );
    }
}
