//! Dials: numbers that make a world's task easier or harder, written behind its name: `g3/8:pairs=32,queries=2`.
//!
//! A task without dials is as its name says. The split of a key does not depend on dials, so that no question of the easy
//! setting's training items is among the hard one's test items.

use crate::nearest::suggestion;
use crate::{Error, Result};

/// A number that a world's generator takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dial {
    /// Its name.
    pub name: &'static str,
    /// What it counts.
    pub description: &'static str,
    /// The smallest value.
    pub lowest: usize,
    /// The largest value.
    pub highest: usize,
}

impl Dial {
    /// A dial from `lowest` to `highest`.
    pub(super) const fn new(
        name: &'static str,
        description: &'static str,
        lowest: usize,
        highest: usize,
    ) -> Self {
        Self {
            name,
            description,
            lowest,
            highest,
        }
    }
}

/// The task without its dials.
///
/// ```
/// assert_eq!(espalier_data::worlds::dials::base("g3/8:pairs=32"), "g3/8");
/// ```
pub fn base(task: &str) -> &str {
    task.split(':').next().unwrap_or(task)
}

/// Names and values behind a task's name.
fn written(task: &str) -> impl Iterator<Item = &str> {
    let written = task.split_once(':').map(|(_, written)| written);
    written.into_iter().flat_map(|written| written.split(','))
}

/// The value of a dial, or `usual` where the task does not set it.
pub(super) fn dial(task: &str, name: &str, usual: usize) -> usize {
    let mut values = written(task).filter_map(|setting| {
        let (own, value) = setting.split_once('=')?;
        (own == name).then(|| value.parse().ok())?
    });
    values.next().unwrap_or(usual)
}

/// Refuses dials that the world has not got, that are set twice, or beyond their range.
pub(super) fn check(task: &str, dials: &[Dial]) -> Result<()> {
    let failed = |reason: String| Err(Error::Invalid(format!("`{task}`: {reason}")));
    let mut seen = Vec::new();
    for setting in written(task) {
        let Some((name, value)) = setting.split_once('=') else {
            return failed(format!("expected `name=number` in place of `{setting}`"));
        };
        let Some(dial) = dials.iter().find(|dial| dial.name == name) else {
            let names = dials.iter().map(|dial| dial.name);
            let hint = suggestion(name, names.clone());
            let known: Vec<&str> = names.collect();
            return failed(match known.is_empty() {
                true => format!("`{}` has no dials", base(task)),
                false => format!("no dial `{name}`{hint}; there are: {}", known.join(", ")),
            });
        };
        if seen.contains(&name) {
            return failed(format!("`{name}` is set twice"));
        }
        seen.push(name);
        let within = |value: &usize| (dial.lowest..=dial.highest).contains(value);
        if value.parse().ok().filter(within).is_none() {
            return failed(format!(
                "`{name}` is a number from {} to {}, not `{value}`",
                dial.lowest, dial.highest
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::{WORLDS, check as passes, item, preferences::corrupt, split_of};
    use crate::random::Random;
    use crate::worlds::Split;

    fn refused(task: &str) -> String {
        item(task, Split::Train, 0, 0).unwrap_err().to_string()
    }

    #[test]
    fn wrong_dials_are_told() {
        for (task, complaint) in [
            ("g3/8:pair=9", "did you mean `pairs`?"),
            ("g3/8:pairs=3", "`pairs` is a number from 4 to 64, not `3`"),
            ("g3/8:pairs", "expected `name=number`"),
            ("g3/8:pairs=9,pairs=9", "set twice"),
            ("g1/1:steps=2", "has no dials"),
            ("g33/8:pairs=9", "no generated task `g33/8`"),
        ] {
            assert!(refused(task).contains(complaint), "{}", refused(task));
        }
    }

    /// Both ends of every dial of every task.
    fn turned() -> Vec<String> {
        let worlds = WORLDS.iter().flat_map(|world| {
            world.tasks.iter().flat_map(|task| {
                world.dials.iter().flat_map(move |dial| {
                    [dial.lowest, dial.highest].map(|value| format!("{task}:{}={value}", dial.name))
                })
            })
        });
        worlds.collect()
    }

    #[test]
    fn gold_answers_pass_and_corrupted_ones_fail_at_both_ends() {
        let turned = turned();
        assert!(turned.len() > 40, "{}", turned.len());
        for task in turned {
            for index in 0..100 {
                let item = item(&task, Split::Train, index, 4).unwrap();
                assert!(passes(&item, &item.solution).unwrap(), "{}", item.to_json());
                let wrong = corrupt(&item, &mut Random::new(index));
                let wrong = wrong.unwrap_or_else(|| panic!("no slip: {}", item.to_json()));
                assert!(
                    !passes(&item, &wrong).unwrap(),
                    "{wrong}: {}",
                    item.to_json()
                );
            }
        }
    }

    #[test]
    fn a_key_has_one_split_whatever_the_dials() {
        let keys = |task: &str, split, count| -> HashSet<String> {
            let key = |index| item(task, split, index, 0).unwrap().key;
            (0..count).map(key).collect()
        };
        // Of two numbers there are few questions, so that the two settings share most.
        let train = keys("g5/asc:numbers=2", Split::Train, 5000);
        let same = keys("g5/asc:numbers=2", Split::Train, 5000);
        let test = keys("g5/asc:numbers=2", Split::Test, 200);
        assert!(train.is_disjoint(&test) && train == same);
        assert_eq!(split_of("g3/8:filler=2", "k"), split_of("g3/8", "k"));
        let plain = item("g3/8:filler=3", Split::Test, 0, 0).unwrap();
        assert_eq!(split_of("g3/8", &plain.key), Split::Test);
    }

    #[test]
    fn dials_do_what_they_say() {
        let first = |task: &str| item(task, Split::Train, 0, 0).unwrap();
        assert_eq!(first("g3/8:pairs=32").prompt.matches(':').count(), 32);
        let filled = first("g3/16:filler=2,overwritten=0,queries=4");
        let words = filled
            .prompt
            .split(" ? ")
            .next()
            .unwrap()
            .split(' ')
            .count();
        assert_eq!((words, filled.answer.split(' ').count()), (16 + 2 * 15, 4));
        assert_eq!(first("g5/desc:numbers=16").answer.split(' ').count(), 16);
        assert_eq!(first("g4/lm:pairs=20,kinds=4,depth=3").solution.len(), 40);
        let facts = first("g6/1:people=12,hops=4,left_out=0");
        assert_eq!(facts.fields["support"].as_array().unwrap().len(), 4);
        assert!(facts.prompt.split(". ").count() > 80);
        let many = first("g7/2:constraints=5").fields["kwargs"]
            .as_array()
            .unwrap()
            .len();
        assert!((5..=7).contains(&many), "{many}");
    }
}
