//! Accuracy on a generated world: the model answers held-out items through its chat template, the world's checker passes
//! or fails each answer.

use espalier_data::worlds::{self, Item, Split};
use espalier_engine::text::{TextModel, TextOptions};

use crate::{Result, statistics::Accuracy};

/// One answered item.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The item.
    pub item: Item,
    /// The model's answer.
    pub text: String,
    /// The checker's verdict.
    pub right: bool,
}

/// The first `count` items of a split.
///
/// # Errors
/// When the task is unknown.
pub fn items(task: &str, split: Split, count: usize, seed: u64) -> Result<Vec<Item>> {
    Ok((0..count as u64)
        .map(|i| worlds::item(task, split, i, seed))
        .collect::<Result<_, _>>()?)
}

/// Lets the model answer all items, `batch` at a time; `progress` sees how many are done.
///
/// # Errors
/// When the model has no chat template or an item does not fit it.
pub fn answer(
    model: &TextModel,
    items: &[Item],
    options: &TextOptions,
    batch: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Answer>> {
    let mut answers: Vec<Answer> = Vec::with_capacity(items.len());
    for (number, chunk) in items.chunks(batch.max(1)).enumerate() {
        let prompt = |item: &Item| model.chat_prompt(&item.question());
        let prompts = chunk.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
        let mut options = options.clone();
        // Each batch draws from a stream of its own.
        options.sampler.seed = options.sampler.seed.wrapping_add((number * batch) as u64);
        for (item, generated) in chunk.iter().zip(model.generate_batch(&prompts, &options)?) {
            let right = worlds::check(item, &generated.text)?;
            answers.push(Answer {
                item: item.clone(),
                text: generated.text,
                right,
            });
        }
        progress(answers.len());
    }
    Ok(answers)
}

/// The share of right answers.
pub fn accuracy(answers: &[Answer]) -> Accuracy {
    answers.iter().map(|answer| answer.right).collect()
}
