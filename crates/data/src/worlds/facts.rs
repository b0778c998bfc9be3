//! G6, small-world facts: a handful of people, their facts in random order, and a question of one to three hops.
//!
//! Some facts are left out, and then the right answer is `unknown`: a model that guesses is caught. The field `support`
//! names the facts that the answer needs, as `person.attribute`; `attribute` is what is asked for.

use serde_json::{Map, Value, json};

use super::dials::{Dial, base, dial};
use super::lists::{CITIES, COLORS, JOBS, NAMES, PETS, fill};
use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of facts and questions about them.
pub const WORLD: World = World {
    name: "g6",
    description: "facts about a few people and a question of one to three hops",
    tasks: &["g6/1", "g6/2", "g6/3"],
    dials: &[
        Dial::new("people", "people", 2, 24),
        Dial::new("hops", "facts that the answer needs", 1, 6),
        Dial::new("left_out", "percent of the facts that are left out", 0, 50),
    ],
    generate,
    check,
};

/// The answer when a needed fact was left out.
pub const UNKNOWN: &str = "unknown";

struct Attribute {
    name: &'static str,
    facts: [&'static str; 2],
    question: &'static str,
}

/// In the order in which the facts of a person are drawn.
const ATTRIBUTES: [Attribute; 7] = [
    Attribute {
        name: "city",
        facts: ["{p} lives in {v}.", "The home of {p} is in {v}."],
        question: "Where does {p} live?",
    },
    Attribute {
        name: "job",
        facts: ["{p} works as a {v}.", "The job of {p} is {v}."],
        question: "What is the job of {p}?",
    },
    Attribute {
        name: "pet",
        facts: ["{p} has a pet {v}.", "The pet of {p} is a {v}."],
        question: "What pet does {p} have?",
    },
    Attribute {
        name: "color",
        facts: [
            "{p} likes the color {v}.",
            "The favorite color of {p} is {v}.",
        ],
        question: "What color does {p} like?",
    },
    Attribute {
        name: "friend",
        facts: [
            "The best friend of {p} is {v}.",
            "{p} has a best friend named {v}.",
        ],
        question: "Who is the best friend of {p}?",
    },
    Attribute {
        name: "boss",
        facts: ["The boss of {p} is {v}.", "{p} works for {v}."],
        question: "Who is the boss of {p}?",
    },
    Attribute {
        name: "age",
        facts: ["{p} is {v} years old.", "The age of {p} is {v}."],
        question: "How old is {p}?",
    },
];

const FRIEND: usize = 4;
const BOSS: usize = 5;
/// Attributes that are asked for at the end of a path: city, job, pet, color, age.
const LAST: [usize; 5] = [0, 1, 2, 3, 6];

/// A person: the value of each attribute, and whether its fact is told.
struct Person {
    name: &'static str,
    values: [String; 7],
    told: [bool; 7],
}

impl Person {
    fn draw(name: &'static str, people: &[&'static str], random: &mut Random) -> Self {
        let others: Vec<&str> = people
            .iter()
            .copied()
            .filter(|other| *other != name)
            .collect();
        let lists = [
            CITIES,
            JOBS,
            PETS,
            COLORS,
            others.as_slice(),
            others.as_slice(),
        ];
        let mut values = lists.map(|list| random.pick(list).to_string()).to_vec();
        values.push(random.range(18, 80).to_string());
        let values = std::array::from_fn(|attribute| values[attribute].clone());
        Self {
            name,
            values,
            told: [true; 7],
        }
    }

    /// The sentences about this person; each is left out with probability `drop`.
    fn tell(&mut self, drop: f64, random: &mut Random) -> Vec<String> {
        let mut facts = Vec::new();
        for (index, attribute) in ATTRIBUTES.iter().enumerate() {
            self.told[index] = !random.chance(drop);
            if self.told[index] {
                let template = attribute.facts[random.below(2)];
                facts.push(fill(
                    template,
                    &[("p", self.name), ("v", self.values[index].as_str())],
                ));
            }
        }
        facts
    }
}

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    let (hops, left_out) = match base(task) {
        "g6/1" => (1, 15),
        "g6/2" => (2, 15),
        _ => (3, 0),
    };
    let hops = dial(task, "hops", hops);
    let drop = dial(task, "left_out", left_out) as f64 / 100.0;
    let names = random.sample(NAMES, dial(task, "people", 4));
    let mut people: Vec<Person> = names
        .iter()
        .map(|&name| Person::draw(name, &names, random))
        .collect();
    let mut facts: Vec<String> = people
        .iter_mut()
        .flat_map(|person| person.tell(drop, random))
        .collect();
    random.shuffle(&mut facts);
    ask(hops, &people, &facts.join(" "), random)
}

/// Draws a question and follows it to its answer.
fn ask(hops: usize, people: &[Person], facts: &str, random: &mut Random) -> Draft {
    let mut person = random.pick(people);
    let path: Vec<usize> = (1..hops).map(|_| *random.pick(&[FRIEND, BOSS])).collect();
    let last = *random.pick(&LAST);
    let mut description = person.name.to_string();
    let mut support = Vec::new();
    let mut known = true;
    for attribute in path {
        support.push(format!("{}.{}", person.name, ATTRIBUTES[attribute].name));
        known &= person.told[attribute];
        let relation = if attribute == FRIEND {
            "best friend"
        } else {
            "boss"
        };
        description = format!("the {relation} of {description}");
        let next = &person.values[attribute];
        person = people
            .iter()
            .find(|other| other.name == next)
            .unwrap_or(person);
    }
    support.push(format!("{}.{}", person.name, ATTRIBUTES[last].name));
    known &= person.told[last];
    let answer = if known {
        person.values[last].clone()
    } else {
        UNKNOWN.to_string()
    };
    let question = fill(ATTRIBUTES[last].question, &[("p", description.as_str())]);
    let fields = [
        ("support".to_string(), json!(support)),
        ("attribute".to_string(), json!(ATTRIBUTES[last].name)),
    ];
    Draft {
        prompt: format!("{facts} Question: {question} Answer:"),
        solution: answer.clone(),
        answer,
        key: format!("{description}|{}|{facts}", ATTRIBUTES[last].name),
        fields: Map::<String, Value>::from_iter(fields),
    }
}

fn check(item: &Item, output: &str) -> bool {
    let trimmed = output.trim().to_lowercase();
    trimmed.strip_suffix('.').unwrap_or(&trimmed) == item.answer.to_lowercase()
}

/// Every value that an attribute of [`Item::fields`] can have.
pub(super) fn values(attribute: &str) -> Vec<String> {
    let list = match attribute {
        "city" => CITIES,
        "job" => JOBS,
        "pet" => PETS,
        "color" => COLORS,
        _ => return (18..=80).map(|age: u8| age.to_string()).collect(),
    };
    list.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{check, item};
    use super::*;

    #[test]
    fn the_checker_forgives_case_and_the_period_only() {
        let item = item("g6/1", Split::Train, 0, 0).unwrap();
        assert!(check(&item, " milan.\n").unwrap());
        assert!(!check(&item, "Milano").unwrap());
        assert!(!check(&item, "unknown").unwrap());
    }

    #[test]
    fn about_28_percent_of_two_hop_questions_are_unknown() {
        let items = (0..2000).map(|index| item("g6/2", Split::Train, index, 0).unwrap());
        let unknown = items.filter(|item| item.answer == UNKNOWN).count();
        assert!((500..620).contains(&unknown), "{unknown}");
    }

    #[test]
    fn support_follows_the_path() {
        let item = item("g6/3", Split::Train, 0, 0).unwrap();
        let support: Vec<&str> = item.fields["support"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(support.len(), 3);
        assert_eq!(support[0], "Olga.boss");
        assert!(support[1].ends_with(".boss") && support[2].ends_with(".color"));
        assert_eq!(item.field("attribute"), "color");
    }
}
