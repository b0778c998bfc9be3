//! The objectives by name: options, help, metrics and special tokens, each registered by one line.

use espalier_data::readers::Wanted;
use serde::{Deserialize, Serialize};

use super::{
    Objective, PackedRows, classification, distillation, infilling, language, masked,
    online::{grpo, online_dpo, ppo, rloo},
    preference::{cpo, dpo, kto, orpo},
    process_reward, reward, selective, seq2seq, simcse, span_corruption,
    symbols::Symbols,
};
use crate::{Result, metrics::MetricDescription, rewards::Read};

/// The registration of an objective, a constant of its file; `O` are its options.
pub struct Entry<O> {
    /// The metrics that it logs.
    pub metrics: &'static [MetricDescription],
    /// How it takes rows of several texts.
    pub packed_rows: PackedRows,
    /// What records it learns from.
    pub wanted: Wanted,
    /// Whether the model has to give classes of texts or tokens; it gets a fresh classifier where it does not. Answers that are too
    /// long are then left out with their pair instead of being cut.
    pub classifies: bool,
    /// What its options name besides the recipe, which belongs to what a run is made of.
    pub reads: fn(&mut O) -> Vec<Read<'_>>,
    /// Special tokens that a fresh vocabulary needs for it.
    pub special_tokens: fn() -> Vec<String>,
    /// Whether the options make sense, whatever the model.
    pub check: fn(&O) -> Result<()>,
    /// Makes the objective; the symbols are the tokens that it may write.
    pub build: fn(&O, &Symbols) -> Result<Box<dyn Objective>>,
}

impl<O> Entry<O> {
    /// An objective that needs no special tokens.
    pub const fn new(
        metrics: &'static [MetricDescription],
        packed_rows: PackedRows,
        check: fn(&O) -> Result<()>,
        build: fn(&O, &Symbols) -> Result<Box<dyn Objective>>,
    ) -> Self {
        Self {
            metrics,
            packed_rows,
            wanted: Wanted::Texts,
            classifies: false,
            reads: |_| Vec::new(),
            special_tokens: Vec::new,
            check,
            build,
        }
    }

    /// An objective that learns from preference pairs.
    pub const fn of_pairs(
        metrics: &'static [MetricDescription],
        packed_rows: PackedRows,
        check: fn(&O) -> Result<()>,
        build: fn(&O, &Symbols) -> Result<Box<dyn Objective>>,
    ) -> Self {
        Self {
            wanted: Wanted::Pairs,
            ..Self::new(metrics, packed_rows, check, build)
        }
    }

    /// An objective that learns from answers with verdicts.
    pub const fn of_verdicts(
        metrics: &'static [MetricDescription],
        packed_rows: PackedRows,
        check: fn(&O) -> Result<()>,
        build: fn(&O, &Symbols) -> Result<Box<dyn Objective>>,
    ) -> Self {
        Self {
            wanted: Wanted::Verdicts,
            ..Self::new(metrics, packed_rows, check, build)
        }
    }

    /// The same, whose options name files or other models.
    #[must_use]
    pub const fn that_reads(self, reads: fn(&mut O) -> Vec<Read<'_>>) -> Self {
        Self { reads, ..self }
    }

    /// An objective of a model that classifies texts or tokens; it takes a row for one text.
    pub const fn of_classes(
        metrics: &'static [MetricDescription],
        wanted: Wanted,
        check: fn(&O) -> Result<()>,
        build: fn(&O, &Symbols) -> Result<Box<dyn Objective>>,
    ) -> Self {
        Self {
            wanted,
            classifies: true,
            ..Self::new(metrics, PackedRows::Refused, check, build)
        }
    }

    /// An objective that learns from the policy's own answers to prompts, a row for each.
    pub const fn of_prompts(
        metrics: &'static [MetricDescription],
        reads: fn(&mut O) -> Vec<Read<'_>>,
        check: fn(&O) -> Result<()>,
        build: fn(&O, &Symbols) -> Result<Box<dyn Objective>>,
    ) -> Self {
        Self {
            wanted: Wanted::Prompts,
            reads,
            ..Self::new(metrics, PackedRows::Refused, check, build)
        }
    }

    const fn registered(&self, name: &'static str, help: &'static str) -> Registered {
        Registered {
            name,
            help: help.trim_ascii(),
            metrics: self.metrics,
            packed_rows: self.packed_rows,
            wanted: self.wanted,
            classifies: self.classifies,
            special_tokens: self.special_tokens,
        }
    }
}

/// A registered objective.
#[derive(Debug, Clone, Copy)]
pub struct Registered {
    /// Its name in recipes.
    pub name: &'static str,
    /// Its target, in a line.
    pub help: &'static str,
    /// The metrics that it logs.
    pub metrics: &'static [MetricDescription],
    /// How it takes rows of several texts.
    pub packed_rows: PackedRows,
    /// What records it learns from.
    pub wanted: Wanted,
    /// Whether the model has to give classes of texts or tokens; pairs that are too long are then left out, not cut.
    pub classifies: bool,
    /// Special tokens that a fresh vocabulary needs for it.
    pub special_tokens: fn() -> Vec<String>,
}

/// Registers objectives: help, variant, name in recipes, options, and the entry of the objective's file.
macro_rules! objectives {
    ($(#[doc = $help:literal] $variant:ident($name:literal, $options:ty) = $entry:path),+ $(,)?) => {
        /// The objectives by name, with their options: `objective = "sft"` or `objective = { dpo = { beta = 0.1 } }`.
        ///
        /// ```
        /// use espalier_train::objectives::{ObjectiveOptions, symbols::Symbols};
        /// let options: ObjectiveOptions = serde_json::from_str(r#"{ "dpo": { "beta": 0.2 } }"#)?;
        /// assert!(options.registered().metrics.iter().any(|metric| metric.name == "rewards/margins"));
        /// assert_eq!(options.build(&Symbols::default())?.name(), "dpo");
        /// # Ok::<(), Box<dyn std::error::Error>>(())
        /// ```
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
        pub enum ObjectiveOptions {
            $(#[doc = $help] #[serde(rename = $name)] $variant($options)),+
        }

        /// Every objective, as reports, help and logs know it.
        pub const OBJECTIVES: &[Registered] = &[$($entry.registered($name, $help)),+];

        impl ObjectiveOptions {
            /// Name, help, metrics and special tokens of the objective.
            pub fn registered(&self) -> Registered {
                match self {
                    $(Self::$variant(_) => $entry.registered($name, $help)),+
                }
            }

            /// Whether the options make sense, whatever the model.
            ///
            /// # Errors
            /// The first option that does not.
            pub fn check(&self) -> Result<()> {
                match self {
                    $(Self::$variant(options) => ($entry.check)(options)),+
                }
            }

            /// What the options name besides the recipe.
            pub fn reads(&mut self) -> Vec<Read<'_>> {
                match self {
                    $(Self::$variant(options) => ($entry.reads)(options)),+
                }
            }

            /// The objective itself; `symbols` are the tokens that it may write.
            ///
            /// # Errors
            /// When an option makes no sense or a token is missing.
            pub fn build(&self, symbols: &Symbols) -> Result<Box<dyn Objective>> {
                match self {
                    $(Self::$variant(options) => ($entry.build)(options, symbols)),+
                }
            }
        }
    };
}

objectives! {
    /// Every token of every document.
    Pretrain("pretrain", language::NextTokenOptions) = language::PRETRAIN,
    /// The assistant's tokens.
    Sft("sft", language::SftOptions) = language::SFT,
    /// Better against worse answers.
    Dpo("dpo", dpo::DpoOptions) = dpo::ENTRY,
    /// Good and bad answers, each by itself (KTO).
    Kto("kto", kto::KtoOptions) = kto::ENTRY,
    /// Better against worse answers by their odds, and the better ones' likelihood; without a reference (ORPO).
    Orpo("orpo", orpo::OrpoOptions) = orpo::ENTRY,
    /// Better against worse answers without a reference (CPO, SimPO).
    Cpo("cpo", cpo::CpoOptions) = cpo::ENTRY,
    /// The better answer's score is the larger one: a reward model (Bradley-Terry).
    Reward("reward", reward::RewardOptions) = reward::ENTRY,
    /// Whether each step of an answer is right: a process reward model.
    ProcessReward("process_reward", process_reward::ProcessRewardOptions) = process_reward::ENTRY,
    /// Classes of texts or of words.
    Classify("classify", classification::ClassifyOptions) = classification::ENTRY,
    /// A teacher's distributions in place of labels: knowledge distillation.
    Distill("distill", distillation::DistillOptions) = distillation::ENTRY,
    /// The tokens of which a reference says that they are worth learning (Rho-1).
    Selective("selective", selective::SelectiveOptions) = selective::ENTRY,
    /// The policy's own answers, each against the others to its prompt (GRPO).
    Grpo("grpo", grpo::GrpoOptions) = grpo::ENTRY,
    /// The policy's own answers, each against the mean of the others (RLOO).
    Rloo("rloo", rloo::RlooOptions) = rloo::ENTRY,
    /// The better against the worse of two answers of the policy's own.
    OnlineDpo("online_dpo", online_dpo::OnlineDpoOptions) = online_dpo::ENTRY,
    /// The policy's own answers, token by token against what a critic expects.
    Ppo("ppo", ppo::PpoOptions) = ppo::ENTRY,
    /// Masked tokens, by an encoder.
    Mlm("mlm", masked::MaskingOptions) = masked::MLM,
    /// Masked tokens, by a decoder without its mask, each from the place before.
    Mntp("mntp", masked::MaskingOptions) = masked::MNTP,
    /// What stands before the first target is read by the encoder, the rest written by the decoder.
    Seq2seq("seq2seq", seq2seq::SequenceToSequenceOptions) = seq2seq::ENTRY,
    /// Removed spans, by an encoder-decoder (T5).
    SpanCorruption("span_corruption", span_corruption::SpanOptions) = span_corruption::ENTRY,
    /// Texts with masked spans, by an encoder-decoder (BART).
    Infilling("infilling", infilling::InfillingOptions) = infilling::ENTRY,
    /// Two encodings of a text find each other.
    Simcse("simcse", simcse::SimcseOptions) = simcse::ENTRY,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_gives_its_objective() {
        let symbols = Symbols {
            mask: Some(3),
            sentinels: vec![4, 5],
            vocabulary: 10,
            decoder_start: Some(0),
            eos: Some(1),
            ..Symbols::default()
        };
        for Registered { name, help, .. } in OBJECTIVES {
            let options: ObjectiveOptions =
                serde_json::from_value(serde_json::json!({ *name: {} })).unwrap();
            assert_eq!(options.registered().name, *name);
            let objective = options.build(&symbols).unwrap();
            assert_eq!(objective.name(), *name);
            assert_eq!(
                objective.packed_rows(),
                options.registered().packed_rows,
                "{name}"
            );
            assert!(help.ends_with('.') && !help.starts_with(' '), "{help}");
        }
    }

    #[test]
    fn fresh_vocabularies_have_the_tokens_that_objectives_write() {
        let tokens = |name: &str| {
            let found = OBJECTIVES.iter().find(|objective| objective.name == name);
            (found.unwrap().special_tokens)()
        };
        assert!(tokens("sft").is_empty());
        assert_eq!(tokens("mlm"), ["<mask>"]);
        assert_eq!(tokens("span_corruption").len(), 32);
    }
}
