//! Random changes of files and command lines.

use espalier::data::random::Random;
use serde_json::{Value, json};

/// Odd values in the place of good ones.
fn odd_values() -> Vec<Value> {
    let deep = |depth: usize| (0..depth).fold(json!(1), |value, _| json!([value]));
    vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(0.5),
        json!(1e308),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(4_294_967_296u64),
        json!(1_000_000),
        json!(""),
        json!("a"),
        json!("\u{0}"),
        json!("NaN"),
        json!("../.."),
        json!("."),
        json!("é\u{301}\u{1f468}\u{200d}\u{1f469}"),
        json!("a".repeat(10_000)),
        json!("(a*)*b"),
        json!([]),
        json!({}),
        json!([[]]),
        json!(vec![0; 1000]),
        deep(100),
    ]
}

/// Pieces that mean something in one of the formats.
const PIECES: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "((",
    "))",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "'",
    ",",
    ":",
    "=",
    "|",
    "~",
    "-",
    "- ",
    "not ",
    "*",
    "**",
    "\n",
    "\t",
    "\\",
    "\u{0}",
    "\u{feff}",
    "é",
    "999999999",
    "-1",
    "1e400",
    "null",
    "true",
    "[[",
    "]]",
    "#",
    "$",
    "/",
    "../",
    "{% for x in range(99999) %}",
    "{% endfor %}",
    "| tojson(indent=99999)",
    "* 99999",
    "[::-1]",
    "[:99999999]",
    "| batch(99999)",
    "| slice(99999)",
    "| indent(99999)",
    "| sort",
    "| reverse",
    "| join(messages)",
    "| string",
    "| list",
    "| center(99999)",
    "{% set x = messages %}",
    "{% set x = x + x %}",
    "{{ x ~ x }}",
    "range(0, 999999999)",
    "loop.index",
    "namespace()",
    "raise_exception('no')",
    "strftime_now('%Y')",
    "| map('upper')",
    "| selectattr('role')",
    "| replace('', 'aaaaaaaa')",
    "__class__",
    "messages[0]",
    "| round(999)",
    "| urlencode",
    "| wordwrap(0)",
    "| format(1)",
    "| int(base=99)",
];

/// Odd words of a command line.
const WORDS: &[&str] = &[
    "",
    "-",
    "--",
    "-1",
    "0",
    "1",
    "nan",
    "inf",
    "-inf",
    "1e-400",
    "1e400",
    "99999999999999999999",
    "18446744073709551615",
    "4294967296",
    "1000000",
    "65536",
    ".",
    "..",
    "/",
    "/dev/null",
    "/dev/full",
    "run",
    "run/01-grow",
    "data.jsonl",
    "recipe.toml",
    "no-such-thing",
    "--json",
    "--quiet",
    "--help",
    "--seed",
    "--max-new-tokens",
    "--beams",
    "--stop",
    "--top-p",
    "--top-k",
    "--temperature",
    "--pooling",
    "--length",
    "--items",
    "--count",
    "--form",
    "--template",
    "--file",
    "--output",
    "=",
    "a=b",
    "steps=0",
    "steps=-1",
    "batch=99999999",
    "length=1",
    "length=99999999999",
    "learning_rate=nan",
    "learning_rate=inf",
    "seeds=[]",
    "seeds=[0,0]",
    "output=",
    "stage.grow.train.new.width=0",
    "stage.grow.train.new.width=99999999",
    "stage.grow.train.new.layers=99999",
    "stage.grow.train.new.vocabulary=99999999",
    "é\u{301}",
    "a\tb",
    "%s",
    "g1/99",
    "sentence/2",
];

/// A source of changes, the same for the same seed.
pub struct Mutator(Random);

impl Mutator {
    /// Of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.below(end.max(1))
    }

    fn choice<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Changes a file: as JSON where it is, else as text, and now and then byte by byte.
    pub fn file(&mut self, good: &[u8]) -> Vec<u8> {
        let json = serde_json::from_slice::<Value>(good).ok();
        match (json, std::str::from_utf8(good), self.below(8)) {
            (Some(value), _, 1..) => self.json(value).to_string().into_bytes(),
            (None, Ok(text), 2..) => self.text(text).into_bytes(),
            // A line of a file of lines, changed as JSON.
            (None, Ok(text), 1) => {
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                let line = self.below(lines.len());
                if let Some(Ok(value)) = lines.get(line).map(|line| serde_json::from_str(line)) {
                    lines[line] = self.json(value).to_string();
                }
                lines.join("\n").into_bytes()
            }
            _ => self.bytes(good.to_vec()),
        }
    }

    fn json(&mut self, mut value: Value) -> Value {
        for _ in 0..=self.below(3) {
            let count = nodes(&value);
            let mut place = self.below(count);
            let odd = odd_values();
            let new = match self.below(6) {
                // Another part of the same file.
                0 => {
                    let mut other = self.below(count);
                    find(&mut value.clone(), &mut other).map(|node| node.clone())
                }
                1 => None,
                _ => Some(self.choice(&odd).clone()),
            };
            let drop_or_double = self.below(3);
            if let Some(node) = find(&mut value, &mut place) {
                match (new, node) {
                    (Some(new), node) => *node = new,
                    (None, Value::Object(map)) if !map.is_empty() => {
                        let key = map.keys().nth(drop_or_double % map.len()).cloned();
                        let taken = key.and_then(|key| map.remove(&key));
                        if drop_or_double == 1 {
                            map.insert("another".into(), taken.unwrap_or_default());
                        }
                    }
                    (None, Value::Array(list)) if drop_or_double == 0 => list.extend(list.clone()),
                    (None, Value::Array(list)) => drop(list.pop()),
                    (None, Value::String(text)) => text.push_str("\u{fffd}{{"),
                    (None, node) => *node = json!({ "value": node.clone() }),
                }
            }
        }
        value
    }

    fn text(&mut self, text: &str) -> String {
        let mut characters: Vec<char> = text.chars().collect();
        for _ in 0..=self.below(4) {
            let at = self.below(characters.len() + 1);
            let end = (at + self.below(40)).min(characters.len());
            match self.below(5) {
                0 => drop(characters.drain(at..end)),
                1 => {
                    let again: Vec<char> = characters[at..end].repeat(1 + self.below(6));
                    characters.splice(at..at, again);
                }
                2 => {
                    // Nesting.
                    let piece = *self.choice(PIECES);
                    let times = *self.choice(&[2, 50, 3000]);
                    characters.splice(at..at, piece.repeat(times).chars());
                }
                _ => {
                    let piece = *self.choice(PIECES);
                    characters.splice(at..at, piece.chars());
                }
            }
        }
        characters.into_iter().collect()
    }

    fn bytes(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.below(6) {
            // Headers are where most of the meaning is.
            let reach = *self.choice(&[16, 400, usize::MAX]);
            let at = self.below(bytes.len().min(reach) + 1);
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.below(256) as u8),
                2 => {
                    let end = (at + self.below(64)).min(bytes.len());
                    bytes.drain(at..end);
                }
                3 => {
                    let end = (at + self.below(64)).min(bytes.len());
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
                4 => {
                    for byte in bytes.iter_mut().skip(at).take(8) {
                        *byte = 0xff;
                    }
                }
                _ => {
                    let flip = 1 << self.below(8);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= flip;
                    }
                }
            }
        }
        bytes
    }

    /// Changes the words of a command line.
    pub fn words(&mut self, mut words: Vec<String>) -> Vec<String> {
        for _ in 0..=self.below(3) {
            let at = self.below(words.len());
            match self.below(5) {
                0 if words.len() > 1 => drop(words.remove(at)),
                1 => words.insert(at, (*self.choice(WORDS)).to_owned()),
                2 => {
                    let other = self.below(words.len());
                    words.swap(at, other);
                }
                3 => {
                    let (key, _) = words[at].split_once('=').unwrap_or((&words[at], ""));
                    words[at] = format!("{key}={}", self.choice(WORDS));
                }
                _ => words[at] = (*self.choice(WORDS)).to_owned(),
            }
        }
        words
    }
}

/// Values inside a value, itself included.
fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(nodes).sum::<usize>(),
        Value::Object(map) => map.values().map(nodes).sum(),
        _ => 0,
    }
}

/// The value at a place, counted as by [`nodes`].
fn find<'a>(value: &'a mut Value, place: &mut usize) -> Option<&'a mut Value> {
    if *place == 0 {
        return Some(value);
    }
    *place -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|inner| find(inner, place)),
        Value::Object(map) => map.values_mut().find_map(|inner| find(inner, place)),
        _ => None,
    }
}
