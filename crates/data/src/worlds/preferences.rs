//! Preference pairs from the generated worlds: the gold answer against the same answer with one natural slip.
//!
//! For answers under constraints the slip breaks exactly one of them where that is possible: a forgotten case, quote, end
//! phrase, word or bullet, a comma left in, a forbidden word used, too few or too many words. Arithmetic is off by a
//! little, a sum has a wrong digit, a fact is another value or `unknown`, and whatever has no mistakes of its own is changed in one
//! place. The checker has the last word: no rejected answer passes it.

use super::constraints::{Constraint, Relation, of, strict};
use super::dials::base;
use super::facts::{UNKNOWN, values};
use super::lists::{ADJECTIVES, END_PHRASES, GOOD_FEELINGS, NAMES, OBJECTS, PLACES};
use super::sentences::names_subject;
use super::slips::{one_change, other_verdict};
use super::stories::sentences;
use super::{Item, Split, addition, check, item};
use crate::random::Random;
use crate::record::{Message, Record};
use crate::{Error, Result};

/// Random slips tried where the first ones pass the checker.
const MOST_TRIES: usize = 20;

/// A worse answer that fails the checker, or nothing where none is found.
pub fn corrupt(item: &Item, random: &mut Random) -> Option<String> {
    let slip = match item.task.split('/').next() {
        Some("addition") => addition::wrong_digit,
        Some("g1") => wrong_number,
        Some("g6") => wrong_value,
        Some("g7" | "sentence") => broken_constraint,
        _ if base(&item.task) == "g4/judge" => other_verdict,
        _ => one_change,
    };
    let mut slips = (0..MOST_TRIES).filter_map(|_| slip(item, random));
    slips.find(|output| check(item, output).is_ok_and(|passes| !passes))
}

/// The gold answer of an item against a corrupted one, as a record.
///
/// # Errors
/// When there is no such task, or no worse answer is found.
///
/// ```
/// use espalier_data::{record::Record, worlds::{Split, preferences::preference}};
/// let record = preference("sentence/2", Split::Train, 0, 0)?;
/// assert!(matches!(record, Record::Preference { chosen, rejected, .. } if chosen != rejected));
/// # Ok::<(), espalier_data::Error>(())
/// ```
pub fn preference(task: &str, split: Split, index: u64, seed: u64) -> Result<Record> {
    let item = item(task, split, index, seed)?;
    let mut random = Random::named(&format!("preference|{task}|{split}|{index}|{seed}"));
    let rejected = corrupt(&item, &mut random).ok_or_else(|| {
        Error::Invalid(format!(
            "`{task}`: no wrong answer to item {index} was found"
        ))
    })?;
    Ok(Record::Preference {
        prompt: vec![Message::user(item.prompt)],
        chosen: Message::assistant(item.solution),
        rejected: Message::assistant(rejected),
        margin: None,
        tools: None,
    })
}

/// The last result off by a little, in its line and after the mark.
fn wrong_number(item: &Item, random: &mut Random) -> Option<String> {
    let answer: i64 = item.answer.parse().ok()?;
    let wrong = answer + random.pick(&[-10, -2, -1, 1, 2, 10]);
    if wrong < 0 {
        return None;
    }
    let Some((work, _)) = item.solution.rsplit_once("\n#### ") else {
        return Some(wrong.to_string());
    };
    let (work, _) = work.rsplit_once("= ")?;
    Some(format!("{work}= {wrong}\n#### {wrong}"))
}

fn wrong_value(item: &Item, random: &mut Random) -> Option<String> {
    if item.answer != UNKNOWN && random.chance(0.25) {
        return Some(UNKNOWN.to_string());
    }
    Some(random.pick(&values(item.field("attribute"))).clone())
}

/// A slip that breaks one constraint and, where possible, no other.
fn broken_constraint(item: &Item, random: &mut Random) -> Option<String> {
    let constraints = of(item);
    let mut order: Vec<usize> = (0..constraints.len()).collect();
    random.shuffle(&mut order);
    let candidates: Vec<(usize, String)> = order
        .into_iter()
        .flat_map(|index| {
            slips(&constraints[index], item, random)
                .into_iter()
                .map(move |text| (index, text))
        })
        .collect();
    let breaks = |index: usize, text: &str| !constraints[index].holds(text);
    let only = |index: usize, text: &str| {
        let subject_kept = !item.task.starts_with("sentence") || names_subject(item, text);
        subject_kept
            && strict(&constraints, text)
                .iter()
                .enumerate()
                .all(|(other, held)| *held == (other != index))
    };
    let clean = candidates.iter().find(|(index, text)| only(*index, text));
    clean
        .or_else(|| candidates.iter().find(|(index, text)| breaks(*index, text)))
        .map(|(_, text)| text.clone())
}

/// Ways to get a constraint wrong, the most natural first; some may turn out to break nothing or too much.
fn slips(constraint: &Constraint, item: &Item, random: &mut Random) -> Vec<String> {
    let gold = item.solution.as_str();
    match constraint {
        Constraint::Lowercase {} | Constraint::Uppercase {} => vec![natural_case(gold)],
        Constraint::Quotation {} => vec![gold.trim_matches('"').to_string()],
        Constraint::Bullets { .. } => vec![
            gold.lines()
                .map(without_bullet)
                .collect::<Vec<_>>()
                .join(" "),
        ],
        Constraint::EndPhrase { end_phrase } => forget_phrase(gold, end_phrase, random),
        Constraint::NoComma {} => leave_comma(gold),
        Constraint::Existence { keywords } => {
            forget_word(gold, random.pick::<String>(keywords), random)
        }
        Constraint::Forbidden { forbidden_words } => {
            use_word(item, random.pick::<String>(forbidden_words))
        }
        Constraint::Words { relation, .. } | Constraint::Sentences { relation, .. } => {
            change_length(gold, *relation)
        }
    }
}

fn without_bullet(line: &str) -> &str {
    line.strip_prefix("* ").unwrap_or(line)
}

/// Ordinary capitals: at the start of sentences and lines, and in names.
fn natural_case(text: &str) -> String {
    let mut at_start = true;
    let lower: String = text.to_lowercase();
    let cased: String = lower
        .chars()
        .map(|letter| {
            let capital = at_start && letter.is_ascii_lowercase();
            at_start = matches!(letter, '.' | '\n') || at_start && !letter.is_ascii_alphanumeric();
            if capital {
                letter.to_ascii_uppercase()
            } else {
                letter
            }
        })
        .collect();
    NAMES
        .iter()
        .fold(cased, |text, name| replace_word(&text, name, name))
}

/// Without the phrase, or with another one.
fn forget_phrase(gold: &str, phrase: &str, random: &mut Random) -> Vec<String> {
    let Some(at) = find(gold, phrase).into_iter().next_back() else {
        return Vec::new();
    };
    let (before, after) = (&gold[..at], &gold[at + phrase.len()..]);
    let others: Vec<&str> = END_PHRASES
        .iter()
        .copied()
        .filter(|other| *other != phrase)
        .collect();
    let found = &gold[at..at + phrase.len()];
    let other = like(random.pick::<&str>(&others), found);
    let other = if found == found.to_lowercase() {
        other.to_lowercase()
    } else {
        other
    };
    vec![
        format!("{}{after}", before.trim_end()),
        format!("{before}{other}{after}"),
    ]
}

/// A comma where a writer would put one.
fn leave_comma(gold: &str) -> Vec<String> {
    let ends = |words: &'static str| {
        find(gold, words)
            .into_iter()
            .map(move |at| at + words.len())
    };
    let after = ["one day", "once"].into_iter().flat_map(ends);
    let before = [" who ", " and ", " named ", " to "]
        .into_iter()
        .flat_map(|words| find(gold, words));
    after
        .chain(before)
        .map(|at| format!("{},{}", &gold[..at], &gold[at..]))
        .collect()
}

/// Without the clause that brings the word in, or with another word in its place.
fn forget_word(gold: &str, word: &str, random: &mut Random) -> Vec<String> {
    let clause = format!(" and felt {word}");
    let shortened = find(gold, &clause)
        .first()
        .map(|at| format!("{}{}", &gold[..*at], &gold[at + clause.len()..]));
    let list = if GOOD_FEELINGS.contains(&word) {
        GOOD_FEELINGS
    } else {
        OBJECTS
    };
    let others: Vec<&str> = list
        .iter()
        .copied()
        .filter(|other| *other != word)
        .collect();
    shortened
        .into_iter()
        .chain([replace_word(gold, word, random.pick::<&str>(&others))])
        .collect()
}

/// With a forbidden word beside the adjective of its kind, or instead of another object or place.
fn use_word(item: &Item, word: &str) -> Vec<String> {
    let gold = item.solution.as_str();
    if item.task.starts_with("sentence") {
        let adjective = item.field(if ADJECTIVES.contains(&word) {
            "adj"
        } else {
            "oadj"
        });
        return vec![replace_word(
            gold,
            adjective,
            &format!("{word} {adjective}"),
        )];
    }
    let same_list = [PLACES, OBJECTS]
        .into_iter()
        .find(|list| list.contains(&word))
        .unwrap_or(OBJECTS);
    let candidates = same_list.iter().chain(PLACES).chain(OBJECTS);
    candidates
        .map(|other| replace_word(gold, other, word))
        .filter(|text| text != gold)
        .collect()
}

/// Shorter by sentences or words, or longer by repeating the first sentence.
fn change_length(gold: &str, relation: Relation) -> Vec<String> {
    if relation == Relation::AtLeast {
        return shorter(gold);
    }
    let first = sentences(gold.lines().next().unwrap_or_default())[0];
    let (again, rest) = (
        without_bullet(first).trim_matches('"'),
        &gold[first.len()..],
    );
    (1..=8)
        .map(|times| format!("{first}{}{rest}", format!(" {again}").repeat(times)))
        .collect()
}

/// With ever more sentences of the middle left out, then with ever fewer words a line.
fn shorter(gold: &str) -> Vec<String> {
    let parts = sentences(gold);
    let last = parts.last().copied().unwrap_or_default();
    let cut = (1..parts.len().saturating_sub(1))
        .rev()
        .map(|kept| [&parts[..kept], &[last]].concat().join(" "));
    let trimmed = (2..12).rev().map(|kept| {
        let lines: Vec<String> = gold.lines().map(|line| first_words(line, kept)).collect();
        lines.join("\n")
    });
    cut.chain(trimmed).collect()
}

/// The first words of a line as a sentence; a shorter line as it is.
fn first_words(line: &str, kept: usize) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    if words.len() <= kept {
        line.to_string()
    } else {
        format!("{}.", words[..kept].join(" "))
    }
}

/// Byte positions of `needle` in any ASCII case.
fn find(text: &str, needle: &str) -> Vec<usize> {
    let (text, needle) = (text.to_ascii_lowercase(), needle.to_ascii_lowercase());
    text.match_indices(&needle).map(|(at, _)| at).collect()
}

/// Replaces a whole word in any case by another in the case of the text around it.
fn replace_word(text: &str, from: &str, to: &str) -> String {
    let is_letter =
        |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    let mut result = String::new();
    let mut done = 0;
    for at in find(text, from) {
        let end = at + from.len();
        if is_letter(text[..at].chars().next_back()) || is_letter(text[end..].chars().next()) {
            continue;
        }
        result.push_str(&text[done..at]);
        result.push_str(&like(to, &text[at..end]));
        done = end;
    }
    result + &text[done..]
}

/// `word` in capitals when `model` is.
fn like(word: &str, model: &str) -> String {
    let shouts = model.len() > 1 && model.chars().all(|letter| !letter.is_ascii_lowercase());
    if shouts {
        word.to_uppercase()
    } else {
        word.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASKS: [&str; 12] = [
        "addition",
        "g1/1",
        "g1/2",
        "g1/3",
        "g1/4",
        "g6/1",
        "g6/2",
        "g6/3",
        "g7/2",
        "sentence/1",
        "sentence/2",
        "sentence/3",
    ];

    #[test]
    fn chosen_passes_and_rejected_fails() {
        for task in TASKS {
            for index in 0..1000 {
                let item = item(task, Split::Train, index, 0).unwrap();
                let Record::Preference {
                    prompt,
                    chosen,
                    rejected,
                    ..
                } = preference(task, Split::Train, index, 0).unwrap()
                else {
                    panic!("no pair")
                };
                assert_eq!(prompt[0].text(), item.prompt);
                assert!(check(&item, &chosen.text()).unwrap());
                assert!(
                    !check(&item, &rejected.text()).unwrap(),
                    "{} {}",
                    item.prompt,
                    rejected.text()
                );
            }
        }
    }

    #[test]
    fn one_constraint_is_broken() {
        for (task, least) in [
            ("sentence/1", 1000),
            ("sentence/2", 1000),
            ("sentence/3", 1000),
            ("g7/2", 950),
        ] {
            let single = (0..1000).filter(|index| {
                let item = item(task, Split::Train, *index, 0).unwrap();
                let output = corrupt(&item, &mut Random::new(*index)).unwrap();
                let held = strict(&of(&item), &output);
                let named = task == "g7/2" || names_subject(&item, &output);
                held.iter().filter(|held| !**held).count() == 1 && named
            });
            let count = single.count();
            assert!(count >= least, "{task}: {count}");
        }
    }

    #[test]
    fn every_constraint_of_a_sentence_is_broken_sometimes() {
        let mut broken = std::collections::BTreeSet::new();
        for index in 0..500 {
            let item = item("sentence/3", Split::Train, index, 0).unwrap();
            let output = corrupt(&item, &mut Random::new(index)).unwrap();
            broken.extend(
                of(&item)
                    .iter()
                    .filter(|constraint| !constraint.holds(&output))
                    .map(Constraint::id),
            );
        }
        assert_eq!(broken.len(), 8, "{broken:?}");
    }

    #[test]
    fn pairs_are_deterministic() {
        let draw = || preference("g7/2", Split::Test, 5, 1).unwrap();
        assert_eq!(draw(), draw());
    }

    #[test]
    fn corrupted_answers_of_every_task_fail() {
        for task in super::super::tasks() {
            for index in 0..10_000 {
                let item = item(task, Split::Train, index, 2).unwrap();
                let wrong = corrupt(&item, &mut Random::new(index));
                let wrong = wrong.unwrap_or_else(|| panic!("no slip: {}", item.to_json()));
                assert!(
                    !check(&item, &wrong).unwrap(),
                    "{wrong}: {}",
                    item.to_json()
                );
            }
        }
    }

    #[test]
    fn helpers() {
        assert_eq!(
            natural_case("* A FOX NAMED ADA. IT RAN."),
            "* A fox named Ada. It ran."
        );
        assert_eq!(
            natural_case("\"on a hill. leo sat.\""),
            "\"On a hill. Leo sat.\""
        );
        assert_eq!(
            replace_word("THE BOX IS IN A BOXCAR", "box", "hat"),
            "THE HAT IS IN A BOXCAR"
        );
        assert_eq!(leave_comma("One day a fox ran.")[0], "One day, a fox ran.");
    }
}
