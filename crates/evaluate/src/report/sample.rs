//! Samples: one question, and what each of several models answered, marked right or wrong.

use super::{element, escape};

/// A question and its answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// The heading; may be empty.
    pub title: String,
    /// What was asked.
    pub question: String,
    /// What would be right; may be empty.
    pub expected: String,
    /// The answers, in order.
    pub answers: Vec<Answered>,
}

/// One model's answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answered {
    /// Whose answer it is.
    pub by: String,
    /// The answer.
    pub text: String,
    /// Whether it is right, where that was checked.
    pub right: Option<bool>,
}

impl Sample {
    pub(super) fn html(&self) -> String {
        let answers: String = self.answers.iter().map(Answered::html).collect();
        let expected = match self.expected.is_empty() {
            true => String::new(),
            false => line("turn", "expected", &self.expected, ""),
        };
        format!(
            "<article>\n{}{}{answers}{expected}</article>\n",
            element("h3", "", &self.title),
            line("turn", "asked", &self.question, ""),
        )
    }
}

impl Answered {
    fn html(&self) -> String {
        let (class, mark) = match self.right {
            Some(true) => (
                "turn model is-right",
                "<span class=\"verdict right\">✓ right</span>",
            ),
            Some(false) => (
                "turn model is-wrong",
                "<span class=\"verdict wrong\">✗ wrong</span>",
            ),
            None => ("turn model", ""),
        };
        let text = match self.text.trim().is_empty() {
            true => "(nothing)",
            false => &self.text,
        };
        line(class, &self.by, text, mark)
    }
}

/// Who, and what was said; `mark` is HTML.
fn line(class: &str, who: &str, text: &str, mark: &str) -> String {
    format!(
        "<div class=\"{class}\"><span class=\"role\">{} {mark}</span><div class=\"said\">{}</div></div>\n",
        escape(who),
        escape(text),
    )
}
