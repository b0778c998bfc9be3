//! Stored facts: two symbols name a third one, by a table that never changes and follows no rule.
//!
//! Nothing can be inferred: a model answers what it has seen and kept. So the world measures how much a model of some size
//! can store, on the facts of its training split; facts of other splits cannot be known.

use serde_json::Map;

use super::{Draft, Item, Split, World};
use crate::random::{Random, fnv, mix};

/// The world of stored facts.
pub const WORLD: World = World {
    name: "pairs",
    description: "facts without a rule: two of 48 symbols name a third one",
    tasks: &["pairs/48"],
    dials: &[],
    generate,
    check,
};

const SYMBOLS: &[u8; 48] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuv";

fn generate(_: &str, _: Split, random: &mut Random) -> Draft {
    let mut symbol = || char::from(SYMBOLS[random.below(SYMBOLS.len())]);
    let prompt: String = [symbol(), symbol()].into_iter().collect();
    let fact = mix(fnv(&format!("pairs|{prompt}"))) % SYMBOLS.len() as u64;
    let answer = char::from(SYMBOLS[fact as usize]).to_string();
    Draft {
        key: prompt.clone(),
        prompt,
        solution: answer.clone(),
        answer,
        fields: Map::new(),
    }
}

fn check(item: &Item, output: &str) -> bool {
    output.trim() == item.answer
}

#[cfg(test)]
mod tests {
    use super::super::item;
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_fact_is_always_the_same_and_answers_are_spread() {
        let mut facts = HashMap::new();
        let mut counts: HashMap<String, usize> = HashMap::new();
        for index in 0..4000 {
            let item = item("pairs/48", Split::Train, index, 3).unwrap();
            if facts
                .insert(item.prompt.clone(), item.answer.clone())
                .is_none_or(|known| known != item.answer)
            {
                *counts.entry(item.answer).or_default() += 1;
            }
        }
        assert!(facts.len() > 1700 && counts.values().sum::<usize>() == facts.len());
        assert_eq!(counts.len(), 48);
    }
}
