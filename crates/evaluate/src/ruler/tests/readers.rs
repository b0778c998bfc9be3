//! Two readers: one that finds whatever a prompt says, and one that has not read it.

use std::collections::HashMap;

use espalier_data::random::Random;
use regex::Regex;

use crate::ruler::{Kind, Task, sources::Documents, words};

/// The right answer, found in the prompt's text.
pub fn perfect(task: &Task, prompt: &str) -> String {
    match task.kind {
        Kind::Needles(_) => needles(prompt),
        Kind::Variables { .. } => variables(prompt),
        Kind::CommonWords => common_words(prompt),
        Kind::FrequentWords { .. } => frequent_words(prompt),
        Kind::Questions(Documents::Squad) => people(prompt),
        Kind::Questions(Documents::HotpotQa) => books(prompt),
    }
}

/// An answer of the right form.
pub fn ignorant(task: &Task, seed: usize) -> String {
    let mut random = Random::new(seed as u64);
    let words = words::all();
    let mut many = |count: usize, draw: &mut dyn FnMut(&mut Random) -> String| {
        let drawn: Vec<String> = (0..count).map(|_| draw(&mut random)).collect();
        drawn.join(" ")
    };
    let letters = |first: u8, count: usize, random: &mut Random| -> String {
        (0..count)
            .map(|_| char::from(first + random.below(26) as u8))
            .collect()
    };
    match task.kind {
        Kind::Needles(_) => many(4, &mut |random| {
            random.range(1_000_000, 9_999_999).to_string()
        }),
        Kind::Variables { .. } => many(5, &mut |random| letters(b'A', 5, random)),
        Kind::CommonWords => many(10, &mut |random| (*random.pick(&words)).to_owned()),
        Kind::FrequentWords { .. } => many(3, &mut |random| letters(b'a', 6, random)),
        Kind::Questions(_) => many(1, &mut |random| random.range(1000, 1999).to_string()),
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, text) = text.rsplit_once(before).unwrap();
    text.split_once(after).unwrap().0
}

fn captures(text: &str, pattern: &str) -> Vec<(String, String)> {
    let pattern = Regex::new(pattern).unwrap();
    let found = pattern.captures_iter(text);
    found
        .map(|found| (found[1].to_owned(), found[2].to_owned()))
        .collect()
}

fn needles(prompt: &str) -> String {
    let (_, asked) = prompt.rsplit_once(" The special magic ").unwrap();
    let query = between(asked, " for ", " mentioned");
    let keys: Vec<&str> = query
        .split(", ")
        .map(|key| key.strip_prefix("and ").unwrap_or(key))
        .collect();
    let found = captures(prompt, r"special magic \w+ for ([^:]+) is: ([\w-]+)\.");
    let values = found
        .iter()
        .filter(|(key, _)| keys.contains(&key.as_str()))
        .map(|(_, value)| value.as_str());
    values.collect::<Vec<_>>().join(", ")
}

fn variables(prompt: &str) -> String {
    let (_, text) = prompt.rsplit_once("Memorize and track").unwrap();
    let mut known = vec![between(text, "assigned the value ", ",").to_owned()];
    for (name, value) in captures(text, r"VAR (\w+) = (?:VAR )?(\w+)") {
        if known.contains(&value) {
            known.push(name);
        }
    }
    known[1..].join(" ")
}

fn most_frequent<'a>(words: impl Iterator<Item = &'a str>, count: usize) -> String {
    let mut frequencies: HashMap<&str, usize> = HashMap::new();
    words.for_each(|word| *frequencies.entry(word).or_default() += 1);
    let mut sorted: Vec<(&str, usize)> = frequencies.into_iter().collect();
    sorted.sort_by_key(|b| std::cmp::Reverse(b.1));
    let first = sorted.iter().take(count).map(|(word, _)| *word);
    first.collect::<Vec<_>>().join(" ")
}

fn common_words(prompt: &str) -> String {
    let list = between(prompt, "appear most often.\n", "\nQuestion:");
    let numbers = Regex::new(r"(^| )\d+\. ").unwrap();
    most_frequent(numbers.split(list).filter(|word| !word.is_empty()), 10)
}

fn frequent_words(prompt: &str) -> String {
    let text = between(prompt, "frequently appeared coded words. ", "\nQuestion:");
    most_frequent(text.split(' ').filter(|word| *word != "..."), 3)
}

fn people(prompt: &str) -> String {
    let question = between(prompt, "Question: ", " Answer:");
    let fact = match question.strip_prefix("In which year was ") {
        Some(name) => format!(
            "{}was born in the year ",
            name.strip_suffix("born?").unwrap()
        ),
        None => {
            let name = between(question, "the shop of ", " sell?");
            format!("The shop of {name} sells ")
        }
    };
    between(prompt, &fact, ".").to_owned()
}

fn books(prompt: &str) -> String {
    let title = between(prompt, "the author of ", " live?");
    let author = between(prompt, &format!("{title} was written by "), " in the year");
    between(prompt, &format!("{author} lives in "), ".").to_owned()
}
