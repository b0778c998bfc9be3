//! G3, key-value recall: pairs of a two-letter key and a two-digit value, then a question about some of the keys.
//!
//! Nothing but the context knows the answers, so the world teaches and measures looking back. In `g3/16` some keys are
//! written twice; the last value counts.

use serde_json::Map;

use super::dials::{Dial, base, dial};
use super::lists::ITEMS;
use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of key-value recall.
pub const WORLD: World = World {
    name: "g3",
    description: "pairs of keys and values, and a question about some of the keys",
    tasks: &["g3/8", "g3/16"],
    dials: &[
        Dial::new("pairs", "keys with a value", 4, 64),
        Dial::new("queries", "keys that are asked for", 1, 4),
        Dial::new(
            "overwritten",
            "percent of the keys that are written twice",
            0,
            100,
        ),
        Dial::new("filler", "words between two pairs", 0, 64),
    ],
    generate,
    check,
};

/// Percent of the keys of `g3/16` that are written twice.
const OVERWRITTEN: usize = 25;

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    let (count, asked, overwritten) = match base(task) {
        "g3/16" => (16, 2, OVERWRITTEN),
        _ => (8, 1, 0),
    };
    let setting = Setting {
        count: dial(task, "pairs", count),
        asked: dial(task, "queries", asked),
        overwritten: dial(task, "overwritten", overwritten) as f64 / 100.0,
        filler: dial(task, "filler", 0),
    };
    pairs(&setting, random)
}

/// What an item is made of.
struct Setting {
    count: usize,
    asked: usize,
    overwritten: f64,
    filler: usize,
}

fn pairs(setting: &Setting, random: &mut Random) -> Draft {
    let Setting {
        count,
        asked,
        overwritten,
        filler,
    } = *setting;
    let mut keys: Vec<String> = Vec::with_capacity(count);
    while keys.len() < count {
        let key: String = (0..2)
            .map(|_| char::from(b'a' + random.below(26) as u8))
            .collect();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let mut written: Vec<(String, String)> = Vec::with_capacity(count * 2);
    for key in &keys {
        written.push((key.clone(), value(random)));
    }
    if overwritten > 0.0 {
        for key in &keys {
            if random.chance(overwritten) {
                written.push((key.clone(), value(random)));
            }
        }
    }
    let queries = random.sample(&keys, asked);
    let last = |query: &String| {
        written
            .iter()
            .rev()
            .find(|(key, _)| key == query)
            .map_or("", |(_, value)| value)
    };
    let answer = queries.iter().map(last).collect::<Vec<_>>().join(" ");
    let listed = |separator: &str| {
        let pair = |(key, value): &(String, String)| format!("{key}{separator}{value}");
        written.iter().map(pair).collect::<Vec<_>>().join(" ")
    };
    let prompt = format!("{} ? {} =", listed(":"), queries.join(" "));
    Draft {
        prompt: match filler {
            0 => prompt,
            _ => filled(&prompt, written.len(), filler, random),
        },
        solution: answer.clone(),
        answer: answer.clone(),
        key: format!("{}?{}", listed(""), queries.join(",")),
        fields: Map::new(),
    }
}

/// With words that mean nothing between the pairs.
fn filled(prompt: &str, pairs: usize, filler: usize, random: &mut Random) -> String {
    let mut words = Vec::new();
    for (place, word) in prompt.split(' ').enumerate() {
        if (1..pairs).contains(&place) {
            words.extend((0..filler).map(|_| *random.pick(ITEMS)));
        }
        words.push(word);
    }
    words.join(" ")
}

fn value(random: &mut Random) -> String {
    format!("{:02}", random.below(100))
}

fn check(item: &Item, output: &str) -> bool {
    output.trim() == item.answer
}

#[cfg(test)]
mod tests {
    use super::super::{check, item};
    use super::*;

    #[test]
    fn the_last_write_wins() {
        let overwritten = (0..200)
            .map(|index| item("g3/16", Split::Train, index, 0).unwrap())
            .find(|item| {
                let query = item.prompt.split("? ").nth(1).unwrap()[..2].to_owned();
                item.prompt.matches(&format!("{query}:")).count() == 2
            });
        let item = overwritten.unwrap();
        let query = &item.prompt.split("? ").nth(1).unwrap()[..2];
        let last = item.prompt.rfind(&format!("{query}:")).unwrap();
        assert_eq!(item.answer[..2], item.prompt[last + 3..last + 5]);
    }

    #[test]
    fn only_the_exact_values_pass() {
        let item = item("g3/8", Split::Train, 0, 0).unwrap();
        assert!(check(&item, " 41\n").unwrap() && !check(&item, "14").unwrap());
    }
}
