//! The language of recipes as it is written, and how repetitions become stages.
//!
//! Defaults and `like` are resolved before ([`document`](super::document)); their keys stand here for schema and messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::{Recipe, Stage};
use crate::stages::kinds::{Defaults, EntryTable, StageTable};

/// Rounds that a repetition may have.
const MOST_ROUNDS: usize = 1000;

/// What a reference to the round before begins with.
const PREVIOUS: &str = "previous.";

/// A recipe of espalier: stages that are run one after another.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Recipe")]
pub struct RecipeFile {
    /// The run's folder.
    #[serde(deserialize_with = "named_folder")]
    #[schemars(extend("minLength" = 1))]
    pub output: PathBuf,
    /// The whole recipe is run once for each of these, in `seed-N/` of the run's folder; mean and spread of every figure are reported.
    ///
    /// A seed is added to that of every stage, and it is that of data of the split `train` for which the recipe fixes none.
    #[serde(
        default,
        deserialize_with = "different_seeds",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(extend("minItems" = 1, "uniqueItems" = true))]
    pub seeds: Vec<u64>,
    /// What all stages of a kind say unless they say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Defaults>,
    /// What is done, in order.
    #[schemars(with = "Vec<EntryTable>")]
    pub stage: Vec<Entry>,
}

/// A stage, or several that are repeated.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "EntryTable", into = "EntryTable")]
pub enum Entry {
    /// One stage.
    Stage(Box<Stage>),
    /// A repetition and its name.
    Repeat(String, Repeat),
}

/// Stages that are gone through several times. The round's number is added to their names: `tune` becomes `tune-1`, `tune-2`,
/// and so on. Inside, `tune` means that of the same round and `previous.tune` that of the round before; outside, `tune`
/// means that of the last round.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    /// How often.
    #[serde(deserialize_with = "rounds")]
    #[schemars(range(min = 1, max = 1000))]
    pub times: usize,
    /// What `previous.NAME` means in the first round, by name: `first = { tune = "pretrain" }`.
    #[serde(default)]
    pub first: BTreeMap<String, String>,
    /// What is done in every round, in order.
    #[serde(deserialize_with = "at_least_one")]
    #[schemars(with = "Vec<StageTable>", extend("minItems" = 1))]
    pub stage: Vec<Stage>,
}

fn named_folder<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let folder = PathBuf::deserialize(deserializer)?;
    match folder.as_os_str().is_empty() {
        false => Ok(folder),
        true => Err(D::Error::custom(
            "the folder's name is empty; expected one such as `runs/mine`",
        )),
    }
}

fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Stage>, D::Error> {
    let stages = Vec::<Stage>::deserialize(deserializer)?;
    match stages.is_empty() {
        false => Ok(stages),
        true => Err(D::Error::custom("a repetition needs at least one stage")),
    }
}

fn rounds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let times = usize::deserialize(deserializer)?;
    match (1..=MOST_ROUNDS).contains(&times) {
        true => Ok(times),
        false => Err(D::Error::custom(format!(
            "{times} is outside 1 to {MOST_ROUNDS}"
        ))),
    }
}

fn different_seeds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    let seeds = Vec::<u64>::deserialize(deserializer)?;
    let mut seen = BTreeSet::new();
    if seeds.is_empty() {
        return Err(D::Error::custom(
            "expected at least one seed, as in `seeds = [0, 1, 2]`; leave the key out for a single run",
        ));
    }
    match seeds.iter().find(|seed| !seen.insert(**seed)) {
        None => Ok(seeds),
        Some(seed) => Err(D::Error::custom(format!(
            "seed {seed} is given twice; each is run once"
        ))),
    }
}

impl TryFrom<RecipeFile> for Recipe {
    type Error = String;

    fn try_from(file: RecipeFile) -> Result<Self, String> {
        if file.defaults.is_some() {
            return Err(
                "`defaults` were not resolved: read the recipe with `document::load`".into(),
            );
        }
        Ok(Self {
            output: file.output,
            seeds: file.seeds,
            stage: unroll(file.stage)?,
        })
    }
}

impl From<Recipe> for RecipeFile {
    fn from(recipe: Recipe) -> Self {
        Self {
            output: recipe.output,
            seeds: recipe.seeds,
            defaults: None,
            stage: recipe
                .stage
                .into_iter()
                .map(|stage| Entry::Stage(Box::new(stage)))
                .collect(),
        }
    }
}

/// All stages in order, those of repetitions once for each round.
fn unroll(entries: Vec<Entry>) -> Result<Vec<Stage>, String> {
    let mut stages = Vec::new();
    let mut last = BTreeMap::new();
    for entry in entries {
        match entry {
            Entry::Stage(mut stage) => {
                refer(&mut stage, |name| Ok(last.get(name).cloned()))?;
                stages.push(*stage);
            }
            Entry::Repeat(name, repeat) => {
                stages.extend(repeat.unroll(&name, &last)?);
                let numbered = |stage: &Stage| {
                    let name = stage.name.clone();
                    let last = numbered(&name, repeat.times);
                    (name, last)
                };
                last.extend(repeat.stage.iter().map(numbered));
            }
        }
    }
    Ok(stages)
}

fn numbered(name: &str, round: usize) -> String {
    format!("{name}-{round}")
}

/// Puts what `means` gives in place of the names that a stage refers to; a part (`tune.validation`) stays behind its name.
fn refer(
    stage: &mut Stage,
    mut means: impl FnMut(&str) -> Result<Option<String>, String>,
) -> Result<(), String> {
    let name = stage.name.clone();
    for input in stage.kind.work_mut().inputs() {
        let Some(reference) = input.reference() else {
            continue;
        };
        let (previous, plain) = match reference.strip_prefix(PREVIOUS) {
            Some(plain) => (PREVIOUS, plain),
            None => ("", reference.as_str()),
        };
        let (head, part) = match plain.split_once('.') {
            Some((head, part)) => (head, Some(part)),
            None => (plain, None),
        };
        let meant = means(&format!("{previous}{head}"));
        if let Some(meant) = meant.map_err(|reason| format!("stage `{name}`: {reason}"))? {
            *reference = match part {
                Some(part) => format!("{meant}.{part}"),
                None => meant,
            };
        }
    }
    Ok(())
}

impl Repeat {
    /// The stages of all rounds; `last` says what names of earlier repetitions mean.
    fn unroll(&self, name: &str, last: &BTreeMap<String, String>) -> Result<Vec<Stage>, String> {
        let mut stages = Vec::new();
        let mut used = BTreeSet::new();
        for round in 1..=self.times {
            for stage in &self.stage {
                let mut stage = stage.clone();
                let means = |reference: &str| self.means(reference, round, last, &mut used);
                refer(&mut stage, means).map_err(|reason| format!("`{name}`: {reason}"))?;
                stage.name = numbered(&stage.name, round);
                stages.push(stage);
            }
        }
        match self.first.keys().find(|key| !used.contains(*key)) {
            None => Ok(stages),
            Some(key) => Err(format!(
                "`{name}`: `first` says what `{PREVIOUS}{key}` means, but no stage of the repetition refers to it"
            )),
        }
    }

    fn means(
        &self,
        reference: &str,
        round: usize,
        last: &BTreeMap<String, String>,
        used: &mut BTreeSet<String>,
    ) -> Result<Option<String>, String> {
        let own = |name: &str| self.stage.iter().any(|stage| stage.name == name);
        let Some(name) = reference.strip_prefix(PREVIOUS) else {
            let of_this_round = own(reference).then(|| numbered(reference, round));
            return Ok(of_this_round.or_else(|| last.get(reference).cloned()));
        };
        if !own(name) {
            return Err(format!(
                "`{reference}`: the repetition has no stage `{name}`"
            ));
        }
        let first = self.first.get(name).ok_or_else(|| {
            format!(
                "`{reference}` means nothing in the first round; say what, as in `first = {{ {name} = \"path/to/model\" }}`"
            )
        })?;
        used.insert(name.to_owned());
        let first = last.get(first).unwrap_or(first);
        Ok(Some(match round {
            1 => first.clone(),
            _ => numbered(name, round - 1),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::document::parse;

    const ROUNDS: &str = "output = 'o'\n[[stage]]\nname = 'base'\nevaluate = { model = 'm' }\n\
        [[stage]]\nname = 'rounds'\n[stage.repeat]\ntimes = 3\nfirst = { tune = 'start' }\n\
        [[stage.repeat.stage]]\nname = 'tune'\ntrain = { model = 'previous.tune', objective = 'sft', data = 'd' }\n\
        [[stage.repeat.stage]]\nname = 'test'\nevaluate = { model = 'tune', data = { from = 'previous.tune.validation' } }\n\
        [[stage]]\nname = 'after'\nevaluate = { model = 'tune' }\n";

    fn recipe(text: &str) -> Result<Recipe, String> {
        parse(text, "recipe.toml", &[]).map_err(|error| error.to_string())
    }

    fn model(stage: &mut Stage) -> String {
        let mut inputs = stage.kind.work_mut().inputs();
        inputs.remove(0).reference().cloned().unwrap()
    }

    #[test]
    fn rounds_refer_to_themselves_and_to_the_one_before() {
        let mut recipe = recipe(ROUNDS).unwrap();
        let names: Vec<&str> = recipe.stage.iter().map(|s| s.name.as_str()).collect();
        let expected = [
            "base", "tune-1", "test-1", "tune-2", "test-2", "tune-3", "test-3", "after",
        ];
        assert_eq!(names, expected);
        let models: Vec<String> = recipe.stage.iter_mut().map(model).collect();
        let expected = [
            "m", "start", "tune-1", "tune-1", "tune-2", "tune-2", "tune-3", "tune-3",
        ];
        assert_eq!(models, expected);
        let from = |stage: &mut Stage| {
            let mut inputs = stage.kind.work_mut().inputs();
            inputs.remove(1).reference().cloned().unwrap()
        };
        assert_eq!(from(&mut recipe.stage[2]), "start.validation");
        assert_eq!(from(&mut recipe.stage[4]), "tune-1.validation");
    }

    #[test]
    fn what_the_first_round_starts_from_is_said_and_used() {
        let complaint = recipe(&ROUNDS.replace("first = { tune = 'start' }\n", "")).unwrap_err();
        assert!(
            complaint.contains("`previous.tune` means nothing in the first round"),
            "{complaint}"
        );
        let complaint = recipe(&ROUNDS.replace("{ tune = 'start' }", "{ tune = 's', test = 's' }"));
        assert!(
            complaint
                .unwrap_err()
                .contains("no stage of the repetition refers to it")
        );
        let complaint = recipe(&ROUNDS.replace("'previous.tune'", "'previous.tuna'"));
        assert!(
            complaint
                .unwrap_err()
                .contains("the repetition has no stage `tuna`")
        );
    }

    #[test]
    fn what_is_resolved_reads_back_as_the_same() {
        let recipe = recipe(&format!("seeds = [3, 4]\n{ROUNDS}")).unwrap();
        let text = toml::to_string(&recipe).unwrap();
        assert_eq!(self::recipe(&text).unwrap(), recipe);
    }

    #[test]
    fn a_seed_is_added_except_to_what_is_fixed_or_held_out() {
        let text = "output = 'o'\n[[stage]]\nname = 'a'\n[stage.train]\nmodel = 'm'\nobjective = 'sft'\n\
            data = [{ world = 'g8' }, { world = 'g8', seed = 5 }]\nvalidation = { world = 'g8', split = 'val' }\n\
            options = { seed = 2 }\n";
        let recipe = recipe(text).unwrap();
        assert_eq!(recipe.of_seed(0).stage[0].kind.name(), "train");
        let mut seeded = recipe.of_seed(7);
        assert_eq!(seeded.output, PathBuf::from("o/seed-7"));
        let work = seeded.stage[0].kind.work_mut();
        assert_eq!(work.seed(), Some(&mut 9));
        let seeds: Vec<Option<u64>> = work
            .inputs()
            .into_iter()
            .filter_map(|input| match input {
                crate::stages::kinds::Input::Data(data) => Some(data.seed),
                _ => None,
            })
            .collect();
        assert_eq!(seeds, [Some(7), Some(5), None]);
    }
}
