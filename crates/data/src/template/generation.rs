//! `{% generation %}` blocks, with which a template says what the assistant generates.
//!
//! The engine knows no custom tags, so the tags are rewritten to a filter block, whitespace marks kept. The filter puts a
//! character that occurs nowhere in the input before and after the block's text; both are taken out of the rendered text and
//! their places noted.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Rendered;

/// The filter that stands for a generation block.
pub(super) const FILTER: &str = "espalier_generation_block";

/// Rewrites the generation tags of a template; tells whether there was a generation tag.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let (mut program, mut rest, mut marked, mut raw) =
        (String::with_capacity(source.len()), source, false, false);
    while let Some(place) = rest.find('{') {
        program.push_str(&rest[..place]);
        rest = &rest[place..];
        // What is not closed is an error of the parser's.
        let Some(length) = construct_length(rest, raw) else {
            break;
        };
        let (construct, after) = rest.split_at(length);
        match tag_name(construct) {
            Some("generation") if !raw => {
                marked = true;
                program.push_str(&construct.replacen("generation", &format!("filter {FILTER}"), 1));
            }
            Some("endgeneration") if !raw => {
                program.push_str(&construct.replacen("endgeneration", "endfilter", 1))
            }
            name => {
                raw = if raw {
                    name != Some("endraw")
                } else {
                    name == Some("raw")
                };
                program.push_str(construct);
            }
        }
        rest = after;
    }
    program.push_str(rest);
    (program, marked)
}

/// Bytes of the comment, expression or tag that the text begins with; 1 for a lone brace. Inside `raw`, only its end counts.
fn construct_length(text: &str, raw: bool) -> Option<usize> {
    match text.as_bytes().get(1) {
        Some(b'%') if raw => {
            let tag = text[2..].trim_start_matches(['-', '+']).trim_start();
            let is_end = tag.starts_with("endraw");
            let end = is_end.then(|| text.find("%}")).flatten();
            Some(end.map_or(1, |place| place + 2))
        }
        _ if raw => Some(1),
        Some(b'#') => text.find("#}").map(|place| place + 2),
        Some(b'{') => length_outside_strings(text, "}}"),
        Some(b'%') => length_outside_strings(text, "%}"),
        _ => Some(1),
    }
}

/// Bytes up to the closing mark, which may also stand inside a string, where it does not count.
fn length_outside_strings(text: &str, close: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut quote, mut place) = (None, 2);
    while place < bytes.len() {
        match (quote, bytes[place]) {
            (Some(_), b'\\') => place += 1,
            (Some(open), byte) if open == byte => quote = None,
            (None, byte @ (b'\'' | b'"')) => quote = Some(byte),
            (None, _) if bytes[place..].starts_with(close.as_bytes()) => return Some(place + 2),
            _ => {}
        }
        place += 1;
    }
    None
}

/// The first word of a tag.
fn tag_name(construct: &str) -> Option<&str> {
    let inside = construct.strip_prefix("{%")?.strip_suffix("%}")?;
    inside.trim_matches(['-', '+']).split_whitespace().next()
}

/// Two characters that occur nowhere in a template and its variables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sentinels {
    open: char,
    close: char,
}

impl Sentinels {
    pub(super) fn absent_from(program: &str, variables: &Map<String, Value>) -> Self {
        let mut free = absent_characters(program, variables);
        // Two planes of private characters cannot be used up by any input worth rendering.
        Self {
            open: free.next().unwrap_or('\u{F0000}'),
            close: free.next().unwrap_or('\u{F0001}'),
        }
    }

    pub(super) fn wrap(self, body: &str) -> String {
        format!("{}{body}{}", self.open, self.close)
    }

    /// Takes the sentinels out and notes the characters between them.
    pub(super) fn extract(self, marked: &str) -> Rendered {
        let mut rendered = Rendered {
            text: String::with_capacity(marked.len()),
            generation: Vec::new(),
        };
        let (mut length, mut start) = (0, None);
        for character in marked.chars() {
            if character == self.open {
                start = start.or(Some(length));
            } else if character == self.close {
                rendered
                    .generation
                    .extend(start.take().map(|start| (start, length)));
            } else {
                rendered.text.push(character);
                length += 1;
            }
        }
        rendered
    }
}

/// The private characters that occur nowhere in a template and its variables, in order.
pub(super) fn absent_characters(
    program: &str,
    variables: &Map<String, Value>,
) -> impl Iterator<Item = char> + use<> {
    let mut taken = BTreeSet::new();
    note_private(program, &mut taken);
    variables.iter().for_each(|(key, value)| {
        note_private(key, &mut taken);
        note_private_of(value, &mut taken);
    });
    ('\u{F0000}'..='\u{10FFFD}').filter(move |character| !taken.contains(character))
}

fn note_private_of(value: &Value, taken: &mut BTreeSet<char>) {
    match value {
        Value::String(text) => note_private(text, taken),
        Value::Array(items) => items.iter().for_each(|item| note_private_of(item, taken)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            note_private(key, taken);
            note_private_of(value, taken);
        }),
        _ => {}
    }
}

fn note_private(text: &str, taken: &mut BTreeSet<char>) {
    taken.extend(text.chars().filter(|character| *character >= '\u{F0000}'));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_tags_are_rewritten() {
        let (program, marked) = rewrite("{%- generation -%}x{%endgeneration%}");
        assert_eq!(
            program,
            format!("{{%- filter {FILTER} -%}}x{{%endfilter%}}")
        );
        assert!(marked);
        for untouched in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{{ \"a\\\"{% generation %}\" }}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% set generation = 1 %}{ x } {",
            "{{ unclosed",
            "{% 'unclosed %}",
        ] {
            assert_eq!(rewrite(untouched), (untouched.to_string(), false));
        }
        assert!(rewrite("{% raw %}{{ ' {# {% endraw %}{% generation %}{% endgeneration %}").1);
    }

    #[test]
    fn spans_count_characters() {
        let sentinels = Sentinels::absent_from("", &Map::new());
        let text = format!("é{}{}", sentinels.wrap("日本"), sentinels.wrap(""));
        let rendered = sentinels.extract(&text);
        assert_eq!(
            rendered,
            Rendered {
                text: "é日本".into(),
                generation: vec![(1, 3), (3, 3)]
            }
        );
    }
}
