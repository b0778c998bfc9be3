//! Tasks of generated worlds: held-out items through the model's chat template, marked by the world's checker.

use espalier_data::worlds::{self, Item as WorldItem, Split};
use serde_json::{Value, json};

use super::{
    Generation, Item, Metric, Pipeline, Prompt, Prompting, Request, Task, build::digest,
    prompt::ChatTemplate,
};
use crate::{Result, world};

/// Longest answer to an item of a world.
pub const LONGEST_ANSWER: usize = 160;

/// Whether a name is that of a world or of its task, with dials or without.
pub fn is_world(name: &str) -> bool {
    worlds::world(name).is_ok()
}

/// The first `count` held-out items of a world's task; without a template the question stands as it is.
///
/// # Errors
/// When there is no such task, or the template refuses a question.
pub fn task(name: &str, count: usize, temperature: f32, prompting: &Prompting<'_>) -> Result<Task> {
    let items = world::items(name, Split::Test, count, 0)?;
    let asked = |(number, item): (usize, &WorldItem)| asked(number, item, prompting.chat);
    let items = items.iter().enumerate().map(asked).collect::<Result<_>>()?;
    let own = name.to_owned();
    let checker = move |item: &Item, answer: &str| {
        let item = worlds::item(&own, Split::Test, item.number as u64, 0)?;
        Ok(f64::from(u8::from(worlds::check(&item, answer)?)))
    };
    Ok(Task {
        name: name.to_owned(),
        alias: name.to_owned(),
        groups: Vec::new(),
        version: String::new(),
        shots: 0,
        items,
        generation: Generation {
            max_tokens: LONGEST_ANSWER,
            temperature,
            cuts_prompt: false,
            ..Generation::default()
        },
        repeats: 1,
        filters: vec![Pipeline::none()],
        metrics: vec![Metric::checked("accuracy", checker)],
        definition: digest(&format!("world {name}")),
    })
}

fn asked(number: usize, item: &WorldItem, chat: Option<ChatTemplate<'_>>) -> Result<Item> {
    let messages = item.question();
    let text = match chat {
        Some(chat) => chat(&messages, false)?,
        None => item.prompt.clone(),
    };
    let doc: Value =
        json!({"prompt": item.prompt, "solution": item.solution, "answer": item.answer});
    Ok(Item {
        number,
        doc,
        request: Request::Generate {
            prompt: Prompt {
                text,
                messages,
                marked: chat.is_some(),
            },
            gold: vec![item.answer.clone()],
        },
    })
}
