//! `espalier bench`: speed and peak memory of the work that users wait for, on random tokens.
//!
//! Medians after runs that are not counted. Nothing depends on data: anyone can compare with other software.

mod generate;
mod operators;
mod serve;
mod training;
mod turns;

use std::path::Path;

use clap::builder::RangedU64ValueParser;
use espalier_data::random::Random;
use serde_json::{Value, json};

use super::Context;
use crate::{Result, memory, units};

/// Measure speed and peak memory on random tokens.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier bench train MODEL --batch 8 --length 256
  espalier bench train MODEL --against OTHER
  espalier bench generate MODEL --prompt 512 --new 128 --json
  espalier bench serve MODEL --clients 1,8,32
  espalier bench matmul")]
pub struct BenchArgs {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, clap::Subcommand)]
enum Job {
    /// A step of full fine-tuning with AdamW
    Train(training::TrainArgs),
    /// A step of LoRA on all linear layers
    Lora(training::LoraArgs),
    /// A DPO step: policy forward and backward, reference forward
    Dpo(training::DpoArgs),
    /// Prefill and decoding
    Generate(generate::GenerateArgs),
    /// The server under clients that ask at once
    Serve(serve::ServeArgs),
    /// Attention, forward and backward
    Attention(operators::AttentionArgs),
    /// Matrix products of the shapes of training
    Matmul(operators::MatmulArgs),
}

impl BenchArgs {
    /// Whether models are trained in threads of their own.
    pub fn trains_in_threads(&self) -> bool {
        matches!(&self.job, Job::Train(args) if !args.against.is_empty())
    }
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded, or the sizes do not fit it.
pub fn run(args: &BenchArgs, context: &Context) -> Result<()> {
    match &args.job {
        Job::Train(args) => training::train(args, context),
        Job::Lora(args) => training::lora(args, context),
        Job::Dpo(args) => training::dpo(args, context),
        Job::Generate(args) => generate::run(args, context),
        Job::Serve(args) => serve::run(args, context),
        Job::Attention(args) => operators::run_attention(args, context),
        Job::Matmul(args) => operators::run_matmul(args, context),
    }
}

/// As many runs as anyone waits for.
const MOST_RUNS: u64 = 100_000;

/// How many runs are counted, on the command line.
fn number_of_runs() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MOST_RUNS)
}

/// Rows of random tokens without the first three, which are special in most vocabularies.
fn random_tokens(vocabulary: usize, rows: usize, length: usize) -> Vec<Vec<u32>> {
    let mut random = Random::new(0);
    let first = 3.min(vocabulary.saturating_sub(1));
    let mut token = || (first + random.below((vocabulary - first).max(1))) as u32;
    (0..rows)
        .map(|_| (0..length).map(|_| token()).collect())
        .collect()
}

/// The middle one of several measurements, in seconds.
fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The figures of a job: JSON, or lines for a reader.
struct Figures<'a> {
    job: &'a str,
    model: Option<&'a Path>,
    /// The sizes of the work, by name.
    sizes: Vec<(&'a str, Value)>,
    /// What was measured: name, unit, value.
    measured: Vec<(&'a str, &'a str, f64)>,
}

impl Figures<'_> {
    fn show(&self, context: &Context) -> Result<()> {
        let peak = memory::peak_bytes();
        if context.json {
            let mut object = json!({"peer": "espalier", "job": self.job});
            object["model"] = self
                .model
                .map_or(Value::Null, |path| path.display().to_string().into());
            self.sizes
                .iter()
                .for_each(|(name, value)| object[*name] = value.clone());
            self.measured
                .iter()
                .for_each(|(name, _, value)| object[*name] = rounded(*value).into());
            object["peak_rss_mib"] = peak.map_or(Value::Null, |bytes| (bytes >> 20).into());
            return context.terminal.json(&object);
        }
        let sizes = self
            .sizes
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect::<Vec<_>>()
            .join(", ");
        let model = self
            .model
            .map(|path| ("model".to_owned(), path.display().to_string()));
        let mut facts: Vec<_> = model.into_iter().collect();
        facts.push((
            "work".to_owned(),
            format!("{}: {}", self.job, sizes.replace('"', "")),
        ));
        let measured = |(name, unit, value): &(&str, &str, f64)| {
            (
                name.replace('_', " "),
                format!("{} {unit}", rounded(*value)).trim_end().to_owned(),
            )
        };
        facts.extend(self.measured.iter().map(measured));
        facts.push((
            "peak memory".into(),
            peak.map_or("unknown on this system".into(), units::bytes),
        ));
        context.terminal.facts(&facts)
    }
}

/// Four digits, so that the output says no more than was measured.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_remain() {
        assert_eq!(
            [rounded(12_345.6), rounded(0.012_345_6), rounded(0.0)],
            [12_350.0, 0.012_35, 0.0]
        );
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn tokens_lie_in_the_vocabulary() {
        assert!(
            random_tokens(10, 4, 50)
                .concat()
                .iter()
                .all(|token| (3..10).contains(token))
        );
        assert!(
            random_tokens(2, 1, 5)
                .concat()
                .iter()
                .all(|token| *token < 2)
        );
    }
}
