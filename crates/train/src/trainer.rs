//! The trainer: one loop for every objective.
//!
//! It owns data order, accumulation, clipping, the schedule, evaluation, checkpoints, metrics and what objectives show to readers. Interrupted at any
//! moment, the same call goes on from the newest checkpoint and ends with the same weights, bit for bit in f32.

mod checks;
mod resumption;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use burn::tensor::Tensor;
use espalier_data::{disk, random::Random};
use espalier_kernels::{backward::backward, linear::Precision, release::Release};
use espalier_models::{model::LanguageModel, parameter::Parameter};

pub use self::checks::check;
use self::{
    checks::check_rows,
    resumption::{SAMPLES, open_samples, restore},
};
use crate::{
    Error, Result,
    averaging::Averager,
    batch::Sample,
    checkpoint::{self, Progress, Tensors, Whole},
    evaluation::{Evaluation, evaluate},
    metrics::{MetricsLog, Window},
    named_tensors::NamedTensor,
    objectives::{Batch, Metric, Objective},
    optimisers::{Optimiser, Step},
    options::TrainOptions,
    order::Order,
    released::{self, Squares},
    token_count::TokenCount,
    trained,
};

/// Everything that a run needs.
pub struct Run<'a> {
    /// The model to start from; its trainable parameters are trained.
    pub model: LanguageModel,
    /// What a step minimises; its trainable parameters are trained too.
    pub objective: &'a mut dyn Objective,
    /// Training data.
    pub samples: Vec<Sample>,
    /// Held-out data, for evaluation.
    pub validation: Vec<Sample>,
    /// Options.
    pub options: TrainOptions,
    /// The run's folder: `metrics.jsonl` and `checkpoints/`.
    pub folder: PathBuf,
    /// Hash of everything that decides the trajectory; a checkpoint with another one is refused.
    pub fingerprint: String,
    /// Asked after every step whether to stop: the run then leaves a checkpoint and ends with [`Error::Interrupted`].
    pub interrupted: fn() -> bool,
}

/// What happens during a run, for progress bars.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Training goes on from a checkpoint after this step.
    Resumed(usize),
    /// Something of the run's folder is not as it should be; training goes on all the same.
    Remark(String),
    /// A step is done.
    Step {
        /// The step, from 1.
        step: usize,
        /// All steps.
        total: usize,
        /// Loss of the step.
        loss: f64,
        /// Tokens of texts since the process started, and the seconds that took.
        speed: (u64, f64),
    },
    /// The held-out loss was measured after this step.
    Evaluated {
        /// The step.
        step: usize,
        /// Mean loss on held-out data.
        loss: f64,
        /// Named metrics, such as the share of targets that are the model's first choice.
        metrics: Vec<(String, f64)>,
    },
}

/// The end of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The trained model, outside autodiff.
    pub model: LanguageModel,
    /// Steps in all.
    pub steps: usize,
    /// Tokens of all steps.
    pub tokens: TokenCount,
    /// Seconds of this process.
    pub seconds: f64,
    /// Held-out loss at the end, where there is held-out data.
    pub validation_loss: Option<f64>,
    /// Named metrics of held-out data at the end.
    pub validation_metrics: Vec<(String, f64)>,
}

/// Trains to the end of the schedule.
///
/// # Errors
/// When an option makes no sense, a sample does not fit, the loss or a gradient is not finite, or the disk is full.
pub fn train(mut run: Run<'_>, events: &mut dyn FnMut(&Event)) -> Result<Outcome> {
    if run.samples.is_empty() {
        return Err(Error::Option {
            key: "data",
            reason: "no example is left to train on".into(),
        });
    }
    let total = run.options.total_steps(run.samples.len())?;
    let checkpoints = run.folder.join("checkpoints");
    disk::create_folder(&checkpoints).map_err(Error::file(&checkpoints))?;
    run.model.set_precision(run.options.precision);
    run.model
        .set_gradient_checkpointing(run.options.gradient_checkpointing)?;
    run.model.set_label_smoothing(run.options.label_smoothing);
    run.model.set_training(true);
    check(&run.model, run.objective, &run.samples, &run.options)?;
    check_rows(run.objective, run.validation.iter())?;
    let started = Instant::now();
    run.objective.start(&run.model, run.options.seed)?;
    run.objective.prepare(&run.model, &mut run.samples)?;
    run.objective.prepare(&run.model, &mut run.validation)?;
    trained::check_keys(&run.model, run.objective)?;
    let mut optimiser = run.options.optimiser.build(&run.options);
    let average = run.options.average.clone();
    let mut averager = average.map(|average| Averager::new(average, total));
    let (resumed, passed_over) = checkpoint::newest(&checkpoints, &run.fingerprint)?;
    passed_over
        .into_iter()
        .for_each(|remark| events(&Event::Remark(remark)));
    let progress = match resumed {
        Some(Whole { progress, tensors }) => {
            restore(
                &mut run,
                optimiser.as_mut(),
                averager.as_mut(),
                &progress,
                &tensors,
            )?;
            events(&Event::Resumed(progress.step));
            progress
        }
        None => {
            let start = &mut |key: &str, p: &Parameter| optimiser.start(key, p);
            trained::visit(&run.model, run.objective, start);
            Progress::start(&run.fingerprint)
        }
    };
    let path = run.folder.join("metrics.jsonl");
    let log = MetricsLog::open(&path, progress.log)?;
    if log.bytes()? < progress.log {
        let remark =
            "was damaged since the last checkpoint; the lines from the damage to there are lost";
        events(&Event::Remark(format!("{} {remark}", path.display())));
    }
    let samples = open_samples(&run.folder, progress.samples)?;
    let order = Order::of(&run.samples, &run.options);
    let read_before = progress.tokens.real;
    let mut state = State {
        run,
        total,
        optimiser,
        averager,
        window: Window::from_bits(progress.metrics.clone()),
        progress,
        log,
        samples,
        order,
    };
    state.evaluate_if_due(events)?;
    while state.progress.step < total {
        let loss = state.step()?;
        let speed = (
            state.progress.tokens.real - read_before,
            started.elapsed().as_secs_f64(),
        );
        events(&Event::Step {
            step: state.progress.step,
            total,
            loss,
            speed,
        });
        state.after_step(&checkpoints, events)?;
    }
    state.finish(started, events)
}

/// What a batch of a step (from 0) draws from: a function of seed, step and batch, so that a run that was interrupted draws it
/// again.
pub(crate) fn random_of_batch(options: &TrainOptions, step: usize, batch: usize) -> Random {
    Random::named(&format!("batch|{}|{step}|{batch}", options.seed))
}

/// The gradients of a step.
#[derive(Debug, Default)]
struct Collected {
    /// Those that the step's end applies.
    waiting: BTreeMap<String, Tensor<1>>,
    /// The squared norms of those whose parameters were updated in the backward.
    released: Squares,
}

/// A run under way.
struct State<'a> {
    run: Run<'a>,
    total: usize,
    optimiser: Box<dyn Optimiser>,
    averager: Option<Averager>,
    progress: Progress,
    log: MetricsLog,
    samples: Option<MetricsLog>,
    order: Order,
    window: Window,
}

impl State<'_> {
    /// One optimiser step; returns its loss.
    fn step(&mut self) -> Result<f64> {
        let number = self.progress.step + 1;
        // What is done is kept, for whatever failed, such as a source of rewards, may work the next time.
        let mut batches = match self.batches() {
            Ok(batches) => batches,
            Err(error) => return Err(self.saved_before(error)),
        };
        let units = Batch::of_step(&mut batches);
        let mut gradients = Collected::default();
        let mut loss = 0.0;
        for (micro, batch) in batches.iter().enumerate() {
            let seed = self.run.options.seed;
            let name = format!("adapters|{seed}|{}|{micro}", self.progress.step);
            let drawn = Random::named(&name).next_u64();
            self.run.model.set_adapter_dropout(Some(drawn));
            loss += self.backward(batch, units, &mut gradients, number)?;
        }
        self.run.model.set_adapter_dropout(None);
        let norm = self.update(gradients, number)?;
        self.progress.step = number;
        self.run.objective.after_step(&self.run.model, number)?;
        if let Some(averager) = &mut self.averager {
            averager.after_step(&self.run.model, self.run.objective, number);
        }
        for batch in &batches {
            self.progress.tokens += batch.tokens.count();
        }
        let metric = |name, sum| Metric {
            name,
            sum,
            units: 1.0,
        };
        self.window
            .add(&[metric("loss", loss), metric("gradient_norm", norm)]);
        Ok(loss)
    }

    /// The error of a step or an evaluation that came to nothing, after a checkpoint of the steps before it.
    fn saved_before(&mut self, error: Error) -> Error {
        if self.progress.step == 0 {
            return error;
        }
        let checkpoints = self.run.folder.join("checkpoints");
        let saved = self.checkpoint(&checkpoints, self.run.options.keep_checkpoints);
        saved.err().unwrap_or(error)
    }

    /// The batches of the next step, a function of the step alone.
    fn batches(&mut self) -> Result<Vec<Batch>> {
        let options = &self.run.options;
        let mut batches = Vec::with_capacity(options.accumulation);
        for (micro, numbers) in self.order.step(self.progress.step).iter().enumerate() {
            let samples: Vec<&Sample> = numbers.iter().map(|i| &self.run.samples[*i]).collect();
            let mut random = random_of_batch(options, self.progress.step, micro);
            let mut batch = self
                .run
                .objective
                .batch(&self.run.model, &samples, &mut random)?;
            batch
                .tokens
                .input
                .set_dropout(options.dropout, random.next_u64());
            if options.embedding_noise > 0.0 {
                let seed = random.next_u64();
                batch.tokens.input.set_noise(options.embedding_noise, seed);
            }
            batches.push(batch);
        }
        Ok(batches)
    }

    /// Adds one batch's gradients; returns its share of the step's loss.
    fn backward(
        &mut self,
        batch: &Batch,
        units: f64,
        gradients: &mut Collected,
        step: usize,
    ) -> Result<f64> {
        if batch.units == 0.0 {
            return Ok(0.0);
        }
        let release = self.run.options.release_gradients.then(Release::begin);
        let loss = self.run.objective.loss(&self.run.model, batch)?;
        let value = loss.value() / units;
        if !value.is_finite() {
            return Err(Error::NotFinite {
                step,
                what: "the loss".into(),
            });
        }
        self.window.add(&loss.metrics);
        let sum = loss.sum / units;
        let mut found = match release {
            None => backward(sum)?,
            Some(release) => {
                let numbers = self.step_of(step, 1.0);
                let Run {
                    model, objective, ..
                } = &mut self.run;
                let optimiser = self.optimiser.as_mut();
                let (found, gone) =
                    released::backward(release, sum, model, *objective, optimiser, numbers)?;
                gradients.released.extend(gone);
                found
            }
        };
        trained::visit(&self.run.model, self.run.objective, &mut |key, p| {
            if let Some(gradient) = p.leaf().and_then(|leaf| leaf.grad_remove(&mut found)) {
                let sum = match gradients.waiting.remove(key) {
                    Some(earlier) => earlier + gradient,
                    None => gradient,
                };
                gradients.waiting.insert(key.to_owned(), sum);
            }
        });
        Ok(value)
    }

    /// The numbers of step `number` (from 1).
    fn step_of(&self, number: usize, gradient_scale: f64) -> Step {
        Step {
            number: number as u64,
            learning_rate: self.run.options.learning_rate_at(number - 1, self.total),
            gradient_scale,
        }
    }

    /// Clips and applies the gradients that were not released; returns the norm of all before clipping.
    fn update(&mut self, mut gradients: Collected, number: usize) -> Result<f64> {
        for (name, gradient) in &gradients.waiting {
            let squares = released::squares(name, gradient, number as u64)?;
            gradients.released.insert(name.clone(), squares);
        }
        let mut total = 0.0f64;
        gradients
            .released
            .values()
            .for_each(|squares| total += squares);
        let norm = total.sqrt();
        let options = &self.run.options;
        let scale = if options.clip > 0.0 && norm > options.clip {
            options.clip / norm
        } else {
            1.0
        };
        let step = self.step_of(number, scale);
        let Run {
            model, objective, ..
        } = &mut self.run;
        trained::visit_mut(model, *objective, &mut |key, p| {
            if let Some(gradient) = gradients.waiting.remove(key) {
                released::update(self.optimiser.as_mut(), key, p, gradient, step);
            }
        });
        Ok(norm)
    }

    /// The log, the evaluation and the checkpoint that are due.
    fn after_step(&mut self, checkpoints: &Path, events: &mut dyn FnMut(&Event)) -> Result<()> {
        let (step, last) = (self.progress.step, self.progress.step == self.total);
        let due = |every: usize| every > 0 && step.is_multiple_of(every);
        if due(self.run.options.log_every) || last {
            let mut values = self.window.means();
            values.push((
                "learning_rate".into(),
                self.run.options.learning_rate_at(step - 1, self.total),
            ));
            values.push(("tokens".into(), self.progress.tokens.real as f64));
            self.log.write(step, &values)?;
            self.show(step)?;
        }
        self.progress.evaluation_due = due(self.run.options.evaluate_every) && !last;
        self.evaluate_if_due(events)?;
        let interrupted = !last && (self.run.interrupted)();
        if (due(self.run.options.checkpoint_every) && !last) || interrupted {
            self.checkpoint(checkpoints, self.run.options.keep_checkpoints)?;
        }
        match interrupted {
            true => Err(Error::Interrupted {
                step,
                total: self.total,
            }),
            false => Ok(()),
        }
    }

    /// Evaluates after a step where that is due, in a run that goes on too: one that failed left its step in a checkpoint.
    fn evaluate_if_due(&mut self, events: &mut dyn FnMut(&Event)) -> Result<()> {
        if self.progress.evaluation_due {
            if let Err(error) = self.evaluate(events) {
                return Err(self.saved_before(error));
            }
            self.progress.evaluation_due = false;
        }
        Ok(())
    }

    /// Writes what the objective shows of a step.
    fn show(&mut self, step: usize) -> Result<()> {
        let shown = self.run.objective.shown();
        if shown.is_empty() {
            return Ok(());
        }
        if self.samples.is_none() {
            let path = self.run.folder.join(SAMPLES);
            self.samples = Some(MetricsLog::open(&path, 0)?);
        }
        match &mut self.samples {
            Some(log) => log.write_objects(step, shown),
            None => Ok(()),
        }
    }

    /// Writes everything that the next step depends on.
    fn checkpoint(&mut self, folder: &Path, keep: usize) -> Result<()> {
        let mut weights = Vec::new();
        trained::visit(&self.run.model, self.run.objective, &mut |key, p| {
            weights.push(NamedTensor::parameter(key, p));
        });
        self.log.sync()?;
        self.samples.as_ref().map_or(Ok(()), MetricsLog::sync)?;
        self.progress.log = self.log.bytes()?;
        self.progress.samples = self.samples.as_ref().map_or(Ok(0), MetricsLog::bytes)?;
        let objective = self.run.objective.state();
        self.progress.metrics = self.window.to_bits();
        self.progress.objective = objective.value;
        let mut optimiser = self.optimiser.state();
        optimiser.extend(self.averager.iter().flat_map(Averager::state));
        let tensors = Tensors {
            weights,
            optimiser,
            objective: objective.tensors,
        };
        checkpoint::write(folder, &tensors, &self.progress, keep)
    }

    /// Mean loss on held-out data, where there is any.
    fn evaluate(&mut self, events: &mut dyn FnMut(&Event)) -> Result<Option<Evaluation>> {
        if self.run.validation.is_empty() {
            return Ok(None);
        }
        let (loss, metrics) = evaluate(
            &self.run.model,
            self.run.objective,
            &self.run.validation,
            self.run.options.batch,
        )?;
        let step = self.progress.step;
        let mut values = vec![("eval_loss".to_owned(), loss)];
        values.extend(
            metrics
                .iter()
                .map(|(name, value)| (format!("eval_{name}"), *value)),
        );
        self.log.write(step, &values)?;
        events(&Event::Evaluated {
            step,
            loss,
            metrics: metrics.clone(),
        });
        Ok(Some((loss, metrics)))
    }

    fn finish(mut self, started: Instant, events: &mut dyn FnMut(&Event)) -> Result<Outcome> {
        // Before the last evaluation, whose line is written again where the run is killed after it.
        let checkpoints = self.run.folder.join("checkpoints");
        self.checkpoint(&checkpoints, 1)?;
        if let Some(averager) = &mut self.averager {
            averager.apply(&mut self.run.model, self.run.objective);
        }
        let (validation_loss, validation_metrics) = self
            .evaluate(events)?
            .map_or((None, Vec::new()), |(loss, metrics)| (Some(loss), metrics));
        self.run.model.set_precision(Precision::F32);
        Ok(Outcome {
            model: self.run.model.frozen(),
            steps: self.progress.step,
            tokens: self.progress.tokens,
            seconds: started.elapsed().as_secs_f64(),
            validation_loss,
            validation_metrics,
        })
    }
}
