//! Jinja's filters of numbers and of lists of values, with Python's results.

use std::cmp::Ordering;

use minijinja::Error;
use minijinja::value::{Value, ValueKind};

use super::arguments::Arguments;
use super::operators::{add, is_list, order};
use super::strings::trimmed;
use super::{bounds, python};

/// `round`: to the even one of two that are as near, as Python does.
pub(super) fn round(value: &Value, given: &Arguments) -> Result<Value, Error> {
    let precision = given.whole(0)?.unwrap_or(0);
    let precision = bounds::check_width(&precision.into())?;
    let method = given.text(1)?.unwrap_or_else(|| "common".into());
    let scale = |number: f64, round: fn(f64) -> f64| {
        let power = 10f64.powi(precision as i32);
        let scaled = number * power;
        match scaled.is_finite() && power > 0.0 {
            true => Ok(Value::from(round(scaled) / power)),
            false => Err(bounds::refused("a number that cannot be rounded so")),
        }
    };
    match method.as_str() {
        "common" => {}
        "ceil" => return scale(real(value)?, f64::ceil),
        "floor" => return scale(real(value)?, f64::floor),
        _ => return Err(bounds::refused("`method` must be common, ceil or floor")),
    }
    let is_truth = value.kind() == ValueKind::Bool;
    if value.is_integer() || is_truth {
        let number = whole(value)?;
        return Ok(
            match u32::try_from(-precision).ok().filter(|zeros| *zeros > 0) {
                None => number.into(),
                Some(zeros) => match 10i128.checked_pow(zeros) {
                    None => 0.into(),
                    Some(unit) => nearest_multiple(number, unit)?.into(),
                },
            },
        );
    }
    let number = real(value)?;
    if !number.is_finite() {
        return Ok(number.into());
    }
    Ok(match usize::try_from(precision) {
        // Numbers have no more than 1074 digits behind the point.
        Ok(digits) => format!("{number:.*}", digits.min(1100))
            .parse()
            .unwrap_or(number),
        Err(_) => {
            let unit = 10f64.powi(i32::try_from(-precision).unwrap_or(i32::MAX));
            match unit.is_finite() {
                true => (number / unit).round_ties_even() * unit,
                false => 0.0,
            }
        }
    }
    .into())
}

fn nearest_multiple(number: i128, unit: i128) -> Result<i128, Error> {
    let (below, rest) = (number.div_euclid(unit), number.rem_euclid(unit));
    let up = match rest.cmp(&(unit - rest)) {
        Ordering::Less => false,
        Ordering::Equal => below % 2 != 0,
        Ordering::Greater => true,
    };
    let multiple = (below + i128::from(up)).checked_mul(unit);
    multiple.ok_or_else(|| beyond(&number.to_string()))
}

fn beyond(number: &str) -> Error {
    let shown: String = number.chars().take(40).collect();
    bounds::refused(&format!("{shown} is beyond 128 bits"))
}

/// `int`: whole, and the default where there is none to be read.
pub(super) fn int(value: &Value, given: &Arguments) -> Result<Value, Error> {
    defined(value)?;
    let default = given.value(0).cloned().unwrap_or_else(|| 0.into());
    let base = given.whole(1)?.unwrap_or(10);
    if let Some(text) = value.as_str() {
        if let Some(whole) = parse_whole(text, base)? {
            return Ok(whole.into());
        }
        let real = parse_real(text).filter(|number| number.is_finite());
        return real.map_or(Ok(default), |number| whole_part(number).map(Value::from));
    }
    match value.kind() {
        ValueKind::Bool | ValueKind::Number if value.is_integer() => Ok(value.clone()),
        ValueKind::Bool => whole(value).map(Value::from),
        ValueKind::Number => match real(value)? {
            number if number.is_nan() => Ok(default),
            number => whole_part(number).map(Value::from),
        },
        _ => Ok(default),
    }
}

/// `float`: real, and the default where there is none to be read.
pub(super) fn float(value: &Value, given: &Arguments) -> Result<Value, Error> {
    defined(value)?;
    let default = given.value(0).cloned().unwrap_or_else(|| 0.0.into());
    if let Some(text) = value.as_str() {
        return Ok(parse_real(text).map_or(default, Value::from));
    }
    match value.kind() {
        ValueKind::Bool | ValueKind::Number => real(value).map(Value::from),
        _ => Ok(default),
    }
}

fn defined(value: &Value) -> Result<(), Error> {
    match value.is_undefined() {
        true => Err(minijinja::ErrorKind::UndefinedError.into()),
        false => Ok(()),
    }
}

/// A number without what stands behind its point.
pub(super) fn whole_part(number: f64) -> Result<i128, Error> {
    let number = number.trunc();
    match number.abs() < 2f64.powi(127) {
        true => Ok(number as i128),
        false => Err(beyond(&number.to_string())),
    }
}

/// A text without the underscores between its digits; nothing where they stand elsewhere.
fn without_underscores(text: &str) -> Option<String> {
    let characters: Vec<char> = text.chars().collect();
    let between = |place: usize| {
        let digit = |place: Option<usize>| {
            place
                .and_then(|place| characters.get(place))
                .is_some_and(char::is_ascii_hexdigit)
        };
        digit(place.checked_sub(1)) && digit(Some(place + 1))
    };
    let mut places = characters.iter().enumerate();
    let well = places.all(|(place, character)| *character != '_' || between(place));
    well.then(|| text.replace('_', ""))
}

/// The whole number that a text says; nothing where it says none.
fn parse_whole(text: &str, base: i64) -> Result<Option<i128>, Error> {
    let Some(text) = without_underscores(trimmed(text)) else {
        return Ok(None);
    };
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(&text)),
    };
    let lower = digits.to_lowercase();
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
    let radix = u32::try_from(base).ok();
    let Some(radix) = radix.filter(|base| (2..=36).contains(base)) else {
        return Ok(None);
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Ok(None);
    }
    let number = i128::from_str_radix(digits, radix).map_err(|_| beyond(digits))?;
    Ok(Some(if negative { -number } else { number }))
}

fn parse_real(text: &str) -> Option<f64> {
    without_underscores(trimmed(text))?.parse().ok()
}

fn real(value: &Value) -> Result<f64, Error> {
    match value.is_integer() || value.kind() == ValueKind::Bool {
        true => Ok(whole(value)? as f64),
        false => f64::try_from(value.clone()),
    }
}

fn whole(value: &Value) -> Result<i128, Error> {
    i128::try_from(value.clone())
}

/// What an item is sorted or summed by: itself, or its attribute, which may be a path such as `a.b.0`.
fn attribute(item: &Value, path: Option<&str>) -> Result<Value, Error> {
    let mut value = item.clone();
    for part in path.into_iter().flat_map(|path| path.split('.')) {
        let key = part
            .parse::<i64>()
            .map_or_else(|_| part.into(), Value::from);
        value = value.get_item(&key)?;
    }
    Ok(value)
}

/// The smallest or, with `Ordering::Greater`, the largest item; the first of those that are alike.
pub(super) fn extreme(value: &Value, given: &Arguments, wanted: Ordering) -> Result<Value, Error> {
    let (cased, path) = (given.flag(0), given.text(1)?);
    let mut best: Option<(Value, Value)> = None;
    for item in value.try_iter()? {
        let key = folded(attribute(&item, path.as_deref())?, cased);
        let better = match &best {
            None => true,
            Some((other, _)) => order(&key, other)? == Some(wanted),
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}

fn folded(key: Value, cased: bool) -> Value {
    match key.as_str() {
        Some(text) if !cased => text.to_lowercase().into(),
        _ => key,
    }
}

/// `sum` of the items, or of an attribute of theirs.
pub(super) fn sum(value: &Value, given: &Arguments) -> Result<Value, Error> {
    let path = match given.value(0) {
        Some(path) if path.is_integer() => Some(path.to_string()),
        _ => given.text(0)?,
    };
    let mut total = given.value(1).cloned().unwrap_or_else(|| 0.into());
    for item in value.try_iter()? {
        total = add(total, attribute(&item, path.as_deref())?)?;
    }
    Ok(total)
}

/// `join` of the items as Python writes them, or of an attribute of theirs.
pub(super) fn join(value: &Value, given: &Arguments) -> Result<Value, Error> {
    let separator = given.value(0).map_or(Ok(String::new()), python::text)?;
    let path = given.text(1)?;
    let mut texts = Vec::new();
    for item in value.try_iter()? {
        texts.push(python::text(&attribute(&item, path.as_deref())?)?);
    }
    bounds::charge_times(texts.len(), separator.len())?;
    Ok(texts.join(&separator).into())
}

/// `dictsort`: the pairs of a mapping in the order of their keys or values.
pub(super) fn dict_sort(value: &Value, given: &Arguments) -> Result<Value, Error> {
    if value.kind() != ValueKind::Map {
        return Err(bounds::refused("`dictsort` takes a mapping"));
    }
    let by = match given.text(1)?.as_deref() {
        None | Some("key") => 0,
        Some("value") => 1,
        Some(_) => return Err(bounds::refused("`by` must be key or value")),
    };
    let mut pairs = Vec::new();
    for key in value.try_iter()? {
        let item = value.get_item(&key)?;
        let sorted_by = folded([&key, &item][by].clone(), given.flag(0));
        pairs.push((sorted_by, Value::from(vec![key, item])));
    }
    let mut failure = None;
    pairs.sort_by(|(left, _), (right, _)| {
        let ordering = order(left, right).unwrap_or_else(|error| {
            failure.get_or_insert(error);
            None
        });
        let ordering = ordering.unwrap_or(Ordering::Equal);
        if given.flag(2) {
            ordering.reverse()
        } else {
            ordering
        }
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(pairs.into_iter().map(|(_, pair)| pair).collect()),
    }
}

/// Whether a value is a sequence to Jinja: it has a length and items, as texts and mappings have too.
pub(super) fn is_sequence(value: &Value) -> bool {
    value.as_str().is_some()
        || is_list(value)
        || value.is_undefined()
        || value.kind() == ValueKind::Map
}

/// Whether a value is a number to Python, as truth values are.
pub(super) fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}
