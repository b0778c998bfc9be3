//! G4, bracket languages: balanced strings of two kinds of brackets, at most six deep (Dyck languages of bounded depth).
//!
//! `g4/lm` is such strings, `g4/judge` asks whether one is balanced, `g4/close` asks for what closes a beginning. Strings are
//! drawn uniformly: at each place the brackets weigh as much as there are ways to go on after them.

use serde_json::Map;

use super::dials::{Dial, base, dial};
use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of bracket languages.
pub const WORLD: World = World {
    name: "g4",
    description: "balanced brackets: strings of them, whether one is balanced, what closes one",
    tasks: &["g4/lm", "g4/judge", "g4/close"],
    dials: &[
        Dial::new("pairs", "pairs of brackets", 4, 28),
        Dial::new("depth", "the deepest nesting", 2, 28),
        Dial::new("kinds", "kinds of brackets", 1, 4),
    ],
    generate,
    check,
};

const OPENING: &[char] = &['(', '[', '{', '<'];
const CLOSING: &[char] = &[')', ']', '}', '>'];

/// The language of the tasks without dials.
const LANGUAGE: Language = Language {
    kinds: 2,
    depth: 6,
    length: 24,
};

/// Balanced strings of `length` brackets of `kinds` kinds, at most `depth` deep.
#[derive(Debug, Clone, Copy)]
struct Language {
    kinds: usize,
    depth: usize,
    length: usize,
}

impl Language {
    /// The language of a task.
    fn of(task: &str) -> Self {
        Self {
            kinds: dial(task, "kinds", LANGUAGE.kinds),
            depth: dial(task, "depth", LANGUAGE.depth),
            length: 2 * dial(task, "pairs", LANGUAGE.length / 2),
        }
    }

    /// `counts[remaining][depth]`: in how many ways a string of that depth can be completed by that many brackets.
    fn counts(&self) -> Vec<Vec<u128>> {
        let mut counts = vec![vec![0; self.depth + 2]; self.length + 1];
        counts[0][0] = 1;
        for remaining in 1..=self.length {
            for depth in 0..=self.depth {
                // No string is deeper than the bound: the last column stays 0.
                let opened = self.kinds as u128 * counts[remaining - 1][depth + 1];
                let closed = depth.checked_sub(1).map_or(0, |d| counts[remaining - 1][d]);
                counts[remaining][depth] = opened + closed;
            }
        }
        counts
    }

    /// A string, all alike.
    fn draw(&self, random: &mut Random) -> Vec<char> {
        let counts = self.counts();
        let (mut text, mut open) = (Vec::with_capacity(self.length), Vec::new());
        for remaining in (0..self.length).rev() {
            let opened = self.kinds as u128 * counts[remaining][open.len() + 1];
            let closed = open
                .len()
                .checked_sub(1)
                .map_or(0, |d| counts[remaining][d]);
            if random.chance(opened as f64 / (opened + closed) as f64) {
                let kind = random.below(self.kinds);
                open.push(kind);
                text.push(OPENING[kind]);
            } else {
                text.extend(open.pop().map(|kind| CLOSING[kind]));
            }
        }
        text
    }

    /// Changes a string until it is not balanced any more.
    fn corrupt(&self, text: &[char], random: &mut Random) -> Vec<char> {
        let brackets = [&OPENING[..self.kinds], &CLOSING[..self.kinds]].concat();
        loop {
            let mut changed = text.to_vec();
            let (edit, i) = (random.below(3), random.below(text.len()));
            match edit {
                0 => changed[i] = brackets[random.below(brackets.len())],
                1 => changed.swap(i, random.below(text.len())),
                _ => {
                    let j = i + random.below(text.len() - i);
                    changed[i..=j].reverse();
                }
            }
            if open_brackets(&changed).is_none_or(|open| !open.is_empty()) {
                return changed;
            }
        }
    }
}

/// The kinds that are open at the end, outermost first; nothing where a bracket closes what is not open.
fn open_brackets(text: &[char]) -> Option<Vec<usize>> {
    let mut open = Vec::new();
    for bracket in text {
        if let Some(kind) = OPENING.iter().position(|other| other == bracket) {
            open.push(kind);
        } else {
            let kind = CLOSING.iter().position(|other| other == bracket)?;
            if open.pop() != Some(kind) {
                return None;
            }
        }
    }
    Some(open)
}

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    let language = Language::of(task);
    let text = language.draw(random);
    let (prompt, answer, key) = match base(task) {
        "g4/judge" => {
            let (text, verdict) = match random.chance(0.5) {
                true => (language.corrupt(&text, random), "no"),
                false => (text, "yes"),
            };
            let text = String::from_iter(text);
            (format!("{text} balanced?"), verdict.to_owned(), text)
        }
        "g4/close" => {
            let length = language.length as i64;
            let cut = random.range(length / 4, length - 1) as usize;
            let open = open_brackets(&text[..cut]).unwrap_or_default();
            let closing = open.iter().rev().map(|kind| CLOSING[*kind]).collect();
            let prefix = String::from_iter(&text[..cut]);
            (format!("{prefix} close:"), closing, prefix)
        }
        _ => {
            let text = String::from_iter(text);
            (String::new(), text.clone(), text)
        }
    };
    Draft {
        prompt,
        solution: answer.clone(),
        answer,
        key,
        fields: Map::new(),
    }
}

fn check(item: &Item, output: &str) -> bool {
    let output = output.trim();
    if base(&item.task) != "g4/lm" {
        return output == item.answer;
    }
    let text: Vec<char> = output.chars().collect();
    let depth = Language::of(&item.task).depth;
    let balanced = open_brackets(&text).is_some_and(|open| open.is_empty());
    let deep = |end: usize| {
        let open = open_brackets(&text[..end]);
        open.is_none_or(|open| open.len() > depth)
    };
    !text.is_empty() && balanced && !(0..text.len()).any(deep)
}

#[cfg(test)]
mod tests {
    use super::super::{check, item};
    use super::*;
    use std::collections::HashMap;

    fn language(kinds: usize, depth: usize, length: usize) -> Language {
        Language {
            kinds,
            depth,
            length,
        }
    }

    #[test]
    fn how_many_strings_there_are() {
        let count = |language: Language| language.counts()[language.length][0];
        assert_eq!(count(LANGUAGE), 756_678_656);
        assert_eq!(count(language(1, 8, 8)), 14);
        assert_eq!(count(language(2, 3, 6)), 40);
    }

    #[test]
    fn strings_are_uniform() {
        let mut random = Random::new(5);
        let mut counts: HashMap<Vec<char>, f64> = HashMap::new();
        for _ in 0..14_000 {
            *counts
                .entry(language(1, 8, 8).draw(&mut random))
                .or_default() += 1.0;
        }
        assert_eq!(counts.len(), 14);
        let squares = counts
            .values()
            .map(|count| (count - 1000.0).powi(2) / 1000.0);
        let chi: f64 = squares.sum();
        assert!(chi < 27.7, "{chi}");
    }

    #[test]
    fn free_strings_must_be_balanced_and_not_too_deep() {
        let item = item("g4/lm", Split::Train, 0, 0).unwrap();
        for (text, right) in [
            ("()", true),
            ("[([[[()]]])]", true),
            ("[([[[([])]]])]", false),
            ("(]", false),
            ("(", false),
            (")(", false),
            ("(a)", false),
        ] {
            assert_eq!(check(&item, text).unwrap(), right, "{text}");
        }
    }
}
