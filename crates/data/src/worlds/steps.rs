//! Answers in steps from the generated worlds, half of which end in a wrong one: what a process reward model learns from.
//!
//! A step is a line of the gold answer. A wrong one is off by a little in the number that ends it, and nothing follows it.

use super::{Split, item};
use crate::random::Random;
use crate::record::{Label, Message, Record};
use crate::{Error, Result};

/// The steps of an item's answer with their labels.
///
/// # Errors
/// When there is no such task, or its answers have no lines that end in numbers.
///
/// ```
/// use espalier_data::{record::{Label, Record}, worlds::{Split, steps::steps}};
/// let Record::Steps { steps, labels, .. } = steps("g1/3", Split::Train, 0, 0)? else { unreachable!() };
/// assert_eq!(steps.len(), labels.len());
/// assert!(labels[..labels.len() - 1].iter().all(|label| *label == Label::Flag(true)));
/// # Ok::<(), espalier_data::Error>(())
/// ```
pub fn steps(task: &str, split: Split, index: u64, seed: u64) -> Result<Record> {
    let item = item(task, split, index, seed)?;
    let mut random = Random::named(&format!("steps|{task}|{split}|{index}|{seed}"));
    let mut steps: Vec<String> = item.solution.lines().map(str::to_owned).collect();
    let ends_in_number = |place: &usize| changed(&steps[*place], 1).is_some();
    let places: Vec<usize> = (0..steps.len()).filter(ends_in_number).collect();
    if places.is_empty() {
        return Err(Error::Invalid(format!(
            "`{task}` has no answers in steps: use a task of g1"
        )));
    }
    let mut labels = vec![Label::Flag(true); steps.len()];
    if random.chance(0.5) {
        let place = *random.pick(&places);
        let by = *random.pick(&[-10, -2, -1, 1, 2, 10]);
        if let Some(wrong) = changed(&steps[place], by) {
            steps.truncate(place + 1);
            labels.truncate(place + 1);
            (steps[place], labels[place]) = (wrong, Label::Flag(false));
        }
    }
    Ok(Record::Steps {
        prompt: vec![Message::user(item.prompt)],
        steps,
        labels,
    })
}

/// A step whose last number is another one, if it ends in a number.
fn changed(step: &str, by: i64) -> Option<String> {
    let (before, number) = step.rsplit_once(' ')?;
    let number: i64 = number.parse().ok()?;
    Some(format!("{before} {}", number + by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_answers_end_in_a_wrong_step_and_no_other_is_wrong() {
        let mut wrong = 0;
        for index in 0..400 {
            let Record::Steps { steps, labels, .. } =
                steps("g1/3", Split::Train, index, 0).unwrap()
            else {
                panic!("no steps")
            };
            assert_eq!(steps.len(), labels.len());
            let last = labels.len() - 1;
            assert!(
                labels[..last]
                    .iter()
                    .all(|label| *label == Label::Flag(true))
            );
            if labels[last] == Label::Flag(false) {
                wrong += 1;
                let gold = item("g1/3", Split::Train, index, 0).unwrap().solution;
                assert_ne!(gold.lines().nth(last), Some(steps[last].as_str()));
            }
        }
        assert!((150..250).contains(&wrong), "{wrong}");
        assert!(steps("topics/8", Split::Train, 0, 0).is_err());
    }
}
