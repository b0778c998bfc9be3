//! Sums of two numbers of two digits, the least significant digit of the answer first: `27+58=` is answered `580`.
//!
//! All that is needed for a digit stands before it, so that a model of a hundred thousand parameters learns the task in
//! seconds. Demonstrations of which half have one of the first two digits wrong (`mistakes = 0.5`) leave a model that is right half
//! of the time where it samples and nearly always where it does not: a start for preferences and rewards, whose gain and
//! whose price (distance to the start, falling greedy accuracy) both show. There are 10,000 questions.

use serde_json::Map;

use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of sums.
pub const WORLD: World = World {
    name: "addition",
    description: "sums of two numbers of two digits, least significant digit first",
    tasks: &["addition"],
    dials: &[],
    generate,
    check: |item: &Item, output: &str| output.trim() == item.answer,
};

/// Numbers below this are added.
const NUMBERS: usize = 100;

fn generate(_: &str, _: Split, random: &mut Random) -> Draft {
    let (a, b) = (random.below(NUMBERS), random.below(NUMBERS));
    let prompt = format!("{a:02}+{b:02}=");
    let answer: String = format!("{:03}", a + b).chars().rev().collect();
    Draft {
        key: prompt.clone(),
        prompt,
        solution: answer.clone(),
        answer,
        fields: Map::new(),
    }
}

/// The answer with one of its first two digits replaced by another one.
pub(super) fn wrong_digit(item: &Item, random: &mut Random) -> Option<String> {
    let mut digits: Vec<u8> = item.solution.bytes().collect();
    let place = random.below(2);
    let shift = random.range(1, 9) as u8;
    let digit = digits.get_mut(place)?;
    *digit = b'0' + (digit.checked_sub(b'0')? + shift) % 10;
    String::from_utf8(digits).ok()
}

#[cfg(test)]
mod tests {
    use super::super::item;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn answers_are_turned_sums() {
        let mut prompts = HashSet::new();
        for index in 0..2000 {
            let item = item("addition", Split::Train, index, 0).unwrap();
            let number = |text: &str| text.parse::<usize>().unwrap();
            let sum = number(&item.prompt[..2]) + number(&item.prompt[3..5]);
            let turned: String = item.answer.chars().rev().collect();
            assert_eq!((item.prompt.len(), item.answer.len()), (6, 3));
            assert_eq!(number(&turned), sum, "{}", item.text());
            prompts.insert(item.prompt);
        }
        assert!(prompts.len() > 1700, "{}", prompts.len());
    }

    #[test]
    fn one_of_the_first_two_digits_is_wrong() {
        let mut places = [0; 3];
        let mut random = Random::new(4);
        for index in 0..1000 {
            let item = item("addition", Split::Train, index, 0).unwrap();
            let wrong = wrong_digit(&item, &mut random).unwrap();
            let differs =
                |place: &usize| wrong.as_bytes()[*place] != item.answer.as_bytes()[*place];
            let changed: Vec<usize> = (0..3).filter(differs).collect();
            assert_eq!(changed.len(), 1, "{wrong} for {}", item.answer);
            places[changed[0]] += 1;
            assert!(wrong.bytes().all(|digit| digit.is_ascii_digit()));
        }
        assert!(places[0] > 450 && places[1] > 450 && places[2] == 0);
    }
}
