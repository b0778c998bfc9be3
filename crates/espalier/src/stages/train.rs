//! The training stage: model, data, plan, run, model folder.

mod samples;
mod telling;
mod trained;

use std::path::Path;

use burn::tensor::Device;
use espalier_evaluate::report::Section;
use espalier_models::{
    families,
    folder::{self, LoadedModel},
    model::LanguageModel,
    parameter::Parameters,
    quantised::quantised_weights,
    spec::WeightBits,
};
use espalier_train::{
    adapters::AdapterOptions,
    freeze::FreezeOptions,
    objectives::{ObjectiveOptions, PackedRows, registry::Registered},
    options::TrainOptions,
    plan::{Plan, check_lengths, plan},
    quantise::QuantiseOptions,
    rates,
    rewards::Read,
    trainer::{self, Outcome, Run},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model::{self, Origin, Start},
    new_model::{self, NewModel},
    report,
};
use crate::{
    Error, Result, interrupt,
    memory::{self, peak_bytes},
    recipe::{DataOptions, shorthand},
    units::count,
};

/// The file in which the held-out share of the data is left.
const VALIDATION: &str = "validation.jsonl";

/// Training: a model, an objective, data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainStage {
    /// A model or adapter folder, or the name of an earlier stage; absent when `new` describes a fresh model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A fresh model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<NewModel>,
    /// What a step minimises: `pretrain`, `sft`, `dpo`, `kto`, `orpo`, `cpo`, `reward`, `process_reward`, `classify`, `distill`,
    /// `selective`, `grpo`, `rloo`, `online_dpo`, `ppo`, `mlm`, `mntp`, `seq2seq`, `span_corruption`, `infilling`, `simcse`, or a
    /// table with options such as `{ dpo = { beta = 0.1 } }`.
    #[serde(deserialize_with = "shorthand::name_or_table")]
    #[schemars(schema_with = "shorthand::name_or_table_schema::<ObjectiveOptions>")]
    pub objective: ObjectiveOptions,
    /// An adapter to train instead of all weights: `lora`, `reft`, `state`, or a table with options.
    #[serde(
        default,
        deserialize_with = "shorthand::optional_name_or_table",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "shorthand::name_or_table_schema::<AdapterOptions>")]
    pub adapter: Option<AdapterOptions>,
    /// Train some blocks and modules alone, without an adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeOptions>,
    /// Round the linear maps of the (base) model's blocks to four bits while they are read: `nf4`, `fp4`, or a table such as
    /// `{ nf4 = { double = false } }`. An adapter is then trained on them; it is kept apart.
    #[serde(
        default,
        deserialize_with = "shorthand::optional_name_or_table",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "shorthand::name_or_table_schema::<QuantiseOptions>")]
    pub quantise: Option<QuantiseOptions>,
    /// Training data: a path, a table, or a list of these.
    #[serde(deserialize_with = "shorthand::one_or_many")]
    #[schemars(schema_with = "shorthand::one_or_many_schema")]
    pub data: Vec<DataOptions>,
    /// Held-out data; the last `validation_share` of `data` when absent.
    #[serde(
        default,
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "shorthand::one_or_many_schema")]
    pub validation: Vec<DataOptions>,
    /// Share of `data` that is held out when there is no `validation`; the stage leaves it as the data set `NAME.validation`.
    #[serde(default)]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub validation_share: f64,
    /// Number of records of `data` that are held out, in place of a share.
    #[serde(default)]
    pub validation_count: usize,
    /// Keys of the model's `config.json` that change before it is trained, such as `bidirectional` or `rope_parameters`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// Round the weights of the blocks' linear maps whenever they multiply, to three values (`ternary`: BitNet b1.58) or two (`binary`:
    /// BitNet), and their inputs to eight bits. What is trained and saved are the weights before they are rounded; `pack` makes a small model
    /// of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<WeightBits>,
    /// A chat template: `chatml`, `plain`, or a path to a Jinja file. The tokenizer's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Special tokens that the tokenizer gets before training, such as a template's marks; embedding and head grow by rows that start as the
    /// mean of the old ones. With an adapter, embedding and head are trained too, and the whole model is left instead of an adapter, unless
    /// `adapter.lora.added_tokens` says that the new rows alone are trained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_tokens: Vec<String>,
    /// How long, how fast and how often.
    #[serde(default)]
    pub options: TrainOptions,
}

impl TrainStage {
    /// Whether an adapter keeps the rows of added tokens, and needs no new base.
    fn keeps_added_tokens(&self) -> bool {
        let adapter = self.adapter.as_ref();
        adapter.is_some_and(AdapterOptions::keeps_added_tokens) && !self.add_tokens.is_empty()
    }

    /// Whether a share of the data is held out.
    fn splits(&self) -> bool {
        let holds_out = self.validation_share > 0.0 || self.validation_count > 0;
        self.validation.is_empty() && holds_out
    }
}

impl StageKind for TrainStage {
    fn check(&self) -> Result<()> {
        self.options.check()?;
        self.objective.check()?;
        let Registered {
            name, packed_rows, ..
        } = self.objective.registered();
        if self.options.packing && packed_rows == PackedRows::Refused {
            return Err(espalier_train::Error::packing(name).into());
        }
        self.adapter
            .as_ref()
            .map_or(Ok(()), AdapterOptions::check)?;
        if let Some(freeze) = &self.freeze {
            freeze.check()?;
            if self.adapter.is_some() {
                return Err(Error::usage(
                    "the stage has both `adapter`, which freezes the whole base, and `freeze`; give one",
                ));
            }
        }
        if self.model.is_some() == self.new.is_some() {
            return Err(Error::usage(match self.model {
                Some(_) => "the stage has both `model` and `new`; give one",
                None => "a train stage needs one of `model` and `new`",
            }));
        }
        let adapter = self.adapter.as_ref();
        if adapter.is_some_and(AdapterOptions::keeps_added_tokens) && self.add_tokens.is_empty() {
            return Err(Error::usage(
                "`added_tokens` trains the rows of the tokens that `add_tokens` names, and the stage names none; add some, or name tokens that there are with `trainable_tokens`",
            ));
        }
        if self.new.is_some() && !self.add_tokens.is_empty() {
            return Err(Error::usage(
                "`add_tokens` adds to the tokenizer of a model that there is already; a new one learns its own",
            ));
        }
        if self.new.is_some() && !self.config.is_empty() {
            return Err(Error::usage(
                "`config` changes keys of a model that there is already; those of a new one belong into `new.config`",
            ));
        }
        if self.quantise.is_some() && self.new.is_some() {
            return Err(Error::usage(
                "`quantise` rounds a base that stays as it is, and a new model has to be trained; leave one of them out",
            ));
        }
        if self.bits.is_some() && (self.quantise.is_some() || self.adapter.is_some()) {
            return Err(Error::usage(
                "`bits` rounds weights that are trained, and the stage has `adapter` or `quantise`, which leave the base as it is; train the base with `bits` in a stage of its own",
            ));
        }
        let shares = [
            ("validation", !self.validation.is_empty()),
            ("validation_share", self.validation_share > 0.0),
            ("validation_count", self.validation_count > 0),
        ];
        let given: Vec<&str> = shares
            .iter()
            .filter(|(_, given)| *given)
            .map(|(key, _)| *key)
            .collect();
        if let [one, other, ..] = given[..] {
            return Err(Error::usage(format!(
                "the stage has both `{one}` and `{other}`, which say what is held out; give one"
            )));
        }
        match (0.0..1.0).contains(&self.validation_share) {
            true => self.new.as_ref().map_or(Ok(()), new_model::check),
            false => Err(Error::usage(
                "`validation_share` must be at least 0 and below 1",
            )),
        }
    }

    fn inputs(&mut self) -> Vec<Input<'_>> {
        let mut inputs: Vec<Input<'_>> = self.model.iter_mut().map(Input::Model).collect();
        if let Some(new) = &mut self.new {
            inputs.extend(new.tokenizer.iter_mut().map(Input::Tokenizer));
            inputs.extend(new.tokenizer_data.iter_mut().map(Input::Data));
        }
        let data = self.data.iter_mut().chain(&mut self.validation);
        inputs.extend(data.map(Input::Data));
        inputs.extend(self.template.iter_mut().map(Input::Template));
        inputs.extend(self.objective.reads().into_iter().map(|read| match read {
            Read::Model(name) | Read::Peer(name) => Input::Model(name),
            Read::File(word) => Input::Word(word),
        }));
        inputs
    }

    fn outputs(&self) -> Vec<Output> {
        let output = |part, kind, path| Output { part, kind, path };
        let model = output("", ArtifactKind::Model, "model");
        let validation = output("validation", ArtifactKind::Data, VALIDATION);
        let validation = self.splits().then_some(validation);
        [model].into_iter().chain(validation).collect()
    }

    fn seed(&mut self) -> Option<&mut u64> {
        Some(&mut self.options.seed)
    }

    fn deciding_keys(&self) -> Result<Value> {
        let usual = TrainOptions::default();
        let mut stage = self.clone();
        stage.options.log_every = usual.log_every;
        stage.options.checkpoint_every = usual.checkpoint_every;
        stage.options.keep_checkpoints = usual.keep_checkpoints;
        stage.options.evaluate_every = usual.evaluate_every;
        keys(&stage)
    }

    fn run(&self, workplace: &mut Workplace) -> Result<Value> {
        train(self, workplace)
    }

    fn sections(&self, name: &str, folder: &Path, _: &Value) -> Result<Vec<Section>> {
        let [log, samples] = ["metrics.jsonl", "samples.jsonl"].map(|file| folder.join(file));
        let mut sections = match log.is_file() {
            true => report::charts(name, self.objective.registered(), &log)?,
            false => Vec::new(),
        };
        if samples.is_file() {
            sections.push(report::rollouts(name, &samples)?);
        }
        Ok(sections)
    }
}

/// Trains and leaves `model/` in the stage's folder.
fn train(stage: &TrainStage, workplace: &mut Workplace) -> Result<Value> {
    let (start, training, validation) = samples::prepare(workplace, stage)?;
    let Start {
        loaded,
        tokenizer,
        added,
    } = start;
    let LoadedModel {
        mut model,
        config,
        base,
        adapter: earlier,
        generation,
        remarks,
        ..
    } = loaded;
    for remark in remarks {
        workplace.voice.say(&format!("   {remark}"));
    }
    let family = families::by_name(&model.spec().family)?;
    if let (Some(options), None) = (&stage.adapter, &earlier) {
        for remark in options.remarks(&model, family)? {
            workplace.voice.say(&format!("   {remark}"));
        }
    }
    let rounded = quantised_weights(&model);
    let adapter = trained::choose(stage, &mut model, family, earlier, &added)?;
    trained::check_kept(stage, &model, family, adapter.as_ref(), rounded)?;
    trained::say_added(stage, adapter.as_ref(), workplace.voice);
    let merges = trained::merges(stage);
    rates::set_rates(&mut model, family, &stage.options.learning_rates)?;
    for read in stage.objective.clone().reads() {
        if let Read::Peer(path) = read {
            model::check_same_tokens(Path::new(path), &tokenizer)?;
        }
    }
    let mut objective = stage.objective.build(&model::symbols(&tokenizer, &model))?;
    objective.equip(&tokenizer, workplace.device)?;
    trainer::check(&model, objective.as_ref(), &training, &stage.options)?;
    check_lengths(&model, objective.as_ref(), &training)?;
    check_lengths(&model, objective.as_ref(), &validation)?;
    if adapter.is_none() || merges {
        folder::check_savable(model.spec(), Some(&config))?;
    }
    let planned = plan(&model, objective.as_ref(), &training, &stage.options)?;
    check_memory(&planned, &model, &stage.options, workplace.device)?;
    telling::say_plan(&planned, &stage.options, workplace.voice);
    telling::say_context(&training, model.spec(), workplace.voice);
    let run = Run {
        model,
        objective: objective.as_mut(),
        samples: training,
        validation,
        options: stage.options.clone(),
        folder: workplace.folder.clone(),
        fingerprint: workplace.fingerprint.clone(),
        interrupted: interrupt::requested,
    };
    let attentive = interrupt::attentive();
    let (voice, registered) = (&mut *workplace.voice, stage.objective.registered());
    let mut outcome = trainer::train(run, &mut |event| {
        telling::say_event(event, registered, voice)
    })?;
    drop(attentive);
    let adapter = match merges {
        false => adapter,
        true => {
            outcome.model.merge_adapters()?;
            None
        }
    };
    model::save(
        &workplace.folder.join("model"),
        &outcome.model,
        Origin {
            config: &config,
            generation: &generation,
            base: &base,
        },
        adapter.as_ref(),
        &tokenizer,
    )?;
    telling::say_outcome(&outcome, &planned, workplace.voice);
    Ok(summary(&outcome, &planned))
}

/// Whether what is trained has room: what is frozen may stay in its file.
fn check_memory(
    plan: &Plan,
    model: &LanguageModel,
    options: &TrainOptions,
    device: &Device,
) -> Result<()> {
    let parameters = model.parameters();
    let frozen = parameters.iter().filter(|p| !p.is_trainable());
    let frozen: usize = frozen.map(|p| p.bytes()).sum();
    let needed = plan.memory.saturating_sub(frozen as u64);
    let [rows, longest] = plan.largest_batch;
    let (asked, fix) = match 2 * plan.activations > needed {
        true if rows == 1 => (
            format!(
                "`length` = {}: a forward pass of one text of {longest} tokens",
                options.length
            ),
            "lower `length`, set `gradient_checkpointing`, or take a smaller model",
        ),
        true => (
            format!(
                "`batch` = {}: a forward pass of {rows} rows of up to {longest} tokens",
                options.batch
            ),
            "lower `batch` and raise `accumulation`, lower `length`, or set `gradient_checkpointing`",
        ),
        false => (
            format!(
                "training {} parameters, with gradients and the optimiser's state,",
                count(plan.trainable)
            ),
            "train an adapter, or a smaller model",
        ),
    };
    memory::check(asked, needed as f64, fix, device)
}

fn summary(outcome: &Outcome, plan: &Plan) -> Value {
    let mut trained = 0;
    outcome.model.visit(&mut |p| trained += p.len());
    let metrics: Map<String, Value> = outcome
        .validation_metrics
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({
        "kind": "train",
        "validation": metrics,
        "steps": outcome.steps,
        "tokens": outcome.tokens.real,
        "learned_tokens": outcome.tokens.learned,
        "padding_tokens": outcome.tokens.padding,
        "planned_tokens": plan.tokens.real,
        "seconds": outcome.seconds,
        "validation_loss": outcome.validation_loss,
        "parameters": trained,
        "trainable": plan.trainable,
        "planned_seconds": plan.seconds,
        "planned_bytes": plan.memory,
        "peak_bytes": peak_bytes(),
    })
}

#[cfg(test)]
mod tests;
