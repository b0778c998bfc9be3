//! BLEU, chrF and TER beside sacrebleu's figures, and figures of classes beside scikit-learn's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use espalier_evaluate::tasks::{
    Item, Metric, Prompt, Request, Score,
    metric::{Answer, Likelihood},
};
use serde_json::Value;

fn item(request: Request) -> Item {
    Item {
        number: 0,
        doc: Value::Null,
        request,
    }
}

/// The figure of answers, each with its references, and each answer's own.
fn figures(name: &str, pairs: &[(&str, &[&str])]) -> (f64, Vec<f64>) {
    let metric = Metric::named(name).unwrap();
    let mark = |(answer, golds): &(&str, &[&str])| {
        let request = Request::Generate {
            prompt: Prompt::plain("q"),
            gold: golds.iter().map(|gold| (*gold).to_owned()).collect(),
        };
        let texts = [(*answer).to_owned()];
        metric
            .mark(&item(request), &Answer::Texts(&texts))
            .unwrap()
            .unwrap()
    };
    let marks: Vec<Score> = pairs.iter().map(mark).collect();
    let own = marks.iter().map(|mark| mark.value).collect();
    (metric.aggregate(&marks).unwrap(), own)
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-5, "{found} {expected}");
}

/// The example of sacrebleu's manual.
const MANUAL: [(&str, &[&str]); 3] = [
    (
        "The dog bit the man.",
        &["The dog bit the man.", "The dog had bit the man."],
    ),
    (
        "It wasn't surprising.",
        &["It was not unexpected.", "No one was surprised."],
    ),
    (
        "The man had just bitten him.",
        &["The man bit him first.", "The man had bitten the dog."],
    ),
];

/// Answers with punctuation, entities, shifts, nothing at all and other letters, measured by sacrebleu 2.
const MIXED: [(&str, &[&str]); 6] = [
    (
        "The quick, brown fox jumps over the lazy-dog at 10-20 km/h today.",
        &["Today the quick brown fox jumps over the lazy dog, at 10-20 km/h."],
    ),
    (
        "and then 3.5 dogs &amp; two cats (or so) slept; it was late late late",
        &["then 3.5 dogs & two cats slept (or so); it was very late"],
    ),
    ("x y z a b c d e", &["a b c d e x y z"]),
    ("", &["nothing was said"]),
    (
        "Größe und Maß: ähnlich wie früher, oder?",
        &["Größe und Maße: ähnlich wie früher."],
    ),
    (
        "the man who came yesterday has the big red car bought",
        &["the man who came yesterday has bought the big red car"],
    ),
];

#[test]
fn figures_are_sacrebleus() {
    for (name, manual, mixed, own) in [
        (
            "bleu",
            48.530827,
            54.687796,
            [52.93251, 48.902285, 69.144157, 0.0, 31.239399, 71.860822],
        ),
        (
            "chrf",
            59.727518,
            69.718185,
            [74.134741, 57.142975, 52.896825, 0.0, 81.378958, 87.275565],
        ),
        (
            "ter",
            40.0,
            38.888889,
            [46.153846, 53.846154, 12.5, 100.0, 50.0, 9.090909],
        ),
    ] {
        near(figures(name, &MANUAL).0, manual);
        let (found, each) = figures(name, &MIXED);
        near(found, mixed);
        each.iter()
            .zip(own)
            .for_each(|(found, own)| near(*found, own));
    }
}

#[test]
fn shifts_count_once() {
    near(figures("ter", &[("d a b c", &["A b c d"])]).0, 25.0);
    near(
        figures("ter", &[("a b c", &["a b c"]), ("x", &["a b c"])]).0,
        50.0,
    );
    near(figures("ter", &[("one two", &[""])]).0, 100.0);
    assert!(!Metric::named("ter").unwrap().higher_is_better);
}

#[test]
fn empty_answers_are_worth_nothing() {
    for name in ["bleu", "chrf"] {
        assert_eq!(figures(name, &[("", &["a b c d"])]).0, 0.0, "{name}");
        assert!(
            figures(name, &[("", &["a b c d"]), ("a b c d", &["a b c d"])]).0 > 0.0,
            "{name}"
        );
    }
    near(figures("ter", &[("", &["a b"])]).0, 100.0);
}

#[test]
fn classes_have_a_correlation() {
    let metric = Metric::named("mcc").unwrap();
    let mark = |(gold, chosen): (usize, usize)| {
        let choices: Vec<String> = ["no", "yes"].map(str::to_owned).to_vec();
        let request = Request::Choice {
            prompt: Prompt::plain("q"),
            contexts: Vec::new(),
            continuations: choices.clone(),
            choices,
            gold: vec![gold],
            alone: false,
        };
        let found = [0, 1].map(|at| Likelihood {
            log_probability: if at == chosen { -1.0 } else { -2.0 },
            first_choice: false,
        });
        metric
            .mark(&item(request), &Answer::Likelihoods(&found))
            .unwrap()
            .unwrap()
    };
    let marks: Vec<Score> = [(1, 1), (1, 1), (1, 0), (0, 0)]
        .into_iter()
        .map(mark)
        .collect();
    assert_eq!(marks.iter().map(|mark| mark.value).sum::<f64>(), 3.0);
    near(metric.aggregate(&marks).unwrap(), 0.577350269);
}
