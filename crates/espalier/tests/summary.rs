//! What a run measured, as table, cards and bars.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use espalier::{
    evaluate::report::Section,
    recipe::Recipe,
    stages::summary::{BASELINE, Summary, summary},
};
use serde_json::{Value, json};

fn of(stages: &[(&str, Value)]) -> Summary {
    let entry = |(name, _): &(&str, Value)| {
        format!("[[stage]]\nname = '{name}'\nevaluate = {{ model = 'm', tasks = ['g1/1'] }}\n")
    };
    let text: String = stages.iter().map(entry).collect();
    let recipe = Recipe::parse(&format!("output = 'run'\n{text}"), "recipe.toml", &[]).unwrap();
    let results = stages
        .iter()
        .map(|(name, figures)| ((*name).to_owned(), figures.clone()));
    summary(&recipe, &results.collect())
}

fn task(value: f64, low: f64, high: f64) -> Value {
    json!({"tasks": {"g1/1": {
        "accuracy": {"value": value, "low": low, "high": high, "share": true, "higher_is_better": true},
        "items": 100, "samples": [], "prompts": "x"
    }}})
}

#[test]
fn evaluations_are_columns_and_intervals_decide_what_is_better() {
    let found = of(&[
        ("evaluate-before", task(0.1, 0.05, 0.17)),
        ("evaluate-after", task(0.5, 0.4, 0.6)),
    ]);
    assert_eq!(found.columns, ["before", "after"]);
    let table = found.table().unwrap();
    assert_eq!(
        table.rows,
        [["g1/1: accuracy", "10.0 % (5.0-17.0)", "50.0 % (40.0-60.0)"]]
    );
    let Some(Section::Highlights(cards)) = found.cards() else {
        panic!("no cards");
    };
    assert_eq!(cards[0].better, Some(true));
    assert!(cards[0].note.contains("before 10.0 %"), "{}", cards[0].note);
    let near = of(&[("a", task(0.1, 0.05, 0.17)), ("b", task(0.15, 0.1, 0.2))]);
    let Some(Section::Highlights(cards)) = near.cards() else {
        panic!("no cards");
    };
    assert_eq!(cards[0].better, None, "it may be chance");
}

#[test]
fn many_evaluations_become_rows_and_missing_figures_a_dash() {
    let names = ["a", "b", "c", "d", "e"];
    let mut stages: Vec<(&str, Value)> = names
        .iter()
        .map(|name| (*name, task(0.5, 0.4, 0.6)))
        .collect();
    stages[4].1 = json!({"perplexity": {"per_token": 3.5, "unigram": 7.0}});
    let table = of(&stages).table().unwrap();
    assert_eq!(
        table.columns,
        ["", "g1/1: accuracy", "perplexity", "of a unigram model"]
    );
    assert_eq!(table.rows[4], ["e", "-", "3.500", "7.000"]);
    assert_eq!(table.rows[0][2], "-");
    let bars = of(&stages).bars();
    let Section::Bars(perplexity) = &bars[1] else {
        panic!("no bars");
    };
    assert_eq!(perplexity.bars[0].value, 0.5, "half of the largest");
    assert_eq!(perplexity.bars[1].series, BASELINE);
}

#[test]
fn a_run_without_evaluation_has_no_table() {
    assert_eq!(Summary::default().table(), None);
    assert_eq!(Summary::default().cards(), None);
}
