//! The regular expressions of a `tokenizer.json`, which are Oniguruma's in Ruby's syntax: where this library's engine reads a construct
//! otherwise, it is written in another way, which both read alike.
//!
//! So are the ends of lines (`^`, `$`), words (`\w`, `\b`), the option `m`, line breaks (`\R`), `\p{^...}` and the classes of POSIX.
//! What Oniguruma's classes hold was measured, character by character.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use crate::Error;

/// What `\w` is to Oniguruma, as the inside of a class.
const WORD: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}²³¹¼½¾";

/// The parts of a `tokenizer.json` that have patterns.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

impl Parts {
    fn patterns(&self) -> Vec<&str> {
        let mut found = Vec::new();
        for part in [&self.normalizer, &self.pre_tokenizer, &self.decoder] {
            collect(part, &mut found);
        }
        found
    }
}

/// The file with its patterns as this engine reads them; nothing where they are alike.
pub(super) fn translated(bytes: &[u8]) -> Option<Vec<u8>> {
    // What is no tokenizer is told of by the library.
    let parts: Parts = serde_json::from_slice(bytes).ok()?;
    let same = |pattern: &&str| rewritten(pattern) == **pattern;
    if parts.patterns().iter().all(same) {
        return None;
    }
    let mut file: Value = serde_json::from_slice(bytes).ok()?;
    for part in ["normalizer", "pre_tokenizer", "decoder"] {
        file.get_mut(part).into_iter().for_each(replace);
    }
    serde_json::to_vec(&file).ok()
}

/// The first pattern that cannot be read, and why.
pub(super) fn refused(bytes: &[u8]) -> Option<Error> {
    let parts: Parts = serde_json::from_slice(bytes).ok()?;
    let patterns = parts.patterns();
    let mut faults = patterns
        .iter()
        .filter_map(|pattern| Some((pattern, fault(pattern)?)));
    let (pattern, reason) = faults.next()?;
    let shown: String = pattern.chars().take(200).collect();
    Some(Error::Tokenizer(format!(
        "tokenizer.json: the regular expression `{shown}` cannot be read: {reason}"
    )))
}

fn fault(pattern: &str) -> Option<String> {
    let pattern = SplitPattern::Regex(rewritten(pattern));
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
    split.err().map(|reason| reason.to_string())
}

fn collect<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("Regex").and_then(Value::as_str));
            fields.values().for_each(|value| collect(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

fn replace(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(pattern)) = fields.get_mut("Regex") {
                *pattern = rewritten(pattern);
            }
            fields.values_mut().for_each(replace);
        }
        Value::Array(items) => items.iter_mut().for_each(replace),
        _ => {}
    }
}

/// A pattern in the constructs that both engines read alike.
fn rewritten(pattern: &str) -> String {
    let (mut written, mut rest, mut depth) = (String::with_capacity(pattern.len()), pattern, 0);
    while let Some(first) = rest.chars().next() {
        let (text, length) = match first {
            '\\' => escape(rest, depth > 0),
            '[' if depth > 0 => posix(rest).unwrap_or_else(|| {
                depth += 1;
                opening(rest)
            }),
            '[' => {
                depth += 1;
                opening(rest)
            }
            ']' if depth > 0 => {
                depth -= 1;
                ("]".into(), 1)
            }
            '^' if depth == 0 => (r"(?:\A|(?<=\n)(?!\z))".into(), 1),
            '$' if depth == 0 => (r"(?=\n|\z)".into(), 1),
            '(' if depth == 0 => options(rest),
            other => (other.to_string(), other.len_utf8()),
        };
        written.push_str(&text);
        rest = &rest[length..];
    }
    written
}

/// What opens a class, with a bracket that it has as its first character.
fn opening(rest: &str) -> (String, usize) {
    let negated = usize::from(rest[1..].starts_with('^'));
    let bracket = usize::from(rest[1 + negated..].starts_with(']'));
    let length = 1 + negated + bracket;
    let escaped = if bracket == 1 { r"\]" } else { "" };
    (rest[..1 + negated].to_owned() + escaped, length)
}

/// An escape in other words, and its bytes.
fn escape(rest: &str, in_class: bool) -> (String, usize) {
    let Some(kind) = rest[1..].chars().next() else {
        return (rest.to_owned(), rest.len());
    };
    let text = match kind {
        'w' if in_class => WORD.to_owned(),
        'w' => format!("[{WORD}]"),
        'W' => format!("[^{WORD}]"),
        'b' if !in_class => format!("(?:(?<=[{WORD}])(?![{WORD}])|(?<![{WORD}])(?=[{WORD}]))"),
        'B' if !in_class => format!("(?:(?<=[{WORD}])(?=[{WORD}])|(?<![{WORD}])(?![{WORD}]))"),
        'R' if !in_class => r"(?>\r\n|[\n\x0B\x0C\r\x{85}\x{2028}\x{2029}])".to_owned(),
        'p' if rest.starts_with(r"\p{^") => return (r"\P{".to_owned(), 4),
        'P' if rest.starts_with(r"\P{^") => return (r"\p{".to_owned(), 4),
        other => format!("\\{other}"),
    };
    (text, 1 + kind.len_utf8())
}

/// A class of POSIX such as `[:alpha:]`, inside of another class.
fn posix(rest: &str) -> Option<(String, usize)> {
    let end = rest.strip_prefix("[:")?.find(":]")?;
    let name = &rest[2..2 + end];
    let (negated, name) = match name.strip_prefix('^') {
        Some(name) => (true, name),
        None => (false, name),
    };
    let inside = match name {
        "alpha" => r"\p{Alphabetic}",
        "digit" => r"\p{Nd}",
        "alnum" => r"\p{Alphabetic}\p{Nd}",
        "upper" => r"\p{Uppercase}",
        "lower" => r"\p{Lowercase}",
        "space" => r"\s",
        "blank" => r"\p{Zs}\t",
        "cntrl" => r"\p{Cc}",
        "punct" => r"\p{P}\p{S}",
        "xdigit" => "0-9A-Fa-f",
        "word" => r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}",
        "ascii" => r"\x00-\x7F",
        "graph" => r"^\p{Z}\p{Cc}\p{Cs}\p{Cn}",
        "print" => r"^\p{Zl}\p{Zp}\p{Cc}\p{Cs}\p{Cn}",
        _ => return None,
    };
    let inside = match (negated, inside.strip_prefix('^')) {
        (true, Some(other)) => other.to_owned(),
        (true, None) => format!("^{inside}"),
        (false, _) => inside.to_owned(),
    };
    Some((format!("[{inside}]"), end + 4))
}

/// The beginning of a group; its option `m`, by which a point is any character, is called `s` here.
fn options(rest: &str) -> (String, usize) {
    let plain = ("(".to_owned(), 1);
    let Some(inside) = rest.strip_prefix("(?") else {
        return plain;
    };
    let length = inside.find(|letter: char| !"imx-".contains(letter));
    match length {
        Some(length) if length > 0 && inside[length..].starts_with([':', ')']) => {
            let letters = inside[..length].replace('m', "s");
            (format!("(?{letters}"), 2 + length)
        }
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    /// The parts that a pattern cuts a text into, each of which is a token of its own.
    fn parts(pattern: &str, text: &str) -> Vec<String> {
        let pre_tokenizer = serde_json::json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false
        });
        let file = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
            "decoder": null, "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}
        });
        let tokenizer = Tokenizer::from_json(file.to_string().as_bytes()).unwrap();
        let offsets = tokenizer.encode(text, false).unwrap().offsets;
        let characters: Vec<char> = text.chars().collect();
        let part = |(start, end): (usize, usize)| characters[start..end].iter().collect();
        offsets.into_iter().map(part).collect()
    }

    /// What the library with Oniguruma cuts, as Python has it.
    #[test]
    fn texts_are_cut_as_oniguruma_does() {
        for (pattern, text, expected) in [
            (r"^\s*\w+", "a b\nc d\n", &["a", " b\n", "c", " d\n"][..]),
            (r"\s+$", "a \nb  ", &["a", " ", "\nb", "  "][..]),
            (
                r"\w+",
                "a\u{200d}b²👍c",
                &["a", "\u{200d}", "b²", "👍", "c"][..],
            ),
            (r"[\w-]+", "a-b c", &["a-b", " ", "c"][..]),
            (r"[[:alpha:]]+", "aé日1", &["aé日", "1"][..]),
            (r"[[:punct:]]", "a+¢", &["a", "+", "¢"][..]),
            (r"[[:^digit:]]+", "a٣b", &["a", "٣", "b"][..]),
            (
                r"\R",
                "a\r\nb\u{85}c",
                &["a", "\r\n", "b", "\u{85}", "c"][..],
            ),
            (r"\p{^L}+", "a1 b", &["a", "1 ", "b"][..]),
            (r"(?m:b.)", "ab\nc", &["a", "b\n", "c"][..]),
            (r"[]^$]", "a]^", &["a", "]", "^"][..]),
        ] {
            assert_eq!(parts(pattern, text), expected, "{pattern}");
        }
    }

    #[test]
    fn what_both_read_alike_stays() {
        for pattern in [
            r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r" ?[^(\s|[.,!?…。，、।۔،])]+",
            r"(?<=\d)(?=(?:\d{3})+)|\$|[a\]b]",
        ] {
            assert_eq!(rewritten(pattern), pattern);
        }
        for pattern in [r"^\w\b$", r"[[:print:]\w]\R", r"(?mi)a"] {
            let once = rewritten(pattern);
            assert_ne!(once, pattern);
            assert_eq!(rewritten(&once), once, "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_cannot_be_read_is_shown() {
        let file = br#"{"version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "decoder": null,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a\\p{Emojis}"}, "behavior": "Isolated", "invert": false},
            "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}}"#;
        let message = Tokenizer::from_json(file).unwrap_err().to_string();
        assert!(
            message.contains(r"the regular expression `a\p{Emojis}` cannot be read"),
            "{message}"
        );
    }
}
