//! Training a byte-level BPE vocabulary (Sennrich et al., arXiv 1508.07909, in GPT-2's byte-level form).
//!
//! Words are counted here, in parallel and with 64-bit counts; the merges are found by the `tokenizers` library. Special tokens
//! written out in the texts are cut away first, so that no merge is learned from them.
//!
//! Left out: other models (Unigram, WordPiece) and other word patterns than GPT-2's.

use std::collections::HashMap;

use rayon::prelude::*;
use regex::Regex;
use serde::{Deserialize, Serialize};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::{SpecialTokens, Tokenizer, library_error};
use crate::{Error, Result};

/// Texts that are counted at a time.
const CHUNK: usize = 4096;
/// The largest vocabulary that can be asked for.
const LARGEST_VOCABULARY: usize = 1 << 24;

/// Options of the training of a tokenizer.
///
/// ```
/// use espalier_data::tokenizer::BpeOptions;
/// let options = BpeOptions { vocabulary: 1024, ..Default::default() };
/// assert_eq!(options.eos.as_deref(), Some("<|im_end|>"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BpeOptions {
    /// Number of tokens in all, special tokens and the 256 bytes included. Fewer come out when nothing is left to merge.
    pub vocabulary: usize,
    /// A pair seen less often is not merged.
    pub min_frequency: u64,
    /// Tokens that are never split, in the order of their ids, which start at 0.
    pub special_tokens: Vec<String>,
    /// Beginning of a sequence; added to `special_tokens` if it is not there. No text gets it unless asked.
    pub bos: Option<String>,
    /// End of a sequence; added to `special_tokens` if it is not there.
    pub eos: Option<String>,
    /// Padding; added to `special_tokens` if it is not there.
    pub pad: Option<String>,
}

impl Default for BpeOptions {
    /// ChatML's tokens; `<|im_end|>` ends turns and documents alike, so generation knows one stop.
    fn default() -> Self {
        let token = |text: &str| text.to_string();
        Self {
            vocabulary: 4096,
            min_frequency: 2,
            special_tokens: vec![token("<|pad|>"), token("<|im_start|>"), token("<|im_end|>")],
            bos: None,
            eos: Some(token("<|im_end|>")),
            pad: Some(token("<|pad|>")),
        }
    }
}

impl BpeOptions {
    /// The special tokens with the named ones, each once.
    fn all_special(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for token in self
            .special_tokens
            .iter()
            .chain(&self.bos)
            .chain(&self.eos)
            .chain(&self.pad)
        {
            if !all.contains(token) {
                all.push(token.clone());
            }
        }
        all
    }

    fn validate(&self) -> Result<Vec<String>> {
        let special = self.all_special();
        if special.iter().any(String::is_empty) {
            return Err(Error::Invalid(
                "special_tokens: a special token is empty; remove it".into(),
            ));
        }
        let smallest = 256 + special.len();
        if !(smallest..=LARGEST_VOCABULARY).contains(&self.vocabulary) {
            return Err(Error::Invalid(format!(
                "vocabulary = {}: expected {smallest} (256 bytes and {} special tokens) to {LARGEST_VOCABULARY}",
                self.vocabulary,
                special.len()
            )));
        }
        Ok(special)
    }
}

impl Tokenizer {
    /// Learns a byte-level BPE tokenizer from texts. The same texts in any order give the same tokenizer.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the options make no sense.
    pub fn train_byte_level_bpe(
        texts: impl Iterator<Item = String>,
        options: &BpeOptions,
    ) -> Result<Self> {
        let special = options.validate()?;
        let counts = count_words(texts, &special)?;
        let tokens: Vec<AddedToken> = special
            .iter()
            .map(|text| AddedToken::from(text.clone(), true))
            .collect();
        let trainer = BpeTrainer::builder()
            .vocab_size(options.vocabulary)
            .min_frequency(options.min_frequency)
            .special_tokens(tokens.clone())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build();
        let mut model = BPE::default();
        let counts = counts
            .iter()
            .map(|(word, count)| (word.as_str().into(), *count))
            .collect();
        trainer
            .do_train(&counts, &mut model)
            .map_err(library_error)?;
        let roles = SpecialTokens {
            bos: options.bos.clone(),
            eos: options.eos.clone(),
            pad: options.pad.clone(),
            ..Default::default()
        };
        // A round trip through the file's form renumbers the ranks as every later load will.
        let trained = Self::from_byte_level_model(model, &tokens)?;
        Ok(Self::from_json(trained.main_file()?.as_bytes())?.with_special(roles))
    }

    /// A GPT-2 style pipeline around a model.
    pub(super) fn from_byte_level_model(model: BPE, special: &[AddedToken]) -> Result<Self> {
        let mut library = tokenizers::Tokenizer::new(model);
        library.with_pre_tokenizer(Some(pre_tokenizer()));
        library.with_decoder(Some(ByteLevel::default()));
        library
            .add_special_tokens(special.iter().cloned())
            .map_err(library_error)?;
        Self::from_library(library)
    }
}

/// GPT-2's words, without a space put before the text.
fn pre_tokenizer() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

/// How often each word occurs, words written in the byte alphabet.
fn count_words(
    mut texts: impl Iterator<Item = String>,
    special: &[String],
) -> Result<HashMap<String, u64>> {
    let boundary = special_pattern(special)?;
    let mut total = HashMap::new();
    loop {
        let chunk: Vec<String> = texts.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            break;
        }
        let counts: Result<Vec<_>> = chunk
            .par_chunks(64)
            .map(|texts| count_texts(texts, boundary.as_ref()))
            .collect();
        counts?
            .into_iter()
            .for_each(|counts| add_counts(&mut total, counts));
    }
    Ok(scaled(total))
}

fn count_texts(texts: &[String], boundary: Option<&Regex>) -> Result<HashMap<String, u64>> {
    let mut counts = HashMap::new();
    for text in texts {
        let pieces: Vec<&str> = boundary.map_or_else(
            || vec![text.as_str()],
            |pattern| pattern.split(text).collect(),
        );
        for piece in pieces {
            let mut words = PreTokenizedString::from(piece);
            pre_tokenizer()
                .pre_tokenize(&mut words)
                .map_err(library_error)?;
            for (word, _, _) in words.get_splits(OffsetReferential::Original, OffsetType::None) {
                *counts.entry(word.to_string()).or_insert(0) += 1;
            }
        }
    }
    Ok(counts)
}

fn add_counts(total: &mut HashMap<String, u64>, counts: HashMap<String, u64>) {
    for (word, count) in counts {
        *total.entry(word).or_insert(0) += count;
    }
}

/// The library counts pairs in 32 bits; beyond that all counts are divided, rounding up.
fn scaled(mut counts: HashMap<String, u64>) -> HashMap<String, u64> {
    let characters: u64 = counts
        .iter()
        .map(|(word, count)| word.chars().count() as u64 * count)
        .sum();
    let divisor = characters / (i32::MAX as u64 / 2) + 1;
    counts
        .values_mut()
        .for_each(|count| *count = count.div_ceil(divisor));
    counts
}

/// A pattern of all special tokens, the longest first.
fn special_pattern(special: &[String]) -> Result<Option<Regex>> {
    let mut tokens: Vec<&String> = special.iter().collect();
    tokens.sort_by_key(|token| std::cmp::Reverse(token.len()));
    let pattern = tokens
        .iter()
        .map(|token| regex::escape(token))
        .collect::<Vec<_>>()
        .join("|");
    if pattern.is_empty() {
        return Ok(None);
    }
    Regex::new(&pattern)
        .map(Some)
        .map_err(|reason| Error::Invalid(format!("special_tokens: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn corpus() -> Vec<String> {
        let words = [("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)];
        words
            .iter()
            .flat_map(|(word, count)| vec![word.to_string(); *count])
            .collect()
    }

    fn plain(vocabulary: usize) -> BpeOptions {
        BpeOptions {
            vocabulary,
            min_frequency: 0,
            special_tokens: vec![],
            bos: None,
            eos: None,
            pad: None,
        }
    }

    fn learned(tokenizer: &Tokenizer) -> Vec<String> {
        (256..tokenizer.vocabulary_size() as u32)
            .map(|id| tokenizer.token(id).unwrap())
            .collect()
    }

    #[test]
    fn learns_the_published_merges() {
        let tokenizer = Tokenizer::train_byte_level_bpe(corpus().into_iter(), &plain(300)).unwrap();
        let expected = [
            "es", "est", "lo", "low", "ew", "new", "newest", "dest", "idest", "widest", "er",
            "lower",
        ];
        assert_eq!(learned(&tokenizer), expected);
        // Characters come before, in the order of their code points.
        let alphabet: Vec<u32> = "deilnorstw"
            .chars()
            .map(|c| tokenizer.id(&c.to_string()).unwrap())
            .collect();
        assert!(alphabet.is_sorted() && alphabet[9] < 256, "{alphabet:?}");
    }

    #[test]
    fn runs_and_ties_merge_as_published() {
        let runs = Tokenizer::train_byte_level_bpe(
            ["aaaa", "aaaa"].map(String::from).into_iter(),
            &plain(300),
        )
        .unwrap();
        assert_eq!(learned(&runs), ["aa", "aaaa"]);
        assert_eq!(
            runs.encode("aaaaa", false).unwrap().ids,
            [257, runs.id("a").unwrap()]
        );
        let ties = ["cd", "ab", "cd", "ab"].map(String::from);
        assert_eq!(
            learned(&Tokenizer::train_byte_level_bpe(ties.into_iter(), &plain(300)).unwrap()),
            ["ab", "cd"]
        );
    }

    #[test]
    fn the_order_of_the_texts_does_not_matter() {
        let texts = || {
            (0..500).map(|number| {
                format!(
                    "{} times {} is {}\n",
                    number % 17,
                    number,
                    number * (number % 17)
                )
            })
        };
        let options = BpeOptions {
            vocabulary: 600,
            ..Default::default()
        };
        let forward = Tokenizer::train_byte_level_bpe(texts(), &options).unwrap();
        let backward = Tokenizer::train_byte_level_bpe(
            texts().collect::<Vec<_>>().into_iter().rev(),
            &options,
        )
        .unwrap();
        assert_eq!(forward.main_file().unwrap(), backward.main_file().unwrap());
        assert_eq!(forward.fingerprint(), backward.fingerprint());
        assert!(forward.vocabulary_size() > 300);
    }

    #[test]
    fn special_tokens_come_first_and_teach_nothing() {
        let texts = vec!["<|im_start|>x<|im_end|>".to_string(); 9];
        let tokenizer =
            Tokenizer::train_byte_level_bpe(texts.into_iter(), &BpeOptions::default()).unwrap();
        assert_eq!(tokenizer.id("<|pad|>"), Some(0));
        assert_eq!(tokenizer.id("<|im_end|>"), Some(2));
        assert_eq!(tokenizer.vocabulary_size(), 259);
        assert_eq!(tokenizer.special().eos.as_deref(), Some("<|im_end|>"));
    }

    #[test]
    fn a_vocabulary_without_room_is_refused() {
        let error = Tokenizer::train_byte_level_bpe(
            std::iter::empty(),
            &BpeOptions {
                vocabulary: 100,
                ..plain(0)
            },
        );
        assert!(error.unwrap_err().to_string().contains("expected 256"));
    }

    #[test]
    fn large_counts_are_scaled_down() {
        let counts = HashMap::from([("ab".to_string(), 1u64 << 33), ("c".to_string(), 1)]);
        let scaled = scaled(counts);
        assert!(scaled["ab"] < 1 << 31 && scaled["c"] == 1);
    }

    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        let options = BpeOptions {
            vocabulary: 280,
            ..Default::default()
        };
        Tokenizer::train_byte_level_bpe(corpus().into_iter(), &options).unwrap()
    });

    proptest! {
        #[test]
        fn any_text_comes_back(text in any::<String>()) {
            let ids = TOKENIZER.encode(&text, false).unwrap().ids;
            prop_assert_eq!(TOKENIZER.decode(&ids, false).unwrap(), text);
        }
    }
}
