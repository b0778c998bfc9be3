//! Instruction following for a model of a few million parameters: one sentence under one to three constraints.
//!
//! The short form of [`super::instructions`]: the same constraints in the same words, with an answer of 10 to 20 words.
//! Constraints that exclude each other (both cases; a bullet inside or outside quotes) are never drawn together. The
//! template and the place are not part of the key, so the same question cannot be in two splits with two answers.

use serde_json::{Map, Value};

use super::constraints::{Constraint, has_word, of, strict, to_fields};
use super::lists::{
    ADJECTIVES, END_PHRASES, GOOD_FEELINGS, HEROES, NAMES, OBJECT_ADJECTIVES, OBJECTS, PLACES, fill,
};
use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of sentences under constraints.
pub const WORLD: World = World {
    name: "sentence",
    description: "one sentence under one to three checkable constraints",
    tasks: &["sentence/1", "sentence/2", "sentence/3"],
    dials: &[],
    generate,
    check,
};

const TEMPLATES: &[&str] = &[
    "One day, a {a} {h} named {n} found a {oa} {o}",
    "In a {p}, a {a} {h} named {n} played with a {oa} {o}",
    "Once there was a {a} {h} named {n} who had a {oa} {o}",
    "A {a} {h} named {n} took a {oa} {o} to the {p}",
];

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Lower,
    Upper,
    Quote,
    End,
    NoComma,
    Existence,
    Forbidden,
    Bullet,
}

const KINDS: [Kind; 8] = [
    Kind::Lower,
    Kind::Upper,
    Kind::Quote,
    Kind::End,
    Kind::NoComma,
    Kind::Existence,
    Kind::Forbidden,
    Kind::Bullet,
];

/// The words of a sentence, in the order of [`Subject::SLOTS`].
struct Subject([&'static str; 5]);

impl Subject {
    const SLOTS: [&'static str; 5] = ["name", "hero", "adj", "oadj", "obj"];

    fn draw(random: &mut Random) -> Self {
        Self([NAMES, HEROES, ADJECTIVES, OBJECT_ADJECTIVES, OBJECTS].map(|list| *random.pick(list)))
    }

    /// The question without its constraints.
    fn request(&self) -> String {
        let [name, hero, adjective, object_adjective, object] = self.0;
        format!(
            "Write a sentence about a {adjective} {hero} named {name} and a {object_adjective} {object}."
        )
    }

    /// A sentence without its period.
    fn sentence(&self, random: &mut Random) -> String {
        let [name, hero, adjective, object_adjective, object] = self.0;
        let slots = [
            ("n", name),
            ("h", hero),
            ("a", adjective),
            ("oa", object_adjective),
            ("o", object),
        ];
        let template = fill(random.pick::<&str>(TEMPLATES), &slots);
        fill(&template, &[("p", *random.pick(PLACES))])
    }

    fn fields(&self) -> Map<String, Value> {
        Self::SLOTS
            .iter()
            .zip(self.0)
            .map(|(slot, word)| (slot.to_string(), Value::from(word)))
            .collect()
    }
}

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    let count = match task {
        "sentence/1" => 1,
        "sentence/2" => 2,
        _ => 3,
    };
    let subject = Subject::draw(random);
    let kinds = draw_kinds(count, random);
    let plain = subject.sentence(random);
    let constraints: Vec<Constraint> = kinds
        .iter()
        .map(|kind| constraint(*kind, &plain, random))
        .collect();
    let answer = write(&plain, &constraints);
    let asked: Vec<String> = constraints.iter().map(Constraint::instruction).collect();
    let mut ids: Vec<String> = constraints.iter().map(Constraint::id).collect();
    ids.sort();
    let mut fields = subject.fields();
    fields.extend(to_fields(&constraints));
    Draft {
        prompt: format!("{} {}", subject.request(), asked.join(" ")),
        solution: answer.clone(),
        answer,
        key: format!("{}|{}", subject.0.join("|"), ids.join(",")),
        fields,
    }
}

/// Kinds that can hold together.
fn draw_kinds(count: usize, random: &mut Random) -> Vec<Kind> {
    loop {
        let kinds = random.sample(&KINDS, count);
        let both = |left, right| kinds.contains(&left) && kinds.contains(&right);
        if !both(Kind::Lower, Kind::Upper) && !both(Kind::Quote, Kind::Bullet) {
            return kinds;
        }
    }
}

fn constraint(kind: Kind, plain: &str, random: &mut Random) -> Constraint {
    let absent = |lists: &[&[&str]]| -> Vec<String> {
        lists
            .concat()
            .iter()
            .filter(|word| !has_word(plain, word))
            .map(ToString::to_string)
            .collect()
    };
    match kind {
        Kind::Lower => Constraint::Lowercase {},
        Kind::Upper => Constraint::Uppercase {},
        Kind::Quote => Constraint::Quotation {},
        Kind::End => Constraint::EndPhrase {
            end_phrase: random.pick(END_PHRASES).to_string(),
        },
        Kind::NoComma => Constraint::NoComma {},
        // A word that the subject has not got already, or nothing would be asked for.
        Kind::Existence => Constraint::Existence {
            keywords: random.sample(&absent(&[GOOD_FEELINGS]), 1),
        },
        Kind::Forbidden => {
            // `happy` can be asked for by another constraint, so it is never forbidden.
            let mut words = absent(&[ADJECTIVES, OBJECT_ADJECTIVES]);
            words.retain(|word| !GOOD_FEELINGS.contains(&word.as_str()));
            Constraint::Forbidden {
                forbidden_words: random.sample(&words, 2),
            }
        }
        Kind::Bullet => Constraint::Bullets { num_bullets: 1 },
    }
}

/// The sentence transformed to satisfy the constraints: its words first, then its letters, then what stands around it.
fn write(plain: &str, constraints: &[Constraint]) -> String {
    let mut text = plain.to_string();
    for constraint in constraints {
        if let Constraint::Existence { keywords } = constraint {
            text = format!("{text} and felt {}", keywords.join(" and "));
        }
    }
    text.push('.');
    for constraint in constraints {
        match constraint {
            Constraint::EndPhrase { end_phrase } => text = format!("{text} {end_phrase}"),
            Constraint::NoComma {} => text = text.replace(',', ""),
            _ => {}
        }
    }
    for constraint in constraints {
        match constraint {
            Constraint::Lowercase {} => text = text.to_lowercase(),
            Constraint::Uppercase {} => text = text.to_uppercase(),
            Constraint::Quotation {} => text = format!("\"{text}\""),
            Constraint::Bullets { .. } => text = format!("* {text}"),
            _ => {}
        }
    }
    text
}

fn check(item: &Item, output: &str) -> bool {
    strict(&of(item), output).iter().all(|held| *held) && names_subject(item, output)
}

/// Whether the output names the name, the hero and the object.
pub(super) fn names_subject(item: &Item, output: &str) -> bool {
    ["name", "hero", "obj"]
        .iter()
        .all(|slot| has_word(output, item.field(slot)))
}

#[cfg(test)]
mod tests {
    use super::super::constraints::words;
    use super::super::{check, item};
    use super::*;

    #[test]
    fn answers_are_short_sentences() {
        for task in WORLD.tasks {
            for index in 0..1000 {
                let item = item(task, Split::Train, index, 0).unwrap();
                assert_eq!(of(&item).len().to_string(), task[9..]);
                assert!(
                    (10..=20).contains(&words(&item.solution).count()),
                    "{}",
                    item.solution
                );
            }
        }
    }

    #[test]
    fn the_subject_must_be_named() {
        let item = item("sentence/1", Split::Train, 0, 0).unwrap();
        let other = if item.field("obj") == "kite" {
            "bell"
        } else {
            "kite"
        };
        assert!(!check(&item, &item.solution.replace(item.field("obj"), other)).unwrap());
    }

    #[test]
    fn the_words_of_the_long_form_are_used() {
        let prompts: Vec<String> = (0..500)
            .map(|index| item("sentence/3", Split::Train, index, 0).unwrap().prompt)
            .collect();
        for asked in [
            "Do not use any commas.",
            "Wrap the whole answer in double quotes.",
            "Use only lowercase letters.",
            "Use only capital letters.",
            "End with the phrase The end.",
            "Use exactly 1 bullet points that start with * .",
            "Include the word happy.",
        ] {
            assert!(
                prompts.iter().any(|prompt| prompt.contains(asked)),
                "{asked}"
            );
        }
    }

    #[test]
    fn every_kind_and_case_is_drawn_alone_and_together() {
        let mut random = Random::new(0);
        for _ in 0..500 {
            let kinds = draw_kinds(3, &mut random);
            assert!(!(kinds.contains(&Kind::Lower) && kinds.contains(&Kind::Upper)));
            assert!(!(kinds.contains(&Kind::Quote) && kinds.contains(&Kind::Bullet)));
        }
        let singles: Vec<Kind> = (0..500).map(|_| draw_kinds(1, &mut random)[0]).collect();
        assert!(KINDS.iter().all(|kind| singles.contains(kind)));
    }
}
