//! Values written as Python writes them: what `{{ ... }}` prints, `tojson`, and the string methods templates call.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};

use super::arguments::Arguments;
use super::{bounds, filters, strings};

/// Deeper values are refused rather than overflow the stack.
pub(super) const DEEPEST: usize = 128;

/// Prints an expression's value.
pub(super) fn print(output: &mut Output, _: &State, value: &Value) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        bounds::charge(text.len())?;
        return output.write_str(text).map_err(Error::from);
    }
    output.write_str(&text(value)?).map_err(Error::from)
}

/// Python's `str`: strings as they are, all else as `repr`.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => bounds::charge(text.len()).map(|()| text.to_string()),
        None => repr(value, 0),
    }
}

/// Python's `repr`: texts in quotes.
pub(super) fn quoted(value: &Value) -> Result<String, Error> {
    repr(value, 0)
}

fn repr(value: &Value, depth: usize) -> Result<String, Error> {
    check_depth(depth)?;
    let written = written(value, depth)?;
    bounds::charge(written.len())?;
    Ok(written)
}

fn written(value: &Value, depth: usize) -> Result<String, Error> {
    bounds::look(value)?;
    match value.kind() {
        ValueKind::String => Ok(repr_string(value.as_str().unwrap_or_default())),
        ValueKind::Number => Ok(number(value)),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Result<Vec<_>, _> = value
                .try_iter()?
                .map(|item| repr(&item, depth + 1))
                .collect();
            Ok(format!("[{}]", items?.join(", ")))
        }
        ValueKind::Map => {
            let entry = |key: Value| {
                let item = value.get_item(&key)?;
                Ok(format!(
                    "{}: {}",
                    repr(&key, depth + 1)?,
                    repr(&item, depth + 1)?
                ))
            };
            let entries: Result<Vec<String>, Error> = value.try_iter()?.map(entry).collect();
            Ok(format!("{{{}}}", entries?.join(", ")))
        }
        _ => Ok(value.to_string()),
    }
}

/// Single quotes, unless only single quotes occur inside.
fn repr_string(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut quoted = String::from(quote);
    for character in text.chars() {
        match character {
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other if other == quote => quoted.extend(['\\', other]),
            other if (other as u32) < 0x20 || other as u32 == 0x7f => {
                quoted += &format!("\\x{:02x}", other as u32)
            }
            other => quoted.push(other),
        }
    }
    quoted.push(quote);
    quoted
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_text(float),
        _ => value.to_string(),
    }
}

/// The shortest digits that read back the same; with an exponent below 1e-4 and from 1e16 on.
fn float_text(float: f64) -> String {
    if !float.is_finite() {
        return if float.is_nan() {
            "nan".into()
        } else {
            format!("{float}")
        };
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{float:?}");
    }
    format!(
        "{digits}e{}{:02}",
        if exponent < 0 { '-' } else { '+' },
        exponent.abs()
    )
}

/// The filter `trim` of Jinja: of what is no text, it trims how Python writes it.
pub(super) fn trim(value: Value, characters: Option<String>) -> Result<Value, Error> {
    let text = text(&value)?;
    let each = characters.as_ref().map_or(1, String::len);
    bounds::charge_times(text.len(), each)?;
    let trimmed = match &characters {
        Some(characters) => text.trim_matches(|character| characters.contains(character)),
        None => strings::trimmed(&text),
    };
    Ok(trimmed.into())
}

/// The filter `length` of Jinja: what is undefined has none.
pub(super) fn length(value: Value) -> Result<usize, Error> {
    match value.is_undefined() {
        true => Ok(0),
        false => value.len().ok_or_else(|| {
            let kind = value.kind();
            let reason = format!("cannot calculate length of value of type {kind}");
            Error::new(ErrorKind::InvalidOperation, reason)
        }),
    }
}

/// The test `iterable` of Jinja: what is undefined is, none is not.
pub(super) fn is_iterable(value: Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The filter `capitalize`: a large letter and small ones.
pub(super) fn capitalize(text: &str) -> Result<String, Error> {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    Ok(first
        .chain(characters.as_str().to_lowercase().chars())
        .collect())
}

/// Python's `title` filter of Jinja: words begin after white space, a hyphen or an opening bracket.
pub(super) fn title(text: &str) -> String {
    let mut begins = true;
    let mut titled = String::with_capacity(text.len());
    for character in text.chars() {
        if begins {
            titled.extend(character.to_uppercase());
        } else {
            titled.extend(character.to_lowercase());
        }
        begins = character.is_whitespace() || matches!(character, '-' | '(' | '{' | '[' | '<');
    }
    titled
}

/// Python's methods of strings, lists and mappings.
pub(super) fn method(
    state: &State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let called: Vec<Value> = std::iter::once(value).chain(arguments).cloned().collect();
    filters::charge(name, &called)?;
    let own = value
        .as_str()
        .and_then(|text| strings::method(text, name, arguments));
    if let Some(result) = own {
        return result;
    }
    if name == "index" && matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return index(value, arguments).map(Value::from);
    }
    let found = minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments);
    bounds::made(found?)
}

/// The method `index` of lists: the place of an item from the second argument up to the third.
fn index(list: &Value, arguments: &[Value]) -> Result<usize, Error> {
    let given = Arguments::new(&["value", "start", "stop"], arguments)?;
    let wanted = arguments.first().ok_or(ErrorKind::MissingArgument)?;
    let length = list.len().unwrap_or(0);
    let bound = |place: usize, missing: usize| {
        Ok::<usize, Error>(match given.whole(place)? {
            None => missing,
            Some(from_end) if from_end < 0 => {
                let behind = usize::try_from(from_end.unsigned_abs()).unwrap_or(usize::MAX);
                length.saturating_sub(behind)
            }
            Some(from_start) => usize::try_from(from_start).unwrap_or(usize::MAX),
        })
    };
    let (start, stop) = (bound(1, 0)?, bound(2, usize::MAX)?);
    let items = list.try_iter()?.enumerate();
    let mut inside = items.skip(start).take_while(|(place, _)| *place < stop);
    let found = inside.find(|(_, item)| item == wanted);
    found
        .map(|(place, _)| place)
        .ok_or_else(|| bounds::refused("the list has no such item"))
}

/// Format of [`to_json`].
struct Layout {
    ensure_ascii: bool,
    sort_keys: bool,
    /// The indentation of one level; `None` is all on one line.
    indent: Option<String>,
    between_items: String,
    after_key: String,
}

/// The `tojson` filter of `transformers`: Python's `json.dumps` with `ensure_ascii=False`, and no HTML escapes.
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(value) if value.as_str().is_some() => value.as_str().map(str::to_string),
        Some(value) if !value.is_none() => Some(" ".repeat(usize::try_from(value)?.min(64))),
        _ => None,
    };
    let separators = options
        .get::<Option<Vec<String>>>("separators")?
        .unwrap_or_default();
    let usual = if indent.is_some() { "," } else { ", " };
    let layout = Layout {
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        between_items: separators.first().cloned().unwrap_or_else(|| usual.into()),
        after_key: separators.get(1).cloned().unwrap_or_else(|| ": ".into()),
    };
    options.assert_all_used()?;
    layout.json(value, 0).map(Value::from)
}

impl Layout {
    fn json(&self, value: &Value, depth: usize) -> Result<String, Error> {
        check_depth(depth)?;
        bounds::look(value)?;
        match value.kind() {
            ValueKind::None => Ok("null".into()),
            ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.into()),
            ValueKind::Number => Ok(json_number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Result<_, _> = value
                    .try_iter()?
                    .map(|item| self.json(&item, depth + 1))
                    .collect();
                self.join('[', items?, ']', depth)
            }
            ValueKind::Map => self.object(value, depth),
            kind => Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("a value of type {kind} has no JSON form"),
            )),
        }
    }

    fn object(&self, value: &Value, depth: usize) -> Result<String, Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort_by_cached_key(ToString::to_string);
        }
        let entry = |key: &Value| {
            let name = if key.as_str().is_some() {
                key.to_string()
            } else {
                self.json(key, depth + 1)?
            };
            let item = self.json(&value.get_item(key)?, depth + 1)?;
            Ok(format!("{}{}{item}", self.string(&name)?, self.after_key))
        };
        let entries: Result<_, Error> = keys.iter().map(entry).collect();
        self.join('{', entries?, '}', depth)
    }

    fn join(
        &self,
        open: char,
        items: Vec<String>,
        close: char,
        depth: usize,
    ) -> Result<String, Error> {
        let indent = self.indent.as_ref().map_or(0, String::len);
        let between = indent.saturating_mul(depth + 1) + self.between_items.len();
        bounds::charge_times(items.len(), between + self.after_key.len())?;
        bounds::charge(items.iter().map(String::len).sum())?;
        Ok(match &self.indent {
            Some(indent) if !items.is_empty() => {
                let (inner, outer) = (
                    format!("\n{}", indent.repeat(depth + 1)),
                    format!("\n{}", indent.repeat(depth)),
                );
                let joined = items.join(&format!("{}{inner}", self.between_items));
                format!("{open}{inner}{joined}{outer}{close}")
            }
            _ => format!("{open}{}{close}", items.join(&self.between_items)),
        })
    }

    fn string(&self, text: &str) -> Result<String, Error> {
        let quoted = serde_json::to_string(text)
            .map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason.to_string()))?;
        if !self.ensure_ascii {
            return Ok(quoted);
        }
        let mut ascii = String::with_capacity(quoted.len());
        for character in quoted.chars() {
            if character.is_ascii() {
                ascii.push(character);
            } else {
                let mut units = [0; 2];
                character
                    .encode_utf16(&mut units)
                    .iter()
                    .for_each(|unit| ascii += &format!("\\u{unit:04x}"));
            }
        }
        Ok(ascii)
    }
}

/// Python writes the numbers that JSON lacks in words.
fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        usual => usual.to_string(),
    }
}

pub(super) fn check_depth(depth: usize) -> Result<(), Error> {
    if depth <= DEEPEST {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("a value is nested deeper than {DEEPEST} levels"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_pythons() {
        let expected = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (-2.5e300, "-2.5e+300"),
            (-0.0, "-0.0"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ];
        for (float, text) in expected {
            assert_eq!(float_text(float), text);
        }
    }

    #[test]
    fn strings_are_quoted_as_python_does() {
        assert_eq!(repr_string("a\n\\\u{1}é"), "'a\\n\\\\\\x01é'");
        assert_eq!(repr_string("it's"), "\"it's\"");
        assert_eq!(repr_string("'\""), "'\\'\"'");
    }

    #[test]
    fn deep_values_are_refused() {
        bounds::start(bounds::Limits::new(0, 0));
        let deep = (0..300).fold(Value::from(1), |inner, _| Value::from(vec![inner]));
        assert!(text(&deep).is_err());
    }
}
