//! Stop strings in streamed text.
//!
//! A stop string may begin in one piece of text and end in a later one, so text that may turn out to begin one is held back. The
//! stop string that is complete first counts, so the result does not depend on how the text is cut into pieces.

/// The consequence of a piece of text for the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// Give out this text, which may be empty, and go on.
    Emit(String),
    /// Give out this text, which may be empty, and stop: a stop string came next.
    Stop(String),
}

/// Watches streamed text for stop strings.
///
/// ```
/// use espalier_engine::stop::{StopMatcher, Stopped};
/// let mut matcher = StopMatcher::new(vec!["\nUser:".into()]);
/// assert_eq!(matcher.push("Yes.\nUs"), Stopped::Emit("Yes.".into()));
/// assert_eq!(matcher.push("er: more"), Stopped::Stop(String::new()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that has not been given out.
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self {
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes a piece of text. After a stop string, everything is ignored.
    pub fn push(&mut self, text: &str) -> Stopped {
        if self.stopped {
            return Stopped::Stop(String::new());
        }
        self.held.push_str(text);
        if let Some(start) = self.first_stop() {
            self.stopped = true;
            self.held.truncate(start);
            return Stopped::Stop(std::mem::take(&mut self.held));
        }
        let rest = self.held.split_off(self.safe_length());
        Stopped::Emit(std::mem::replace(&mut self.held, rest))
    }

    /// The text held back, when no more comes. Nothing after a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string begins that ends first (of those that end together, the longest).
    fn first_stop(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        found.min().map(|(_, start)| start)
    }

    /// Bytes before the first place where a stop string may have begun.
    fn safe_length(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let places = self
            .held
            .char_indices()
            .map(|(place, _)| place)
            .filter(|place| *place >= from);
        let begins = |place: &usize| {
            self.stops
                .iter()
                .any(|stop| stop.starts_with(&self.held[*place..]))
        };
        places.into_iter().find(begins).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|stop| stop.to_string()).collect())
    }

    /// Everything given out, and whether a stop string came.
    fn run(stops: &[&str], pieces: &[String]) -> (String, bool) {
        let (mut matcher, mut text) = (matcher(stops), String::new());
        for piece in pieces {
            match matcher.push(piece) {
                Stopped::Emit(part) => text += &part,
                Stopped::Stop(part) => return (text + &part, true),
            }
        }
        (text + &matcher.finish(), false)
    }

    /// The text before the stop string that ends first, found without any streaming.
    fn expected(stops: &[&str], text: &str) -> (String, bool) {
        for end in text
            .char_indices()
            .map(|(place, character)| place + character.len_utf8())
        {
            let ending = stops
                .iter()
                .filter(|stop| text[..end].ends_with(**stop))
                .map(|stop| stop.len())
                .max();
            if let Some(length) = ending {
                return (text[..end - length].to_string(), true);
            }
        }
        (text.to_string(), false)
    }

    #[test]
    fn a_false_start_is_given_out_later() {
        let mut matcher = matcher(&["END"]);
        assert_eq!(matcher.push("a E"), Stopped::Emit("a ".into()));
        assert_eq!(matcher.push("N"), Stopped::Emit("".into()));
        assert_eq!(matcher.push("o E"), Stopped::Emit("ENo ".into()));
        assert_eq!(matcher.finish(), "E");
    }

    #[test]
    fn nothing_comes_after_a_stop() {
        let mut matcher = matcher(&["日本", ""]);
        assert_eq!(matcher.push("x日"), Stopped::Emit("x".into()));
        assert_eq!(matcher.push("本y"), Stopped::Stop("".into()));
        assert_eq!(matcher.push("z"), Stopped::Stop("".into()));
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn without_stops_all_text_passes() {
        assert_eq!(matcher(&[]).push("abc"), Stopped::Emit("abc".into()));
    }

    proptest! {
        #[test]
        fn pieces_give_the_text_before_the_first_stop(
            pieces in prop::collection::vec("[abcé]{0,4}", 0..12),
            stops in prop::collection::vec("[abcé]{1,4}", 0..4),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stops, &pieces), expected(&stops, &pieces.concat()));
        }
    }
}
