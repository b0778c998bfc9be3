//! Python's literals in text, as templates of task files print lists: `['a', "b"]`, `(1, 2.5)`, `None`, `{'k': 1}`.
//!
//! Left out: bytes, complex numbers, sets, prefixes of strings and strings in three quotes.

use serde_json::{Map, Number, Value};

/// Deeper nesting is refused.
const DEEPEST: usize = 64;

/// The value of a literal; nothing where the text is none.
///
/// ```
/// use espalier_evaluate::tasks::literal::literal;
/// assert_eq!(literal("['it\\'s', 2]"), Some(serde_json::json!(["it's", 2])));
/// assert_eq!(literal("a + b"), None);
/// ```
pub fn literal(text: &str) -> Option<Value> {
    let mut reader = Reader {
        rest: text.trim(),
        depth: 0,
    };
    let value = reader.value()?;
    reader.skip();
    reader.rest.is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, expected: char) -> bool {
        self.skip();
        match self.rest.strip_prefix(expected) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self) -> Option<Value> {
        self.skip();
        match self.rest.chars().next()? {
            '[' => self.items('[', ']').map(|(items, _)| Value::Array(items)),
            '(' => {
                let (mut items, comma) = self.items('(', ')')?;
                match items.len() {
                    1 if !comma => items.pop(),
                    _ => Some(Value::Array(items)),
                }
            }
            '{' => self.map(),
            '\'' | '"' => self.strings().map(Value::String),
            _ => self.word(),
        }
    }

    /// Elements between brackets, and whether a comma came behind the last.
    fn items(&mut self, open: char, close: char) -> Option<(Vec<Value>, bool)> {
        self.enter(open)?;
        let (mut items, mut comma) = (Vec::new(), false);
        while !self.take(close) {
            if !items.is_empty() && !comma {
                return None;
            }
            items.push(self.value()?);
            comma = self.take(',');
        }
        self.depth -= 1;
        Some((items, comma))
    }

    fn map(&mut self) -> Option<Value> {
        self.enter('{')?;
        let (mut map, mut comma) = (Map::new(), true);
        while !self.take('}') {
            if !comma {
                return None;
            }
            let key = match self.value()? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            if !self.take(':') {
                return None;
            }
            map.insert(key, self.value()?);
            comma = self.take(',');
        }
        self.depth -= 1;
        Some(Value::Object(map))
    }

    fn enter(&mut self, open: char) -> Option<()> {
        self.depth += 1;
        (self.take(open) && self.depth <= DEEPEST).then_some(())
    }

    /// Strings side by side are one.
    fn strings(&mut self) -> Option<String> {
        let mut text = String::new();
        while self.rest.starts_with(['\'', '"']) {
            text += &self.string()?;
            self.skip();
        }
        Some(text)
    }

    fn string(&mut self) -> Option<String> {
        let mut characters = self.rest.char_indices();
        let (_, quote) = characters.next()?;
        let mut text = String::new();
        while let Some((at, character)) = characters.next() {
            match character {
                '\n' => return None,
                '\\' => text.extend(escaped(&mut characters)?),
                _ if character == quote => {
                    self.rest = &self.rest[at + quote.len_utf8()..];
                    return Some(text);
                }
                _ => text.push(character),
            }
        }
        None
    }

    fn word(&mut self) -> Option<Value> {
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        let value = match word {
            "None" => Value::Null,
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            _ => number(word)?,
        };
        self.rest = rest;
        Some(value)
    }
}

fn number(word: &str) -> Option<Value> {
    if !word.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return None;
    }
    let plain = word.replace('_', "");
    if let Ok(whole) = plain.parse::<i64>() {
        return Some(whole.into());
    }
    let float: f64 = plain.parse().ok()?;
    Number::from_f64(float).map(Value::Number)
}

/// What an escape stands for; an unknown one stands for itself.
fn escaped(characters: &mut std::str::CharIndices) -> Option<Vec<char>> {
    let (_, kind) = characters.next()?;
    let mut code = |digits: usize| {
        let text: String = characters
            .by_ref()
            .take(digits)
            .map(|(_, digit)| digit)
            .collect();
        char::from_u32(u32::from_str_radix(&text, 16).ok()?)
    };
    Some(match kind {
        'n' => vec!['\n'],
        't' => vec!['\t'],
        'r' => vec!['\r'],
        '0' => vec!['\0'],
        '\n' => vec![],
        'x' => vec![code(2)?],
        'u' => vec![code(4)?],
        'U' => vec![code(8)?],
        '\\' | '\'' | '"' => vec![kind],
        other => vec!['\\', other],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_are_read_as_python_reads_them() {
        for (text, value) in [
            ("[]", json!([])),
            ("['a', \"b\", 'c\\n\\x41']", json!(["a", "b", "c\nA"])),
            ("('a',)", json!(["a"])),
            ("('a')", json!("a")),
            ("[1, -2.5, None, True,]", json!([1, -2.5, null, true])),
            ("{'a': [1], 2: 'b'}", json!({"a": [1], "2": "b"})),
            ("'a' 'b'", json!("ab")),
        ] {
            assert_eq!(literal(text), Some(value), "{text}");
        }
    }

    #[test]
    fn other_texts_are_none() {
        for text in [
            "",
            "a",
            "[a]",
            "['a' , , 'b']",
            "['a'",
            "['a'] b",
            "__import__('os')",
            "[1 2]",
        ] {
            assert_eq!(literal(text), None, "{text}");
        }
        assert_eq!(literal(&"[".repeat(100_000)), None);
    }
}
