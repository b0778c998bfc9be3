//! Slips that fit any answer: one piece of it is changed, has changed places with another, or is missing.
//!
//! Worlds whose answers have natural mistakes of their own make these in [`preferences`](super::preferences).

use super::Item;
use crate::random::Random;

/// Characters that stand for each other.
const KINDS: &[&str] = &[
    "0123456789",
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "()[]",
    "{}<>",
    "+-*/",
];

/// What an empty answer becomes.
const TOO_MUCH: &str = ")";

/// The gold text with one change; it may still be right.
pub(super) fn one_change(item: &Item, random: &mut Random) -> Option<String> {
    let gold = item.solution.as_str();
    if gold.is_empty() {
        return Some(TOO_MUCH.to_owned());
    }
    let changes = if gold.chars().nth(1).is_some() { 3 } else { 1 };
    match random.below(changes) {
        0 => other_character(gold, random),
        1 => swapped(gold, random),
        _ => gold
            .rsplit_once([' ', '\n'])
            .map(|(kept, _)| kept.to_owned()),
    }
}

/// The other one of two verdicts.
pub(super) fn other_verdict(item: &Item, _: &mut Random) -> Option<String> {
    let other = if item.answer == "yes" { "no" } else { "yes" };
    Some(other.to_owned())
}

fn other_character(gold: &str, random: &mut Random) -> Option<String> {
    let mut characters: Vec<char> = gold.chars().collect();
    let place = random.below(characters.len());
    let kind = KINDS.iter().find(|kind| kind.contains(characters[place]))?;
    let others: Vec<char> = kind
        .chars()
        .filter(|other| *other != characters[place])
        .collect();
    characters[place] = *random.pick(&others);
    Some(String::from_iter(characters))
}

/// Two pieces change places: words, or characters where there is one word.
fn swapped(gold: &str, random: &mut Random) -> Option<String> {
    let separator = if gold.contains(' ') { " " } else { "" };
    let mut pieces: Vec<String> = match separator {
        " " => gold.split(' ').map(str::to_owned).collect(),
        _ => gold.chars().map(String::from).collect(),
    };
    let (i, j) = (random.below(pieces.len()), random.below(pieces.len()));
    pieces.swap(i, j);
    Some(pieces.join(separator)).filter(|text| text != gold)
}
