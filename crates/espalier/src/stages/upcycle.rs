//! The upcycling stage: a dense model becomes one with experts.

use std::path::Path;

use burn::tensor::Device;
use espalier_data::tokenizer::Tokenizer;
use espalier_models::{
    model::LanguageModel,
    upcycle::{
        Upcycling,
        gates::{ExpertPrompts, GateForm, gates, similarity},
        specification, upcycle,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model::{self, Origin, Start},
};
use crate::{Error, Result, memory};

/// Experts where the recipe says nothing.
const EXPERTS: usize = 8;

/// More than any model has in a layer.
const MOST_EXPERTS: usize = 4096;

/// Cosine of two experts' routers above which they are reported: mergekit's bound, a condition number of five.
const ALIKE: f64 = 24.0 / 26.0;

/// Upcycling: copies of a dense model's feed-forward layers become experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpcycleStage {
    /// A model folder of the families LLaMA or Mistral, or the name of an earlier stage.
    pub model: String,
    /// Models of the same shape that give the experts in turn; `model` gives all of them when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub donors: Vec<String>,
    /// Experts of every layer; as many as `prompts` has entries, or eight.
    #[schemars(range(min = 1, max = MOST_EXPERTS))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<usize>,
    /// Experts that each token passes through.
    #[serde(default = "default_active")]
    #[schemars(range(min = 1))]
    pub active: usize,
    /// Weight of the load-balance loss in further training.
    #[serde(default = "default_balance")]
    #[schemars(range(min = 0.0, max = 1e3))]
    pub balance: f64,
    /// Standard deviation of noise on the copies, as a share of each matrix's own.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1e3))]
    pub noise: f64,
    /// Seed of routers and noise.
    #[serde(default)]
    pub seed: u64,
    /// What the routers start from.
    #[serde(default)]
    pub gate_mode: GateMode,
    /// For each expert, prompts that it shall answer and prompts that it shall not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<GatePrompts>,
}

/// What routers start from, by the names of mergekit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateMode {
    /// Small random numbers.
    #[default]
    Random,
    /// The hidden states of the prompts' last tokens.
    Hidden,
    /// The means of the prompts' hidden states.
    HiddenAvg,
    /// The sums of the prompts' embeddings.
    CheapEmbed,
}

/// Prompts that tell what an expert is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GatePrompts {
    /// What it shall answer.
    pub positive: Vec<String>,
    /// What it shall not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub negative: Vec<String>,
}

fn default_active() -> usize {
    2
}

fn default_balance() -> f64 {
    0.01
}

impl StageKind for UpcycleStage {
    fn check(&self) -> Result<()> {
        for (key, value) in [("balance", self.balance), ("noise", self.noise)] {
            if !(0.0..=1e3).contains(&value) {
                return Err(Error::usage(format!(
                    "`{key}`: {value} is outside 0 to 1000"
                )));
            }
        }
        let experts = experts(self);
        for (key, value, most) in [
            ("experts", experts, MOST_EXPERTS),
            ("active", self.active, experts),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Error::usage(format!(
                    "`{key}`: {value} is outside 1 to {most}{}",
                    if key == "active" {
                        ", the number of experts"
                    } else {
                        ""
                    }
                )));
            }
        }
        check_prompts(self)
    }

    fn inputs(&mut self) -> Vec<Input<'_>> {
        let donors = self.donors.iter_mut().map(Input::Model);
        [Input::Model(&mut self.model)]
            .into_iter()
            .chain(donors)
            .collect()
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output {
            part: "",
            kind: ArtifactKind::Model,
            path: "model",
        }]
    }

    fn seed(&mut self) -> Option<&mut u64> {
        Some(&mut self.seed)
    }

    fn deciding_keys(&self) -> Result<Value> {
        keys(self)
    }

    fn run(&self, workplace: &mut Workplace) -> Result<Value> {
        grow(self, workplace)
    }
}

/// Whether there are prompts where routers are made of them, some for each expert.
fn check_prompts(stage: &UpcycleStage) -> Result<()> {
    let (given, experts) = (stage.prompts.len(), experts(stage));
    if stage.gate_mode == GateMode::Random {
        return match given {
            0 => Ok(()),
            _ => Err(Error::usage(
                "`prompts` need a `gate_mode`: hidden, hidden_avg or cheap_embed",
            )),
        };
    }
    if given != experts {
        let reason =
            format!("`prompts`: {experts} experts need as many entries, there are {given}");
        return Err(Error::usage(format!(
            "{reason}; give each expert its own, or set `experts` to {given}"
        )));
    }
    let number = |at: Option<usize>| at.map(|at| at + 1);
    let silent = stage.prompts.iter().position(|one| one.positive.is_empty());
    match number(silent) {
        Some(number) => Err(Error::usage(format!(
            "`prompts`: expert {number} has no positive ones; give at least one that it shall answer"
        ))),
        None => Ok(()),
    }
}

/// Upcycles and leaves `model/` in the stage's folder.
fn grow(stage: &UpcycleStage, workplace: &mut Workplace) -> Result<Value> {
    let open = |name: &String| -> Result<Start> {
        let (changes, template) = (Map::new(), None);
        let mut start = model::open(Path::new(name), &changes, None, template, workplace.device)?;
        start.loaded.model.merge_adapters()?;
        Ok(start)
    };
    let start = open(&stage.model)?;
    let donors = stage.donors.iter().map(open).collect::<Result<Vec<_>>>()?;
    let donors: Vec<_> = donors.iter().map(|donor| &donor.loaded.model).collect();
    let gates = routers(stage, &start)?;
    let width = start.loaded.model.spec().width;
    let alike = gates
        .iter()
        .map(|gates| similarity(gates, width))
        .fold(-1.0, f64::max);
    if alike > ALIKE {
        let reason =
            format!("the prompts of two experts look alike to the model (cosine {alike:.2})");
        workplace.voice.say(&format!(
            "   warning: {reason}; negative prompts tell them apart better"
        ));
    }
    let experts = experts(stage);
    let UpcycleStage {
        active,
        balance,
        noise,
        seed,
        ..
    } = *stage;
    let options = Upcycling {
        experts,
        active,
        balance,
        noise,
        seed,
        gates,
    };
    check_memory(&start.loaded.model, &options, workplace.device)?;
    let grown = upcycle(&start.loaded.model, &donors, options).map_err(Error::of_request)?;
    let (all, in_use) = (
        grown.spec().parameter_count(),
        grown.spec().active_parameter_count(),
    );
    // Keys of the dense family that the new one does not know would stay in its configuration.
    let config = espalier_models::families::write_config(grown.spec())?;
    model::save(
        &workplace.folder.join("model"),
        &grown,
        Origin {
            config: &config,
            generation: &start.loaded.generation,
            base: &start.loaded.base,
        },
        None,
        &start.tokenizer,
    )?;
    workplace.voice.say(&format!(
        "   {active} of {experts} experts active, {all} parameters, {in_use:.0} of them at work"
    ));
    let mut report = json!({"kind": "upcycle", "parameters": all, "active_parameters": in_use});
    if stage.gate_mode != GateMode::Random {
        report["gate_similarity"] = json!(alike);
    }
    Ok(report)
}

/// Whether the copies have room.
fn check_memory(base: &LanguageModel, options: &Upcycling, device: &Device) -> Result<()> {
    let spec = specification(base.spec(), options).map_err(Error::of_request)?;
    let bytes = 4.0 * spec.parameter_count() as f64;
    let asked = format!("`experts` = {}: a model with so many", options.experts);
    memory::check(asked, bytes, "choose fewer", device)
}

/// Experts of every layer.
fn experts(stage: &UpcycleStage) -> usize {
    let prompts = Some(stage.prompts.len()).filter(|count| *count > 0);
    stage.experts.or(prompts).unwrap_or(EXPERTS)
}

/// The routers of all blocks where prompts give them.
fn routers(stage: &UpcycleStage, start: &Start) -> Result<Vec<Vec<f32>>> {
    let form = match stage.gate_mode {
        GateMode::Random => return Ok(Vec::new()),
        GateMode::Hidden => GateForm::LastHidden,
        GateMode::HiddenAvg => GateForm::MeanHidden,
        GateMode::CheapEmbed => GateForm::Embedding,
    };
    let prompts = stage
        .prompts
        .iter()
        .map(|prompts| tokens(prompts, &start.tokenizer))
        .collect::<Result<Vec<_>>>()?;
    gates(&start.loaded.model, &prompts, form).map_err(Error::of_request)
}

/// The prompts' tokens, behind the token that begins a text.
fn tokens(prompts: &GatePrompts, tokenizer: &Tokenizer) -> Result<ExpertPrompts> {
    let first = tokenizer
        .special()
        .bos
        .as_ref()
        .and_then(|bos| tokenizer.id(bos));
    let encoded = |texts: &[String]| -> Result<Vec<Vec<u32>>> {
        let one = |text: &String| {
            Ok(first
                .into_iter()
                .chain(tokenizer.encode_ids(text, false)?)
                .collect())
        };
        texts.iter().map(one).collect()
    };
    Ok(ExpertPrompts {
        positive: encoded(&prompts.positive)?,
        negative: encoded(&prompts.negative)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_models::{source::Seed, spec::ModelSpec};

    #[test]
    fn experts_without_room_are_refused_with_their_number() {
        let device = Device::flex();
        let spec = ModelSpec::llama(64, 16, 1, 2, 1, 32, 32);
        let base = LanguageModel::build(spec, &mut Seed(0), &device).unwrap();
        let options = |experts, active| Upcycling {
            experts,
            active,
            balance: 0.01,
            noise: 0.0,
            seed: 0,
            gates: Vec::new(),
        };
        assert!(check_memory(&base, &options(8, 2), &device).is_ok());
        let refused = |experts, active| {
            let error = check_memory(&base, &options(experts, active), &device).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        // Three matrices of 16 x 32 and a row of 16 for each, in f32: 6208 bytes.
        let said = refused(1 << 40, 2);
        assert!(
            said.starts_with(
                "`experts` = 1099511627776: a model with so many takes about 6.06 PiB of memory"
            ),
            "{said}"
        );
        let said = refused(2, 3);
        assert!(said.starts_with("`active`: 3 of 2 experts"), "{said}");
    }
}
