//! The options of sampling that `chat` and `generate` share.
//!
//! What the command line leaves open is taken from the model's `generation_config.json`, as its makers published it, and else
//! from two common values.

use std::path::Path;

use espalier_engine::sampler::SamplerOptions;

use super::{
    published::{FILE, Published},
    sampling_more::{MoreSamplingArgs, with_breakers},
};
use crate::{Error, Result, model_path::OpenedModel};

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
    /// Makes tokens that have occurred less likely; 1 is off [default: the model's own, else 1]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// The same seed gives the same text
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
    /// Most tokens of one text
    #[arg(long, value_name = "COUNT", default_value_t = 512)]
    pub max_new_tokens: usize,
    /// The less usual ones.
    #[command(flatten)]
    pub more: MoreSamplingArgs,
}

impl SamplingArgs {
    /// As [`SamplingArgs::settings`] of an opened model, whose tokens say where repetitions end.
    ///
    /// # Errors
    /// As [`SamplingArgs::settings`].
    pub fn settings_of(&self, opened: &OpenedModel) -> Result<Published> {
        let mut settings = self.settings(&opened.base)?;
        with_breakers(&mut settings.sampler, &opened.text.tokenizer);
        Ok(settings)
    }

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

    /// The options, with those of `own` where none were given.
    fn over(&self, own: &SamplerOptions) -> SamplerOptions {
        let options = SamplerOptions {
            temperature: self.temperature.unwrap_or(own.temperature),
            top_p: self.top_p.unwrap_or(own.top_p),
            top_k: self.top_k.unwrap_or(own.top_k),
            min_p: self.min_p.unwrap_or(own.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(own.repetition_penalty),
            seed: self.seed,
            rules: own.rules.clone(),
            ..SamplerOptions::default()
        };
        self.more.over(options, own)
    }

    /// An option that was given, and has a meaning only where tokens are drawn.
    pub fn drawing(&self) -> Option<&'static str> {
        let given = [
            (self.temperature.is_some_and(|t| t != 0.0), "--temperature"),
            (self.top_p.is_some(), "--top-p"),
            (self.top_k.is_some(), "--top-k"),
            (self.min_p.is_some(), "--min-p"),
        ];
        given
            .into_iter()
            .find_map(|(given, option)| given.then_some(option))
            .or_else(|| self.more.drawing())
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
        repetition_penalty: None,
        seed: 3,
        max_new_tokens: 1,
        more: MoreSamplingArgs::NONE,
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
