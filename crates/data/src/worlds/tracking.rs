//! State tracking: a state that changes at every step and is asked for at the end alone.
//!
//! `permutations/N` (the word problem of the permutations of three things, arXiv 2404.08819) names up to N permutations and wants
//! the one that they make together: linear recurrences whose transitions are diagonal cannot do that at any length. `resets/N`
//! names up to N digits and wants their sum modulo four, which starts over where it is told to (arXiv 2404.05892's question: may
//! the decay depend on the token?).

use serde_json::Map;

use super::memory::letter;
use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of tracking.
pub const WORLD: World = World {
    name: "tracking",
    description: "permutations one after another, sums that start over",
    tasks: &[
        "tracking/permutations/8",
        "tracking/permutations/16",
        "tracking/permutations/32",
        "tracking/resets/16",
        "tracking/resets/32",
        "tracking/resets/64",
    ],
    dials: &[],
    generate,
    check: |item: &Item, output: &str| output.trim() == item.answer,
};

/// The permutations of three things; number `i` puts at place `p` what stood at `PERMUTATIONS[i][p]`.
const PERMUTATIONS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// The modulus of the sums.
const DIGITS: usize = 4;

/// The share of steps that start over.
const RESETS: f64 = 0.12;

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    let most = task
        .rsplit('/')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(1);
    let steps = 1 + random.below(most);
    let (said, last) = match task.split('/').nth(1) {
        Some("permutations") => permutations(steps, random),
        _ => resets(steps, random),
    };
    let (prompt, answer) = (format!("{said}>"), letter(b'A', last).to_string());
    Draft {
        key: prompt.clone(),
        prompt,
        solution: answer.clone(),
        answer,
        fields: Map::new(),
    }
}

/// The text, and the number of the result.
fn permutations(steps: usize, random: &mut Random) -> (String, usize) {
    let mut order = PERMUTATIONS[0];
    let step = |_| {
        let next = random.below(PERMUTATIONS.len());
        order = PERMUTATIONS[next].map(|place| order[place]);
        letter(b'a', next)
    };
    let said = (0..steps).map(step).collect();
    (
        said,
        PERMUTATIONS
            .iter()
            .position(|known| *known == order)
            .unwrap_or(0),
    )
}

fn resets(steps: usize, random: &mut Random) -> (String, usize) {
    let mut sum = 0;
    let step = |_| match random.chance(RESETS) {
        true => {
            sum = 0;
            'r'
        }
        false => {
            let digit = random.below(DIGITS);
            sum = (sum + digit) % DIGITS;
            letter(b'0', digit)
        }
    };
    let said = (0..steps).map(step).collect();
    (said, sum)
}

#[cfg(test)]
mod tests {
    use super::super::item;
    use super::*;

    #[test]
    fn permutations_act_on_three_things_in_order() {
        for index in 0..100 {
            let item = item("tracking/permutations/16", Split::Train, index, 0).unwrap();
            let said = item.prompt.trim_end_matches('>');
            assert!((1..=16).contains(&said.len()));
            let apply = |things: String, next: u8| {
                let things: Vec<char> = things.chars().collect();
                PERMUTATIONS[(next - b'a') as usize]
                    .map(|place| things[place])
                    .iter()
                    .collect()
            };
            let things = said.bytes().fold("012".to_owned(), apply);
            let expected = PERMUTATIONS[(item.answer.as_bytes()[0] - b'A') as usize];
            assert_eq!(
                things,
                expected
                    .map(|place| letter(b'0', place))
                    .iter()
                    .collect::<String>()
            );
        }
        let [a, b] = [PERMUTATIONS[1], PERMUTATIONS[2]];
        assert_ne!(a.map(|place| b[place]), b.map(|place| a[place]));
    }

    #[test]
    fn sums_start_over() {
        for index in 0..100 {
            let item = item("tracking/resets/32", Split::Train, index, 0).unwrap();
            let since = item
                .prompt
                .trim_end_matches('>')
                .rsplit('r')
                .next()
                .unwrap();
            let sum: u32 = since.chars().filter_map(|digit| digit.to_digit(10)).sum();
            assert_eq!(item.answer, letter(b'A', sum as usize % 4).to_string());
        }
    }
}
