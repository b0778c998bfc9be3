//! Python's methods of strings.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

use super::arguments::Arguments;
use super::{bounds, format, python};

/// White space as Python's `str` knows it, which has the separators of files, groups, records and units too.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// The text without white space at its ends.
pub(super) fn trimmed(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// The result of a method of a text; nothing where it is none of these.
pub(super) fn method(text: &str, name: &str, given: &[Value]) -> Option<Result<Value, Error>> {
    let names: &[&str] = match name {
        "strip" | "lstrip" | "rstrip" => &["chars"],
        "split" | "rsplit" => &["sep", "maxsplit"],
        "splitlines" => &["keepends"],
        "partition" | "rpartition" => &["sep"],
        "find" | "rfind" | "index" | "rindex" | "count" => &["sub", "start", "end"],
        "startswith" | "endswith" => &["prefix", "start", "end"],
        "removeprefix" | "removesuffix" => &["part"],
        "replace" => &["old", "new", "count"],
        "center" | "ljust" | "rjust" => &["width", "fillchar"],
        "zfill" => &["width"],
        "expandtabs" => &["tabsize"],
        "title" | "swapcase" | "casefold" | "isspace" => &[],
        "format" => return Some(format::fields(text, given).map(Value::from)),
        _ => return None,
    };
    Some(Arguments::new(names, given).and_then(|given| call(text, name, &given)))
}

fn call(text: &str, name: &str, given: &Arguments) -> Result<Value, Error> {
    match name {
        "strip" | "lstrip" | "rstrip" => strip(text, name, given),
        "split" | "rsplit" => split(text, name == "rsplit", given),
        "splitlines" => {
            let keep = given.flag(0);
            let lines = lines(text).into_iter();
            let lines = lines.map(|(line, end)| [line, if keep { end } else { "" }].concat());
            bounds::made(lines.map(Value::from).collect())
        }
        "partition" | "rpartition" => {
            let separator = separator(given)?;
            let parts = match name {
                "partition" => text.split_once(separator.as_str()),
                _ => text.rsplit_once(separator.as_str()),
            };
            let parts = match parts {
                Some((before, behind)) => [before, separator.as_str(), behind],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Ok(parts.into_iter().map(Value::from).collect())
        }
        "find" | "rfind" | "index" | "rindex" => {
            let place = find(text, name.starts_with('r'), given)?;
            match place {
                None if name.ends_with("index") => Err(bounds::refused("substring not found")),
                place => Ok(place.map_or(-1, |place| place as i64).into()),
            }
        }
        "count" => {
            let part = given.required_text(0)?;
            let inside = part_of(text, given)?.map_or("", |(_, inside)| inside);
            Ok(inside.matches(part.as_str()).count().into())
        }
        "startswith" | "endswith" => begins_or_ends(text, name == "endswith", given),
        "removeprefix" => {
            let part = given.required_text(0)?;
            Ok(text.strip_prefix(part.as_str()).unwrap_or(text).into())
        }
        "removesuffix" => {
            let part = given.required_text(0)?;
            Ok(text.strip_suffix(part.as_str()).unwrap_or(text).into())
        }
        "replace" => replace(text, given),
        "center" | "ljust" | "rjust" => {
            let width = given.width(0)?.unwrap_or(0);
            let fill = given.text(1)?.unwrap_or_else(|| " ".into());
            let mut fill = fill.chars();
            let (Some(fill), None) = (fill.next(), fill.next()) else {
                return Err(bounds::refused("`fillchar` must be one character"));
            };
            padded(text, name, width, fill).map(Value::from)
        }
        "zfill" => {
            let width = given.width(0)?.unwrap_or(0);
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let zeros = width.saturating_sub(text.chars().count());
            bounds::charge(zeros)?;
            Ok([sign, &"0".repeat(zeros), digits].concat().into())
        }
        "expandtabs" => expand_tabs(text, given.width(0)?.unwrap_or(8)).map(Value::from),
        "title" => Ok(title(text).into()),
        "swapcase" => Ok(swap_case(text).into()),
        // Letters whose small form is not their folded one are rare; this is the folding of the sharp s.
        "casefold" => Ok(text.to_lowercase().replace('ß', "ss").into()),
        "isspace" => Ok((!text.is_empty() && text.chars().all(is_space)).into()),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn strip(text: &str, name: &str, given: &Arguments) -> Result<Value, Error> {
    let characters = given.text(0)?;
    bounds::charge_times(text.len(), characters.as_ref().map_or(1, String::len))?;
    let goes = |character: char| match &characters {
        Some(characters) => characters.contains(character),
        None => is_space(character),
    };
    let text = match name {
        "lstrip" => text,
        _ => text.trim_end_matches(goes),
    };
    Ok(match name {
        "rstrip" => text,
        _ => text.trim_start_matches(goes),
    }
    .into())
}

fn separator(given: &Arguments) -> Result<String, Error> {
    let separator = given.required_text(0)?;
    match separator.is_empty() {
        true => Err(bounds::refused("an empty separator")),
        false => Ok(separator),
    }
}

fn split(text: &str, from_end: bool, given: &Arguments) -> Result<Value, Error> {
    let most = given.whole(1)?.and_then(|most| usize::try_from(most).ok());
    let most = most.unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match given.value(0) {
        Some(_) => {
            let separator = separator(given)?;
            match from_end {
                true => text.rsplitn(most + 1, separator.as_str()).collect(),
                false => text.splitn(most + 1, separator.as_str()).collect(),
            }
        }
        None => words(text, from_end, most),
    };
    if from_end {
        parts.reverse();
    }
    bounds::made(parts.into_iter().map(Value::from).collect())
}

/// Words between white space, at most so many and the rest; from the end, the last one first.
fn words(text: &str, from_end: bool, most: usize) -> Vec<&str> {
    let (mut words, mut rest) = (Vec::new(), text);
    loop {
        rest = match from_end {
            true => rest.trim_end_matches(is_space),
            false => rest.trim_start_matches(is_space),
        };
        if rest.is_empty() {
            return words;
        }
        let cut = match from_end {
            true => rest.rfind(is_space).map(|place| {
                let width = rest[place..].chars().next().map_or(0, char::len_utf8);
                (&rest[place + width..], &rest[..place])
            }),
            false => rest
                .find(is_space)
                .map(|place| (&rest[..place], &rest[place..])),
        };
        match cut.filter(|_| words.len() < most) {
            Some((word, behind)) => {
                words.push(word);
                rest = behind;
            }
            None => {
                words.push(rest);
                return words;
            }
        }
    }
}

/// Lines with what ends them, as `splitlines` finds them.
pub(super) fn lines(text: &str) -> Vec<(&str, &str)> {
    let ends = |character: char| {
        matches!(
            character,
            '\n' | '\r'
                | '\x0b'
                | '\x0c'
                | '\x1c'
                | '\x1d'
                | '\x1e'
                | '\u{85}'
                | '\u{2028}'
                | '\u{2029}'
        )
    };
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(place) = rest.find(ends) {
        let width = match rest[place..].starts_with("\r\n") {
            true => 2,
            false => rest[place..].chars().next().map_or(1, char::len_utf8),
        };
        lines.push((&rest[..place], &rest[place..place + width]));
        rest = &rest[place + width..];
    }
    if !rest.is_empty() {
        lines.push((rest, ""));
    }
    lines
}

/// The text from the second argument up to the third, in characters, and where it begins; nothing where it begins behind its end.
fn part_of<'a>(text: &'a str, given: &Arguments) -> Result<Option<(usize, &'a str)>, Error> {
    let length = text.chars().count() as i64;
    let bound = |place: usize, missing: i64| {
        let place = given.whole(place)?.unwrap_or(missing);
        Ok::<i64, Error>(match place < 0 {
            true => place.saturating_add(length).max(0),
            false => place,
        })
    };
    let (start, end) = (bound(1, 0)?, bound(2, length)?.min(length));
    if start > end {
        return Ok(None);
    }
    let byte = |place: i64| {
        let mut places = text.char_indices().map(|(byte, _)| byte);
        places.nth(place as usize).unwrap_or(text.len())
    };
    Ok(Some((start as usize, &text[byte(start)..byte(end)])))
}

/// The place of a text in characters.
fn find(text: &str, from_end: bool, given: &Arguments) -> Result<Option<usize>, Error> {
    let part = given.required_text(0)?;
    let Some((start, inside)) = part_of(text, given)? else {
        return Ok(None);
    };
    let place = match from_end {
        true => inside.rfind(part.as_str()),
        false => inside.find(part.as_str()),
    };
    Ok(place.map(|place| start + inside[..place].chars().count()))
}

fn begins_or_ends(text: &str, ends: bool, given: &Arguments) -> Result<Value, Error> {
    let parts = given.required(0)?;
    let Some((_, inside)) = part_of(text, given)? else {
        return Ok(false.into());
    };
    let matches = |part: &Value| match part.as_str() {
        Some(part) if ends => Ok(inside.ends_with(part)),
        Some(part) => Ok(inside.starts_with(part)),
        None => Err(bounds::refused("it takes a text, or several of them")),
    };
    if parts.as_str().is_some() {
        return matches(parts).map(Value::from);
    }
    for part in parts.try_iter()? {
        if matches(&part)? {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

/// The method and the filter `replace`: all, or as many as are asked for.
pub(super) fn replace(text: &str, given: &Arguments) -> Result<Value, Error> {
    let plain = |place: usize| python::text(given.required(place)?);
    let (old, new) = (plain(0)?, plain(1)?);
    let most = given
        .whole(2)?
        .and_then(|count| usize::try_from(count).ok());
    let most = most.unwrap_or(usize::MAX);
    let count = text.matches(old.as_str()).take(most).count();
    bounds::charge_times(count, new.len())?;
    Ok(text.replacen(old.as_str(), &new, most).into())
}

/// A text with characters around it: `center`, `ljust` or `rjust`.
pub(super) fn padded(text: &str, name: &str, width: usize, fill: char) -> Result<String, Error> {
    let pad = width.saturating_sub(text.chars().count());
    bounds::charge_times(pad, fill.len_utf8())?;
    let left = match name {
        "center" => pad / 2 + (pad & width & 1),
        "rjust" => pad,
        _ => 0,
    };
    let fill = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(fill(left) + text + &fill(pad - left))
}

fn expand_tabs(text: &str, size: usize) -> Result<String, Error> {
    bounds::charge_times(text.matches('\t').count(), size)?;
    let (mut expanded, mut column) = (String::with_capacity(text.len()), 0);
    for character in text.chars() {
        match character {
            '\t' if size == 0 => {}
            '\t' => {
                let blanks = size - column % size;
                expanded.push_str(&" ".repeat(blanks));
                column += blanks;
            }
            other => {
                expanded.push(other);
                column = if matches!(other, '\n' | '\r') {
                    0
                } else {
                    column + 1
                };
            }
        }
    }
    Ok(expanded)
}

/// Python's method, by which words begin behind whatever is no letter; the filter of Jinja differs.
fn title(text: &str) -> String {
    let (mut begins, mut titled) = (true, String::with_capacity(text.len()));
    for character in text.chars() {
        if begins {
            titled.extend(character.to_uppercase());
        } else {
            titled.extend(character.to_lowercase());
        }
        begins = !(character.is_uppercase() || character.is_lowercase());
    }
    titled
}

fn swap_case(text: &str) -> String {
    let mut swapped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_uppercase() {
            swapped.extend(character.to_lowercase());
        } else {
            swapped.extend(character.to_uppercase());
        }
    }
    swapped
}
