//! G7, instruction following: a story on a subject under constraints that a program can check.
//!
//! The gold answer is a story of [`super::stories`] transformed to satisfy the constraints, whose numbers are drawn around
//! what the story has. Names and arguments follow IFEval (2311.07911); the checkers are in [`super::constraints`].

use super::constraints::{
    Constraint, Relation, count_sentences, has_word, of, strict, to_fields, words,
};
use super::dials::{Dial, dial};
use super::lists::{END_PHRASES, OBJECTS, PLACES};
use super::stories::{Story, sentences};
use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of stories under constraints.
pub const WORLD: World = World {
    name: "g7",
    description: "stories under two to four checkable constraints, in the form of IFEval",
    tasks: &["g7/2"],
    dials: &[Dial::new(
        "constraints",
        "constraints besides layout and case",
        1,
        6,
    )],
    generate,
    check,
};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Words,
    Sentences,
    Existence,
    Forbidden,
    NoComma,
    End,
}

#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Plain,
    Bullets,
    Quote,
}

#[derive(Clone, Copy, PartialEq)]
enum Case {
    Mixed,
    Lower,
    Upper,
}

/// The draws besides the story.
struct Plan {
    layout: Layout,
    case: Case,
    kinds: Vec<Kind>,
}

impl Plan {
    fn draw(constraints: usize, random: &mut Random) -> Self {
        use Kind::{End, Existence, Forbidden, NoComma, Sentences, Words};
        let layout = *random.pick(&[Layout::Plain, Layout::Bullets, Layout::Quote]);
        let case = *random.pick(&[Case::Mixed, Case::Mixed, Case::Lower, Case::Upper]);
        let kinds = [Words, Sentences, Existence, Forbidden, NoComma, End];
        let kinds = random.sample(&kinds, constraints);
        Self {
            layout,
            case,
            kinds,
        }
    }

    /// The sentences of the gold answer and the end phrase drawn for it.
    fn sentences(&self, story: &Story, random: &mut Random) -> (Vec<String>, &'static str) {
        let mut lines: Vec<String> = sentences(&story.text)
            .into_iter()
            .map(str::to_string)
            .collect();
        if self.kinds.contains(&Kind::NoComma) || self.layout == Layout::Quote {
            lines
                .iter_mut()
                .for_each(|line| line.retain(|letter| letter != ',' && letter != '"'));
        }
        let mut phrase = "";
        if self.kinds.contains(&Kind::End) {
            phrase = *random.pick(END_PHRASES);
            lines.push(phrase.to_string());
        }
        (lines, phrase)
    }

    fn lay_out(&self, lines: &[String]) -> String {
        let body = match self.layout {
            Layout::Bullets => lines
                .iter()
                .map(|line| format!("* {line}"))
                .collect::<Vec<_>>()
                .join("\n"),
            _ => lines.join(" "),
        };
        let body = match self.case {
            Case::Mixed => body,
            Case::Lower => body.to_lowercase(),
            Case::Upper => body.to_uppercase(),
        };
        if self.layout == Layout::Quote {
            format!("\"{body}\"")
        } else {
            body
        }
    }
}

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    let story = Story::draw(random);
    let plan = Plan::draw(dial(task, "constraints", 2), random);
    let (lines, phrase) = plan.sentences(&story, random);
    let answer = plan.lay_out(&lines);
    let mut constraints: Vec<Constraint> = plan
        .kinds
        .iter()
        .map(|kind| constraint(*kind, &story, &answer, phrase, random))
        .collect();
    match plan.layout {
        Layout::Plain => {}
        Layout::Bullets => constraints.push(Constraint::Bullets {
            num_bullets: lines.len(),
        }),
        Layout::Quote => constraints.push(Constraint::Quotation {}),
    }
    match plan.case {
        Case::Mixed => {}
        Case::Lower => constraints.push(Constraint::Lowercase {}),
        Case::Upper => constraints.push(Constraint::Uppercase {}),
    }
    draft(&story, answer, &constraints)
}

fn draft(story: &Story, answer: String, constraints: &[Constraint]) -> Draft {
    let Story {
        name,
        hero,
        adjective,
        object,
        object_adjective,
        ..
    } = story;
    let asked: Vec<String> = constraints.iter().map(Constraint::instruction).collect();
    let prompt = format!(
        "Write a story about a {adjective} {hero} named {name} and a {object_adjective} {object}. {}",
        asked.join(" ")
    );
    let mut fields = story.fields();
    fields.extend(to_fields(constraints));
    Draft {
        key: format!("{}|{prompt}", story.key()),
        prompt,
        solution: answer.clone(),
        answer,
        fields,
    }
}

/// A constraint that the answer satisfies.
fn constraint(
    kind: Kind,
    story: &Story,
    answer: &str,
    phrase: &str,
    random: &mut Random,
) -> Constraint {
    match kind {
        Kind::Words => {
            let (relation, num_words) = bound(words(answer).count(), 8, random);
            Constraint::Words {
                relation,
                num_words,
            }
        }
        Kind::Sentences => {
            let (relation, num_sentences) = bound(count_sentences(answer), 3, random);
            Constraint::Sentences {
                relation,
                num_sentences,
            }
        }
        Kind::Existence => Constraint::Existence {
            keywords: vec![story.object.into(), story.good.into()],
        },
        Kind::Forbidden => {
            let candidates = OBJECTS
                .iter()
                .chain(PLACES)
                .filter(|word| !has_word(answer, word));
            let candidates: Vec<String> = candidates.map(ToString::to_string).collect();
            Constraint::Forbidden {
                forbidden_words: random.sample(&candidates, 2),
            }
        }
        Kind::NoComma => Constraint::NoComma {},
        Kind::End => Constraint::EndPhrase {
            end_phrase: phrase.into(),
        },
    }
}

/// A bound that `count` satisfies, off by less than `slack`.
fn bound(count: usize, slack: usize, random: &mut Random) -> (Relation, usize) {
    if random.chance(0.5) {
        (
            Relation::AtLeast,
            count.saturating_sub(random.below(slack)).max(1),
        )
    } else {
        (Relation::LessThan, count + 1 + random.below(slack))
    }
}

fn check(item: &Item, output: &str) -> bool {
    strict(&of(item), output).iter().all(|held| *held)
}

#[cfg(test)]
mod tests {
    use super::super::{check, item};
    use super::*;

    #[test]
    fn records_have_the_fields_of_ifeval() {
        let item = item("g7/2", Split::Train, 0, 0).unwrap();
        let ids = item.fields["instruction_id_list"].as_array().unwrap();
        assert_eq!(ids.len(), item.fields["kwargs"].as_array().unwrap().len());
        assert_eq!(ids.len(), of(&item).len());
        assert_eq!(ids.last().unwrap(), "change_case:english_capital");
    }

    #[test]
    fn slips_fail() {
        let item = item("g7/2", Split::Train, 0, 0).unwrap();
        assert!(!check(&item, &item.solution.to_lowercase()).unwrap());
        assert!(!check(&item, item.solution.trim_matches('"')).unwrap());
    }
}
