//! Strings of letters with rules (copy, reverse, count, ...): the smallest tasks that tell architectures apart.
//!
//! `reverse` turns a string around (arXiv 1706.03762's encoder-decoder needs its cross-attention for it), `copy`, asked in the same
//! words, gives it back as it is; `count` continues the alphabet of sixteen letters, `steps` in steps of one to five, so that hidden
//! letters can be inferred; `doubled` writes every letter twice; `mirror` is a string and its reverse, `repeated` a string twice;
//! `markov/N` is a text of N letters in which two letters decide the next one, but for a tenth that is noise (arXiv
//! 2108.12409's question: what happens beyond the length of training?).

use serde_json::Map;

use super::{Draft, Split, World};
use crate::random::Random;

/// The world of strings.
pub const WORLD: World = World {
    name: "symbols",
    description: "strings of letters: turned around, counting on, drawn by a table",
    tasks: &[
        "symbols/reverse",
        "symbols/copy",
        "symbols/count",
        "symbols/steps",
        "symbols/doubled",
        "symbols/mirror",
        "symbols/repeated",
        "symbols/markov/64",
        "symbols/markov/256",
        "symbols/markov/512",
    ],
    dials: &[],
    generate,
    check: |item, output| output.trim() == item.answer,
};

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    let length = task
        .rsplit('/')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    match task.split('/').nth(1) {
        Some("reverse") => asked(random, |string| string.chars().rev().collect()),
        Some("copy") => asked(random, str::to_owned),
        Some("count") => text(count(random)),
        Some("steps") => text(steps(random)),
        Some("doubled") => text(doubled(random)),
        Some("mirror") => text(mirror(random)),
        Some("repeated") => text(letters(12, 7, random).repeat(2)),
        _ => text(markov(length, random)),
    }
}

fn text(solution: String) -> Draft {
    Draft {
        key: solution.clone(),
        answer: solution.clone(),
        solution,
        prompt: String::new(),
        fields: Map::new(),
    }
}

fn letters(count: usize, alphabet: usize, random: &mut Random) -> String {
    (0..count)
        .map(|_| char::from(b'a' + random.below(alphabet) as u8))
        .collect()
}

/// Four to twelve letters of twenty, and what is wanted of them.
fn asked(random: &mut Random, wanted: impl Fn(&str) -> String) -> Draft {
    let string = letters(4 + random.below(9), 20, random);
    let answer = wanted(&string);
    Draft {
        prompt: format!("{string}>"),
        answer: answer.clone(),
        key: string,
        solution: answer,
        fields: Map::new(),
    }
}

/// Twenty to forty letters that follow each other in a circle of sixteen.
fn count(random: &mut Random) -> String {
    let (start, length) = (random.below(16), 20 + random.below(21));
    (0..length)
        .map(|i| char::from(b'a' + ((start + i) % 16) as u8))
        .collect()
}

/// Thirty to forty letters, each the same one to five steps after the one before, in a circle of sixteen.
fn steps(random: &mut Random) -> String {
    let (start, step, length) = (random.below(16), 1 + random.below(5), 30 + random.below(11));
    (0..length)
        .map(|i| char::from(b'a' + ((start + step * i) % 16) as u8))
        .collect()
}

/// Fifteen to twenty letters of sixteen, each written twice: the first of a pair cannot be guessed from what stands before.
fn doubled(random: &mut Random) -> String {
    let count = 15 + random.below(6);
    letters(count, 16, random)
        .chars()
        .flat_map(|letter| [letter, letter])
        .collect()
}

/// Twelve letters of seven, and the same turned around.
fn mirror(random: &mut Random) -> String {
    let half = letters(12, 7, random);
    let turned: String = half.chars().rev().collect();
    half + &turned
}

/// Two letters of eight decide the next by a table that is the same for all texts; every tenth letter is any.
fn markov(length: usize, random: &mut Random) -> String {
    let mut table = Random::named("markov table");
    let table: Vec<usize> = (0..64).map(|_| table.below(8)).collect();
    let (mut before, mut last) = (random.below(8), random.below(8));
    let mut string = String::with_capacity(length);
    for _ in 0..length {
        let next = if random.chance(0.1) {
            random.below(8)
        } else {
            table[before * 8 + last]
        };
        (before, last) = (last, next);
        string.push(char::from(b'a' + next as u8));
    }
    string
}

#[cfg(test)]
mod tests {
    use super::super::{Item, item};
    use super::*;

    fn first(task: &str) -> Item {
        item(task, Split::Train, 0, 0).unwrap()
    }

    #[test]
    fn strings_follow_their_rules() {
        let reversed = first("symbols/reverse");
        assert_eq!(
            reversed
                .prompt
                .trim_end_matches('>')
                .chars()
                .rev()
                .collect::<String>(),
            reversed.answer
        );
        let counted = first("symbols/count").solution.into_bytes();
        assert!(
            counted
                .windows(2)
                .all(|pair| (pair[0] - b'a' + 1) % 16 == pair[1] - b'a')
        );
        let stepping = first("symbols/steps").solution.into_bytes();
        let step = |pair: &[u8]| (pair[1] + 16 - pair[0]) % 16;
        assert!(
            stepping
                .windows(3)
                .all(|three| step(&three[..2]) == step(&three[1..]))
        );
    }

    #[test]
    fn two_letters_decide_the_next_but_for_the_noise() {
        let mut followers = std::collections::BTreeMap::<(u8, u8), Vec<u8>>::new();
        for index in 0..200 {
            let text = item("symbols/markov/512", Split::Train, index, 0)
                .unwrap()
                .solution
                .into_bytes();
            text.windows(3)
                .for_each(|w| followers.entry((w[0], w[1])).or_default().push(w[2]));
        }
        for next in followers.values().filter(|next| next.len() > 500) {
            let most = (b'a'..=b'h')
                .map(|c| next.iter().filter(|n| **n == c).count())
                .max()
                .unwrap();
            let share = most as f64 / next.len() as f64;
            assert!((share - 0.9125).abs() < 0.05, "{share}");
        }
    }
}
