//! Best of n: a reward model chooses among several answers of a model, a checker says how well it chose.

use std::path::Path;

use burn::tensor::Device;
use espalier_data::{
    encode::{Encoded, Encoder},
    record::{Message, Record},
    worlds::{self, Item, Split},
};
use espalier_engine::{score::rewards, text::TextModel};
use espalier_evaluate::{statistics::Accuracy, world};
use espalier_models::model::LanguageModel;
use serde_json::{Map, Value, json};

use super::{
    Voice,
    evaluate::{BATCH, EvaluateStage, Keeping, USUAL_ANSWERS, figures},
    model,
};
use crate::{Error, Result};

/// A reward model with its tokenizer.
pub struct Judge {
    model: LanguageModel,
    encoder: Encoder,
}

impl Judge {
    /// Opens the model.
    ///
    /// # Errors
    /// When it cannot be read, or gives no one score of a text.
    pub fn open(path: &Path, stage: &EvaluateStage, device: &Device) -> Result<Self> {
        let template = stage.template.as_deref();
        let start = model::open(path, &Map::new(), None, template, device)?;
        let mut model = start.loaded.model;
        model.merge_what_can_be();
        if model.spec().classifier.is_none_or(|head| head.labels != 1) {
            return Err(Error::usage(format!(
                "`reward`: {} is no reward model (`...ForSequenceClassification` with one label)",
                path.display()
            )));
        }
        let encoder = Encoder::new(start.tokenizer, stage.length);
        Ok(Self { model, encoder })
    }

    /// For each sampled task how often the answer with the largest reward is right, one at random, and any at all (the oracle).
    ///
    /// # Errors
    /// When an answer does not fit the model.
    pub fn best_of(
        &self,
        policy: &TextModel,
        stage: &EvaluateStage,
        keeping: &mut Keeping,
        voice: &mut dyn Voice,
    ) -> Result<Value> {
        let mut all = Map::new();
        for task in &stage.sampled_worlds {
            let answers = answers(policy, task, stage, keeping, voice)?;
            let scores = answers.iter().map(|answers| self.scores(answers));
            let scores: Vec<Vec<f64>> = scores.collect::<Result<_>>()?;
            let found = figures_of(&answers, &scores);
            voice.say(&format!(
                "   {task}, best of {}: {}; one at random {:.1} %, any {:.1} %",
                answers.len(),
                found.chosen,
                100.0 * found.random,
                100.0 * found.any.value()
            ));
            let mut of_task = figures(&found.chosen);
            of_task["random"] = json!(found.random);
            of_task["any"] = json!(found.any.value());
            all.insert(task.clone(), of_task);
        }
        Ok(Value::Object(all))
    }

    fn scores(&self, answers: &[Answer]) -> Result<Vec<f64>> {
        let ids = |answer: &Answer| -> Result<Vec<u32>> {
            let mut messages = answer.item.question();
            messages.push(Message::assistant(&answer.text));
            let record = Record::Chat {
                messages,
                tools: None,
            };
            Ok(match self.encoder.encode(&record)? {
                Encoded::Example(example) => example.ids,
                _ => Vec::new(),
            })
        };
        let texts = answers.iter().map(ids).collect::<Result<Vec<_>>>()?;
        Ok(rewards(&self.model, &texts, BATCH)?)
    }
}

/// One answered item.
#[derive(Debug, Clone)]
struct Answer {
    item: Item,
    text: String,
    /// The checker's verdict.
    right: bool,
}

/// What came of the choices.
struct Found {
    chosen: Accuracy,
    random: f64,
    any: Accuracy,
}

/// `[answers][items]` each.
fn figures_of(answers: &[Vec<Answer>], scores: &[Vec<f64>]) -> Found {
    let items = answers.first().map_or(0, Vec::len);
    let right = |draw: usize, item: usize| answers[draw][item].right;
    let best = |item: usize| {
        let of = |draw: &usize| scores[*draw][item];
        let larger = |a: usize, b: usize| if of(&b) > of(&a) { b } else { a };
        (0..answers.len()).reduce(larger).unwrap_or(0)
    };
    let rights = answers.iter().flatten().filter(|answer| answer.right);
    Found {
        chosen: (0..items).map(|item| right(best(item), item)).collect(),
        random: rights.count() as f64 / (items * answers.len()).max(1) as f64,
        any: (0..items)
            .map(|item| (0..answers.len()).any(|draw| right(draw, item)))
            .collect(),
    }
}

/// As many answers to each item as are asked for, each drawn by itself: `[answers][items]`.
fn answers(
    policy: &TextModel,
    name: &str,
    stage: &EvaluateStage,
    keeping: &mut Keeping,
    voice: &mut dyn Voice,
) -> Result<Vec<Vec<Answer>>> {
    let count = stage.best_of.unwrap_or(USUAL_ANSWERS);
    let names = [name.to_owned()];
    let mut tasks = stage.sampled(&names).tasks_of(policy)?;
    for task in &mut tasks {
        task.repeats = count;
        task.name = format!("{name} best of {count}");
    }
    let found = keeping.ask(&tasks, policy, stage.seed, voice)?;
    let samples = found.samples.concat();
    let items = world::items(name, Split::Test, samples.len(), 0)?;
    let draw = |draw: usize| {
        let answer = |(item, sample): (&Item, &Value)| {
            let text = sample["response"]["texts"][draw].as_str();
            let text = text.unwrap_or_default().to_owned();
            let right = worlds::check(item, &text)?;
            let item = item.clone();
            Ok(Answer { item, text, right })
        };
        items.iter().zip(&samples).map(answer).collect()
    };
    (0..count).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_score_chooses_and_the_first_of_equal_ones() {
        let item = world::items("g1/1", Split::Test, 2, 0).unwrap();
        let answer = |number: usize, right: bool| Answer {
            item: item[number].clone(),
            text: String::new(),
            right,
        };
        let answers = [
            vec![answer(0, false), answer(1, true)],
            vec![answer(0, true), answer(1, false)],
        ];
        let found = figures_of(&answers, &[vec![0.0, 1.0], vec![2.0, 1.0]]);
        assert_eq!(found.chosen.value(), 1.0);
        assert_eq!((found.random, found.any.value()), (0.5, 1.0));
        let found = figures_of(&answers, &[vec![1.0, 0.0], vec![0.0, 1.0]]);
        assert_eq!(found.chosen.value(), 0.0);
    }
}
