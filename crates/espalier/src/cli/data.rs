//! `espalier data`: generate data of the worlds, and look at data as a model will see it.

mod catalogue;
mod show;

use std::path::PathBuf;

use clap::Subcommand;
use espalier_data::{
    disk::PartialFile,
    readers::to_json,
    record::Record,
    worlds::{self, Split, WORLDS},
};
use serde_json::{Value, json};

use super::Context;
use crate::{Error, Result, recipe::WorldShape, stages::data::of_item};
pub use show::ShowArgs;

/// Generate data, or look at data as a model will see it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier data worlds
  espalier data generate g1/2 --count 1000 --output sums.jsonl
  espalier data show sums.jsonl --tokenizer MODEL")]
pub struct DataArgs {
    #[command(subcommand)]
    verb: DataVerb,
}

#[derive(Debug, Subcommand)]
enum DataVerb {
    Generate(GenerateArgs),
    Show(ShowArgs),
    /// List the worlds and their tasks, with an item of each
    #[command(after_help = "Example:\n  espalier data worlds\n  espalier data worlds --json")]
    Worlds,
}

/// Generate items of a world: questions with exact checkers, stories, preferences.
#[derive(Debug, clap::Args)]
#[command(after_help = generate_help())]
pub struct GenerateArgs {
    /// A task such as `g1/2`, or a world such as `g1` for all its tasks by turns
    pub world: String,
    /// How many items
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    pub count: u64,
    /// `train`, `val` or `test`; no question is in two of them
    #[arg(long, default_value = "train")]
    pub split: String,
    /// The same seed gives the same items
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
    /// What an item becomes
    #[arg(long, value_enum, default_value_t = WorldShape::Chat)]
    pub form: WorldShape,
    /// Whole items instead of records, with all that their checkers need
    #[arg(long, conflicts_with = "form")]
    pub items: bool,
    /// The file to write, as jsonl; standard output when absent
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Does what was asked for.
///
/// # Errors
/// When a world or a file is not there, is malformed, or cannot be written.
pub fn run(args: &DataArgs, context: &Context) -> Result<()> {
    match &args.verb {
        DataVerb::Generate(args) => generate(args, context),
        DataVerb::Show(args) => show::run(args, context),
        DataVerb::Worlds => catalogue::run(context),
    }
}

/// The example, and every world with its tasks.
fn generate_help() -> String {
    let world = |world: &worlds::World| {
        let tasks = if world.tasks == [world.name] {
            String::new()
        } else {
            format!(" ({})", world.tasks.join(", "))
        };
        format!("  {:<13} {}{tasks}\n", world.name, world.description)
    };
    let example = "  espalier data generate g1/2 --count 1000 --output sums.jsonl";
    format!(
        "Example:\n{example}\n\nWorlds:\n{}",
        WORLDS.iter().map(world).collect::<String>()
    )
}

/// Record number `index` of a world, whose tasks come by turns, each with its own count.
fn world_record(
    world: &str,
    split: Split,
    index: u64,
    seed: u64,
    form: WorldShape,
) -> Result<Record> {
    let (task, index) = turn(world, index)?;
    of_item(form, task, split, index, seed)
}

fn world_item(world: &str, split: Split, index: u64, seed: u64) -> Result<Value> {
    let (task, index) = turn(world, index)?;
    Ok(worlds::item(task, split, index, seed)?.to_json())
}

/// The task that has its turn, and its own index.
fn turn(world: &str, index: u64) -> Result<(&str, u64)> {
    let tasks = tasks(world)?;
    let count = tasks.len() as u64;
    Ok((tasks[(index % count) as usize], index / count))
}

/// The tasks that a name means: one task, or all of a world.
fn tasks(name: &str) -> Result<Vec<&str>> {
    let world = worlds::world(name).map_err(|error| Error::Usage(error.to_string()))?;
    Ok(if name != world.name || world.tasks.contains(&name) {
        vec![name]
    } else {
        world.tasks.to_vec()
    })
}

fn generate(args: &GenerateArgs, context: &Context) -> Result<()> {
    let split: Split = args
        .split
        .parse()
        .map_err(|error| Error::Usage(format!("`--split`: {error}")))?;
    let value = |index| match args.items {
        true => world_item(&args.world, split, index, args.seed),
        false => Ok(to_json(&world_record(
            &args.world,
            split,
            index,
            args.seed,
            args.form,
        )?)),
    };
    let Some(path) = &args.output else {
        return (0..args.count).try_for_each(|index| context.terminal.json(&value(index)?));
    };
    // A wrong name is told before a file is begun.
    tasks(&args.world)?;
    let mut file = PartialFile::create(path).map_err(Error::file(path))?;
    let progress = context.terminal.progress(args.count, "generate");
    for index in 0..args.count {
        let line = format!("{}\n", value(index)?);
        file.write(line.as_bytes()).map_err(Error::file(path))?;
        if index % 256 == 0 {
            progress.set(index, "");
        }
    }
    file.rename().map_err(Error::file(path))?;
    progress.set(args.count, "");
    progress.finish(&format!(
        "{} items of {} in {}",
        args.count,
        args.world,
        path.display()
    ));
    match context.json {
        true => context.terminal.json(
            &json!({"output": path.to_string_lossy(), "world": args.world, "count": args.count}),
        ),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worlds_tasks_come_by_turns() {
        let task = |index| world_item("g1", Split::Train, index, 0).unwrap()["task"].clone();
        let names = tasks("g1").unwrap();
        assert!(names.len() > 1);
        assert_eq!(task(0), names[0]);
        assert_eq!(task(1), names[1]);
        assert_eq!(task(names.len() as u64), names[0]);
        let first = world_item(names[0], Split::Train, 1, 0).unwrap();
        assert_eq!(
            world_item("g1", Split::Train, names.len() as u64, 0).unwrap(),
            first
        );
    }

    #[test]
    fn the_help_names_every_world() {
        assert!(
            WORLDS
                .iter()
                .all(|world| generate_help().contains(world.description))
        );
        assert_eq!(tasks("g11").unwrap_err().exit_code(), 2);
    }
}
