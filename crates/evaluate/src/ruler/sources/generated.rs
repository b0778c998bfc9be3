//! Essays and documents of our own, for those who have not got the authors'.

use std::collections::HashSet;

use espalier_data::random::Random;
use espalier_data::worlds::{self, Split, lists::NAMES};

use super::{Collection, Question, placed};
use crate::Result;
use crate::ruler::words::nouns;

/// Stories that make the essays: about 70,000 words.
const STORIES: u64 = 1000;

/// People, and books with their authors.
const PEOPLE: usize = 3000;
const BOOKS: usize = 1500;

/// People of a place, who stand beside each other in a prompt.
const NEIGHBOURS: usize = 5;

/// Documents of a question about a book.
const DOCUMENTS: usize = 10;

/// Stories one after another.
pub(super) fn essay() -> Result<String> {
    let story = |index| Ok(worlds::item("g8", Split::Train, index, 0)?.solution);
    let stories = (0..STORIES).map(story).collect::<Result<Vec<_>>>()?;
    Ok(stories.join(" "))
}

/// Different words of six letters, without an end.
pub(super) fn words() -> impl Iterator<Item = String> {
    let mut random = Random::named("ruler|words");
    let mut seen = HashSet::new();
    let word = move || -> String {
        (0..6)
            .map(|_| char::from(b'a' + random.below(26) as u8))
            .collect()
    };
    std::iter::repeat_with(word).filter(move |word| seen.insert(word.clone()))
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(letters).collect()
}

/// So many names of people, all different: a first name and a noun.
fn people_names(count: usize, random: &mut Random) -> Vec<String> {
    let nouns = nouns();
    let mut seen = HashSet::new();
    let mut names = Vec::with_capacity(count);
    while names.len() < count {
        let name = format!(
            "{} {}",
            random.pick(NAMES),
            capitalised(random.pick::<&str>(&nouns))
        );
        if seen.insert(name.clone()) {
            names.push(name);
        }
    }
    names
}

/// A document about each of many people, and a question about each.
pub(super) fn people() -> Collection {
    let mut random = Random::named("ruler|people");
    let nouns = nouns();
    let names = people_names(PEOPLE, &mut random);
    let mut texts = Vec::with_capacity(PEOPLE);
    let mut asked = Vec::with_capacity(PEOPLE);
    for (place, name) in names.iter().enumerate() {
        let town = capitalised(nouns[place / NEIGHBOURS * NEIGHBOURS % nouns.len()]);
        let goods = format!("{} and {}", random.pick(&nouns), random.pick(&nouns));
        let year = random.range(1000, 1999).to_string();
        texts.push(format!(
            "{name} lives in {town}. {name} was born in the year {year}. The shop of {name} sells {goods}."
        ));
        asked.push(match random.below(2) {
            0 => (format!("In which year was {name} born?"), year),
            _ => (format!("What does the shop of {name} sell?"), goods),
        });
    }
    let (documents, places) = placed(texts.iter().cloned());
    let question = |(number, (query, answer)): (usize, (String, String))| {
        let first = number / NEIGHBOURS * NEIGHBOURS;
        let others = (first..first + NEIGHBOURS).filter(|other| *other != number);
        Question {
            query,
            outputs: vec![answer],
            documents: vec![places[&texts[number]]],
            related: others.map(|other| places[&texts[other]]).collect(),
        }
    };
    Collection {
        questions: asked.into_iter().enumerate().map(question).collect(),
        documents,
    }
}

/// A document about each of many books, another about its author, and a question that needs both.
pub(super) fn books() -> Collection {
    let mut random = Random::named("ruler|books");
    let nouns = nouns();
    let authors = people_names(BOOKS, &mut random);
    let mut titles = nouns.clone();
    random.shuffle(&mut titles);
    let mut texts = Vec::with_capacity(2 * BOOKS);
    let mut asked = Vec::with_capacity(BOOKS);
    for (author, title) in authors.iter().zip(titles) {
        let title = format!("The Book of the {}", capitalised(title));
        let town = capitalised(random.pick::<&str>(&nouns));
        let year = random.range(1000, 1999);
        texts.push(format!(
            "{title}\n{title} was written by {author} in the year {year}."
        ));
        texts.push(format!(
            "{author}\n{author} is a writer. {author} lives in {town}."
        ));
        asked.push((format!("Where does the author of {title} live?"), town));
    }
    let (documents, places) = placed(texts.iter().cloned());
    let question = |(number, (query, answer)): (usize, (String, String))| {
        let own = [2 * number, 2 * number + 1];
        let mut needed: Vec<usize> = own.iter().map(|place| places[&texts[*place]]).collect();
        while needed.len() < DOCUMENTS {
            let other = places[random.pick(&texts)];
            if !needed.contains(&other) {
                needed.push(other);
            }
        }
        Question {
            query,
            outputs: vec![answer],
            documents: needed,
            related: Vec::new(),
        }
    };
    Collection {
        questions: asked.into_iter().enumerate().map(question).collect(),
        documents,
    }
}
