//! Jinja's filters of texts that the engine lacks or does otherwise.

use minijinja::Error;
use minijinja::value::{Value, ValueKind};

use super::arguments::Arguments;
use super::strings::{lines, padded};
use super::{bounds, python};

/// `indent`: every line but the first, and but blank ones unless these are asked for.
pub(super) fn indent(value: &Value, given: &Arguments) -> Result<Value, Error> {
    let text = python::text(value)?;
    let prefix = match given.value(0) {
        Some(width) if width.as_str().is_some() => width.as_str().unwrap_or_default().to_string(),
        Some(_) => " ".repeat(given.width(0)?.unwrap_or(4)),
        None => " ".repeat(4),
    };
    let (first, blank) = (given.flag(1), given.flag(2));
    let ended = text + "\n";
    let lines = lines(&ended);
    bounds::charge_times(lines.len(), prefix.len() + 1)?;
    let mut indented = String::new();
    for (place, (line, _)) in lines.into_iter().enumerate() {
        let is_first = place == 0;
        if !is_first {
            indented.push('\n');
        }
        if (is_first && first) || (!is_first && (blank || !line.is_empty())) {
            indented.push_str(&prefix);
        }
        indented.push_str(line);
    }
    Ok(indented.into())
}

/// `truncate`: cut after a word, unless the text is longer by the leeway at most.
pub(super) fn truncate(value: &Value, given: &Arguments) -> Result<Value, Error> {
    let text = python::text(value)?;
    let length = given.width(0)?.unwrap_or(255);
    let end = given.text(2)?.unwrap_or_else(|| "...".into());
    let leeway = given.width(3)?.unwrap_or(5);
    let kept = length.checked_sub(end.chars().count());
    let kept = kept.ok_or_else(|| bounds::refused("`length` is shorter than `end`"))?;
    if text.chars().count() <= length + leeway {
        return Ok(text.into());
    }
    let cut: String = text.chars().take(kept).collect();
    let cut = match cut.rsplit_once(' ') {
        Some((words, _)) if !given.flag(1) => words,
        _ => cut.as_str(),
    };
    Ok([cut, &end].concat().into())
}

/// `center`.
pub(super) fn center(value: &Value, given: &Arguments) -> Result<Value, Error> {
    let width = given.width(0)?.unwrap_or(80);
    padded(&python::text(value)?, "center", width, ' ').map(Value::from)
}

/// `wordcount`: runs of letters, digits and underscores.
pub(super) fn word_count(value: &Value) -> Result<Value, Error> {
    let text = python::text(value)?;
    let words = text.split(|character: char| !(character.is_alphanumeric() || character == '_'));
    Ok(words.filter(|word| !word.is_empty()).count().into())
}

/// `escape`: HTML's marks in the form that markupsafe gives them.
pub(super) fn escape(value: &Value) -> Result<Value, Error> {
    let text = python::text(value)?;
    bounds::charge_times(4, text.len())?;
    let escaped = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
        .replace('"', "&#34;");
    Ok(escaped.into())
}

/// `urlencode`: of a text, or of the pairs of a query.
pub(super) fn url_encode(value: &Value) -> Result<Value, Error> {
    let pair = |key: &Value, item: &Value| {
        let (key, item) = (python::text(key)?, python::text(item)?);
        Ok::<String, Error>(format!(
            "{}={}",
            quoted(&key, "").replace("%20", "+"),
            quoted(&item, "").replace("%20", "+")
        ))
    };
    bounds::walk_times(3, value)?;
    let mut pairs = Vec::new();
    match value.kind() {
        ValueKind::Map => {
            for key in value.try_iter()? {
                pairs.push(pair(&key, &value.get_item(&key)?)?);
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                let part = |place: i64| item.get_item(&place.into());
                pairs.push(pair(&part(0)?, &part(1)?)?);
            }
        }
        _ => return Ok(quoted(&python::text(value)?, "/").into()),
    }
    Ok(pairs.join("&").into())
}

fn quoted(text: &str, safe: &str) -> String {
    let mut quoted = String::new();
    for byte in text.bytes() {
        let character = char::from(byte);
        match character.is_ascii_alphanumeric()
            || "_.-~".contains(character)
            || safe.contains(character)
        {
            true => quoted.push(character),
            false => quoted += &format!("%{byte:02X}"),
        }
    }
    quoted
}

/// `pprint`, which Python writes on one line where that has at most 80 characters.
pub(super) fn pretty(value: &Value) -> Result<Value, Error> {
    let text = python::quoted(value)?;
    match text.chars().count() <= 80 {
        true => Ok(text.into()),
        false => Err(bounds::refused(
            "`pprint` of more than one line; use `tojson`",
        )),
    }
}
