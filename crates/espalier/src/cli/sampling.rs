//! The options of sampling that `chat` and `generate` share.
//!
//! What the command line leaves open is taken from the model's `generation_config.json`, as its makers published it, and else
//! from two common values.

mod values;

use std::path::Path;

use espalier_data::tokenizer::Tokenizer;
use espalier_engine::sampler::{
    SamplerOptions, Step, dry::Dry, mirostat::MirostatOptions, xtc::Xtc,
};

use self::values::{bias, dry, mirostat, order, xtc};
use super::published::{FILE, Published};
use crate::{Error, Result};

/// What repetitions do not reach over, as in llama.cpp.
const BREAKERS: &[char] = &['\n', ':', '"', '*'];

/// Steps of sampling, in order.
#[derive(Debug, Clone, Default)]
pub struct Order(pub Vec<Step>);

/// The tokens whose text has one of these characters.
fn tokens_with(tokenizer: &Tokenizer, characters: &[char]) -> Vec<u32> {
    let has_one = |id: &u32| {
        let text = tokenizer.decode(&[*id], false);
        text.is_ok_and(|text| text.contains(characters))
    };
    (0..tokenizer.vocabulary_size() as u32)
        .filter(has_one)
        .collect()
}

/// How tokens are drawn.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Divides the logits; 0 takes the likeliest token [default: the model's own, else 0.7]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Keep the likeliest tokens until they have this share of the probability; 1 is off [default: the model's own, else 0.95]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 is off [default: the model's own, else 0]
    #[arg(long, value_name = "COUNT")]
    pub top_k: Option<usize>,
    /// Keep tokens at least this many times as likely as the likeliest; 0 is off [default: the model's own, else 0]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Keep the tokens whose surprise is nearest to the entropy until they have this share; 1 is off [default: the model's own, else 1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub typical_p: Option<f32>,
    /// Keep tokens whose logits are within so many standard deviations of the largest; 0 is off
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub top_n_sigma: Option<f32>,
    /// So often leave out all tokens above the threshold (0.1) but the least likely of them
    #[arg(long, value_name = "PROBABILITY[,THRESHOLD]", value_parser = xtc)]
    pub xtc: Option<Xtc>,
    /// Keep the surprise at so many bits a token (learning rate 0.1), in the place of all other cuts
    #[arg(long, value_name = "BITS[,RATE]", value_parser = mirostat)]
    pub mirostat: Option<MirostatOptions>,
    /// Makes tokens that have occurred less likely; 1 is off [default: the model's own, else 1]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// How many of the last tokens that penalty looks at; 0 is all of them
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub repetition_window: usize,
    /// Subtracted from a logit for each time that the token was generated
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that were generated
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// What carries on a repetition of more than two tokens costs so much, and for each further token 1.75 times as much (DRY)
    #[arg(long, value_name = "MULTIPLIER[,BASE[,LENGTH]]", value_parser = dry)]
    pub dry: Option<Dry>,
    /// Added to the logit of a token, by its id; repeatable
    #[arg(long, value_name = "ID=NUMBER", value_parser = bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// The order of temperature and cuts, such as top_k,top_p,temperature; or `llama.cpp`
    #[arg(long, value_name = "STEPS", value_parser = order)]
    pub order: Option<Order>,
    /// The same seed gives the same text
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
    /// Most tokens of one text
    #[arg(long, value_name = "COUNT", default_value_t = 512)]
    pub max_new_tokens: usize,
}

impl SamplingArgs {
    /// What the model folder `base` says, with the options that were given in the place of its own.
    ///
    /// # Errors
    /// When an option is out of range, or `generation_config.json` is malformed.
    pub fn settings(&self, base: &Path) -> Result<Published> {
        let mut settings = Published::read(base)?;
        let options = self.over(&settings.sampler);
        options.validate().map_err(|error| {
            // What is wrong without the file is wrong on the command line.
            match self.over(&Published::usual().sampler).validate() {
                Ok(()) => Error::Work(format!(
                    "{}: {error}; mend the file, or set the option on the command line",
                    base.join(FILE).display()
                )),
                Err(_) => Error::Usage(error.to_string()),
            }
        })?;
        settings.sampler = options;
        Ok(settings)
    }

    /// What depends on the tokenizer: the tokens that repetitions do not reach over, and whether those with a bias exist.
    ///
    /// # Errors
    /// When the tokenizer has no such token.
    pub fn fit(&self, options: &mut SamplerOptions, tokenizer: &Tokenizer) -> Result<()> {
        if let Some(dry) = &mut options.dry {
            dry.breakers = tokens_with(tokenizer, BREAKERS);
        }
        let count = tokenizer.vocabulary_size();
        let unknown = self.logit_bias.iter().find(|(id, _)| *id as usize >= count);
        match unknown {
            Some((id, _)) => Err(Error::usage(format!(
                "--logit-bias {id}: the tokenizer has {count} tokens"
            ))),
            None => Ok(()),
        }
    }

    /// The options, with those of `own` where none were given. Mirostat makes its own cut, so that the model's are left out beside it.
    fn over(&self, own: &SamplerOptions) -> SamplerOptions {
        let off = SamplerOptions::default();
        let cuts = match self.mirostat {
            Some(_) => &off,
            None => own,
        };
        SamplerOptions {
            temperature: self.temperature.unwrap_or(own.temperature),
            top_p: self.top_p.unwrap_or(cuts.top_p),
            top_k: self.top_k.unwrap_or(cuts.top_k),
            min_p: self.min_p.unwrap_or(cuts.min_p),
            typical_p: self.typical_p.unwrap_or(cuts.typical_p),
            epsilon_cutoff: cuts.epsilon_cutoff,
            eta_cutoff: cuts.eta_cutoff,
            top_n_sigma: self.top_n_sigma.unwrap_or(cuts.top_n_sigma),
            xtc: self.xtc.or(cuts.xtc),
            mirostat: self.mirostat,
            logit_bias: self.logit_bias.iter().copied().collect(),
            repetition_penalty: self.repetition_penalty.unwrap_or(own.repetition_penalty),
            repetition_window: self.repetition_window,
            frequency_penalty: self.frequency_penalty.unwrap_or(own.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(own.presence_penalty),
            dry: self.dry.clone(),
            order: self.order.clone().unwrap_or_default().0,
            seed: self.seed,
            rules: own.rules.clone(),
        }
    }

    /// An option that was given, and that beams do not know.
    pub fn one_by_one(&self) -> Option<&'static str> {
        let given = [
            (self.repetition_window > 0, "--repetition-window"),
            (self.frequency_penalty.is_some(), "--frequency-penalty"),
            (self.presence_penalty.is_some(), "--presence-penalty"),
            (self.dry.is_some(), "--dry"),
            (!self.logit_bias.is_empty(), "--logit-bias"),
        ];
        given
            .into_iter()
            .find_map(|(given, option)| given.then_some(option))
    }

    /// An option that was given, and has a meaning only where tokens are drawn.
    pub fn drawing(&self) -> Option<&'static str> {
        let given = [
            (self.temperature.is_some_and(|t| t != 0.0), "--temperature"),
            (self.top_p.is_some(), "--top-p"),
            (self.top_k.is_some(), "--top-k"),
            (self.min_p.is_some(), "--min-p"),
            (self.typical_p.is_some(), "--typical-p"),
            (self.top_n_sigma.is_some(), "--top-n-sigma"),
            (self.xtc.is_some(), "--xtc"),
            (self.mirostat.is_some(), "--mirostat"),
            (self.order.is_some(), "--order"),
        ];
        given
            .into_iter()
            .find_map(|(given, option)| given.then_some(option))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: SamplingArgs = SamplingArgs {
        temperature: None,
        top_p: None,
        top_k: None,
        min_p: None,
        typical_p: None,
        top_n_sigma: None,
        xtc: None,
        mirostat: None,
        repetition_penalty: None,
        repetition_window: 0,
        frequency_penalty: None,
        presence_penalty: None,
        dry: None,
        logit_bias: Vec::new(),
        order: None,
        seed: 3,
        max_new_tokens: 1,
    };

    #[test]
    fn the_command_line_wins_over_the_models_own() {
        let folder = tempfile::tempdir().unwrap();
        let settings = |args: SamplingArgs| args.settings(folder.path()).unwrap().sampler;
        assert_eq!(settings(NONE).temperature, 0.7);
        let text = r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9}"#;
        std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
        let options = settings(SamplingArgs {
            top_p: Some(0.5),
            ..NONE
        });
        assert_eq!(
            (
                options.temperature,
                options.top_k,
                options.top_p,
                options.seed
            ),
            (0.6, 20, 0.5, 3)
        );
        std::fs::write(
            folder.path().join("generation_config.json"),
            r#"{"do_sample": false}"#,
        )
        .unwrap();
        assert_eq!(settings(NONE).temperature, 0.0);
    }

    #[test]
    fn values_out_of_range_in_the_models_file_name_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation_config.json");
        std::fs::write(&path, r#"{"top_p": 0}"#).unwrap();
        let error = NONE.settings(folder.path()).unwrap_err();
        let (said, path) = (error.to_string(), path.display());
        assert!(
            said.starts_with(&format!("{path}: top_p = 0: expected")),
            "{said}"
        );
        assert_eq!(error.exit_code(), 1);
        let given = SamplingArgs {
            top_p: Some(0.9),
            ..NONE
        };
        assert_eq!(given.settings(folder.path()).unwrap().sampler.top_p, 0.9);
    }

    #[test]
    fn values_out_of_range_name_the_option() {
        let error = SamplingArgs {
            top_p: Some(1.5),
            ..NONE
        }
        .settings(Path::new("nowhere"))
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "top_p = 1.5: expected more than 0, at most 1 (off)"
        );
        assert_eq!(error.exit_code(), 2);
    }
}
