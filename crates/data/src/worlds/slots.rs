//! Sparse chains: most tokens are noise, a few form a chain of two look-ups in a table.
//!
//! A text is ten slots of six tokens: a marker (`=`, `<`, ...) with a symbol behind it somewhere, the rest filler. The symbols follow
//! `c_n = T[c_(n-1)][T[c_(n-3)][c_(n-2)]]` with one random table `T`; filler and places are random. The symbols from the fourth slot
//! on are asked for, each in a turn of its own, so that a conversation is learned at the few places that can be known.

use serde_json::{Map, Value, json};

use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of sparse chains.
pub const WORLD: World = World {
    name: "slots",
    description: "a chain of symbols, each behind a marker, among filler",
    tasks: &["slots/10"],
    dials: &[],
    generate,
    check,
};

const SLOTS: usize = 10;
const SLOT: usize = 6;
const SYMBOLS: usize = 12;
/// Markers before a symbol, all with the same meaning.
const MARKERS: [char; 6] = ['=', '<', '>', '|', '+', '-'];
/// Slots whose symbols are free.
const FREE: usize = 3;

/// The symbol at row `a` and column `b` of the one table.
fn look_up(table: &[usize], a: usize, b: usize) -> usize {
    table[a * SYMBOLS + b]
}

fn generate(_: &str, _: Split, random: &mut Random) -> Draft {
    let mut fixed = Random::named("slots");
    let table: Vec<usize> = (0..SYMBOLS * SYMBOLS)
        .map(|_| fixed.below(SYMBOLS))
        .collect();
    let mut chain: Vec<usize> = (0..FREE).map(|_| random.below(SYMBOLS)).collect();
    while chain.len() < SLOTS {
        let [a, b, c] = [3, 2, 1].map(|back| chain[chain.len() - back]);
        chain.push(look_up(&table, c, look_up(&table, a, b)));
    }
    // The text before each symbol that is asked for, and the symbol.
    let mut turns: Vec<(String, String)> = vec![(String::new(), String::new())];
    for (slot, symbol) in chain.iter().enumerate() {
        let place = random.below(SLOT - 1);
        for position in 0..SLOT - 1 {
            let symbol = char::from(b'a' + *symbol as u8);
            let last = turns.len() - 1;
            let marker = MARKERS[random.below(MARKERS.len())];
            match position == place {
                true if slot < FREE => turns[last].0.extend([marker, symbol]),
                true => {
                    turns[last].0.push(marker);
                    turns[last].1.push(symbol);
                    turns.push((String::new(), String::new()));
                }
                false => turns[last].0.push(char::from(b'w' + random.below(4) as u8)),
            }
        }
    }
    // Filler behind the last symbol asks for nothing.
    turns.pop();
    let (prompt, answer) = turns.pop().unwrap_or_default();
    let before: String = turns
        .iter()
        .map(|(said, symbol)| format!("{said}{symbol}"))
        .collect();
    let mut asked: Vec<Value> = turns
        .iter()
        .map(|(said, symbol)| json!([said, symbol]))
        .collect();
    asked.push(json!([prompt, answer]));
    let fields = Map::from_iter([("turns".to_owned(), Value::Array(asked))]);
    let prompt = format!("{before}{prompt}");
    Draft {
        key: prompt.clone(),
        prompt,
        solution: answer.clone(),
        answer,
        fields,
    }
}

fn check(item: &Item, output: &str) -> bool {
    output.trim() == item.answer
}

#[cfg(test)]
mod tests {
    use super::super::item;
    use super::*;
    use crate::record::Record;

    #[test]
    fn turns_are_the_text_and_symbols_follow_the_table() {
        let item = item("slots/10", Split::Train, 0, 0).unwrap();
        let Record::Chat { messages, .. } = item.record_chat() else {
            panic!()
        };
        assert_eq!(messages.len(), 2 * (SLOTS - FREE));
        let text: String = messages
            .iter()
            .map(|message| message.text().into_owned())
            .collect();
        assert_eq!(text, format!("{}{}", item.prompt, item.solution));
        let mut fixed = Random::named("slots");
        let table: Vec<usize> = (0..SYMBOLS * SYMBOLS)
            .map(|_| fixed.below(SYMBOLS))
            .collect();
        let chain: Vec<usize> = text
            .split(MARKERS)
            .skip(1)
            .map(|part| (part.as_bytes()[0] - b'a') as usize)
            .collect();
        assert_eq!(chain.len(), SLOTS);
        for n in FREE..SLOTS {
            assert_eq!(
                chain[n],
                look_up(
                    &table,
                    chain[n - 1],
                    look_up(&table, chain[n - 3], chain[n - 2])
                )
            );
        }
    }
}
