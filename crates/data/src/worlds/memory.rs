//! Memory: tasks that separate windowed attention, recurrent states of a fixed size and full attention.
//!
//! `flags/GAP` sets four flags, fills GAP letters with noise, and asks for each flag once; attention whose windows reach
//! less far can only guess among four. `mqar/N` (arXiv 2312.04927) gives N of 2N keys a value of 2N each, then asks for every
//! key. `copying/LENGTH` (arXiv 2312.00752) hides letters among blanks and wants them back in order. Answers stand in turns of
//! their own, so that a conversation is learned where it can be known.

use serde_json::{Map, Value, json};

use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of memory.
pub const WORLD: World = World {
    name: "memory",
    description: "flags across a gap, values of keys, letters among blanks",
    tasks: &[
        "memory/flags/16",
        "memory/flags/64",
        "memory/flags/256",
        "memory/mqar/4",
        "memory/mqar/6",
        "memory/mqar/8",
        "memory/copying/16",
        "memory/copying/32",
        "memory/copying/64",
    ],
    dials: &[],
    generate,
    check: |item: &Item, output: &str| output.trim() == item.answer,
};

/// Flags, and values that each may have.
const FLAGS: usize = 4;

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    let size = task
        .rsplit('/')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    match task.split('/').nth(1) {
        Some("flags") => flags(size, random),
        Some("mqar") => recall(size, random),
        _ => copying(size, random),
    }
}

/// The letter of this number, from `first` on.
pub(super) fn letter(first: u8, number: usize) -> char {
    char::from(first + number as u8)
}

fn flags(gap: usize, random: &mut Random) -> Draft {
    let values: Vec<usize> = (0..FLAGS).map(|_| random.below(FLAGS)).collect();
    let set = |flag: usize| [letter(b'A', flag), letter(b'0', values[flag])];
    let mut said: String = (0..FLAGS).flat_map(set).collect();
    said.extend((0..gap).map(|_| letter(b'w', random.below(4))));
    let mut order: Vec<usize> = (0..FLAGS).collect();
    random.shuffle(&mut order);
    asked(
        said,
        order
            .into_iter()
            .map(|flag| set(flag).map(String::from))
            .collect(),
    )
}

fn recall(pairs: usize, random: &mut Random) -> Draft {
    let mut keys: Vec<usize> = (0..2 * pairs).collect();
    random.shuffle(&mut keys);
    let mut written: Vec<[String; 2]> = keys[..pairs]
        .iter()
        .map(|key| [letter(b'a', *key), letter(b'A', random.below(2 * pairs))].map(String::from))
        .collect();
    let said: String = written.iter().flatten().map(String::as_str).collect();
    random.shuffle(&mut written);
    asked(said, written)
}

/// A sixth of the length in letters, of twice as many kinds, among blanks.
fn copying(length: usize, random: &mut Random) -> Draft {
    let count = length.div_ceil(6);
    let mut places: Vec<usize> = (0..length).collect();
    random.shuffle(&mut places);
    let mut text = vec!['.'; length];
    places[..count]
        .iter()
        .for_each(|place| text[*place] = letter(b'a', random.below(2 * count)));
    let answer: String = text.iter().filter(|c| **c != '.').collect();
    let prompt: String = text.into_iter().chain(['>']).collect();
    Draft {
        key: prompt.clone(),
        prompt,
        solution: answer.clone(),
        answer,
        fields: Map::new(),
    }
}

/// `said`, then questions with their answers.
fn asked(said: String, questions: Vec<[String; 2]>) -> Draft {
    let mut turns: Vec<[String; 2]> = questions;
    turns[0][0].insert_str(0, &said);
    let (before, last) = turns.split_at(turns.len() - 1);
    let [question, answer] = last[0].clone();
    let prompt = format!(
        "{}{question}",
        before
            .iter()
            .flatten()
            .map(String::as_str)
            .collect::<String>()
    );
    let turns = turns
        .iter()
        .map(|[question, answer]| json!([question, answer]))
        .collect();
    let fields = Map::from_iter([("turns".to_owned(), Value::Array(turns))]);
    Draft {
        key: prompt.clone(),
        prompt,
        solution: answer.clone(),
        answer,
        fields,
    }
}

#[cfg(test)]
mod tests {
    use super::super::item;
    use super::*;

    fn turns(item: &Item) -> Vec<[String; 2]> {
        serde_json::from_value(item.fields["turns"].clone()).unwrap()
    }

    #[test]
    fn answers_were_said_before() {
        for (task, gap) in [("memory/flags/64", 64), ("memory/mqar/8", 0)] {
            for index in 0..50 {
                let item = item(task, Split::Train, index, 0).unwrap();
                let turns = turns(&item);
                let said = &item.prompt[..turns[0][0].len()];
                assert_eq!(said.len() % 2, 1);
                for [question, answer] in &turns {
                    let pair = format!("{}{answer}", question.chars().last().unwrap());
                    let place = said.find(&pair).unwrap();
                    assert!(
                        place % 2 == 0 && place + gap < said.len(),
                        "{task}: {said} {pair}"
                    );
                }
            }
        }
    }

    #[test]
    fn each_key_is_asked_for_once() {
        let item = item("memory/mqar/6", Split::Train, 3, 0).unwrap();
        let mut keys: Vec<char> = turns(&item)
            .iter()
            .map(|[question, _]| question.chars().last().unwrap())
            .collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 6);
    }

    #[test]
    fn letters_come_back_in_order() {
        let item = item("memory/copying/32", Split::Train, 0, 0).unwrap();
        assert_eq!((item.prompt.len(), item.answer.len()), (33, 6));
        assert_eq!(item.prompt.replace(['.', '>'], ""), item.answer);
    }
}
