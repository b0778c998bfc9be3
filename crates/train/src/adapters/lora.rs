//! LoRA (arXiv 2106.09685) and rsLoRA (arXiv 2312.03732): `y = x W^T + s x A^T B^T`.
//!
//! `s = alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA. `A` starts uniform within `1 / sqrt(inputs)`, `B` at zero, so the
//! model starts unchanged. Recipe: `sft-lora.toml`.

use espalier_models::{
    adapter::Adapter,
    checkpoint::{PeftConfig, peft_config::Targets},
    model::LanguageModel,
    parameter::Parameters,
};
use serde::{Deserialize, Serialize};

use super::Tuning;
use crate::{Error, Result};

/// As wide as the widest models, where the addition is no longer of a low rank.
const LARGEST_RANK: usize = 1 << 16;

/// The options of LoRA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraOptions {
    /// Rank of the addition.
    #[schemars(range(min = 1, max = LARGEST_RANK))]
    pub rank: usize,
    /// Numerator of its scale; twice the rank when absent.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub alpha: Option<f64>,
    /// Names of modules (`q_proj`, ...), as transformers or the model's file calls them; when absent every linear layer but the head,
    /// routers of experts, and what transformers or PEFT cannot serve (Mamba's `dt_proj` and `out_proj`).
    pub target_modules: Option<Vec<String>>,
    /// Modules that are trained and saved whole, such as `lm_head`.
    pub modules_to_save: Vec<String>,
    /// Whether a head that is the embedding stays so where one of them is trained whole; it parts from it otherwise.
    pub ensure_weight_tying: bool,
    /// Scale by the root of the rank.
    pub rslora: bool,
    /// Share of what the adapter reads that is zeroed in training; the base reads all.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub dropout: f64,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: None,
            target_modules: None,
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            rslora: false,
            dropout: 0.0,
        }
    }
}

impl Tuning for LoraOptions {
    fn adapter(&self) -> Result<Adapter> {
        if !(1..=LARGEST_RANK).contains(&self.rank) {
            return Err(Error::Option {
                key: "rank",
                reason: format!("{} is outside 1 to {LARGEST_RANK}", self.rank),
            });
        }
        let target_modules = match &self.target_modules {
            Some(names) => Targets::List(names.clone()),
            None => Targets::AllLinear,
        };
        let alpha = self.alpha.unwrap_or(2.0 * self.rank as f64);
        if !(alpha > 0.0 && alpha.is_finite()) {
            return Err(Error::Option {
                key: "alpha",
                reason: format!("{alpha} is not a positive number"),
            });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::Option {
                key: "dropout",
                reason: format!("{} is outside 0 to below 1", self.dropout),
            });
        }
        let mut config = PeftConfig::new(self.rank, alpha, target_modules);
        config.modules_to_save = self.modules_to_save.clone();
        config.ensure_weight_tying = self.ensure_weight_tying;
        config.use_rslora = self.rslora;
        config.dropout = self.dropout;
        Ok(Adapter::new(config))
    }

    fn with_modules(&self, modules: Vec<String>) -> Result<Adapter> {
        let mut options = self.clone();
        for module in modules {
            // A module may be named by its last parts.
            let ends_so =
                |named: &String| module == *named || module.ends_with(&format!(".{named}"));
            if !options.modules_to_save.iter().any(ends_so) {
                options.modules_to_save.push(module);
            }
        }
        // New tokens are read and predicted by the same rows where the model has one table for both.
        options.ensure_weight_tying = true;
        options.adapter()
    }

    /// A rank beyond the widest map adds nothing that a smaller one does not, and takes memory with every map.
    fn check_model(&self, model: &LanguageModel) -> Result<()> {
        let mut widest = 0;
        model.visit_linears(&mut |map| widest = widest.max(map.inputs).max(map.rows.len()));
        match self.rank > widest && widest > 0 {
            false => Ok(()),
            true => Err(Error::Option {
                key: "rank",
                reason: format!(
                    "{} is more than {widest}, the width of the model's widest map, above which an addition is of no higher rank; choose less",
                    self.rank
                ),
            }),
        }
    }

    /// PEFT has no dropout on experts of a stack and their routers, and refuses a folder that says so.
    fn check_attached(&self, model: &LanguageModel) -> Result<()> {
        let mut adapts_experts = false;
        model.visit_linears(&mut |map| {
            let of_experts = map.expert.is_some() || map.name.ends_with(".router");
            adapts_experts |= of_experts && map.adapters.is_active();
        });
        match adapts_experts && self.dropout > 0.0 {
            false => Ok(()),
            true => Err(Error::Option {
                key: "dropout",
                reason: "experts of a stack have none in PEFT, and neither have their routers; leave it at 0, or name `target_modules` without them".into(),
            }),
        }
    }
}
