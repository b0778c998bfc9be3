//! Prompts beside those of the authors' generators, and readers that are perfect or know nothing.

mod readers;

use std::path::PathBuf;

use espalier_data::{random::fnv, tokenizer::Tokenizer};
use serde::Deserialize;

use super::score::percent;
use super::*;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// A run of one of the authors' generators.
#[derive(Deserialize)]
struct Published {
    task: String,
    length: usize,
    seed: u64,
    template: [String; 2],
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    hash: String,
    outputs: Vec<String>,
    length: usize,
    answer_prefix: String,
    token_position_answer: Option<usize>,
}

#[test]
fn prompts_are_those_of_the_authors_generators() {
    let folder = fixtures().join("ruler");
    let published = std::fs::read(folder.join("expected.json")).unwrap();
    let published: Vec<Published> = serde_json::from_slice(&published).unwrap();
    let tokenizer = Tokenizer::load(&fixtures().join("tokenizers/bpe-bytelevel")).unwrap();
    let count = |text: &str| Ok(tokenizer.encode_ids(text, false)?.len());
    let sources = Sources::folder(&folder);
    assert_eq!(published.len(), 3 * TASKS.len());
    for run in published {
        let options = Options {
            seed: run.seed,
            template: run.template,
            ..Options::new(run.length, run.rows.len())
        };
        let ours = samples(task(&run.task).unwrap(), &options, &sources, &count).unwrap();
        assert_eq!(ours.len(), run.rows.len());
        for (ours, theirs) in ours.iter().zip(&run.rows) {
            let named = format!("{} at {}, {}", run.task, run.length, ours.index);
            assert_eq!(ours.outputs, theirs.outputs, "{named}");
            assert_eq!(ours.answer_prefix, theirs.answer_prefix, "{named}");
            assert_eq!(ours.length, theirs.length, "{named}");
            assert_eq!(
                ours.answer_position, theirs.token_position_answer,
                "{named}"
            );
            assert_eq!(format!("{:016x}", fnv(&ours.input)), theirs.hash, "{named}");
        }
    }
}

/// About as many tokens as a usual tokenizer makes of English text.
fn quarter(text: &str) -> Result<usize> {
    Ok(text.len().div_ceil(4))
}

#[test]
fn who_reads_everything_scores_100_and_who_guesses_near_0() {
    let sources = Sources::generated();
    for length in [1024, 4096, 16_384] {
        for task in &TASKS {
            let samples = samples(task, &Options::new(length, 10), &sources, &quarter).unwrap();
            let [mut read, mut guessed] = [Vec::new(), Vec::new()];
            for sample in &samples {
                let prompt = sample.prompt();
                let tokens = quarter(&prompt).unwrap() + task.answer_tokens;
                assert!(tokens == sample.length && tokens <= length, "{}", task.name);
                // A step of the haystack is the most that is left over: five hundred words, or ten documents.
                assert!(tokens + 900 > length, "{} at {length}: {tokens}", task.name);
                let answer = readers::perfect(task, &prompt);
                read.push(task.metric.score(&answer, &sample.outputs));
                guessed.push(
                    task.metric
                        .score(&readers::ignorant(task, sample.index), &sample.outputs),
                );
            }
            assert_eq!(percent(&read), 100.0, "{} at {length}", task.name);
            assert!(
                percent(&guessed) < 5.0,
                "{} at {length}: {guessed:?}",
                task.name
            );
        }
    }
}

#[test]
fn needles_stand_where_they_are_told_to() {
    let Kind::Needles(mut needle) = task("niah_single_2").unwrap().kind else {
        panic!("no needles");
    };
    for (depth, low, high) in [(0.0, 0.0, 0.05), (50.0, 0.4, 0.6), (100.0, 0.93, 1.0)] {
        needle.depth = Some(depth);
        let task = Task {
            kind: Kind::Needles(needle),
            ..*task("niah_single_2").unwrap()
        };
        let options = Options::new(4096, 2);
        for sample in samples(&task, &options, &Sources::generated(), &quarter).unwrap() {
            let place = sample.answer_position.unwrap() as f64 / sample.length as f64;
            assert!((low..=high).contains(&place), "{depth}: {place}");
        }
    }
}

#[test]
fn lengths_that_are_too_short_are_told() {
    for task in &TASKS {
        let complaint = samples(task, &Options::new(64, 1), &Sources::generated(), &quarter);
        let complaint = complaint.unwrap_err().to_string();
        assert!(complaint.contains("take a greater length"), "{complaint}");
    }
    let complaint = task("niah_singel_1").unwrap_err().to_string();
    assert!(
        complaint.contains("did you mean `niah_single_1`?"),
        "{complaint}"
    );
    let absent = Sources::folder(&fixtures());
    let complaint = absent.essay().unwrap_err().to_string();
    assert!(complaint.contains("PaulGrahamEssays.json"), "{complaint}");
}

#[test]
fn long_lists_have_words_enough() {
    let options = Options::new(131_072, 1);
    let samples = samples(
        task("cwe").unwrap(),
        &options,
        &Sources::generated(),
        &quarter,
    );
    assert!(samples.unwrap()[0].length > 130_000);
}

#[test]
fn an_example_of_many_tokens_is_as_small_as_it_can_be() {
    let letters = |text: &str| Ok(text.chars().count());
    let task = task("vt").unwrap();
    let found = samples(
        task,
        &Options::new(4096, 2),
        &Sources::generated(),
        &letters,
    )
    .unwrap();
    for sample in found {
        assert!(sample.length <= 4096);
        let answer = readers::perfect(task, &sample.prompt());
        assert_eq!(task.metric.score(&answer, &sample.outputs), 1.0);
    }
}
