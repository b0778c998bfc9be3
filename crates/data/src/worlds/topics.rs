//! Sentences on eight topics, from a small grammar: what an embedding should keep apart.
//!
//! A sentence names two words of its topic in a frame that all topics share, so that word order and function words tell
//! nothing. The answer is the topic.

use serde_json::Map;

use super::{Draft, World};
use crate::random::Random;

/// The world of topics.
pub const WORLD: World = World {
    name: "topics",
    description: "sentences on eight topics; the answer is the topic",
    tasks: &["topics/8"],
    dials: &[],
    generate: |_, _, random| draw(random),
    check: |item, output| {
        [&item.answer, &item.solution]
            .iter()
            .any(|right| output.trim() == right.as_str())
    },
};

const TOPICS: &[(&str, &[&str])] = &[
    (
        "food",
        &[
            "bread", "soup", "cheese", "pepper", "noodles", "butter", "salad", "honey", "rice",
            "garlic", "plums", "stew",
        ],
    ),
    (
        "music",
        &[
            "violin", "drums", "melody", "chorus", "piano", "trumpet", "rhythm", "opera", "flute",
            "ballad", "choir", "harp",
        ],
    ),
    (
        "sport",
        &[
            "football", "referee", "goal", "tennis", "racket", "sprint", "medal", "coach",
            "hockey", "stadium", "relay", "rowing",
        ],
    ),
    (
        "weather",
        &[
            "thunder",
            "drizzle",
            "frost",
            "breeze",
            "hail",
            "sunshine",
            "fog",
            "storm",
            "snow",
            "clouds",
            "lightning",
            "mist",
        ],
    ),
    (
        "money",
        &[
            "loan", "interest", "budget", "savings", "tax", "invoice", "salary", "shares",
            "profit", "debt", "credit", "rent",
        ],
    ),
    (
        "travel",
        &[
            "passport", "luggage", "airport", "hotel", "ferry", "ticket", "tourist", "map",
            "cabin", "harbour", "border", "train",
        ],
    ),
    (
        "health",
        &[
            "doctor", "fever", "vaccine", "bandage", "hospital", "cough", "surgeon", "pulse",
            "allergy", "dentist", "clinic", "tablet",
        ],
    ),
    (
        "school",
        &[
            "teacher",
            "homework",
            "exam",
            "pencil",
            "lesson",
            "grammar",
            "library",
            "pupil",
            "essay",
            "classroom",
            "algebra",
            "notebook",
        ],
    ),
];

const FRAMES: &[&str] = &[
    "We talked about the {} and the {} all day.",
    "The {} was fine but the {} was not.",
    "Nobody mentioned the {} or the {} again.",
    "First came the {} and then the {} came.",
    "She wrote a letter about the {} and the {}.",
    "Without the {} there is no {} at all.",
    "He could not forget the {} near the {}.",
    "They asked me for the {} and for the {}.",
];

fn draw(random: &mut Random) -> Draft {
    let (topic, words) = random.pick(TOPICS);
    let named = random.sample(words, 2);
    let frame = random.pick(FRAMES);
    let solution = named.iter().fold((*frame).to_owned(), |text, word| {
        text.replacen("{}", word, 1)
    });
    Draft {
        key: solution.clone(),
        prompt: String::new(),
        solution,
        answer: (*topic).into(),
        fields: Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Split, item};
    use super::*;

    #[test]
    fn sentences_name_two_words_of_their_topic() {
        for index in 0..50 {
            let item = item("topics/8", Split::Train, index, 0).unwrap();
            let words = TOPICS
                .iter()
                .find(|(topic, _)| *topic == item.answer)
                .unwrap()
                .1;
            let named = item
                .solution
                .split([' ', '.'])
                .filter(|word| words.contains(word))
                .count();
            assert!(
                named >= 2 && !item.solution.contains('{'),
                "{}",
                item.solution
            );
        }
    }
}
