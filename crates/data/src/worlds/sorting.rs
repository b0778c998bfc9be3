//! G5, sorting: eight numbers below 100, upwards, downwards, or upwards without repetitions.

use serde_json::Map;

use super::dials::{Dial, base, dial};
use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of sorting.
pub const WORLD: World = World {
    name: "g5",
    description: "numbers to be sorted upwards, downwards or without repetitions",
    tasks: &["g5/asc", "g5/desc", "g5/uniq"],
    dials: &[Dial::new("numbers", "numbers to be sorted", 2, 64)],
    generate,
    check,
};

/// Numbers of an item without a dial.
const COUNT: usize = 8;

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    let numbers: Vec<usize> = (0..dial(task, "numbers", COUNT))
        .map(|_| random.below(100))
        .collect();
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    let (mode, order) = match base(task) {
        "g5/desc" => {
            sorted.reverse();
            ("desc", "sort down")
        }
        "g5/uniq" => {
            sorted.dedup();
            ("uniq", "sort unique")
        }
        _ => ("asc", "sort"),
    };
    let listed = |numbers: &[usize]| {
        let texts: Vec<String> = numbers.iter().map(usize::to_string).collect();
        texts.join(" ")
    };
    let answer = listed(&sorted);
    Draft {
        prompt: format!("{order}: {} ->", listed(&numbers)),
        solution: answer.clone(),
        answer,
        key: format!("{mode}|{}", listed(&numbers)),
        fields: Map::new(),
    }
}

fn check(item: &Item, output: &str) -> bool {
    output.split_whitespace().eq(item.answer.split(' '))
}

#[cfg(test)]
mod tests {
    use super::super::{check, item};
    use super::*;

    #[test]
    fn numbers_are_sorted_by_value() {
        let text = |task| item(task, Split::Train, 0, 0).unwrap().text();
        assert_eq!(
            text("g5/desc"),
            "sort down: 91 99 85 65 95 53 12 31 -> 99 95 91 85 65 53 31 12"
        );
        let repeated = (0..100)
            .map(|index| item("g5/uniq", Split::Train, index, 0).unwrap())
            .find(|item| item.answer.split(' ').count() < COUNT);
        let item = repeated.unwrap();
        assert!(check(&item, &item.answer.replace(' ', "  ")).unwrap());
        let first = item.answer.split(' ').next().unwrap();
        assert!(!check(&item, &format!("{first} {}", item.answer)).unwrap());
    }
}
