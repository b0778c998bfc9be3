//! Scores of answers: which of the expected strings they contain.

/// How much of the expected strings an answer must contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The share of them that it contains.
    All,
    /// Any one of them.
    Part,
}

impl Match {
    /// The score of one answer, from 0 to 1; upper and lower case are alike.
    ///
    /// ```
    /// use espalier_evaluate::ruler::score::Match;
    /// let outputs = ["a1".to_owned(), "c3".to_owned()];
    /// assert_eq!(Match::All.score("A1 b2", &outputs), 0.5);
    /// assert_eq!(Match::Part.score("A1 b2", &outputs), 1.0);
    /// ```
    pub fn score(self, answer: &str, outputs: &[String]) -> f64 {
        let answer = printable(answer).to_lowercase();
        let found = outputs
            .iter()
            .filter(|output| answer.contains(&output.to_lowercase()))
            .count();
        match self {
            Self::All => found as f64 / outputs.len().max(1) as f64,
            Self::Part => f64::from(u8::from(found > 0)),
        }
    }
}

/// An answer as it is compared: control characters are line breaks, and there is no white space around it.
pub fn printable(answer: &str) -> String {
    let line_breaks = |letter: char| match letter {
        '\0'..='\u{1f}' => '\n',
        other => other,
    };
    let text: String = answer.trim().chars().map(line_breaks).collect();
    text.trim().to_owned()
}

/// The mean of scores between 0 and 1 in percent, to two decimals, as it is published; not a number where there is none.
pub fn percent(scores: &[f64]) -> f64 {
    let mean = scores.iter().sum::<f64>() / scores.len() as f64 * 100.0;
    format!("{mean:.2}").parse().unwrap_or(mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_rounded_as_published() {
        assert_eq!(percent(&[1.0, 0.0, 0.0]), 33.33);
        assert_eq!(percent(&[0.2, 0.4]), 30.0);
        assert!(percent(&[]).is_nan());
        assert_eq!(printable(" \u{0}7\t8\u{1} "), "7\n8");
        let none = ["x".to_owned()];
        assert_eq!(Match::All.score("y", &none), 0.0);
        assert_eq!(Match::Part.score("", &none), 0.0);
    }
}
