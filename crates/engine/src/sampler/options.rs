<<<<<<< HEAD
//! The options of sampling, and the order of its steps.

use std::collections::BTreeMap;
use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Dry, Mirostat, Xtc};
use crate::{Error, Result, rules::Rules};

/// A step from the model's distribution to the one that is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Divides the logits.
    Temperature,
    /// Keeps some of the likeliest.
    TopK,
    /// Keeps the likeliest that hold a share of the mass.
    TopP,
    /// Keeps what is not much less likely than the likeliest.
    MinP,
    /// Keeps what is about as surprising as is expected.
    Typical,
    /// Leaves the likeliest out now and then.
    Xtc,
}

impl Step {
    /// All, in the usual order.
    pub const ALL: [Self; 6] = [
        Self::Temperature,
        Self::TopK,
        Self::TopP,
        Self::MinP,
        Self::Typical,
        Self::Xtc,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Temperature => "temperature",
            Self::TopK => "top_k",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::Typical => "typical",
            Self::Xtc => "xtc",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|step| step.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("expected one of {names}")
        })
    }
}

/// Options of sampling.
=======
//! The options of sampling, and what they may be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Step, dry::Dry, mirostat::MirostatOptions, xtc::Xtc};
use crate::{Error, Result, rules::Rules};

/// Options of sampling; those of the default leave the model's own distribution as it is.
>>>>>>> main
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
<<<<<<< HEAD
    /// Makes tokens of the history less likely: positive logits are divided by it, negative ones multiplied; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of a token for every time that it was generated; 0 does nothing.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of a token that was generated; 0 does nothing.
    pub presence_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Keep the most typical tokens until their probabilities sum to this; 1 keeps all.
    pub typical_p: f32,
    /// Makes repetitions less likely the longer they are.
    pub dry: Option<Dry>,
    /// Leaves out the likeliest tokens now and then.
    pub xtc: Option<Xtc>,
    /// Keeps the surprise near a target, in place of all cuts.
    pub mirostat: Option<Mirostat>,
    /// The steps, each once, in the order in which they are taken; one that is left out is not taken.
=======
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
>>>>>>> main
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
<<<<<<< HEAD
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            typical_p: 1.0,
            dry: None,
            xtc: None,
            mirostat: None,
            order: Step::ALL.to_vec(),
=======
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
>>>>>>> main
            seed: 0,
            rules: Rules::default(),
        }
    }
}

impl SamplerOptions {
<<<<<<< HEAD
=======
    /// The steps that do something, in order.
    pub(super) fn steps(&self) -> Vec<Step> {
        let order = match self.order.is_empty() {
            true => &Step::USUAL[..],
            false => &self.order,
        };
        let on = order.iter().copied().filter(|step| step.is_on(self));
        on.collect()
    }

>>>>>>> main
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Sampling`] names the key and what it may be.
    pub fn validate(&self) -> Result<()> {
<<<<<<< HEAD
        let check = |key: &str, value: f32, good: bool, expected: &str| {
            if good {
                Ok(())
            } else {
                Err(Error::Sampling(format!(
                    "{key} = {value}: expected {expected}"
                )))
            }
        };
        let finite = |value: f32| value.is_finite();
        check(
            "temperature",
            self.temperature,
            finite(self.temperature) && self.temperature >= 0.0,
            "0 (greedy) or more",
        )?;
        check(
            "top_p",
            self.top_p,
            self.top_p > 0.0 && self.top_p <= 1.0,
            "more than 0, at most 1 (off)",
        )?;
        check(
            "min_p",
            self.min_p,
            (0.0..=1.0).contains(&self.min_p),
            "0 (off) to 1",
        )?;
        let penalty = self.repetition_penalty;
        check(
            "repetition_penalty",
            penalty,
            finite(penalty) && penalty > 0.0,
            "more than 0; 1 is off",
        )?;
        check(
            "typical_p",
            self.typical_p,
            self.typical_p > 0.0 && self.typical_p <= 1.0,
            "more than 0, at most 1 (off)",
        )?;
        for (key, value) in [
            ("frequency_penalty", self.frequency_penalty),
            ("presence_penalty", self.presence_penalty),
        ] {
            check(key, value, finite(value), "a number; 0 is off")?;
        }
        for (token, bias) in &self.logit_bias {
            let key = format!("logit_bias of token {token}");
            check(
                &key,
                *bias,
                !bias.is_nan() && *bias != f32::INFINITY,
                "a number, or -inf",
            )?;
        }
        if let Some(dry) = &self.dry {
            let good = finite(dry.multiplier) && dry.multiplier >= 0.0;
            check("dry.multiplier", dry.multiplier, good, "0 (off) or more")?;
            let good = finite(dry.base) && dry.base >= 1.0;
            check("dry.base", dry.base, good, "1 or more")?;
        }
        if let Some(xtc) = self.xtc {
            let share = |value: f32| (0.0..=1.0).contains(&value);
            check(
                "xtc.probability",
                xtc.probability,
                share(xtc.probability),
                "0 (off) to 1",
            )?;
            check(
                "xtc.threshold",
                xtc.threshold,
                share(xtc.threshold),
                "0 to 1",
            )?;
        }
        if let Some(mirostat) = self.mirostat {
            let good = |value: f32| finite(value) && value > 0.0;
            check(
                "mirostat.tau",
                mirostat.tau,
                good(mirostat.tau),
                "more than 0",
            )?;
            check(
                "mirostat.eta",
                mirostat.eta,
                good(mirostat.eta),
                "more than 0",
            )?;
        }
        let twice = |(place, step): (usize, &Step)| self.order[..place].contains(step);
        match self.order.iter().enumerate().find(|entry| twice(*entry)) {
            Some((_, step)) => Err(Error::Sampling(format!("order has {step} twice"))),
=======
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
>>>>>>> main
            None => Ok(()),
        }
    }
}
<<<<<<< HEAD
=======

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
>>>>>>> main
