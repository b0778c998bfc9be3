//! Which tokens may come next, as the makers of a model decided in `generation_config.json`: some never, some not yet, some by force.
//!
//! Names, order and counts are those of Hugging Face's `transformers`: `min_length` and n-grams count a decoder's prompt,
//! `min_new_tokens` does not, an encoder-decoder's prompt is its start token. All rules but the forced tokens forbid, so that their order
//! among each other does not matter; a forced token comes before them. Of several forced last tokens the lowest comes, which is what
//! greedy choice makes of them there too.

use espalier_models::spec::EncoderSpec;
use serde::{Deserialize, Serialize};

/// The rules; by default there are none.
///
/// ```
/// use espalier_engine::rules::{Place, Rules};
/// let rules = Rules { no_repeat_ngram_size: 2, ..Rules::default() };
/// let place = Place { history: &[1, 5, 7, 1], prompt: 1, longest: 9, end: &[2] };
/// assert_eq!(rules.forbidden(&place), [5]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// No end before a text has so many tokens, a decoder's prompt included.
    pub min_length: usize,
    /// No end before so many new tokens.
    pub min_new_tokens: usize,
    /// No group of so many tokens comes twice; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// Tokens that never come.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that do not come first.
    pub begin_suppress_tokens: Vec<u32>,
    /// Sequences of tokens that never come; one that is an end token alone is not meant.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// The token behind a history of one.
    pub forced_bos_token_id: Option<u32>,
    /// The token that comes last where nothing ended before.
    pub forced_eos_token_id: Vec<u32>,
}

/// Where a text stands when its next token is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// All tokens before, those of the prompt too.
    pub history: &'a [u32],
    /// How many of them are the prompt.
    pub prompt: usize,
    /// Most new tokens.
    pub longest: usize,
    /// Tokens that end the text.
    pub end: &'a [u32],
}

impl Place<'_> {
    /// The new tokens so far.
    fn produced(&self) -> usize {
        self.history.len() - self.prompt
    }
}

impl Rules {
    /// That these tokens never come.
    pub fn without(tokens: &[u32]) -> Self {
        Self {
            suppress_tokens: tokens.to_vec(),
            ..Self::default()
        }
    }

    /// The token that must come here, by these rules or by an encoder-decoder's configuration.
    pub fn forced(&self, encoder: Option<&EncoderSpec>, place: &Place) -> Option<u32> {
        let last = self.forced_eos_token_id.iter().min().copied();
        let last = last.or(encoder.and_then(|encoder| encoder.forced_last));
        let first = self.first(encoder).filter(|_| place.history.len() == 1);
        last.filter(|_| place.produced() + 1 == place.longest)
            .or(first)
    }

    fn first(&self, encoder: Option<&EncoderSpec>) -> Option<u32> {
        let of_encoder = encoder.and_then(|encoder| encoder.forced_first);
        self.forced_bos_token_id.or(of_encoder)
    }

    /// The tokens that must not come here; some may be named twice.
    pub fn forbidden(&self, place: &Place) -> Vec<u32> {
        let mut forbidden = self.suppress_tokens.clone();
        if place.history.len() < self.min_length || place.produced() < self.min_new_tokens {
            forbidden.extend(place.end);
        }
        // Where the first token is forced, the second is the first that is chosen.
        let begin = usize::from(place.prompt == 1 && self.forced_bos_token_id.is_some());
        if place.produced() == begin {
            forbidden.extend(&self.begin_suppress_tokens);
        }
        forbidden.extend(self.repeating(place.history));
        for word in &self.bad_words_ids {
            if let Some((last, before)) = word.split_last()
                && place.history.ends_with(before)
                && !(before.is_empty() && place.end.contains(last))
            {
                forbidden.push(*last);
            }
        }
        forbidden
    }

    /// The tokens that would end a group that was there before.
    fn repeating<'a>(&self, history: &'a [u32]) -> impl Iterator<Item = &'a u32> + use<'a> {
        let size = self.no_repeat_ngram_size;
        let known = history.len().checked_sub(size.wrapping_sub(1));
        let tail = known.map_or(&[][..], |start| &history[start..]);
        let groups = match size > 0 && known.is_some() {
            true => history.windows(size),
            false => [].windows(1),
        };
        groups.filter_map(move |group| {
            let (last, before) = group.split_last()?;
            (before == tail).then_some(last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        beam::{BeamOptions, beam_search},
        decode::{DecodeOptions, decode},
        sampler::SamplerOptions,
    };
    use burn::tensor::Device;
    use espalier_models::folder;

    fn place<'a>(history: &'a [u32], prompt: usize) -> Place<'a> {
        Place {
            history,
            prompt,
            longest: 4,
            end: &[2, 3],
        }
    }

    #[test]
    fn ends_come_when_a_text_is_long_enough() {
        let of_all = Rules {
            min_length: 4,
            ..Rules::default()
        };
        assert_eq!(of_all.forbidden(&place(&[7, 8, 9], 2)), [2, 3]);
        assert!(of_all.forbidden(&place(&[7, 8, 9, 9], 2)).is_empty());
        let of_new = Rules {
            min_new_tokens: 2,
            ..Rules::default()
        };
        assert_eq!(of_new.forbidden(&place(&[7, 8, 9], 2)), [2, 3]);
        assert!(of_new.forbidden(&place(&[7, 8, 9, 9], 2)).is_empty());
    }

    #[test]
    fn groups_do_not_come_twice() {
        let of = |size| Rules {
            no_repeat_ngram_size: size,
            ..Rules::default()
        };
        let history = [5, 6, 7, 5, 6, 8, 5, 6];
        assert_eq!(of(3).forbidden(&place(&history, 1)), [7, 8]);
        assert_eq!(of(1).forbidden(&place(&[5, 6], 1)), [5, 6]);
        assert!(of(0).forbidden(&place(&history, 1)).is_empty());
        assert!(of(9).forbidden(&place(&history, 1)).is_empty());
        assert!(of(99).forbidden(&place(&history, 1)).is_empty());
    }

    #[test]
    fn words_are_forbidden_by_their_last_token() {
        let rules = Rules {
            suppress_tokens: vec![40],
            bad_words_ids: vec![vec![9], vec![7, 8], vec![2], vec![]],
            ..Rules::default()
        };
        assert_eq!(rules.forbidden(&place(&[1, 7], 1)), [40, 9, 8]);
        assert_eq!(rules.forbidden(&place(&[1, 8], 1)), [40, 9]);
    }

    #[test]
    fn the_first_and_the_last_token_may_be_forced() {
        let rules = Rules {
            begin_suppress_tokens: vec![30],
            forced_bos_token_id: Some(50),
            forced_eos_token_id: vec![3, 2],
            ..Rules::default()
        };
        assert_eq!(rules.forced(None, &place(&[1], 1)), Some(50));
        assert_eq!(rules.forced(None, &place(&[1, 50], 1)), None);
        assert_eq!(rules.forbidden(&place(&[1, 50], 1)), [30]);
        assert_eq!(rules.forced(None, &place(&[1, 50, 4, 4], 1)), Some(2));
        // Behind a longer prompt nothing is the first token.
        assert_eq!(rules.forced(None, &place(&[1, 6], 2)), None);
        assert_eq!(rules.forbidden(&place(&[1, 6], 2)), [30]);
        assert!(rules.forbidden(&place(&[1, 6, 6], 2)).is_empty());
    }

    /// By transformers: `generate(max_new_tokens=8, do_sample=False)` after the same prompt, with these keys, end tokens and beams.
    type Reference = (
        &'static str,
        &'static str,
        &'static [u32],
        usize,
        &'static [u32],
        Option<f64>,
    );
    const REFERENCE: &[Reference] = &[
        (
            "llama",
            r#"{"no_repeat_ngram_size": 2}"#,
            &[2],
            1,
            &[57, 29, 29, 59, 29, 57, 59, 33],
            None,
        ),
        (
            "llama",
            r#"{"no_repeat_ngram_size": 2}"#,
            &[2],
            4,
            &[57, 57, 29, 59, 29, 29, 53, 17],
            Some(-2.776982),
        ),
        (
            "llama",
            r#"{"suppress_tokens": [57, 29]}"#,
            &[2],
            1,
            &[59, 59, 8, 59, 33, 19, 59, 59],
            None,
        ),
        (
            "llama",
            r#"{"suppress_tokens": [57, 29]}"#,
            &[2],
            4,
            &[19, 59, 59, 59, 33, 59, 59, 59],
            Some(-3.096352),
        ),
        (
            "llama",
            r#"{"begin_suppress_tokens": [57]}"#,
            &[2],
            1,
            &[29, 29, 59, 29, 59, 33, 59, 29],
            None,
        ),
        (
            "llama",
            r#"{"begin_suppress_tokens": [57]}"#,
            &[2],
            4,
            &[29, 57, 29, 59, 33, 59, 29, 29],
            Some(-2.666017),
        ),
        (
            "llama",
            r#"{"bad_words_ids": [[57], [29, 59], [2]]}"#,
            &[2],
            1,
            &[29, 29, 29, 29, 29, 29, 29, 33],
            None,
        ),
        (
            "llama",
            r#"{"bad_words_ids": [[57], [29, 59], [2]]}"#,
            &[2],
            4,
            &[59, 59, 29, 29, 29, 29, 29, 29],
            Some(-2.864601),
        ),
        (
            "llama",
            r#"{"forced_eos_token_id": [33, 2]}"#,
            &[2],
            1,
            &[57, 29, 29, 59, 29, 29, 29, 2],
            None,
        ),
        (
            "llama",
            r#"{"min_new_tokens": 3}"#,
            &[29, 57],
            1,
            &[59, 59, 8, 29],
            None,
        ),
        (
            "llama",
            r#"{"min_new_tokens": 3}"#,
            &[29, 57],
            4,
            &[19, 59, 59, 29],
            Some(-2.973958),
        ),
        (
            "llama",
            r#"{"min_length": 8}"#,
            &[29, 57],
            1,
            &[59, 59, 29],
            None,
        ),
        (
            "llama",
            r#"{"min_length": 8}"#,
            &[29, 57],
            4,
            &[59, 59, 29],
            Some(-2.942827),
        ),
        (
            "gpt2",
            r#"{"no_repeat_ngram_size": 1}"#,
            &[2],
            1,
            &[27, 11, 35, 28, 47, 29, 52, 26],
            None,
        ),
        (
            "gpt2",
            r#"{"no_repeat_ngram_size": 3}"#,
            &[2],
            1,
            &[27, 27, 11, 11, 11, 35, 35, 11],
            None,
        ),
        (
            "gpt2",
            r#"{"no_repeat_ngram_size": 3}"#,
            &[2],
            4,
            &[11, 11, 11, 28, 11, 11, 35, 11],
            Some(-2.538797),
        ),
        (
            "bart",
            r#"{"no_repeat_ngram_size": 2}"#,
            &[2],
            1,
            &[56, 56, 50, 50, 56, 40, 56, 2],
            None,
        ),
        (
            "bart",
            r#"{"no_repeat_ngram_size": 2}"#,
            &[2],
            4,
            &[24, 56, 56, 50, 50, 33, 56, 2],
            Some(-2.222308),
        ),
        (
            "bart",
            r#"{"forced_bos_token_id": 44}"#,
            &[2],
            1,
            &[44, 44, 56, 56, 56, 56, 56, 2],
            None,
        ),
        (
            "bart",
            r#"{"forced_bos_token_id": 44}"#,
            &[2],
            4,
            &[44, 50, 50, 50, 50, 50, 50, 2],
            Some(-1.560514),
        ),
        (
            "bart",
            r#"{"forced_bos_token_id": 44, "begin_suppress_tokens": [56, 50]}"#,
            &[2],
            4,
            &[44, 52, 50, 50, 50, 50, 50, 2],
            Some(-1.639312),
        ),
        (
            "bart",
            r#"{"forced_eos_token_id": [7]}"#,
            &[2],
            1,
            &[56, 56, 56, 56, 56, 56, 56, 7],
            None,
        ),
        (
            "t5",
            r#"{"no_repeat_ngram_size": 1}"#,
            &[2],
            1,
            &[8, 24, 37, 31, 56, 30, 29, 2],
            None,
        ),
        (
            "t5",
            r#"{"forced_bos_token_id": 44, "forced_eos_token_id": [2]}"#,
            &[2],
            1,
            &[44, 8, 8, 8, 8, 8, 8, 2],
            None,
        ),
        (
            "t5",
            r#"{"min_length": 6}"#,
            &[8],
            4,
            &[37, 37, 37, 37, 37, 37, 37, 37],
            Some(-3.754144),
        ),
    ];

    #[test]
    fn continuations_are_those_of_the_reference_library() {
        for (name, rules, end, beams, ids, score) in REFERENCE {
            let path = format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
            let model = folder::load(path.as_ref(), &Device::flex()).unwrap().model;
            let rules: Rules = serde_json::from_str(rules).unwrap();
            let said = format!("{name}, {rules:?}, {beams}");
            let prompt = vec![5, 9, 31, 7, 40, 12];
            let Some(score) = score else {
                let sampler = SamplerOptions {
                    temperature: 0.0,
                    rules,
                    ..SamplerOptions::default()
                };
                let options = DecodeOptions {
                    max_new_tokens: 8,
                    sampler,
                    end: end.to_vec(),
                };
                let found = decode(&model, &[prompt], &options, &mut |_, _| true).unwrap();
                assert_eq!(found[0].ids, *ids, "{said}");
                continue;
            };
            let options = BeamOptions {
                beams: *beams,
                max_new_tokens: 8,
                end: end.to_vec(),
                rules,
                ..BeamOptions::default()
            };
            let found = beam_search(&model, &prompt, &options, &mut |_| Ok(false)).unwrap();
            assert_eq!(found[0].ids, *ids, "{said}");
            assert!(
                (found[0].score - score).abs() < 1e-4,
                "{said}: {}",
                found[0].score
            );
        }
    }

    #[test]
    fn a_vocabulary_that_is_forbidden_is_an_error() {
        let path = format!("{}/../../tests/fixtures/llama", env!("CARGO_MANIFEST_DIR"));
        let model = folder::load(path.as_ref(), &Device::flex()).unwrap().model;
        let all = (0..model.spec().vocabulary as u32).collect();
        let options = BeamOptions {
            rules: Rules {
                suppress_tokens: all,
                ..Rules::default()
            },
            ..BeamOptions::default()
        };
        let error = beam_search(&model, &[5], &options, &mut |_| Ok(false)).unwrap_err();
        assert!(error.to_string().contains("no token can be chosen"));
    }
}
