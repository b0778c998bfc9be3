//! G2, Countdown: reach a target by combining all given numbers with `+`, `-`, `*` and exact division.
//!
//! The conventions are those of Stream of Search (arXiv 2404.03683): numbers of 1 to 99, targets of 10 to 100, of which a tenth
//! is kept from training (tasks `…-targets` ask for these alone). The checker keeps a multiset of numbers, so that none is used
//! twice; the authors' released one lets them be reused.

use serde_json::{Map, json};

use super::{Draft, Item, Split, World};
use crate::random::{Random, fnv, mix};

/// The world of Countdown.
pub const WORLD: World = World {
    name: "g2",
    description: "reach a target with all given numbers and the four operations",
    tasks: &["g2/3", "g2/4", "g2/3-targets", "g2/4-targets"],
    dials: &[],
    generate,
    check,
};

const SMALLEST_TARGET: i64 = 10;
const LARGEST_TARGET: i64 = 100;

/// Numbers of the largest items.
const MOST_NUMBERS: usize = 4;

/// An operation on two numbers, as it is written: `x+y=z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Operation {
    left: i64,
    sign: char,
    right: i64,
    result: i64,
}

impl Operation {
    fn of(left: i64, sign: char, right: i64) -> Option<Self> {
        let result = match sign {
            '+' => left.checked_add(right),
            '-' => left.checked_sub(right),
            '*' => left.checked_mul(right),
            '/' if right != 0 && left % right == 0 => Some(left / right),
            _ => None,
        };
        result.map(|result| Self {
            left,
            sign,
            right,
            result,
        })
    }

    /// Reads `x op y=z`, which must be true.
    fn read(text: &str) -> Option<Self> {
        let (terms, result) = text.split_once('=')?;
        let place = terms.find(['+', '-', '*', '/'])?;
        let number = |text: &str| text.trim().parse::<i64>().ok();
        let sign = terms[place..].chars().next()?;
        let operation = Self::of(number(&terms[..place])?, sign, number(&terms[place + 1..])?)?;
        (operation.result == number(result)?).then_some(operation)
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            left,
            sign,
            right,
            result,
        } = self;
        write!(out, "{left}{sign}{right}={result}")
    }
}

/// Whether a target is kept from training.
fn held_out(target: i64) -> bool {
    mix(fnv(&format!("countdown-target|{target}"))).is_multiple_of(10)
}

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    let count = if task.starts_with("g2/4") { 4 } else { 3 };
    let wanted = task.ends_with("-targets");
    let target = loop {
        let target = random.range(SMALLEST_TARGET, LARGEST_TARGET);
        if held_out(target) == wanted {
            break target;
        }
    };
    let (numbers, operations) = loop {
        let draw = |_| random.range(1, LARGEST_TARGET - 1);
        let numbers: Vec<i64> = (0..count).map(draw).collect();
        if let Some(operations) = solution(&numbers, target) {
            break (numbers, operations);
        }
    };
    let solution = joined(&operations, |operation| operation.to_string());
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    let listed = |numbers: &[i64]| joined(numbers, i64::to_string);
    Draft {
        prompt: format!(
            "Current State: {target}:[{}], Operations: []",
            listed(&numbers)
        ),
        answer: solution.clone(),
        solution,
        key: format!("{target}:[{}]", listed(&sorted)),
        fields: Map::from_iter([
            ("numbers".to_owned(), json!(numbers)),
            ("target".to_owned(), json!(target)),
        ]),
    }
}

fn joined<T>(list: &[T], text: impl Fn(&T) -> String) -> String {
    list.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// What two numbers can become, in the authors' order.
fn combine(a: i64, b: i64) -> impl Iterator<Item = Operation> {
    let (large, small) = if a <= b { (b, a) } else { (a, b) };
    [
        (a, '+', b),
        (a, '*', b),
        (large, '-', small),
        (large, '/', small),
    ]
    .into_iter()
    .filter_map(|(left, sign, right)| Operation::of(left, sign, right))
}

/// The first sequence of operations that makes `target` of all numbers: pairs in order, what is left before what is new.
fn solution(numbers: &[i64], target: i64) -> Option<Vec<Operation>> {
    let mut operations = Vec::with_capacity(numbers.len());
    reaches(numbers, target, &mut operations).then_some(operations)
}

/// Whether `target` can be made of all numbers; the operations are added to `path`.
fn reaches(numbers: &[i64], target: i64, path: &mut Vec<Operation>) -> bool {
    if let [last] = numbers {
        return *last == target;
    }
    let mut state = [0; MOST_NUMBERS];
    let last = numbers.len() - 2;
    for i in 0..numbers.len() {
        for j in i + 1..numbers.len() {
            let left = (0..numbers.len()).filter(|k| *k != i && *k != j);
            left.zip(&mut state)
                .for_each(|(k, place)| *place = numbers[k]);
            for operation in combine(numbers[i], numbers[j]) {
                state[last] = operation.result;
                path.push(operation);
                if reaches(&state[..=last], target, path) {
                    return true;
                }
                path.pop();
            }
        }
    }
    false
}

/// The operations must be true, use each number once, and leave the target alone.
fn check(item: &Item, output: &str) -> bool {
    let numbers = item.fields.get("numbers").and_then(|list| list.as_array());
    let target = item.fields.get("target").and_then(|target| target.as_i64());
    let (Some(numbers), Some(target)) = (numbers, target) else {
        return false;
    };
    let mut state: Vec<i64> = numbers
        .iter()
        .filter_map(|number| number.as_i64())
        .collect();
    for text in output.trim().split(',') {
        let Some(operation) = Operation::read(text) else {
            return false;
        };
        for number in [operation.left, operation.right] {
            match state.iter().position(|other| *other == number) {
                Some(place) => state.swap_remove(place),
                None => return false,
            };
        }
        state.push(operation.result);
    }
    state == [target]
}

#[cfg(test)]
mod tests {
    use super::super::{check, item};
    use super::*;

    #[test]
    fn the_targets_that_are_kept_from_training() {
        let held: Vec<i64> = (SMALLEST_TARGET..=LARGEST_TARGET)
            .filter(|target| held_out(*target))
            .collect();
        assert_eq!(held, [12, 15, 20, 29, 31, 43, 52, 61, 67, 80]);
        for index in 0..200 {
            let target = |task| {
                let item = item(task, Split::Test, index, 0).unwrap();
                item.fields["target"].as_i64().unwrap()
            };
            assert!(held_out(target("g2/3-targets")) && !held_out(target("g2/3")));
        }
    }

    #[test]
    fn operations_come_in_the_authors_order() {
        let results = |a, b| {
            combine(a, b)
                .map(|operation| operation.result)
                .collect::<Vec<_>>()
        };
        assert_eq!(results(6, 3), [9, 18, 3, 2]);
        assert_eq!(results(0, 5), [5, 0, 5]);
        assert_eq!(results(5, 7), [12, 35, 2]);
    }

    #[test]
    fn numbers_are_used_once_and_all() {
        // 35:[39, 95, 21], solved by 95-39=56, 56-21=35
        let item = item("g2/3", Split::Train, 0, 0).unwrap();
        for (answer, right) in [
            ("95-39=56, 56-21=35", true),
            (" 95 - 21 = 74,74-39=35 \n", true),
            ("39+21=60, 95-60=35", true),
            ("95-39=56", false),
            ("95-39=56, 56-21=36", false),
            ("95-39=56, 95-39=56, 56-21=35", false),
            ("95-60=35", false),
            ("35", false),
            ("95-39=56, 56-21=35, ", false),
            ("95/0=35", false),
        ] {
            assert_eq!(check(&item, answer).unwrap(), right, "{answer}");
        }
    }
}
