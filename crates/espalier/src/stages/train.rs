//! The training stage: model, data, plan, run, model folder.

use std::path::Path;

use burn::tensor::Device;
use espalier_data::{
    encode::Truncation,
    packing::Strategy,
    readers::{self, Wanted},
};
use espalier_evaluate::report::Section;
use espalier_models::{
    families,
    folder::{self, LoadedModel},
    model::LanguageModel,
    parameter::Parameters,
    quantised::quantised_weights,
    spec::ModelSpec,
};
use espalier_train::{
    adapters::AdapterOptions,
    batch::Sample,
    freeze::FreezeOptions,
    objectives::{ObjectiveOptions, PackedRows, language::Turns, registry::Registered},
    options::TrainOptions,
    plan::{Plan, check_lengths, plan},
    quantise::QuantiseOptions,
    rates,
    rewards::Read,
    token_count::TokenCount,
    trainer::{self, Event, Outcome, Run},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Voice, classes,
    data::{self, Sourced},
    ends,
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model::{self, Origin, Start},
    new_model::{self, NewModel},
    prompts, report,
};
use crate::{
    Error, Result, interrupt,
    memory::{self, peak_bytes},
    recipe::{DataOptions, shorthand},
    units::{bytes, count, duration},
};

/// Share of padding from which it is said.
const WASTE: f64 = 0.05;

/// Share of padding from which a remedy is named.
const MUCH_WASTE: f64 = 0.25;

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
        if self.validation_share > 0.0 && self.validation_count > 0 {
            return Err(Error::usage(
                "the stage has both `validation_share` and `validation_count`; give one",
            ));
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
    let (start, training, validation) = prepare(workplace, stage)?;
    let Start {
        loaded,
        tokenizer,
        added,
    } = start;
    let keeps_added = stage.keeps_added_tokens();
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
    let adapter = match (&stage.adapter, earlier) {
        (None, None) if rounded > 0 => {
            return Err(Error::usage(
                "the model is quantised, and rounded weights cannot be trained; train an adapter on them (`adapter = \"lora\"`), or the full-precision model",
            ));
        }
        (None, None) => {
            match &stage.freeze {
                Some(freeze) => freeze.apply(&mut model, family)?,
                None => model.set_trainable(|_| true),
            }
            None
        }
        (Some(options), None) => {
            let seed = stage.options.seed;
            if stage.objective.registered().classifies && !stage.add_tokens.is_empty() {
                return Err(Error::usage(
                    "`add_tokens` with an adapter trains embedding and head, and a classifier has no head; add the tokens in a stage of its own",
                ));
            }
            Some(match stage.add_tokens.is_empty() {
                true if stage.objective.registered().classifies => {
                    options.attach_with_classifier(&mut model, family, seed)?
                }
                true => options.attach(&mut model, family, seed)?,
                false if keeps_added => {
                    if added.is_empty() {
                        return Err(Error::usage(
                            "`added_tokens`: the vocabulary has all of the `add_tokens` already; name them by their ids in `trainable_tokens`",
                        ));
                    }
                    options.attach_with_tokens(&added, &mut model, family, seed)?
                }
                false => options.attach_with_vocabulary(&mut model, family, seed)?,
            })
        }
        (None, Some(_)) if stage.freeze.is_some() => {
            return Err(Error::usage(
                "the model is an adapter, which alone is trained; leave `freeze` out, or merge it into its base first",
            ));
        }
        (None, Some(earlier)) => {
            earlier.mark_trainable(&mut model);
            Some(earlier)
        }
        (Some(_), Some(_)) => {
            return Err(Error::usage(
                "the model is an adapter already: leave `adapter` out to train it on, or give the model that it stands on for a fresh one",
            ));
        }
    };
    // An adapter's folder cannot say that its base was changed, so the adapter is merged.
    let merges = !stage.config.is_empty() || !stage.add_tokens.is_empty() && !keeps_added;
    let refusal = adapter.as_ref().and_then(|adapter| adapter.merge_refusal());
    if let Some(reason) = refusal.filter(|_| merges) {
        let fix = "change the base in a stage of its own";
        return Err(Error::usage(format!(
            "the adapter cannot be merged into a base that `config` or `add_tokens` changes: {reason}; {fix}"
        )));
    }
    if let Some(adapter) = adapter.as_ref().filter(|_| !merges) {
        adapter.check_kept(&model, family)?;
        if stage.new.is_some() {
            return Err(Error::usage(
                "an adapter's folder names its base, and a `new` model has no folder yet; make it in a stage of its own, whose name is then the `model` of this one",
            ));
        }
    }
    if rounded > 0 && merges {
        return Err(Error::usage(
            "the adapter cannot be merged into a quantised base, which `config` or `add_tokens` asks for; change the full-precision base in a stage of its own",
        ));
    }
    if quantised_weights(&model) < rounded {
        return Err(Error::usage(
            "the adapter would change or train weights of the quantised base themselves; leave their modules out of `modules_to_save`, start from a plain `lora`, or do not quantise",
        ));
    }
    if adapter.is_some() && keeps_added {
        workplace.voice.say("   of embedding and head the rows of the added tokens alone are trained, and kept in the adapter");
    } else if adapter.is_some() && !stage.add_tokens.is_empty() {
        workplace.voice.say("   embedding and head have new rows: they are trained too, and the whole model is left instead of an adapter");
    }
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
    say_plan(&planned, &stage.options, workplace.voice);
    say_context(&training, model.spec(), workplace.voice);
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
    let mut outcome = trainer::train(run, &mut |event| say_event(event, registered, voice))?;
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
    say_outcome(&outcome, &planned, workplace.voice);
    Ok(summary(&outcome, &planned))
}

/// The model to start from, and training and held-out samples.
fn prepare(
    workplace: &mut Workplace,
    stage: &TrainStage,
) -> Result<(Start, Vec<Sample>, Vec<Sample>)> {
    let Registered {
        wanted,
        whole_pairs,
        prompts: asks,
        ..
    } = stage.objective.registered();
    let mut records = data::records(&stage.data, wanted, workplace.voice)?;
    let mut held_out = data::records(&stage.validation, wanted, workplace.voice)?;
    if let ObjectiveOptions::Sft(options) = &stage.objective
        && options.turns == Turns::Last
    {
        let all = records.iter_mut().chain(&mut held_out);
        all.for_each(|sourced| sourced.record.learn_last_turn());
    }
    let origins_of = |sources: &[DataOptions], records: &[Sourced]| match asks {
        true => prompts::origins(sources, records),
        false => Ok(Vec::new()),
    };
    let mut origins = origins_of(&stage.data, &records)?;
    let mut held_out_origins = origins_of(&stage.validation, &held_out)?;
    if stage.splits() {
        let share = (records.len() as f64 * stage.validation_share).ceil() as usize;
        held_out = hold_out(&mut records, share.max(stage.validation_count));
        held_out_origins = origins.split_off(records.len().min(origins.len()));
        let path = workplace.folder.join(VALIDATION);
        readers::write_jsonl(
            &path,
            held_out.iter().map(|held| readers::to_json(&held.record)),
        )?;
    }
    let mut start = start(stage, &records, workplace)?;
    ends::settle(
        &mut start.loaded.model,
        &start.tokenizer,
        &records,
        &stage.objective,
        workplace.voice,
    )?;
    let options = &stage.options;
    if asks {
        let mut prepare = |records: &[Sourced], origins: &[Value]| {
            prompts::samples(
                &start.tokenizer,
                records,
                origins,
                options.length,
                workplace.voice,
            )
        };
        let training = prepare(&records, &origins)?;
        let validation = prepare(&held_out, &held_out_origins)?;
        return Ok((start, training, validation));
    }
    let said = [records.as_slice(), held_out.as_slice()];
    let classes = classes::settle(
        &mut start.loaded,
        &stage.objective,
        &said,
        options.seed,
        workplace.voice,
    )?;
    // Of a document every part is worth learning; of an answer the beginning, which stands behind its question.
    let packing = options.packing.then_some(match &stage.objective {
        ObjectiveOptions::Pretrain(_) => Strategy::BestFitSplit,
        _ => Strategy::BestFit,
    });
    let longest = match packing {
        Some(Strategy::BestFitSplit) => usize::MAX,
        _ => options.length,
    };
    let mut prepare = |records: &[Sourced]| -> Result<Vec<Sample>> {
        let truncation = Truncation {
            whole_pairs,
            ..Truncation::default()
        };
        let encoded = data::encode_within(
            &start.tokenizer,
            records,
            longest,
            truncation,
            workplace.voice,
        )?;
        let encoded = match wanted {
            Wanted::Verdicts => data::unpaired(encoded),
            Wanted::Texts | Wanted::Pairs | Wanted::Prompts | Wanted::Labels => encoded,
        };
        data::samples(encoded, packing, options.length, classes.as_ref())
    };
    let (training, validation) = (prepare(&records)?, prepare(&held_out)?);
    Ok((start, training, validation))
}

/// Takes the last records away, so many as there are beside one.
fn hold_out(records: &mut Vec<Sourced>, count: usize) -> Vec<Sourced> {
    let most = records.len().saturating_sub(1);
    records.split_off(records.len() - count.min(most))
}

/// The model that the stage names or describes.
fn start(stage: &TrainStage, records: &[Sourced], workplace: &mut Workplace) -> Result<Start> {
    let template = stage.template.as_deref();
    match (&stage.model, &stage.new) {
        (Some(path), None) => {
            let start = model::open(
                Path::new(path),
                &stage.config,
                stage.quantise,
                template,
                workplace.device,
            )?;
            model::grow(start, &stage.add_tokens, workplace.voice)
        }
        (None, Some(new)) => {
            let more = data::records(&new.tokenizer_data, Wanted::Texts, workplace.voice)?;
            let texts = records.iter().chain(&more).map(|sourced| &sourced.record);
            let special = (stage.objective.registered().special_tokens)();
            let seed = stage.options.seed;
            new_model::create(new, texts, &special, template, seed, workplace.device)
        }
        _ => Err(Error::usage("a train stage needs one of `model` and `new`")),
    }
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

fn say_plan(plan: &Plan, options: &TrainOptions, voice: &mut dyn Voice) {
    let share = 100.0 * plan.trainable as f64 / plan.parameters.max(1) as f64;
    voice.say(&format!(
        "   plan: {} parameters, {} trained ({share:.1} %); {} samples, {} steps, {}; about {} and {}",
        count(plan.parameters),
        count(plan.trainable),
        plan.samples,
        plan.steps,
        tokens(&plan.tokens),
        bytes(plan.memory + plan.data),
        duration(plan.seconds),
    ));
    // A batch of one has none, and packed rows are full but for the last.
    let helps = options.batch > 1 && !options.packing && !options.group_by_length;
    if plan.tokens.padding_share() > MUCH_WASTE && helps {
        voice.say("   `group_by_length = true` puts samples of like length into a batch, which spares padding");
    }
}

/// Tokens in words; padding where it is a share worth sparing.
fn tokens(tokens: &TokenCount) -> String {
    let padding = match tokens.padding_share() {
        share if share < WASTE => String::new(),
        share => format!(" and {:.0} % padding", 100.0 * share),
    };
    format!(
        "{} tokens ({} learned){padding}",
        count(tokens.real),
        count(tokens.learned)
    )
}

/// Tells of texts that are longer than what the model was made for, where it reads them all the same.
fn say_context(samples: &[Sample], spec: &ModelSpec, voice: &mut dyn Voice) {
    let positions = samples.iter().flat_map(|sample| &sample.rows);
    let last = positions.flat_map(|row| row.positions.iter().max()).max();
    let longest = last.map_or(0, |last| *last as usize + 1);
    if let Some(remark) = model::beyond_context(spec, longest) {
        let context = spec.context;
        voice.say(&format!("   {remark}; `length = {context}` cuts them"));
    }
}

fn say_event(event: &Event, objective: Registered, voice: &mut dyn Voice) {
    match event {
        Event::Remark(remark) => voice.say(&format!("   {remark}")),
        Event::Resumed(step) => voice.say(&format!("   goes on after step {step}")),
        Event::Step {
            step,
            total,
            loss,
            speed: (tokens, elapsed),
        } => {
            let rate = *tokens as f64 / elapsed.max(1e-9);
            voice.progress(
                "   train",
                *step,
                *total,
                &format!("loss {loss:.4}  {rate:.0} tokens/s"),
            );
        }
        Event::Evaluated {
            step,
            loss,
            metrics,
        } => {
            let share = |(name, value): &(String, f64)| format!(", {name} {:.1} %", 100.0 * value);
            let is_share = |(name, _): &&(String, f64)| {
                let mut known = objective.metrics.iter();
                known.any(|metric| metric.share && metric.name == name)
            };
            let shares: String = metrics.iter().filter(is_share).map(share).collect();
            voice.say(&format!(
                "   step {step}: held-out loss {loss:.4}{}",
                shares.replace('_', " ")
            ));
        }
    }
}

fn say_outcome(outcome: &Outcome, plan: &Plan, voice: &mut dyn Voice) {
    let peak = peak_bytes().map(|peak| {
        format!(
            ", peak memory {} (planned {})",
            bytes(peak),
            bytes(plan.memory)
        )
    });
    voice.say(&format!(
        "   used: {} for {} (planned {}){}",
        duration(outcome.seconds),
        tokens(&outcome.tokens),
        duration(plan.seconds),
        peak.unwrap_or_default()
    ));
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
