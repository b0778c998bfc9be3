//! Which tokens of a prompt are edited: `f7+l7`, the first seven and the last seven.

use std::{fmt, str::FromStr};

use crate::token_places::Place;

/// How many tokens at each end of the prompt. Of a prompt of n tokens no more than n / 2 (rounded down) at either end, so that none
/// is at both.
///
/// ```
/// use espalier_models::adapter::reft::Positions;
/// let positions: Positions = "f2+l1".parse()?;
/// assert_eq!((positions.first, positions.last), (2, 1));
/// assert_eq!(positions.to_string(), "f2+l1");
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// Tokens at the start.
    pub first: usize,
    /// Tokens at the end.
    pub last: usize,
}

impl Positions {
    /// Whether a token is one of the first.
    pub(super) fn is_first(self, place: Place) -> bool {
        place.index < self.first.min(place.prompt / 2)
    }

    /// Whether a token is one of the last.
    pub(super) fn is_last(self, place: Place) -> bool {
        let last = self.last.min(place.prompt / 2);
        place.index < place.prompt && place.index + last >= place.prompt
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (first, 0) => write!(f, "f{first}"),
            (0, last) => write!(f, "l{last}"),
            (first, last) => write!(f, "f{first}+l{last}"),
        }
    }
}

impl FromStr for Positions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = |part: &str, end: char| -> Option<usize> {
            let digits = part.strip_prefix(end)?;
            digits.parse().ok().filter(|count| *count > 0)
        };
        let parsed = match text.split_once('+') {
            Some((first, last)) => count(first, 'f').zip(count(last, 'l')),
            None => match count(text, 'f') {
                Some(first) => Some((first, 0)),
                None => count(text, 'l').map(|last| (0, last)),
            },
        };
        let (first, last) = parsed.ok_or_else(|| {
            format!(
                "`{text}` names no tokens of a prompt; expected `f<p>+l<s>`, `f<p>` or `l<s>`, such as `f7+l7`: the first p and the last s tokens"
            )
        })?;
        Ok(Self { first, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(positions: &str, prompt: usize) -> [Vec<usize>; 2] {
        let positions: Positions = positions.parse().unwrap();
        let among = |is: fn(Positions, Place) -> bool| {
            (0..prompt + 3)
                .filter(|index| {
                    let index = *index;
                    is(positions, Place { index, prompt })
                })
                .collect()
        };
        [among(Positions::is_first), among(Positions::is_last)]
    }

    #[test]
    fn both_ends_take_no_more_than_half_of_the_prompt_each() {
        let check = |positions: &str, prompt, first: &[usize], last: &[usize]| {
            assert_eq!(chosen(positions, prompt), [first.to_vec(), last.to_vec()]);
        };
        check("f2+l3", 9, &[0, 1], &[6, 7, 8]);
        check("f7+l7", 5, &[0, 1], &[3, 4]);
        check("f7+l7", 1, &[], &[]);
        check("f3", 4, &[0, 1], &[]);
        check("l1", 4, &[], &[3]);
    }

    #[test]
    fn what_names_no_tokens_is_refused() {
        for text in [
            "", "f", "7", "f0", "l7+f7", "f1+l0", "f-1", "f1+l1+l1", "F1",
        ] {
            assert!(text.parse::<Positions>().is_err(), "{text}");
        }
        for text in ["f1", "l12", "f3+l4"] {
            assert_eq!(text.parse::<Positions>().unwrap().to_string(), text);
        }
    }
}
