//! Two plain rules: how near an answer comes to a length, and whether it matches a regular expression.

use burn::tensor::Device;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Asked, Reward, Source};
use crate::{Error, Result, error::at_least};

/// The options of the reward for a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LengthOptions {
    /// The wanted length in tokens, the end included.
    #[schemars(range(min = 1))]
    pub target: usize,
}

impl Source for LengthOptions {
    fn check(&self) -> Result<()> {
        at_least("target", self.target, 1)
    }

    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(LengthReward::new(*self)?))
    }
}

/// `-|tokens - target| / target`: 0 at the target, -1 for nothing and for twice as much.
#[derive(Debug, Clone, Copy)]
pub struct LengthReward(LengthOptions);

impl LengthReward {
    /// # Errors
    /// When the target is 0.
    pub(super) fn new(options: LengthOptions) -> Result<Self> {
        options.check()?;
        Ok(Self(options))
    }
}

impl Reward for LengthReward {
    fn score(&mut self, answers: &[Asked<'_>]) -> Result<Vec<Option<f64>>> {
        let target = self.0.target as f64;
        let score = |asked: &Asked<'_>| Some(-(asked.tokens as f64 - target).abs() / target);
        Ok(answers.iter().map(score).collect())
    }
}

/// The options of the reward for a regular expression.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegexOptions {
    /// The regular expression, searched anywhere in the answer; `^` and `$` bind it to the ends.
    pub pattern: String,
}

impl Source for RegexOptions {
    fn check(&self) -> Result<()> {
        compiled(&self.pattern).map(drop)
    }

    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(RegexReward::new(self)?))
    }
}

/// A regular expression of the key `pattern`.
///
/// # Errors
/// When it is none.
pub(super) fn compiled(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| Error::Option {
        key: "pattern",
        reason: format!("{error}"),
    })
}

/// 1 where the answer matches, else 0.
#[derive(Debug, Clone)]
pub struct RegexReward(Regex);

impl RegexReward {
    /// # Errors
    /// When the pattern is none.
    pub(super) fn new(options: &RegexOptions) -> Result<Self> {
        Ok(Self(compiled(&options.pattern)?))
    }
}

impl Reward for RegexReward {
    fn score(&mut self, answers: &[Asked<'_>]) -> Result<Vec<Option<f64>>> {
        let score = |asked: &Asked<'_>| Some(f64::from(u8::from(self.0.is_match(asked.answer))));
        Ok(answers.iter().map(score).collect())
    }
}
