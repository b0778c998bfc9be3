//! How the makers of a model mean it to write: `generation_config.json`, read whole.
//!
//! What is not there is left at two common values. What changes the text and is not supported is named once; what says how fast
//! or in what form, and not what, is nobody's concern here. `max_length` and `max_new_tokens` are the command line's to say, which always
//! does.

use std::path::Path;

use espalier_engine::{rules::Rules, sampler::SamplerOptions};
use espalier_models::families::{Config, is_unset};
use serde_json::{Value, json};

use crate::Result;

/// The file's name.
pub const FILE: &str = "generation_config.json";

/// Most tokens that a rule may count.
const COUNT_LIMIT: usize = 1 << 30;

/// Where neither the command line nor the model says anything.
const TEMPERATURE: f32 = 0.7;
const TOP_P: f32 = 0.95;

/// What changes the text and is not supported, with the value that changes nothing.
const UNSUPPORTED: &[(&str, f64)] = &[
    ("constraints", 0.0),
    ("diversity_penalty", 0.0),
    ("dola_layers", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("exponential_decay_length_penalty", 0.0),
    ("force_words_ids", 0.0),
    ("forced_decoder_ids", 0.0),
    ("guidance_scale", 1.0),
    ("num_beam_groups", 1.0),
    ("penalty_alpha", 0.0),
    ("sequence_bias", 0.0),
    ("token_healing", 0.0),
    ("top_h", 0.0),
    ("watermarking_config", 0.0),
];

/// Beam search as a model's makers mean it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beams {
    /// Continuations that are followed; 1 is no search.
    pub count: usize,
    /// Above 1 favours long texts, below 1 short ones.
    pub length_penalty: f64,
    /// Whether the search ends as soon as enough of them have ended.
    pub early_stopping: bool,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// How tokens are drawn.
    pub sampler: SamplerOptions,
    /// How many are followed side by side.
    pub beams: Beams,
    /// Strings that end a text.
    pub stops: Vec<String>,
    /// What the user should know, a sentence each.
    pub remarks: Vec<String>,
}

impl Published {
    /// Where a model says nothing.
    pub fn usual() -> Self {
        Self {
            sampler: SamplerOptions {
                temperature: TEMPERATURE,
                top_p: TOP_P,
                ..SamplerOptions::default()
            },
            beams: Beams {
                count: 1,
                length_penalty: 1.0,
                early_stopping: false,
            },
            stops: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Reads the file of a model's folder; [`Published::usual`] where there is none.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn read(base: &Path) -> Result<Self> {
        let path = base.join(FILE);
        if !path.is_file() {
            return Ok(Self::usual());
        }
        let config = Config::load(&path)?;
        let mut remarks = unsupported(&config);
        let mut beams = beams(&config)?;
        if beams.count > 1 && config.flag_or("do_sample", false)? {
            remarks.push(format!(
                "{}: `num_beams` with `do_sample` is not supported; one token is drawn at a time",
                path.display()
            ));
            beams.count = 1;
        }
        Ok(Self {
            sampler: sampler(&config)?,
            beams,
            stops: config
                .optional_texts("stop_strings")?
                .unwrap_or_default()
                .into_iter()
                .filter(|stop| !stop.is_empty())
                .map(str::to_owned)
                .collect(),
            remarks,
        })
    }
}

fn sampler(config: &Config) -> Result<SamplerOptions> {
    let usual = Published::usual().sampler;
    let number = |key, usual: f32| -> Result<f32> {
        Ok(config.optional_number(key)?.map_or(usual, |own| own as f32))
    };
    let temperature = match config.flag_or("do_sample", true)? {
        true => number("temperature", usual.temperature)?,
        false => 0.0,
    };
    Ok(SamplerOptions {
        temperature,
        top_p: number("top_p", usual.top_p)?,
        top_k: config.count_or("top_k", 0, COUNT_LIMIT)?,
        min_p: number("min_p", usual.min_p)?,
        typical_p: number("typical_p", usual.typical_p)?,
        epsilon_cutoff: number("epsilon_cutoff", usual.epsilon_cutoff)?,
        eta_cutoff: number("eta_cutoff", usual.eta_cutoff)?,
        repetition_penalty: number("repetition_penalty", usual.repetition_penalty)?,
        rules: rules(config)?,
        ..usual
    })
}

fn rules(config: &Config) -> Result<Rules> {
    let count = |key| config.count_or(key, 0, COUNT_LIMIT);
    Ok(Rules {
        min_length: count("min_length")?,
        min_new_tokens: count("min_new_tokens")?,
        no_repeat_ngram_size: count("no_repeat_ngram_size")?,
        suppress_tokens: tokens(config, "suppress_tokens")?,
        begin_suppress_tokens: tokens(config, "begin_suppress_tokens")?,
        bad_words_ids: words(config, "bad_words_ids")?,
        forced_bos_token_id: config.token("forced_bos_token_id")?,
        forced_eos_token_id: tokens(config, "forced_eos_token_id")?,
    })
}

fn beams(config: &Config) -> Result<Beams> {
    let length_penalty = config.optional_number("length_penalty")?.unwrap_or(1.0);
    if !is_length_penalty(length_penalty) {
        let expected = format!("expected {LENGTH_PENALTY}, found {length_penalty}");
        return Err(config.error("length_penalty", expected).into());
    }
    Ok(Beams {
        count: config.optional_size("num_beams", COUNT_LIMIT)?.unwrap_or(1),
        length_penalty,
        early_stopping: config.get("early_stopping") == Some(&json!(true)),
    })
}

/// What a length penalty may be: beyond it powers of lengths are no numbers any more.
pub const LENGTH_PENALTY: &str = "a number from -100 to 100";

/// Whether a length penalty is [`LENGTH_PENALTY`].
pub fn is_length_penalty(value: f64) -> bool {
    (-100.0..=100.0).contains(&value)
}

/// A token id; a negative one stands for none.
fn token(value: &Value) -> Option<Option<u32>> {
    match value.as_i64()? {
        id if id < 0 => Some(None),
        id => u32::try_from(id).ok().map(Some),
    }
}

fn list(value: &Value) -> Option<Vec<u32>> {
    let ids: Option<Vec<Option<u32>>> = value.as_array()?.iter().map(token).collect();
    Some(ids?.into_iter().flatten().collect())
}

fn tokens(config: &Config, key: &str) -> Result<Vec<u32>> {
    let Some(value) = config.get(key) else {
        return Ok(Vec::new());
    };
    let one = || Some(token(value)?.into_iter().collect());
    let read = list(value).or_else(one);
    Ok(read.ok_or_else(|| config.error(key, "expected token ids"))?)
}

fn words(config: &Config, key: &str) -> Result<Vec<Vec<u32>>> {
    let Some(value) = config.get(key) else {
        return Ok(Vec::new());
    };
    let lists = value.as_array().map(|words| words.iter().map(list));
    let read: Option<Vec<Vec<u32>>> = lists.and_then(Iterator::collect);
    Ok(read.ok_or_else(|| config.error(key, "expected lists of token ids"))?)
}

/// A sentence about the keys that are set and not supported.
fn unsupported(config: &Config) -> Vec<String> {
    let is_set = |(key, neutral): &&(&str, f64)| {
        let value = config.get(key);
        value.is_some_and(|value| !is_unset(value) && value.as_f64() != Some(*neutral))
    };
    let set = UNSUPPORTED.iter().filter(is_set);
    let mut keys: Vec<String> = set.map(|(key, _)| format!("`{key}`")).collect();
    if config.get("early_stopping") == Some(&json!("never")) {
        keys.push("`early_stopping` = \"never\"".into());
    }
    match keys.is_empty() {
        true => Vec::new(),
        false => vec![format!(
            "{}: not supported, and left out: {}",
            config.path().display(),
            keys.join(", ")
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(text: &str) -> Result<Published> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        Published::read(folder.path())
    }

    #[test]
    fn what_is_forbidden_and_forced_is_read() {
        let rules = published(
            r#"{"min_length": 3, "min_new_tokens": 2, "no_repeat_ngram_size": 4, "suppress_tokens": [1, -1], "begin_suppress_tokens": 5,
            "bad_words_ids": [[7], [8, 9]], "forced_bos_token_id": 10, "forced_eos_token_id": [2, 3]}"#,
        );
        let expected = Rules {
            min_length: 3,
            min_new_tokens: 2,
            no_repeat_ngram_size: 4,
            suppress_tokens: vec![1],
            begin_suppress_tokens: vec![5],
            bad_words_ids: vec![vec![7], vec![8, 9]],
            forced_bos_token_id: Some(10),
            forced_eos_token_id: vec![2, 3],
        };
        assert_eq!(rules.unwrap().sampler.rules, expected);
    }

    #[test]
    fn beams_are_followed_where_nothing_is_drawn() {
        let read = |text| published(text).unwrap();
        let beams =
            read(r#"{"num_beams": 4, "length_penalty": 2.0, "early_stopping": true}"#).beams;
        let expected = Beams {
            count: 4,
            length_penalty: 2.0,
            early_stopping: true,
        };
        assert_eq!(beams, expected);
        let drawn = read(r#"{"num_beams": 4, "do_sample": true}"#);
        assert_eq!((drawn.beams.count, drawn.remarks.len()), (1, 1));
    }

    #[test]
    fn what_is_not_supported_is_named_once() {
        let said = published(
            r#"{"typical_p": 0.5, "top_h": 0.5, "guidance_scale": 1.0, "diversity_penalty": 0, "early_stopping": "never", "sequence_bias": [[[3], -1.0]],
            "token_healing": false, "use_cache": true, "encoder_repetition_penalty": 1}"#,
        );
        let read = said.unwrap();
        assert_eq!(read.sampler.typical_p, 0.5);
        let said = read.remarks;
        assert_eq!(said.len(), 1);
        let end =
            "not supported, and left out: `sequence_bias`, `top_h`, `early_stopping` = \"never\"";
        assert!(said[0].ends_with(end), "{said:?}");
        assert!(published("{}").unwrap().remarks.is_empty());
    }

    #[test]
    fn values_of_another_kind_are_errors_that_name_the_key() {
        for (key, value) in [
            ("top_k", "1.5"),
            ("num_beams", "0"),
            ("suppress_tokens", "\"x\""),
            ("bad_words_ids", "[3]"),
            ("forced_bos_token_id", "[1, 2]"),
            ("length_penalty", "1e300"),
            ("min_length", "-1"),
        ] {
            let error = published(&format!("{{\"{key}\": {value}}}")).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(key) && said.contains(FILE), "{said}");
        }
    }
}
