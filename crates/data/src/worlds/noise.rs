//! Texts with words of random letters between their own: what a corpus has that nobody can learn.

use crate::random::Random;

/// Most letters of a word that means nothing.
const LONGEST: usize = 7;

/// `text` with words of random letters put between its own, so that they are about `share` of all.
///
/// ```
/// use espalier_data::{random::Random, worlds::noise::with_noise};
/// let noisy = with_noise("a b c", 0.5, &mut Random::new(0));
/// let mut words = noisy.split(' ');
/// assert!(["a", "b", "c"].iter().all(|word| words.any(|found| found == *word)));
/// assert_eq!(with_noise("a b c", 0.0, &mut Random::new(0)), "a b c");
/// ```
pub fn with_noise(text: &str, share: f64, random: &mut Random) -> String {
    // Before every word of the text there are `share / (1 - share)` of the others on average.
    let mut words = Vec::new();
    for word in text.split(' ') {
        while random.chance(share) {
            words.push(letters(random));
        }
        words.push(word.to_owned());
    }
    words.join(" ")
}

fn letters(random: &mut Random) -> String {
    let count = 1 + random.below(LONGEST);
    let letter = |_| char::from(b'a' + random.below(26) as u8);
    (0..count).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_words_that_mean_nothing_is_as_asked() {
        let text = vec!["word"; 2000].join(" ");
        let noisy = with_noise(&text, 0.4, &mut Random::new(7));
        let words = noisy.split(' ').count() as f64;
        let share = 1.0 - 2000.0 / words;
        assert!((share - 0.4).abs() < 0.02, "{share}");
        assert_eq!(noisy, with_noise(&text, 0.4, &mut Random::new(7)));
    }
}
