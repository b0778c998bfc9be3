//! G8, short stories from a grammar of about 250 word forms, after TinyStories (2305.07759).
//!
//! A story fixes its slots (name, hero, object, ...) once and uses them throughout, so that the consistency of a model's
//! continuation can be measured exactly: see [`consistency`]. `g8/titled` puts a title before the story.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use super::lists::{
    ADJECTIVES, FEELINGS, FIXES, GOOD_FEELINGS, HELPERS, HEROES, MORALS, NAMES, OBJECT_ADJECTIVES,
    OBJECTS, PLACES, PROBLEMS, WEATHERS, fill,
};
use super::{Draft, Item, World};
use crate::random::Random;

/// The world of stories.
pub const WORLD: World = World {
    name: "g8",
    description: "short stories from a small grammar; the checker tests their consistency",
    tasks: &["g8", "g8/titled"],
    dials: &[],
    generate: |task, _, random| Story::draw(random).draft(task == "g8/titled"),
    check,
};

const OPENING: &[&str] = &[
    "Once upon a time there was a {a} {h} named {n}.",
    "One day a {a} {h} named {n} woke up early.",
    "In a {p} lived a {a} {h} named {n}.",
];
const WEATHER: &[&str] = &[
    "It was a {w} day in the {p}.",
    "The day was {w} and {n} went to the {p}.",
];
const OBJECT: &[&str] = &[
    "{n} had a {oa} {o} and loved it very much.",
    "{n} wanted to play with the {oa} {o}.",
    "{n} brought the {oa} {o} along.",
];
const FRIEND: &[&str] = &[
    "A {fh} named {f} came to play.",
    "{f} the {fh} was there too.",
];
const PROBLEM: &[&str] = &[
    "But the {o} {pr}.",
    "Then the {o} {pr}.",
    "Suddenly the {o} {pr}.",
];
const FEELING: &[&str] = &["{n} felt {fe}.", "This made {n} very {fe}."];
const FAILURE: &[&str] = &[
    "{n} tried to get it but it did not work.",
    "First {n} pulled and pulled but nothing happened.",
];
const FRIEND_HELPS: &[&str] = &[
    "\"Do not worry,\" said {f}.",
    "\"I can help you,\" said {f}.",
];
const HELPER_HELPS: &[&str] = &[
    "\"Do not worry,\" said the {he} of {n}.",
    "\"I can help you,\" said the {he} of {n}.",
];
const FIX: &[&str] = &[
    "Together they {fx} and saved the {o}.",
    "At last they {fx} and got the {o} back.",
];
const ENDING: &[&str] = &["{n} felt {g} again.", "Now {n} was {g}."];
const MORAL: &[&str] = &["{n} learned that {m}."];

const GRAMMAR: &[&[&str]] = &[
    OPENING,
    WEATHER,
    OBJECT,
    FRIEND,
    PROBLEM,
    FEELING,
    FAILURE,
    FRIEND_HELPS,
    HELPER_HELPS,
    FIX,
    ENDING,
    MORAL,
];

/// A slot of the grammar and the words that can fill it.
const SLOTS: &[(&str, &[&str])] = &[
    ("n", NAMES),
    ("h", HEROES),
    ("a", ADJECTIVES),
    ("p", PLACES),
    ("o", OBJECTS),
    ("oa", OBJECT_ADJECTIVES),
    ("w", WEATHERS),
    ("f", NAMES),
    ("fh", HEROES),
    ("he", HELPERS),
    ("pr", PROBLEMS),
    ("fx", FIXES),
    ("fe", FEELINGS),
    ("g", GOOD_FEELINGS),
    ("m", MORALS),
];

/// A drawn story and the slots that others ask about.
pub(super) struct Story {
    pub name: &'static str,
    pub hero: &'static str,
    pub adjective: &'static str,
    pub place: &'static str,
    pub object: &'static str,
    pub object_adjective: &'static str,
    pub weather: &'static str,
    pub problem: usize,
    pub good: &'static str,
    pub text: String,
}

impl Story {
    pub fn draw(random: &mut Random) -> Self {
        let name = *random.pick(NAMES);
        let [hero, adjective, place, object, object_adjective, weather] = [
            HEROES,
            ADJECTIVES,
            PLACES,
            OBJECTS,
            OBJECT_ADJECTIVES,
            WEATHERS,
        ]
        .map(|list| *random.pick(list));
        let others: Vec<&str> = NAMES
            .iter()
            .copied()
            .filter(|other| *other != name)
            .collect();
        let friend = *random.pick(&others);
        let [friend_hero, helper] = [HEROES, HELPERS].map(|list| *random.pick(list));
        let problem = random.below(PROBLEMS.len());
        let [feeling, good, moral] =
            [FEELINGS, GOOD_FEELINGS, MORALS].map(|list| *random.pick(list));
        let slots = [
            ("n", name),
            ("h", hero),
            ("a", adjective),
            ("p", place),
            ("o", object),
            ("oa", object_adjective),
            ("w", weather),
            ("f", friend),
            ("fh", friend_hero),
            ("he", helper),
            ("pr", PROBLEMS[problem]),
            ("fx", FIXES[problem]),
            ("fe", feeling),
            ("g", good),
            ("m", moral),
        ];
        let text = tell(&slots, random);
        Self {
            name,
            hero,
            adjective,
            place,
            object,
            object_adjective,
            weather,
            problem,
            good,
            text,
        }
    }

    pub fn key(&self) -> String {
        let Self {
            name,
            hero,
            adjective,
            place,
            object,
            object_adjective,
            weather,
            problem,
            ..
        } = self;
        format!("{name}|{hero}|{adjective}|{place}|{object}|{object_adjective}|{weather}|{problem}")
    }

    /// The slots under the names that they have in a record.
    pub fn fields(&self) -> Map<String, Value> {
        let slots = [
            ("name", self.name),
            ("hero", self.hero),
            ("adj", self.adjective),
            ("place", self.place),
            ("obj", self.object),
            ("oadj", self.object_adjective),
        ];
        slots
            .into_iter()
            .map(|(slot, word)| (slot.to_string(), Value::from(word)))
            .collect()
    }

    /// Where a title stands first, it names what the story is about and a word of its end: to continue
    /// it a model has to copy from the context.
    fn draft(self, titled: bool) -> Draft {
        let (key, fields) = (self.key(), self.fields());
        let Self {
            adjective,
            hero,
            name,
            object_adjective,
            object,
            good,
            ..
        } = self;
        let title = format!(
            "About a {adjective} {hero} named {name} and a {object_adjective} {object}, with the word {good}:"
        );
        let prompt = if titled { title } else { String::new() };
        Draft {
            prompt,
            solution: self.text.clone(),
            answer: self.text,
            key,
            fields,
        }
    }
}

/// The sentences of a story in order; the draws are part of the format.
fn tell(slots: &[(&str, &str)], random: &mut Random) -> String {
    let mut sentences: Vec<&str> = vec![
        *random.pick(OPENING),
        *random.pick(WEATHER),
        *random.pick(OBJECT),
    ];
    let friend_came = random.chance(0.6);
    if friend_came {
        sentences.push(*random.pick(FRIEND));
    }
    sentences.extend([*random.pick(PROBLEM), *random.pick(FEELING)]);
    if random.chance(0.5) {
        sentences.push(*random.pick(FAILURE));
    }
    if random.chance(0.5) {
        sentences.push(*random.pick(if friend_came {
            FRIEND_HELPS
        } else {
            HELPER_HELPS
        }));
    }
    sentences.extend([random.pick(FIX), random.pick(ENDING)]);
    if random.chance(0.5) {
        sentences.extend(MORAL);
    }
    fill(&sentences.join(" "), slots)
}

/// Sentences of a text: split at white space after a period and before an upper-case letter or a double quote.
///
/// ```
/// use espalier_data::worlds::stories::sentences;
/// assert_eq!(sentences("It rained. \"Stay,\" said Mia. so."), ["It rained.", "\"Stay,\" said Mia. so."]);
/// ```
pub fn sentences(text: &str) -> Vec<&str> {
    spans(text).into_iter().map(|span| &text[span]).collect()
}

fn spans(text: &str) -> Vec<Range<usize>> {
    static BREAK: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r#"\.(\s+)[A-Z"]"#).ok());
    let mut spans = Vec::new();
    let mut start = 0;
    for found in BREAK.iter().flat_map(|pattern| pattern.captures_iter(text)) {
        let Some(space) = found.get(1) else { continue };
        spans.push(start..space.start());
        start = space.end();
    }
    spans.push(start..text.len());
    spans
}

/// Every sentence template as a pattern with one named group a slot.
static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let templates = GRAMMAR.iter().flat_map(|alternatives| alternatives.iter());
    templates
        .filter_map(|template| Regex::new(&pattern(template)).ok())
        .collect()
});

fn pattern(template: &str) -> String {
    // No word of the grammar but the period means anything to a pattern.
    let literal = template.replace('.', r"\.");
    let groups: Vec<(&str, String)> = SLOTS
        .iter()
        .map(|(slot, words)| (*slot, format!("(?P<{slot}>{})", words.join("|"))))
        .collect();
    let groups: Vec<(&str, &str)> = groups
        .iter()
        .map(|(slot, group)| (*slot, group.as_str()))
        .collect();
    format!("^{}$", fill(&literal, &groups))
}

type Slots<'a> = BTreeMap<&'a str, &'a str>;

/// The slots of a sentence, if it matches a template and contradicts nothing that is `fixed`.
fn read<'a>(sentence: &'a str, fixed: &Slots<'a>) -> Option<Slots<'a>> {
    PATTERNS.iter().find_map(|pattern| {
        let found = pattern.captures(sentence)?;
        let slots: Slots<'a> = SLOTS
            .iter()
            .filter_map(|(slot, _)| Some((*slot, found.name(slot)?.as_str())))
            .collect();
        let agrees = slots
            .iter()
            .all(|(slot, word)| fixed.get(slot).is_none_or(|known| known == word));
        (agrees && fix_fits(&slots, fixed)).then_some(slots)
    })
}

/// Whether the fix of a sentence belongs to the problem told before.
fn fix_fits(slots: &Slots<'_>, fixed: &Slots<'_>) -> bool {
    let place =
        |list: &[&str], word: Option<&&str>| list.iter().position(|other| Some(other) == word);
    match (
        place(FIXES, slots.get("fx")),
        place(PROBLEMS, fixed.get("pr")),
    ) {
        (Some(fix), Some(problem)) => fix == problem,
        _ => true,
    }
}

/// Share of the continuation's sentences that match a template of the grammar with the slots fixed so far, from 0 to 1.
///
/// `continuation` is what a model wrote after `prefix`, its leading space included. A sentence cut off at the end counts as
/// a mismatch. The order of the sentences is not judged.
pub fn consistency(prefix: &str, continuation: &str) -> f64 {
    let text = format!("{prefix}{continuation}");
    let (mut fixed, mut matched, mut total) = (Slots::new(), 0u32, 0u32);
    for span in spans(text.trim_end()) {
        let slots = read(text[span.clone()].trim(), &fixed);
        if span.end > prefix.trim_end().len() {
            total += 1;
            matched += u32::from(slots.is_some());
        }
        fixed.extend(slots.into_iter().flatten());
    }
    if total == 0 {
        0.0
    } else {
        f64::from(matched) / f64::from(total)
    }
}

fn check(_: &Item, output: &str) -> bool {
    !output.trim().is_empty() && consistency("", output) == 1.0
}

#[cfg(test)]
mod tests {
    use super::super::{Split, check, item};
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn patterns_compile() {
        assert_eq!(
            PATTERNS.len(),
            GRAMMAR
                .iter()
                .map(|alternatives| alternatives.len())
                .sum::<usize>()
        );
    }

    #[test]
    fn a_changed_slot_fails() {
        for index in 0..1000 {
            let item = item("g8", Split::Train, index, 0).unwrap();
            let (first, rest) = item
                .solution
                .split_at(item.solution.find(". ").unwrap() + 1);
            assert_eq!(consistency(first, rest), 1.0);
            let other = if item.field("obj") == "ball" {
                "kite"
            } else {
                "ball"
            };
            let at = rest.rfind(&format!("the {}", item.field("obj"))).unwrap();
            let changed = format!(
                "{}{}",
                &rest[..at],
                rest[at..].replacen(item.field("obj"), other, 1)
            );
            let score = consistency(first, &changed);
            assert!((0.5..1.0).contains(&score), "{score}: {changed}");
            assert!(!check(&item, &format!("{first}{changed}")).unwrap());
        }
    }

    #[test]
    fn half_of_two_sentences() {
        assert_eq!(
            consistency(
                "One day a shy fox named Mia woke up early.",
                " Now Mia was calm. Now Leo was calm."
            ),
            0.5
        );
        assert_eq!(consistency("Now Mia was", " calm."), 1.0);
        assert_eq!(consistency("Now Mia was calm.", ""), 0.0);
    }

    #[test]
    fn the_vocabulary_is_small() {
        let stories: Vec<String> = (0..5000)
            .map(|index| item("g8", Split::Train, index, 0).unwrap().solution)
            .collect();
        let words: Vec<String> = stories
            .iter()
            .flat_map(|story| story.split(|letter: char| !letter.is_ascii_alphabetic()))
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        let mean = words.len() as f64 / 5000.0;
        assert!((mean - 70.5).abs() < 0.7, "{mean} words");
        assert!(words.iter().collect::<HashSet<_>>().len() <= 250);
    }
}
