//! "Did you mean ...?": the nearest of the valid names, for error messages.

/// Number of insertions, deletions and replacements between two words (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

/// The choice nearest to `name`, if it is near: at most a third of the letters differ.
///
/// ```
/// use espalier_data::readers::nearest::nearest;
/// assert_eq!(nearest("alpacca", &["alpaca", "sharegpt"]), Some("alpaca"));
/// assert_eq!(nearest("csv", &["alpaca", "sharegpt"]), None);
/// ```
pub fn nearest<'a>(name: &str, choices: &[&'a str]) -> Option<&'a str> {
    // Names from a file can be of any length; long ones are no typing mistakes.
    if name.len() > 64 {
        return None;
    }
    let ranked = choices
        .iter()
        .map(|choice| (distance(name, choice), *choice));
    let (distance, choice) = ranked.min_by_key(|(distance, _)| *distance)?;
    (distance <= name.chars().count().max(choice.len()) / 3).then_some(choice)
}

/// ``; did you mean `x`?`` for the nearest choice, or nothing.
pub fn suggestion(name: &str, choices: &[&str]) -> String {
    nearest(name, choices)
        .map(|choice| format!("; did you mean `{choice}`?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("input", "inputs"), 1);
    }
}
