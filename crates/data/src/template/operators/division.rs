//! Division, remainders and powers as Python has them, and `%` of a text, which formats it.

use minijinja::Error;
use minijinja::value::{Value, ValueKind};

use super::{arithmetic, float, unsupported};
use crate::template::{bounds, format, python};

/// `/`: real, of whole numbers too.
pub(super) fn divide(left: Value, right: Value) -> Result<Value, Error> {
    let (first, second) = numbers("/", &left, &right)?;
    Ok((first / not_zero(second)?).into())
}

/// `//`: the largest whole number that is not above the quotient.
pub(super) fn divide_whole(left: Value, right: Value) -> Result<Value, Error> {
    let (_, second) = numbers("//", &left, &right)?;
    not_zero(second)?;
    arithmetic("//", &left, &right, floor_divided, |left, right| {
        (left / right).floor()
    })
}

fn floor_divided(left: i128, right: i128) -> Option<i128> {
    let quotient = left.checked_div(right)?;
    let below = left % right != 0 && (left < 0) != (right < 0);
    Some(quotient - i128::from(below))
}

/// `%`: what is left, with the divisor's sign; a text on the left is a format.
pub(super) fn remainder(left: Value, right: Value) -> Result<Value, Error> {
    if left.as_str().is_some() {
        return formatted(&left, &right);
    }
    let (_, second) = numbers("%", &left, &right)?;
    not_zero(second)?;
    let whole = |left: i128, right: i128| {
        floor_divided(left, right).map(|quotient| left - quotient * right)
    };
    arithmetic("%", &left, &right, whole, |left, right| {
        let rest = left % right;
        let other_sign = rest != 0.0 && (rest < 0.0) != (right < 0.0);
        if other_sign { rest + right } else { rest }
    })
}

/// The engine makes lists of tuples, so that a list is one value where the format has one place and the list not one item.
fn formatted(text: &Value, values: &Value) -> Result<Value, Error> {
    bounds::walk(values)?;
    let format = python::text(text)?;
    let places = format::places(&format)?;
    let is_list = matches!(values.kind(), ValueKind::Seq | ValueKind::Iterable);
    let is_map = values.kind() == ValueKind::Map;
    let names = Some(values).filter(|_| is_map && places == 0);
    let values: Vec<Value> = match is_list && (places != 1 || values.len() == Some(1)) {
        true => values.try_iter()?.collect(),
        false if names.is_some() => Vec::new(),
        false => vec![values.clone()],
    };
    format::percent(&format, &values, names).map(Value::from)
}

/// `**`: of whole numbers whole, unless the exponent is below zero.
pub(super) fn power(left: Value, right: Value) -> Result<Value, Error> {
    let (first, second) = numbers("**", &left, &right)?;
    if second < 0.0 {
        return Ok(not_zero(first)?.powf(second).into());
    }
    if first < 0.0 && second.fract() != 0.0 {
        return Err(bounds::refused("a root of a number below zero"));
    }
    let whole = |base: i128, exponent: i128| base.checked_pow(u32::try_from(exponent).ok()?);
    arithmetic("**", &left, &right, whole, f64::powf)
}

fn numbers(operator: &str, left: &Value, right: &Value) -> Result<(f64, f64), Error> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    match is_number(left) && is_number(right) {
        true => Ok((float(left)?, float(right)?)),
        false => Err(unsupported(operator, left, right)),
    }
}

fn not_zero(number: f64) -> Result<f64, Error> {
    match number == 0.0 {
        true => Err(bounds::refused("division by zero")),
        false => Ok(number),
    }
}
