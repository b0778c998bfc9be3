//! `espalier data worlds`: the catalogue of generated worlds.

use espalier_data::worlds::{self, Item, Split, WORLDS, World, dials::Dial};
use serde_json::{Value, json};

use super::super::Context;
use crate::Result;

/// Characters of a question or an answer that are shown.
const SHOWN: usize = 96;

/// Prints every world with its tasks, and the first training item of each.
///
/// # Errors
/// When standard output is closed.
pub fn run(context: &Context) -> Result<()> {
    match context.json {
        true => context.terminal.json(&json()?),
        false => context.terminal.line(&text()?),
    }
}

fn sample(task: &str) -> Result<Item> {
    Ok(worlds::item(task, Split::Train, 0, 0)?)
}

fn json() -> Result<Value> {
    let task = |task: &&str| {
        let hash = format!("{:016x}", worlds::golden_hash(task)?);
        Ok(json!({ "task": task, "hash": hash, "sample": sample(task)?.to_json() }))
    };
    let dial = |dial: &Dial| json!({ "dial": dial.name, "description": dial.description, "lowest": dial.lowest, "highest": dial.highest });
    let world = |world: &World| {
        let tasks = world.tasks.iter().map(task).collect::<Result<Vec<_>>>()?;
        let dials: Vec<Value> = world.dials.iter().map(dial).collect();
        Ok(
            json!({ "world": world.name, "description": world.description, "dials": dials, "tasks": tasks }),
        )
    };
    let worlds = WORLDS.iter().map(world).collect::<Result<Vec<_>>>()?;
    Ok(json!({ "worlds": worlds }))
}

fn text() -> Result<String> {
    let mut lines = Vec::new();
    for world in WORLDS {
        lines.push(format!("{}: {}", world.name, world.description));
        for dial in world.dials {
            lines.push(format!(
                "  dial {}: {}, {} to {}",
                dial.name, dial.description, dial.lowest, dial.highest
            ));
        }
        for task in world.tasks {
            let item = sample(task)?;
            lines.push(format!("  {task}"));
            if !item.prompt.is_empty() {
                lines.push(format!("    {}", shortened(&item.prompt)));
            }
            lines.push(format!("    -> {}", shortened(&item.solution)));
        }
        lines.push(String::new());
    }
    lines.push(
        "No question is in two of the splits train, val and test; every answer has a checker. Dials stand behind a task: g3/8:pairs=32,queries=2"
            .to_owned(),
    );
    Ok(lines.join("\n"))
}

/// A text in one line; of a long one the end, where the question stands.
fn shortened(text: &str) -> String {
    let line = text.replace('\n', " / ");
    let count = line.chars().count();
    match count > SHOWN {
        true => format!(
            "...{}",
            line.chars().skip(count - SHOWN).collect::<String>()
        ),
        false => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_has_an_item() {
        let (text, json) = (text().unwrap(), json().unwrap().to_string());
        for task in worlds::tasks() {
            assert!(text.contains(&format!("\n  {task}\n")), "{task}");
            assert!(json.contains(&format!("\"task\":\"{task}\"")), "{task}");
        }
        assert!(text.contains("-> 95-39=56, 56-21=35"), "{text}");
    }

    #[test]
    fn of_long_texts_the_end_is_shown() {
        let text = shortened(&format!("{}\nend", "a".repeat(200)));
        assert!(
            text.starts_with("...a") && text.ends_with("a / end"),
            "{text}"
        );
        assert_eq!(text.chars().count(), SHOWN + 3);
    }
}
