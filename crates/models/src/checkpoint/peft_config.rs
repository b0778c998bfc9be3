//! `adapter_config.json` of a LoRA adapter, in and out, as the PEFT library writes it.
//!
//! LoRA is arXiv 2106.09685, the `use_rslora` scale 2312.03732. A key that is unset or at its default is ignored; one
//! that is set and would change the result is refused by name. Left out: initialisations other than PiSSA that change the base model
//! (OLoRA, CorDA, LoftQ, LoRA-GA), and PiSSA's fast ones where they were not converted: PEFT takes what a randomised search finds out of
//! the base again on loading, which is not what it found before.

pub use super::peft_initialisation::Initialisation;
pub use super::peft_targets::{Pattern, Targets, is_named};
pub use super::peft_tokens::TrainedTokens;
use crate::error::Result;
use crate::families::config::{Config, is_unset};
use serde_json::{Map, Value, json};

const RANK_LIMIT: usize = 1 << 16;
const LAYER_LIMIT: usize = 1 << 20;

/// Keys that this file reads, and those that may hold anything because they change nothing here.
const KNOWN: &[&str] = &[
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "modules_to_save",
    "bias",
    "lora_bias",
    "trainable_token_indices",
    "fan_in_fan_out",
    "init_lora_weights",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "inference_mode",
    "auto_mapping",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "ensure_weight_tying",
];

/// Which biases of the base are trained, and stored with the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainedBiases {
    /// None.
    None,
    /// All, those of norms too.
    All,
    /// Those of the layers that have an adapter.
    OfTargets,
}

impl TrainedBiases {
    const ALL: [Self; 3] = [Self::None, Self::All, Self::OfTargets];

    /// PEFT's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all",
            Self::OfTargets => "lora_only",
        }
    }

    /// What PEFT calls so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|biases| biases.name() == name)
    }
}

/// The configuration of a LoRA adapter.
///
/// ```
/// use espalier_models::checkpoint::peft_config::{PeftConfig, Targets};
/// let config = PeftConfig::new(8, 16.0, Targets::List(vec!["q_proj".into(), "v_proj".into()]));
/// assert!(config.matches("model.layers.0.self_attn.q_proj"));
/// assert!(!config.matches("model.layers.0.self_attn.k_proj"));
/// assert_eq!(config.scale_for("model.layers.0.self_attn.q_proj"), 2.0);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PeftConfig {
    /// What the model is for, such as `CAUSAL_LM`; what it is when absent.
    pub task_type: Option<String>,
    /// The rank, where no pattern says otherwise.
    pub rank: usize,
    /// The numerator of the scale, where no pattern says otherwise.
    pub alpha: f64,
    /// Dropout on the adapter's input while training, from 0 to 1.
    pub dropout: f64,
    /// The modules that have an adapter.
    pub target_modules: Targets,
    /// Stacks of experts, and their routers, that have one, by the ends of the names that transformers gives their weights, such as
    /// `experts.gate_up_proj`.
    pub target_parameters: Vec<String>,
    /// Modules that have none even so.
    pub exclude_modules: Option<Targets>,
    /// Modules that are trained and stored whole, by the end of their names.
    pub modules_to_save: Vec<String>,
    /// Whether a head that is the embedding stays so where one of them is trained.
    pub ensure_weight_tying: bool,
    /// Whether the scale is `alpha / sqrt(rank)` and not `alpha / rank`.
    pub use_rslora: bool,
    /// Whether the lengths of the rows are trained apart from their directions.
    pub use_dora: bool,
    /// How the factors begin.
    pub initialisation: Initialisation,
    /// Which of the base's biases are trained and stored with the adapter.
    pub biases: TrainedBiases,
    /// Whether `B` has a bias of its own.
    pub lora_bias: bool,
    /// The tokens whose rows are trained.
    pub tokens: Option<TrainedTokens>,
    /// Whether the base stores its matrices `[in, out]`, as GPT-2 does.
    pub fan_in_fan_out: bool,
    /// Ranks of modules that differ; the first pattern that matches counts.
    pub rank_pattern: Vec<(Pattern, usize)>,
    /// Alphas of modules that differ; the first pattern that matches counts.
    pub alpha_pattern: Vec<(Pattern, f64)>,
    /// The only layers that have adapters.
    pub layers_to_transform: Option<Vec<usize>>,
    /// The names before the layer's number, such as `layers`; any name when empty.
    pub layers_pattern: Vec<Pattern>,
}

impl PeftConfig {
    /// A plain LoRA of this rank and alpha on `target_modules`.
    pub fn new(rank: usize, alpha: f64, target_modules: Targets) -> Self {
        Self {
            task_type: None,
            rank,
            alpha,
            dropout: 0.0,
            target_modules,
            target_parameters: Vec::new(),
            exclude_modules: None,
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            use_rslora: false,
            use_dora: false,
            initialisation: Initialisation::Uniform,
            biases: TrainedBiases::None,
            lora_bias: false,
            tokens: None,
            fan_in_fan_out: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
        }
    }

    /// Reads what the file says.
    ///
    /// # Errors
    /// When a value is out of range, or a key is set that is not supported.
    pub fn read(config: &Config) -> Result<Self> {
        check_supported(config)?;
        let target_parameters = texts(config, "target_parameters")?;
        let found = Self {
            task_type: config.optional_text("task_type")?.map(Into::into),
            rank: config.size("r", RANK_LIMIT)?,
            alpha: config.optional_number("lora_alpha")?.unwrap_or(8.0),
            dropout: dropout(config)?,
            target_modules: match read_targets(config, "target_modules")? {
                Some(targets) => targets,
                None if !target_parameters.is_empty() => Targets::List(Vec::new()),
                None => {
                    return Err(config.error(
                        "target_modules",
                        "missing; add a list of module names or \"all-linear\"",
                    ));
                }
            },
            target_parameters,
            exclude_modules: read_targets(config, "exclude_modules")?,
            modules_to_save: texts(config, "modules_to_save")?,
            ensure_weight_tying: config.flag_or("ensure_weight_tying", false)?,
            use_rslora: config.flag_or("use_rslora", false)?,
            use_dora: config.flag_or("use_dora", false)?,
            initialisation: initialisation(config)?,
            biases: biases(config)?,
            lora_bias: config.flag_or("lora_bias", false)?,
            tokens: TrainedTokens::read(config)?,
            fan_in_fan_out: config.flag_or("fan_in_fan_out", false)?,
            rank_pattern: patterns(config, "rank_pattern", |config, key| {
                config.size(key, RANK_LIMIT)
            })?,
            alpha_pattern: patterns(config, "alpha_pattern", Config::positive)?,
            layers_to_transform: config.optional_counts("layers_to_transform", LAYER_LIMIT)?,
            layers_pattern: layers_pattern(config)?,
        };
        match found.lora_bias_refusal() {
            Some(reason) => Err(config.error("lora_bias", reason)),
            None => Ok(found),
        }
    }

    /// Why `B` can have no bias of its own, where that is so: PEFT has none there.
    pub fn lora_bias_refusal(&self) -> Option<&'static str> {
        let is_pissa = matches!(self.initialisation, Initialisation::Pissa { .. });
        match self.lora_bias {
            true if self.use_dora => {
                Some("DoRA has no bias beside its lengths; leave one of them out")
            }
            true if is_pissa => Some("PiSSA has none; leave one of them out"),
            _ => None,
        }
    }

    /// What the file says, but for its kind and base model.
    pub fn to_json(&self) -> Value {
        let sources: Vec<&str> = self.layers_pattern.iter().map(Pattern::source).collect();
        let ranks: Map<String, Value> = self
            .rank_pattern
            .iter()
            .map(|(key, rank)| (key.source().to_owned(), json!(rank)))
            .collect();
        let alphas: Map<String, Value> = self
            .alpha_pattern
            .iter()
            .map(|(key, alpha)| (key.source().to_owned(), number(*alpha)))
            .collect();
        json!({
            "task_type": self.task_type,
            "r": self.rank,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.dropout,
            "target_modules": self.target_modules.write(),
            "target_parameters": some_unless_empty(&self.target_parameters),
            "exclude_modules": self.exclude_modules.as_ref().map(Targets::write),
            "modules_to_save": some_unless_empty(&self.modules_to_save),
            "ensure_weight_tying": self.ensure_weight_tying,
            "bias": self.biases.name(),
            "lora_bias": self.lora_bias,
            "trainable_token_indices": self.tokens.as_ref().map(TrainedTokens::to_json),
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": true,
            "init_lora_weights": true,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "layers_to_transform": self.layers_to_transform,
            "layers_pattern": some_unless_empty(&sources),
        })
    }

    /// Whether this full name of a linear layer, without `.weight`, is one of those that have an adapter.
    pub fn matches(&self, module_name: &str) -> bool {
        if self.excludes(module_name) || !self.target_modules.matches(module_name) {
            return false;
        }
        // A list entry that is the whole name means that one module, whatever its layer.
        let named = matches!(&self.target_modules, Targets::List(entries) if entries.iter().any(|entry| entry == module_name));
        named || self.has_layer(module_name)
    }

    /// Whether this full name is one of those that have none even so.
    pub fn excludes(&self, module_name: &str) -> bool {
        let excluded = self.exclude_modules.as_ref();
        excluded.is_some_and(|targets| targets.matches(module_name))
    }

    /// Whether the weight of this full name, which holds a stack of experts or scores them, has an adapter.
    pub fn matches_parameter(&self, name: &str) -> bool {
        self.target_parameters.iter().any(|end| is_named(name, end))
    }

    /// Whether the targets mean the module itself, and not only as one of all linear layers.
    pub fn names(&self, module_name: &str) -> bool {
        self.target_modules != Targets::AllLinear && self.matches(module_name)
    }

    /// Gives this one module a rank and a scale of its own, before all other patterns.
    pub fn set_pattern(&mut self, module_name: &str, rank: usize, scale: f64) {
        let divisor = if self.use_rslora {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        // An escaped name is always an expression.
        if let Ok(pattern) = Pattern::suffix(&regex::escape(module_name)) {
            self.rank_pattern.insert(0, (pattern.clone(), rank));
            self.alpha_pattern.insert(0, (pattern, scale * divisor));
        }
    }

    /// The rank of the module's adapter.
    pub fn rank_for(&self, module_name: &str) -> usize {
        self.rank_of(&[module_name])
    }

    /// The rank of the adapter of a module that goes by any of `names`.
    pub fn rank_of(&self, names: &[&str]) -> usize {
        first_match(&self.rank_pattern, names).unwrap_or(self.rank)
    }

    /// The factor on the module's `B A`: `alpha / rank`, or `alpha / sqrt(rank)` with `use_rslora`.
    pub fn scale_for(&self, module_name: &str) -> f64 {
        self.scale_of(&[module_name])
    }

    /// As [`PeftConfig::scale_for`], of a module that goes by any of `names`.
    pub fn scale_of(&self, names: &[&str]) -> f64 {
        let alpha = first_match(&self.alpha_pattern, names).unwrap_or(self.alpha);
        let rank = self.rank_of(names) as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    pub(crate) fn has_layer(&self, module: &str) -> bool {
        let Some(layers) = self
            .layers_to_transform
            .as_ref()
            .filter(|layers| !layers.is_empty())
        else {
            return true;
        };
        let layer = match &self.layers_pattern[..] {
            [] => numbered_part(module),
            patterns => patterns.iter().find_map(|pattern| pattern.layer_of(module)),
        };
        layer.is_some_and(|layer| layers.contains(&layer))
    }
}

/// The first part of a name that is a number after two others and before another: the layer, and not an expert of it.
fn numbered_part(module: &str) -> Option<usize> {
    let parts: Vec<&str> = module.split('.').collect();
    let inner = parts.get(1..parts.len() - 1)?;
    inner.iter().find_map(|part| part.parse().ok())
}

fn first_match<T: Copy>(patterns: &[(Pattern, T)], names: &[&str]) -> Option<T> {
    let matches = |pattern: &Pattern| names.iter().any(|name| pattern.matches(name));
    let mut found = patterns.iter().filter(|(pattern, _)| matches(pattern));
    found.next().map(|(_, value)| *value)
}

/// Refuses what would change the result without being understood.
fn check_supported(config: &Config) -> Result<()> {
    if let Some(key) = config
        .map()
        .keys()
        .find(|key| !KNOWN.contains(&key.as_str()) && !is_unset(&config.map()[*key]))
    {
        let reason =
            "is set, and this key is not supported yet; retrain or convert the adapter without it";
        return Err(config.error(key, reason));
    }
    Ok(())
}

fn biases(config: &Config) -> Result<TrainedBiases> {
    let Some(name) = config.optional_text("bias")? else {
        return Ok(TrainedBiases::None);
    };
    TrainedBiases::named(name).ok_or_else(|| {
        let names = TrainedBiases::ALL.map(TrainedBiases::name);
        config.error("bias", format!("expected one of {names:?}, found `{name}`"))
    })
}

/// How the adapter was made. What takes something out of the base has to be known on loading, for the base lacks it then too.
fn initialisation(config: &Config) -> Result<Initialisation> {
    let value = config.get("init_lora_weights").unwrap_or(&Value::Null);
    if value.is_null() || value.is_boolean() {
        return Ok(Initialisation::Uniform);
    }
    let name = value.as_str().unwrap_or_default();
    // These leave the base as it is.
    if ["orthogonal", "eva", "mica"].contains(&name) {
        return Ok(Initialisation::Uniform);
    }
    let why = match Initialisation::named(name) {
        Some(Initialisation::Pissa { passes: Some(_) }) => {
            "took out of the base what random vectors found, which PEFT itself does not find again"
        }
        Some(known) => return Ok(known),
        None => "changes the base model and is not supported yet",
    };
    let fix = "convert it to plain LoRA first (`path_initial_model_for_weight_conversion` of PEFT's `save_pretrained`)";
    Err(config.error("init_lora_weights", format!("{value} {why}; {fix}")))
}

fn dropout(config: &Config) -> Result<f64> {
    let dropout = config.optional_number("lora_dropout")?.unwrap_or(0.0);
    let valid = (0.0..1.0).contains(&dropout);
    valid.then_some(dropout).ok_or_else(|| {
        config.error(
            "lora_dropout",
            format!("expected 0 to below 1, found {dropout}"),
        )
    })
}

/// A list of names, `"all-linear"`, a regular expression, or nothing.
fn read_targets(config: &Config, key: &str) -> Result<Option<Targets>> {
    Ok(match config.get(key) {
        None => None,
        Some(Value::String(text)) if text == "all-linear" => Some(Targets::AllLinear),
        Some(Value::String(text)) => {
            Some(Targets::Regex(pattern(config, key, Pattern::whole(text))?))
        }
        Some(_) => Some(Targets::List(texts(config, key)?))
            .filter(|targets| *targets != Targets::List(Vec::new())),
    })
}

fn texts(config: &Config, key: &str) -> Result<Vec<String>> {
    Ok(config
        .optional_texts(key)?
        .unwrap_or_default()
        .into_iter()
        .map(Into::into)
        .collect())
}

fn layers_pattern(config: &Config) -> Result<Vec<Pattern>> {
    let texts = config.optional_texts("layers_pattern")?.unwrap_or_default();
    let texts = texts.into_iter().filter(|text| !text.is_empty());
    texts
        .map(|text| pattern(config, "layers_pattern", Pattern::layer(text)))
        .collect()
}

/// An object from expressions to values.
fn patterns<T>(
    config: &Config,
    key: &str,
    value: impl Fn(&Config, &str) -> Result<T>,
) -> Result<Vec<(Pattern, T)>> {
    let Some(object) = config.optional_object(key)? else {
        return Ok(Vec::new());
    };
    let entry = |name: &String| {
        Ok((
            pattern(config, key, Pattern::suffix(name))?,
            value(&object, name)?,
        ))
    };
    object.map().keys().map(entry).collect()
}

/// Adds the file and key to an error of a pattern.
fn pattern(config: &Config, key: &str, pattern: Result<Pattern>) -> Result<Pattern> {
    pattern.map_err(|error| config.error(key, error.to_string()))
}

/// Whole numbers without a point, as PEFT writes them.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

fn some_unless_empty<T>(list: &[T]) -> Option<&[T]> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests;
