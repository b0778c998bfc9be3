//! The options of sampling, and what they may be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Step, dry::Dry, mirostat::MirostatOptions, xtc::Xtc};
use crate::{Error, Result, rules::Rules};

/// Options of sampling; those of the default leave the model's own distribution as it is.
///
/// ```
/// use espalier_engine::sampler::SamplerOptions;
/// let greedy = SamplerOptions { temperature: 0.0, ..Default::default() };
/// assert!(greedy.validate().is_ok());
/// assert!(SamplerOptions { top_p: 1.5, ..greedy }.validate().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplerOptions {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens until their probabilities sum to this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest to the entropy until their probabilities sum to this; 1 keeps all.
    pub typical_p: f32,
    /// Keep tokens with at least this probability; 0 keeps all.
    pub epsilon_cutoff: f32,
    /// Keep tokens with at least this probability, or less where the entropy is high; 0 keeps all.
    pub eta_cutoff: f32,
    /// Keep tokens whose logits are within so many standard deviations of the largest; 0 keeps all.
    pub top_n_sigma: f32,
    /// Now and then leaves out the likeliest tokens.
    pub xtc: Option<Xtc>,
    /// Keeps the surprise at a target, in the place of all other cuts.
    pub mirostat: Option<MirostatOptions>,
    /// Added to the logits of tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Makes tokens of the history less likely: positive logits are divided by it, negative ones multiplied; 1 does nothing.
    pub repetition_penalty: f32,
    /// How many of the last tokens the repetition penalty looks at; 0 looks at all.
    pub repetition_window: usize,
    /// Subtracted from a logit for each time that the token was generated.
    pub frequency_penalty: f32,
    /// Subtracted from the logits of tokens that were generated.
    pub presence_penalty: f32,
    /// Makes repetitions less likely, the more so the longer they are.
    pub dry: Option<Dry>,
    /// The order of temperature and cuts; empty is the usual one.
    pub order: Vec<Step>,
    /// Seed of the draws.
    pub seed: u64,
    /// What may not come, and what must.
    pub rules: Rules,
}

impl Default for SamplerOptions {
    /// The model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            top_n_sigma: 0.0,
            xtc: None,
            mirostat: None,
            logit_bias: BTreeMap::new(),
            repetition_penalty: 1.0,
            repetition_window: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            dry: None,
            order: Vec::new(),
            seed: 0,
            rules: Rules::default(),
        }
    }
}

impl SamplerOptions {
    /// The steps that do something, in order.
    pub(super) fn steps(&self) -> Vec<Step> {
        let order = match self.order.is_empty() {
            true => &Step::USUAL[..],
            false => &self.order,
        };
        let on = order.iter().copied().filter(|step| step.is_on(self));
        on.collect()
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Sampling`] names the key and what it may be.
    pub fn validate(&self) -> Result<()> {
        use self::Range as R;
        for (key, value, range) in [
            (
                "temperature",
                self.temperature,
                R::FromZero("0 (greedy) or more"),
            ),
            ("top_p", self.top_p, R::Share),
            ("min_p", self.min_p, R::FromZeroToOne),
            ("typical_p", self.typical_p, R::Share),
            ("epsilon_cutoff", self.epsilon_cutoff, R::BelowOne),
            ("eta_cutoff", self.eta_cutoff, R::BelowOne),
            (
                "top_n_sigma",
                self.top_n_sigma,
                R::FromZero("0 (off) or more"),
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                R::Positive("more than 0; 1 is off"),
            ),
            ("frequency_penalty", self.frequency_penalty, R::Finite),
            ("presence_penalty", self.presence_penalty, R::Finite),
        ] {
            range.check(key, value)?;
        }
        for (id, bias) in &self.logit_bias {
            R::Finite.check(&format!("logit_bias of token {id}"), *bias)?;
        }
        if let Some(xtc) = self.xtc {
            R::FromZeroToOne.check("xtc.probability", xtc.probability)?;
            R::FromZeroToOne.check("xtc.threshold", xtc.threshold)?;
        }
        if let Some(dry) = &self.dry {
            R::FromZero("0 (off) or more").check("dry.multiplier", dry.multiplier)?;
            match dry.base >= 1.0 && dry.base.is_finite() {
                true => Ok(()),
                false => Err(wrong("dry.base", dry.base, "1 or more")),
            }?;
        }
        self.check_mirostat()?;
        self.check_order()
    }

    fn check_mirostat(&self) -> Result<()> {
        let Some(mirostat) = self.mirostat else {
            return Ok(());
        };
        Range::Positive("more than 0").check("mirostat.target", mirostat.target)?;
        Range::Positive("more than 0").check("mirostat.learning_rate", mirostat.learning_rate)?;
        let other = self.steps();
        match other.into_iter().find(|step| *step != Step::Temperature) {
            Some(step) => Err(Error::Sampling(format!(
                "mirostat stands in the place of all other cuts, and `{}` is set too; leave one of them out",
                step.name()
            ))),
            None => Ok(()),
        }
    }

    fn check_order(&self) -> Result<()> {
        if self.order.is_empty() {
            return Ok(());
        }
        for (place, step) in self.order.iter().enumerate() {
            if self.order[..place].contains(step) {
                return Err(Error::Sampling(format!(
                    "order: `{}` stands there twice",
                    step.name()
                )));
            }
        }
        let missing = |step: &&Step| step.is_on(self) && !self.order.contains(step);
        match Step::USUAL.iter().find(missing) {
            Some(step) => Err(Error::Sampling(format!(
                "order: `{}` is on, and does not stand there; name it, or switch it off",
                step.name()
            ))),
            None => Ok(()),
        }
    }
}

/// What a number may be.
#[derive(Clone, Copy)]
enum Range {
    Finite,
    FromZero(&'static str),
    Positive(&'static str),
    Share,
    FromZeroToOne,
    BelowOne,
}

impl Range {
    fn check(self, key: &str, value: f32) -> Result<()> {
        let (good, expected) = match self {
            Self::Finite => (true, "a number"),
            Self::FromZero(expected) => (value >= 0.0, expected),
            Self::Positive(expected) => (value > 0.0, expected),
            Self::Share => (value > 0.0 && value <= 1.0, "more than 0, at most 1 (off)"),
            Self::FromZeroToOne => ((0.0..=1.0).contains(&value), "0 (off) to 1"),
            Self::BelowOne => ((0.0..1.0).contains(&value), "0 (off) or more, below 1"),
        };
        match good && value.is_finite() {
            true => Ok(()),
            false => Err(wrong(key, value, expected)),
        }
    }
}

fn wrong(key: &str, value: f32, expected: &str) -> Error {
    Error::Sampling(format!("{key} = {value}: expected {expected}"))
}
