//! LoRA (arXiv 2106.09685) and its kin: `y = x W^T + s x A^T B^T`.
//!
//! `s = alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA (arXiv 2312.03732). `A` starts uniform within `1 / sqrt(inputs)`, `B` at zero,
//! so the model starts unchanged; with PiSSA (arXiv 2404.02948) `s B A` starts as a part of `W` which the base loses. DoRA (arXiv
//! 2402.09353) trains the lengths of the sum's rows apart from their directions, and with LoRA+ (arXiv 2402.12354) `B` learns faster than
//! `A`. Rows of some tokens can be trained besides, those of added ones above all, and biases. Recipe: `sft-lora.toml`.

use std::collections::BTreeMap;

use espalier_models::{
    adapter::Adapter,
    checkpoint::{
        PeftConfig,
        peft_config::{Initialisation, Pattern, Targets, TrainedBiases, TrainedTokens},
    },
    model::LanguageModel,
    parameter::{Parameter, Parameters},
};
use serde::{Deserialize, Serialize};

use super::{Tuning, Whole};
use crate::{Error, Result, error::positive};

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
    /// Names of modules (`q_proj`, `embed_tokens`, ...), as transformers or the model's file calls them; when absent every linear layer but the head,
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
    /// Train the lengths of the weights' rows apart from their directions (DoRA).
    pub dora: bool,
    /// How the factors start: `gaussian`, or as a part of the weight that the base loses, `pissa` (all singular values are computed) or
    /// `pissa_niter_16` (the largest are sought in so many passes). `A` is uniform and `B` zero when absent.
    pub init: Option<String>,
    /// Factor on the learning rate of `B` and of vectors (LoRA+); 16 in the paper.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub plus_ratio: Option<f64>,
    /// Ranks of some modules, by the ends of their names or regular expressions; the first that matches in alphabetical order counts.
    pub rank_pattern: BTreeMap<String, usize>,
    /// As `rank_pattern`, for `alpha`.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// The only layers that are adapted, by their numbers from 0.
    pub layers_to_transform: Option<Vec<usize>>,
    /// What stands before the layer's number in a module's name, such as `layers`; the first number counts when absent.
    pub layers_pattern: Vec<String>,
    /// Modules that are not adapted even so, named as `target_modules` are.
    pub exclude_modules: Vec<String>,
    /// Stacks of experts and routers, by the ends of the names that transformers gives their weights, such as `experts.gate_up_proj`; no
    /// linear layers are adapted beside them unless `target_modules` names some.
    pub target_parameters: Vec<String>,
    /// Tokens, by their ids, whose rows of the embedding are trained, and of the head where that is the embedding.
    pub trainable_tokens: Vec<u32>,
    /// Train the rows of the tokens that `add_tokens` adds, in embedding and head, and no others: an adapter is left then, and no whole
    /// model.
    pub added_tokens: bool,
    /// Which of the base's biases are trained with it.
    pub bias: Biases,
    /// Give `B` a bias of its own.
    pub lora_bias: bool,
}

/// Which of the base's biases are trained.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Biases {
    /// None.
    #[default]
    None,
    /// All, those of norms too.
    All,
    /// Those of the adapted modules.
    LoraOnly,
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
            dora: false,
            init: None,
            plus_ratio: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            exclude_modules: Vec::new(),
            target_parameters: Vec::new(),
            trainable_tokens: Vec::new(),
            added_tokens: false,
            bias: Biases::None,
            lora_bias: false,
        }
    }
}

fn wrong(key: &'static str, reason: String) -> Error {
    Error::Option { key, reason }
}

fn check_rank(key: &'static str, rank: usize) -> Result<()> {
    match (1..=LARGEST_RANK).contains(&rank) {
        true => Ok(()),
        false => Err(wrong(key, format!("{rank} is outside 1 to {LARGEST_RANK}"))),
    }
}

/// The expressions of a table, with what they mean, each checked.
fn patterns<T: Copy>(
    key: &'static str,
    table: &BTreeMap<String, T>,
    check: impl Fn(&'static str, T) -> Result<()>,
) -> Result<Vec<(Pattern, T)>> {
    let entry = |(text, value): (&String, &T)| {
        check(key, *value)?;
        let pattern = Pattern::suffix(text).map_err(|error| wrong(key, error.to_string()))?;
        Ok((pattern, *value))
    };
    table.iter().map(entry).collect()
}

impl LoraOptions {
    fn initialisation(&self) -> Result<Initialisation> {
        let Some(name) = &self.init else {
            return Ok(Initialisation::Uniform);
        };
        Initialisation::named(name).ok_or_else(|| {
            let known = "`gaussian`, `pissa`, and `pissa_niter_` with a number from 1 to 1000";
            wrong("init", format!("`{name}` is none; there are {known}"))
        })
    }

    fn targets(&self) -> Targets {
        match &self.target_modules {
            Some(names) => Targets::List(names.clone()),
            None if !self.target_parameters.is_empty() => Targets::List(Vec::new()),
            None => Targets::AllLinear,
        }
    }

    /// Whether an empty list of modules leaves anything to train.
    fn check_any(&self) -> Result<()> {
        let chooses_none = self.target_modules.as_ref().is_some_and(Vec::is_empty);
        let others = [
            self.target_parameters.is_empty(),
            self.trainable_tokens.is_empty(),
            !self.added_tokens,
        ];
        match chooses_none && others == [true; 3] {
            false => Ok(()),
            true => Err(wrong(
                "target_modules",
                "the list is empty; leave the key out for all linear maps, or name some, as in [\"q_proj\", \"v_proj\"]".into(),
            )),
        }
    }

    /// Whether the model has the blocks that are named; names of layers that a pattern finds may be numbered otherwise.
    fn check_layers(&self, model: &LanguageModel) -> Result<()> {
        let blocks = model.stacks().map(|stack| stack.sites());
        let blocks = blocks.max().unwrap_or(0);
        let layers = self.layers_to_transform.iter().flatten().copied();
        let mut layers = layers.filter(|_| self.layers_pattern.is_empty());
        match layers.find(|layer| *layer >= blocks) {
            None => Ok(()),
            Some(layer) => Err(wrong(
                "layers_to_transform",
                format!(
                    "{layer} is no block of this model, which has 0 to {}",
                    blocks.saturating_sub(1)
                ),
            )),
        }
    }

    fn config(&self) -> Result<PeftConfig> {
        self.check_any()?;
        check_rank("rank", self.rank)?;
        let alpha = self.alpha.unwrap_or(2.0 * self.rank as f64);
        positive("alpha", alpha)?;
        self.plus_ratio
            .map_or(Ok(()), |ratio| positive("plus_ratio", ratio))?;
        if !(0.0..1.0).contains(&self.dropout) {
            let reason = format!("{} is outside 0 to below 1", self.dropout);
            return Err(wrong("dropout", reason));
        }
        let layer = |text: &String| {
            Pattern::layer(text).map_err(|error| wrong("layers_pattern", error.to_string()))
        };
        let mut config = PeftConfig::new(self.rank, alpha, self.targets());
        config.modules_to_save = self.modules_to_save.clone();
        config.ensure_weight_tying = self.ensure_weight_tying;
        config.use_rslora = self.rslora;
        config.use_dora = self.dora;
        config.initialisation = self.initialisation()?;
        config.dropout = self.dropout;
        config.rank_pattern = patterns("rank_pattern", &self.rank_pattern, check_rank)?;
        config.alpha_pattern = patterns("alpha_pattern", &self.alpha_pattern, positive)?;
        config.layers_to_transform = self.layers_to_transform.clone();
        config.layers_pattern = self
            .layers_pattern
            .iter()
            .map(layer)
            .collect::<Result<_>>()?;
        let excluded = Some(self.exclude_modules.clone()).filter(|names| !names.is_empty());
        config.exclude_modules = excluded.map(Targets::List);
        config.target_parameters = self.target_parameters.clone();
        config.biases = match self.bias {
            Biases::None => TrainedBiases::None,
            Biases::All => TrainedBiases::All,
            Biases::LoraOnly => TrainedBiases::OfTargets,
        };
        config.lora_bias = self.lora_bias;
        if let Some(reason) = config.lora_bias_refusal() {
            return Err(wrong("lora_bias", reason.into()));
        }
        let tokens = &self.trainable_tokens;
        if let Some(id) = tokens
            .iter()
            .find(|id| tokens.iter().filter(|t| t == id).count() > 1)
        {
            return Err(wrong("trainable_tokens", format!("names {id} twice")));
        }
        let tokens = Some(tokens.clone()).filter(|tokens| !tokens.is_empty());
        config.tokens = tokens.map(TrainedTokens::OfEmbedding);
        Ok(config)
    }
}

impl Tuning for LoraOptions {
    fn adapter(&self) -> Result<Adapter> {
        Ok(Adapter::new(self.config()?))
    }

    fn keeps_added_tokens(&self) -> bool {
        self.added_tokens
    }

    /// A head of its own has rows for them too.
    fn with_added_tokens(
        &self,
        added: &[u32],
        [embedding, head]: [Option<String>; 2],
    ) -> Result<Adapter> {
        let mut tokens = self.trainable_tokens.clone();
        let new = added
            .iter()
            .filter(|id| !self.trainable_tokens.contains(id));
        tokens.extend(new);
        let mut config = self.config()?;
        config.tokens = Some(match (embedding, head) {
            (Some(embedding), Some(head)) => TrainedTokens::ByModule(BTreeMap::from([
                (embedding, tokens),
                (head, added.to_vec()),
            ])),
            _ => TrainedTokens::OfEmbedding(tokens),
        });
        Ok(Adapter::new(config))
    }

    fn with_modules(&self, modules: Vec<String>, whole: Whole) -> Result<Adapter> {
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
        options.ensure_weight_tying |= whole == Whole::Vocabulary;
        options.adapter()
    }

    /// A block that is not there would be passed over. A rank beyond the widest map adds nothing that a smaller one does not, and takes
    /// memory with every map.
    fn check_model(&self, model: &LanguageModel) -> Result<()> {
        self.check_layers(model)?;
        let mut widest = 0;
        model.visit_linears(&mut |map| widest = widest.max(map.inputs).max(map.rows.len()));
        let ranks = self.rank_pattern.values().chain([&self.rank]);
        let largest = ranks.copied().max().unwrap_or(0);
        match largest > widest && widest > 0 {
            false => Ok(()),
            true => {
                let key = if largest == self.rank {
                    "rank"
                } else {
                    "rank_pattern"
                };
                Err(wrong(
                    key,
                    format!(
                        "{largest} is more than {widest}, the width of the model's widest map, above which an addition is of no higher rank; choose less"
                    ),
                ))
            }
        }
    }

    fn set_rates(&self, model: &mut LanguageModel) {
        let Some(ratio) = self.plus_ratio else {
            return;
        };
        model.visit_mut(&mut |p: &mut Parameter| {
            let is_up = p.adapter().is_some() && p.name().ends_with(".up");
            if p.is_trainable() && (is_up || p.shape().len() == 1) {
                p.scale_learning_rate(ratio);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use espalier_models::{families, source::Seed, spec::ModelSpec};
    use serde_json::json;

    use super::*;
    use crate::adapters::AdapterOptions;

    fn options(options: serde_json::Value) -> AdapterOptions {
        serde_json::from_value(json!({ "lora": options })).unwrap()
    }

    /// Names, shapes and rates of what is trained.
    fn trained(lora: serde_json::Value) -> Vec<(String, Vec<usize>, f64)> {
        let spec = ModelSpec::llama(64, 16, 3, 2, 1, 32, 32);
        let mut model = LanguageModel::build(spec, &mut Seed(0), &Device::flex()).unwrap();
        let family = families::by_name("llama").unwrap();
        options(lora).attach(&mut model, family, 0).unwrap();
        let mut found = Vec::new();
        model.visit(&mut |p| {
            if p.is_trainable() {
                found.push((p.name().to_owned(), p.shape().to_vec(), p.learning_rate()));
            }
        });
        found
    }

    #[test]
    fn b_and_vectors_learn_faster_than_a() {
        let all = trained(json!({ "plus_ratio": 16.0, "dora": true, "modules_to_save": ["norm"] }));
        assert!(all.iter().any(|(name, ..)| name == "final_norm.weight"));
        for (name, shape, rate) in all {
            let is_fast = name.ends_with(".up") || shape.len() == 1;
            assert_eq!(rate, if is_fast { 16.0 } else { 1.0 }, "{name}");
        }
    }

    #[test]
    fn modules_ranks_and_layers_are_chosen() {
        let all = trained(json!({
            "rank": 4, "target_modules": ["q_proj", "v_proj", "up_proj"], "exclude_modules": ["v_proj"],
            "rank_pattern": { "self_attn.*": 2 }, "layers_to_transform": [0, 2], "layers_pattern": ["layers"],
        }));
        let ranks: Vec<(&str, usize)> = all
            .iter()
            .filter(|(name, ..)| name.ends_with(".down"))
            .map(|(name, shape, _)| (name.split(".adapter").next().unwrap(), shape[0]))
            .collect();
        let expected = [
            ("blocks.0.mixer.query", 2),
            ("blocks.0.channel.up", 4),
            ("blocks.2.mixer.query", 2),
            ("blocks.2.channel.up", 4),
        ];
        assert_eq!(ranks, expected);
    }

    #[test]
    fn blocks_that_the_model_lacks_are_named() {
        let spec = ModelSpec::llama(64, 16, 3, 2, 1, 32, 32);
        let mut model = LanguageModel::build(spec, &mut Seed(0), &Device::flex()).unwrap();
        let family = families::by_name("llama").unwrap();
        let mut attach = |layer: usize| {
            let options = options(json!({ "layers_to_transform": [0, layer] }));
            options.attach(&mut model, family, 0).map(drop)
        };
        let error = attach(3).unwrap_err().to_string();
        assert!(
            error.contains("3 is no block of this model, which has 0 to 2"),
            "{error}"
        );
        attach(2).unwrap();
    }

    #[test]
    fn options_that_make_no_sense_are_named() {
        for (lora, key) in [
            (json!({ "init": "olora" }), "init"),
            (json!({ "init": "pissa_niter_0" }), "init"),
            (json!({ "plus_ratio": -1.0 }), "plus_ratio"),
            (json!({ "rank_pattern": { "q_proj": 0 } }), "rank_pattern"),
            (json!({ "alpha_pattern": { "(": 1.0 } }), "alpha_pattern"),
            (json!({ "layers_pattern": ["["] }), "layers_pattern"),
            (json!({ "dropout": 1.0 }), "dropout"),
            (json!({ "lora_bias": true, "dora": true }), "lora_bias"),
            (json!({ "lora_bias": true, "init": "pissa" }), "lora_bias"),
            (json!({ "trainable_tokens": [4, 4] }), "trainable_tokens"),
            (
                json!({ "target_modules": [] }),
                "`target_modules`: the list is empty",
            ),
        ] {
            let error = options(lora).check().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
