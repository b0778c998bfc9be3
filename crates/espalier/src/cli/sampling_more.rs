//! The less usual options of sampling.

use espalier_data::tokenizer::Tokenizer;
use espalier_engine::sampler::{Dry, Mirostat, SamplerOptions, Step, Xtc};

/// What ends a repetition that DRY counts.
const BREAKERS: [char; 4] = ['\n', ':', '"', '*'];

/// Options with `none` for what was not given.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "More of sampling")]
pub struct MoreSamplingArgs {
    /// Keep the most typical tokens until they have this share of the probability; 1 is off [default: the model's own, else 1]
    #[arg(long, value_name = "SHARE")]
    pub typical_p: Option<f32>,
    /// Subtract this from a token's logit for every time that it was generated
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0)]
    pub frequency_penalty: f32,
    /// Subtract this from the logits of tokens that were generated
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0)]
    pub presence_penalty: f32,
    /// Add to a token's logit, as 42=-1.5 or 42=-inf; may be given several times
    #[arg(long, value_name = "ID=NUMBER", value_parser = bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// DRY: what the shortest repetition that counts costs; 0 is off
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0)]
    pub dry: f32,
    /// DRY: the factor for each token by which a repetition is longer
    #[arg(long, value_name = "FACTOR", default_value_t = 1.75)]
    pub dry_base: f32,
    /// DRY: the shortest repetition that counts, in tokens
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pub dry_length: usize,
    /// XTC: how often the likeliest tokens are left out; 0 is off
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub xtc: f32,
    /// XTC: the probability from which a token is a likely one
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub xtc_threshold: f32,
    /// Mirostat: keep the surprise of tokens near so many bits, in place of all cuts; 0 is off
    #[arg(long, value_name = "BITS", default_value_t = 0.0)]
    pub mirostat: f32,
    /// Mirostat: how fast its bound follows
    #[arg(long, value_name = "RATE", default_value_t = 0.1)]
    pub mirostat_rate: f32,
    /// The steps in their order, of temperature, top_k, top_p, min_p, typical and xtc; those left out are not taken [default: all, as here]
    #[arg(long, value_name = "STEPS", value_delimiter = ',')]
    pub sampler_order: Vec<Step>,
}

impl MoreSamplingArgs {
    /// Nothing given.
    #[cfg(test)]
    pub const NONE: Self = Self {
        typical_p: None,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logit_bias: Vec::new(),
        dry: 0.0,
        dry_base: 1.75,
        dry_length: 2,
        xtc: 0.0,
        xtc_threshold: 0.1,
        mirostat: 0.0,
        mirostat_rate: 0.1,
        sampler_order: Vec::new(),
    };

    /// The options with these; `own` are the model's.
    pub fn over(&self, options: SamplerOptions, own: &SamplerOptions) -> SamplerOptions {
        SamplerOptions {
            typical_p: self.typical_p.unwrap_or(own.typical_p),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            dry: (self.dry != 0.0).then(|| Dry {
                multiplier: self.dry,
                base: self.dry_base,
                allowed_length: self.dry_length,
                breakers: Vec::new(),
            }),
            xtc: (self.xtc != 0.0).then_some(Xtc {
                probability: self.xtc,
                threshold: self.xtc_threshold,
            }),
            mirostat: (self.mirostat != 0.0).then_some(Mirostat {
                tau: self.mirostat,
                eta: self.mirostat_rate,
            }),
            order: match self.sampler_order.is_empty() {
                true => own.order.clone(),
                false => self.sampler_order.clone(),
            },
            ..options
        }
    }

    /// An option that was given, and has a meaning only where tokens are drawn.
    pub fn drawing(&self) -> Option<&'static str> {
        let given = [
            (self.typical_p.is_some(), "--typical-p"),
            (self.dry != 0.0, "--dry"),
            (self.xtc != 0.0, "--xtc"),
            (self.mirostat != 0.0, "--mirostat"),
            (self.frequency_penalty != 0.0, "--frequency-penalty"),
            (self.presence_penalty != 0.0, "--presence-penalty"),
            (!self.logit_bias.is_empty(), "--logit-bias"),
            (!self.sampler_order.is_empty(), "--sampler-order"),
        ];
        given
            .into_iter()
            .find_map(|(given, option)| given.then_some(option))
    }
}

/// Lets repetitions that DRY counts end at the tokens of this tokenizer that end a line, a heading or a quotation.
pub fn with_breakers(options: &mut SamplerOptions, tokenizer: &Tokenizer) {
    let Some(dry) = &mut options.dry else {
        return;
    };
    let breaks = |id: &u32| {
        let text = tokenizer.decode(&[*id], false).unwrap_or_default();
        text.contains(BREAKERS)
    };
    dry.breakers = (0..tokenizer.vocabulary_size() as u32)
        .filter(breaks)
        .collect();
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    parsed.ok_or_else(|| "expected a token's id and a number, such as 42=-1.5".into())
}
