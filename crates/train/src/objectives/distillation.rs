//! Knowledge distillation: a teacher's distributions take the place of labels (arXiv 1503.02531; on-policy and with the generalised
//! Jensen-Shannon divergence GKD, arXiv 2306.13649).
//!
//! With the student's `p` and the teacher's `q`, both of logits divided by `temperature`, at every target:
//! `beta = 0`: `KL(q || p)` (forward); `beta = 1`: `KL(p || q)` (reverse); between them, with `m = (1 - beta) p + beta q`,
//! `beta KL(q || m) + (1 - beta) KL(p || m)`, all as in TRL. A mean over targets; `cross_entropy` is the share of the labels' own loss in
//! it. With the probability `on_policy` a batch's answers are the student's own, written now. The teacher is asked in every step, for its
//! distributions take too much room to be kept: its memory and its passes are part of the plan. Recipe: `distillation.toml`.

use burn::tensor::{Device, Tensor, activation::log_softmax};
use espalier_data::{encode::Example, packing::Row, random::Random, tokenizer::Tokenizer};
use espalier_engine::{
    decode::{DecodeOptions, decode},
    sampler::SamplerOptions,
    text::end_tokens,
};
use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    model::{LanguageModel, Rated},
    parameter::Parameters,
    taps::Unobserved,
};
use serde::{Deserialize, Serialize};

use super::{
    Batch, Growth, Loss, Metric, Objective, OtherPasses, PackedRows, check_causal, reference,
    registry::Entry, rows,
};
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch, share},
    error::{at_least, positive, within},
    metrics::{ACCURACY, MetricDescription},
    options::TrainOptions,
    rewards::Read,
};

/// The options of distillation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DistillOptions {
    /// The teacher: a model or adapter folder, or the name of an earlier stage; over the same vocabulary.
    pub teacher: String,
    /// The divergence: 0 is the forward one, 1 the reverse one, what lies between is Jensen and Shannon's.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta: f64,
    /// What the logits of both are divided by.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub temperature: f64,
    /// Share of the labels' cross-entropy in the loss.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub cross_entropy: f64,
    /// Share of the batches whose answers the student writes itself (`lmbda` of GKD).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub on_policy: f64,
    /// Most tokens of an answer that the student writes.
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
}

impl Default for DistillOptions {
    fn default() -> Self {
        Self {
            teacher: String::new(),
            beta: 0.0,
            temperature: 1.0,
            cross_entropy: 0.0,
            on_policy: 0.0,
            max_new_tokens: 128,
        }
    }
}

impl DistillOptions {
    fn check(&self) -> Result<()> {
        if self.teacher.is_empty() {
            return Err(Error::Option {
                key: "teacher",
                reason: "name a model folder or an earlier stage".into(),
            });
        }
        within("beta", self.beta, 0.0, 1.0)?;
        within("cross_entropy", self.cross_entropy, 0.0, 1.0)?;
        within("on_policy", self.on_policy, 0.0, 1.0)?;
        positive("temperature", self.temperature)?;
        at_least("max_new_tokens", self.max_new_tokens, 1)
    }
}

/// The objective's registration.
pub const ENTRY: Entry<DistillOptions> = Entry::new(
    &[
        MetricDescription::number(
            "divergence",
            "divergence from the teacher",
            "divergence of a target's distribution from the teacher's",
        ),
        MetricDescription::number(
            "cross_entropy",
            "cross-entropy",
            "negative log-probability of held-out targets",
        ),
        ACCURACY,
    ],
    PackedRows::Apart,
    DistillOptions::check,
    |options, _| Ok(Box::new(Distill::new(options.clone()))),
)
.that_reads(|options| vec![Read::Peer(&mut options.teacher)]);

/// The objective.
#[derive(Debug)]
pub struct Distill {
    options: DistillOptions,
    /// The teacher, once it was read.
    teacher: Option<LanguageModel>,
    /// The tokenizer, which knows at which token a text ends where the model does not.
    tokenizer: Option<Tokenizer>,
}

impl Distill {
    /// Without its teacher, which is read when a run is prepared.
    pub fn new(options: DistillOptions) -> Self {
        Self {
            options,
            teacher: None,
            tokenizer: None,
        }
    }

    fn teacher(&self) -> Result<&LanguageModel> {
        self.teacher.as_ref().ok_or_else(|| Error::Option {
            key: "teacher",
            reason: "was not read; call `equip` or `start` first".into(),
        })
    }

    /// The prompts of `rows` with what the student writes behind them, which alone is learned.
    fn written(
        &self,
        policy: &LanguageModel,
        rows: &[&Row],
        random: &mut Random,
    ) -> Result<Vec<Row>> {
        let prompt = |row: &&Row| row.ids[..row.prompt_length()].to_vec();
        let prompts: Vec<Vec<u32>> = rows.iter().map(prompt).collect();
        let end = match &self.tokenizer {
            Some(tokenizer) => end_tokens(policy, tokenizer),
            None => policy.spec().eos.clone(),
        };
        let options = DecodeOptions {
            max_new_tokens: self.options.max_new_tokens,
            sampler: SamplerOptions {
                temperature: self.options.temperature as f32,
                seed: random.next_u64(),
                ..SamplerOptions::default()
            },
            end,
        };
        let answers = decode(&policy.frozen(), &prompts, &options, &mut |_, _| true)?;
        let row = |(prompt, answer): (Vec<u32>, Vec<u32>)| {
            let start = prompt.len();
            Row::from(&Example::answered([prompt, answer].concat(), start))
        };
        let answers = answers.into_iter().map(|answer| answer.ids);
        Ok(prompts.into_iter().zip(answers).map(row).collect())
    }
}

impl Objective for Distill {
    fn name(&self) -> &'static str {
        "distill"
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
    }

    fn growth(&self) -> Option<Growth> {
        (self.options.on_policy > 0.0).then_some(Growth {
            rows: 1,
            tokens: self.options.max_new_tokens,
            share: self.options.on_policy,
            key: "max_new_tokens",
        })
    }

    /// What the teacher takes; a base that it shares with the student is counted again, for it is a file of its own.
    fn kept_bytes(&self, _: &LanguageModel) -> u64 {
        let mut bytes = 0;
        if let Some(teacher) = &self.teacher {
            teacher.visit(&mut |p| bytes += p.bytes() as u64);
        }
        bytes
    }

    /// A pass of the teacher's, and where the student writes one of its own besides.
    fn other_passes(&self, model: &LanguageModel) -> OtherPasses {
        let pass = |model: &LanguageModel| 2.0 * model.spec().active_parameter_count();
        let teacher = self.teacher.as_ref().map_or(0.0, pass);
        OtherPasses {
            once: 0.0,
            each: teacher + self.options.on_policy * pass(model),
        }
    }

    fn equip(&mut self, tokenizer: &Tokenizer, device: &Device) -> Result<()> {
        self.tokenizer = Some(tokenizer.clone());
        self.teacher = Some(reference::open(&self.options.teacher, device)?);
        Ok(())
    }

    fn check(
        &self,
        model: &LanguageModel,
        samples: &[Sample],
        options: &TrainOptions,
    ) -> Result<()> {
        check_causal(self.name(), model)?;
        if let Some(teacher) = &self.teacher {
            reference::check_tokens(&self.options.teacher, teacher, model)?;
        }
        if options.label_smoothing > 0.0 && self.options.cross_entropy == 0.0 {
            return Err(Error::Option {
                key: "label_smoothing",
                reason: "there is no cross-entropy of labels to smooth; leave it 0, or set `cross_entropy`".into(),
            });
        }
        let is_packed = |row: &Row| row.segments.iter().any(|segment| *segment > 1);
        let packed = samples
            .iter()
            .any(|sample| sample.rows.iter().any(is_packed));
        match packed && self.options.on_policy > 0.0 {
            true => Err(Error::packing("distill with `on_policy`")),
            false => Ok(()),
        }
    }

    fn start(&mut self, model: &LanguageModel, _: u64) -> Result<()> {
        let path = &self.options.teacher;
        match &mut self.teacher {
            Some(teacher) => {
                reference::check_tokens(path, teacher, model)?;
                teacher.set_precision(model.precision());
            }
            None => self.teacher = Some(reference::load(path, model)?),
        }
        Ok(())
    }

    fn collate(&self, _: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        Batch::of_targets(TokenBatch::new(&rows(self.name(), samples)?), samples)
    }

    fn batch(
        &mut self,
        policy: &LanguageModel,
        samples: &[&Sample],
        random: &mut Random,
    ) -> Result<Batch> {
        if !random.chance(self.options.on_policy) {
            return self.collate(policy, samples, random);
        }
        let written = self.written(policy, &rows(self.name(), samples)?, random)?;
        let tokens = TokenBatch::new(&written.iter().collect::<Vec<_>>());
        Batch::of_targets(tokens, &[])
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let (teacher, options) = (self.teacher()?, &self.options);
        let tokens = &batch.tokens;
        let (states, auxiliary) = tokens.predicting(model, &mut Unobserved)?;
        let (others, _) = tokens.predicting(teacher, &mut Unobserved)?;
        let rate = &mut |rows: std::ops::Range<usize>, logits: Tensor<2>| {
            let others = others.clone().narrow(0, rows.start, rows.len());
            let other = teacher.head(others).inner();
            divergence(logits, other, options.beta, options.temperature)
        };
        let divergence = model.through_head(states.clone(), rate)?;
        let mut metrics = vec![Metric {
            name: "divergence",
            sum: divergence
                .clone()
                .floats()
                .first()
                .copied()
                .map_or(0.0, f64::from),
            units: batch.units,
        }];
        let mut sum = divergence * (1.0 - options.cross_entropy);
        if options.cross_entropy > 0.0 {
            let own = model.cross_entropy(states.clone(), &tokens.targets)?;
            sum = sum + own * options.cross_entropy;
        }
        if !model.is_training() {
            metrics.extend(of_targets(model, states, tokens)?);
        }
        let mut loss = Loss::new(sum, batch.units, auxiliary);
        loss.metrics.extend(metrics);
        Ok(loss)
    }
}

/// How a model that is not being trained rates the targets.
fn of_targets(
    model: &LanguageModel,
    states: Tensor<2>,
    tokens: &TokenBatch,
) -> Result<Vec<Metric>> {
    let scores = model.target_scores(states, &tokens.targets)?;
    let sum: f64 = scores
        .iter()
        .map(|score| -f64::from(score.log_probability))
        .sum();
    let cross_entropy = Metric {
        name: "cross_entropy",
        sum,
        units: scores.len() as f64,
    };
    let right = scores.iter().map(|score| score.first_choice);
    Ok(vec![cross_entropy, share(ACCURACY.name, right)])
}

/// The divergence of rows of a student's logits from the teacher's, `[rows, vocabulary]` both, outside autodiff, with the gradient of
/// its sum with respect to the student's.
///
/// With `a` the student's logits over the temperature: forward `p - q`; reverse `p (log(p / q) - KL)`; between them
/// `(1 - beta) p (log(p / m) - KL(p || m))`.
pub fn divergence(student: Tensor<2>, teacher: Tensor<2>, beta: f64, temperature: f64) -> Rated {
    let own = log_softmax(student / temperature, 1);
    let other = log_softmax(teacher / temperature, 1);
    let (p, q) = (own.clone().exp(), other.clone().exp());
    let (values, gradient) = if beta == 0.0 {
        (q.clone() * (other - own), p - q)
    } else {
        // Of the reverse one the mixture is the teacher.
        let (mixed, weight) = match beta < 1.0 {
            true => (
                (p.clone() * (1.0 - beta) + q.clone() * beta).log(),
                1.0 - beta,
            ),
            false => (other.clone(), 1.0),
        };
        let ratio = own - mixed.clone();
        let terms = p.clone() * ratio.clone();
        let mean = terms.clone().sum_dim(1);
        let gradient = p * (ratio - mean) * weight;
        let values = match beta < 1.0 {
            true => terms * weight + q * (other - mixed) * beta,
            false => terms,
        };
        (values, gradient)
    };
    let rows = values.sum_dim(1).floats();
    Rated {
        value: rows.iter().map(|row| f64::from(*row)).sum(),
        gradient: gradient / temperature,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    const STUDENT: [[f64; 4]; 2] = [[0.3, -1.2, 2.0, 0.1], [1.5, 0.2, -0.7, 0.9]];
    const TEACHER: [[f64; 4]; 2] = [[1.0, -0.4, 0.6, -2.0], [-0.3, 0.8, 1.1, 0.0]];

    fn softmax(row: &[f64], temperature: f64) -> Vec<f64> {
        let exps: Vec<f64> = row.iter().map(|x| (x / temperature).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.iter().map(|x| x / sum).collect()
    }

    fn kl(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * (a / b).ln()).sum()
    }

    /// The definition, in f64.
    fn defined(student: &[[f64; 4]; 2], beta: f64, temperature: f64) -> f64 {
        let of_row = |(student, teacher): (&[f64; 4], &[f64; 4])| {
            let p = softmax(student, temperature);
            let q = softmax(teacher, temperature);
            if beta == 0.0 {
                return kl(&q, &p);
            }
            if beta == 1.0 {
                return kl(&p, &q);
            }
            let both = p.iter().zip(&q);
            let m: Vec<f64> = both.map(|(p, q)| (1.0 - beta) * p + beta * q).collect();
            beta * kl(&q, &m) + (1.0 - beta) * kl(&p, &m)
        };
        student.iter().zip(&TEACHER).map(of_row).sum()
    }

    fn tensor(rows: [[f64; 4]; 2]) -> Tensor<2> {
        Tensor::from_floats(rows.map(|row| row.map(|x| x as f32)), &Device::flex())
    }

    #[test]
    fn values_and_gradients_are_those_of_the_definitions() {
        for (beta, temperature) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (0.5, 1.0),
            (0.1, 2.0),
            (0.9, 0.7),
            (0.0, 3.0),
        ] {
            let found = divergence(tensor(STUDENT), tensor(TEACHER), beta, temperature);
            let expected = defined(&STUDENT, beta, temperature);
            assert!(
                (found.value - expected).abs() < 2e-6,
                "{beta}: {} {expected}",
                found.value
            );
            let gradient = found.gradient.into_data().try_into_vec::<f32>().unwrap();
            for (i, ours) in gradient.iter().enumerate() {
                let moved = |by: f64| {
                    let mut student = STUDENT;
                    student[i / 4][i % 4] += by;
                    defined(&student, beta, temperature)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!(
                    (f64::from(*ours) - slope).abs() < 2e-6,
                    "{beta} {i}: {ours} {slope}"
                );
            }
        }
    }

    #[test]
    fn a_student_like_its_teacher_costs_nothing() {
        for beta in [0.0, 0.3, 1.0] {
            let found = divergence(tensor(TEACHER), tensor(TEACHER), beta, 1.0);
            assert!(found.value.abs() < 1e-6);
            let largest = found.gradient.abs().max().into_scalar::<f32>();
            assert!(largest < 1e-6, "{beta}: {largest}");
        }
    }

    #[test]
    fn the_student_writes_behind_the_prompt_alone() {
        let row = Row::from(&Example::new(
            vec![5, 6, 7, 8],
            vec![false, false, true, true],
        ));
        assert_eq!(row.ids[..row.prompt_length()], [5, 6]);
    }

    #[test]
    fn senseless_options_are_refused() {
        let right = DistillOptions {
            teacher: "x".into(),
            ..DistillOptions::default()
        };
        right.check().unwrap();
        type Change = fn(&mut DistillOptions);
        let changes: [(Change, &str); 4] = [
            (|options| options.teacher.clear(), "`teacher`"),
            (|options| options.beta = 1.5, "`beta`"),
            (|options| options.temperature = 0.0, "`temperature`"),
            (|options| options.on_policy = -0.1, "`on_policy`"),
        ];
        for (change, key) in changes {
            let mut wrong = right.clone();
            change(&mut wrong);
            assert!(wrong.check().unwrap_err().to_string().starts_with(key));
        }
    }
}
