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
    assert!((found - expected).abs() < 5e-3, "{found} {expected}");
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

#[test]
fn the_manuals_example_has_its_figures() {
    near(figures("bleu", &MANUAL).0, 48.53);
    near(figures("chrf", &MANUAL).0, 59.73);
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
    near(metric.aggregate(&marks).unwrap(), 0.57735);
}
