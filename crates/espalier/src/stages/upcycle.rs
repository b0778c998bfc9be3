//! The upcycling stage: a dense model becomes one with experts.

use std::path::Path;

use espalier_data::tokenizer::Tokenizer;
use espalier_models::upcycle::{
    Upcycling,
    gates::{ExpertPrompts, GateForm, gates, similarity},
    upcycle,
};
use serde_json::{Value, json};

use super::{
    Workshop, model,
    model::{Origin, Start},
};
use crate::{
    Error, Result,
    recipe::{GateMode, GatePrompts, UpcycleStage},
};

/// Experts where the recipe says nothing.
const EXPERTS: usize = 8;

/// Cosine of two experts' routers above which they are reported: mergekit's bound, a condition number of five.
const ALIKE: f64 = 24.0 / 26.0;

/// Upcycles and leaves `model/` in the stage's folder.
///
/// # Errors
/// When a model cannot be loaded, has no form with experts, or does not fit the others.
pub fn run(workshop: &mut Workshop, stage: &UpcycleStage, folder: &Path) -> Result<Value> {
    let open = |name: &String| {
        model::open(
            &workshop.model_path(name),
            &Default::default(),
            None,
            &workshop.device,
        )
    };
    let open = |name: &String| -> Result<Start> {
        let mut start = open(name)?;
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
        workshop.voice.say(&format!(
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
    let grown = upcycle(&start.loaded.model, &donors, options)?;
    let (all, in_use) = (
        grown.spec().parameter_count(),
        grown.spec().active_parameter_count(),
    );
    // Keys of the dense family that the new one does not know would stay in its configuration.
    let config = espalier_models::families::write_config(grown.spec())?;
    model::save(
        &folder.join("model"),
        &grown,
        Origin {
            config: &config,
            base: &start.loaded.base,
        },
        None,
        &start.tokenizer,
    )?;
    workshop.voice.say(&format!(
        "   {active} of {experts} experts active, {all} parameters, {in_use:.0} of them at work"
    ));
    let mut report = json!({"kind": "upcycle", "parameters": all, "active_parameters": in_use});
    if stage.gate_mode != GateMode::Random {
        report["gate_similarity"] = json!(alike);
    }
    Ok(report)
}

/// Experts of every layer.
fn experts(stage: &UpcycleStage) -> usize {
    let prompts = Some(stage.prompts.len()).filter(|count| *count > 0);
    stage.experts.or(prompts).unwrap_or(EXPERTS)
}

/// The routers of all blocks where prompts give them.
fn routers(stage: &UpcycleStage, start: &Start) -> Result<Vec<Vec<f32>>> {
    let (given, experts) = (stage.prompts.len(), experts(stage));
    let form = match stage.gate_mode {
        GateMode::Random if given == 0 => return Ok(Vec::new()),
        GateMode::Random => {
            return Err(Error::usage(
                "`prompts` need a `gate_mode`: hidden, hidden_avg or cheap_embed",
            ));
        }
        GateMode::Hidden => GateForm::LastHidden,
        GateMode::HiddenAvg => GateForm::MeanHidden,
        GateMode::CheapEmbed => GateForm::Embedding,
    };
    if given != experts {
        let reason =
            format!("{experts} experts need as many entries of `prompts`, there are {given}");
        return Err(Error::usage(format!(
            "{reason}; give each expert its own, or set `experts` to {given}"
        )));
    }
    let prompts = stage
        .prompts
        .iter()
        .map(|prompts| tokens(prompts, &start.tokenizer))
        .collect::<Result<Vec<_>>>()?;
    Ok(gates(&start.loaded.model, &prompts, form)?)
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
