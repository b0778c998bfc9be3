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
        let quotient = (left - modulo(left, right)) / right;
        // What is nearly whole was whole before the division rounded it.
        let floor = quotient.floor();
        let whole = floor + f64::from(u8::from(quotient - floor > 0.5));
        if whole == 0.0 {
            0f64.copysign(left / right)
        } else {
            whole
        }
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
        // The one remainder that has no quotient of 128 bits is 0.
        let rest = left.checked_rem(right).unwrap_or(0);
        let other_sign = rest != 0 && (rest < 0) != (right < 0);
        Some(if other_sign { rest + right } else { rest })
    };
    arithmetic("%", &left, &right, whole, modulo)
}

/// What is left of a real number, with the divisor's sign; of zero, too.
fn modulo(left: f64, right: f64) -> f64 {
    let rest = left % right;
    match rest {
        0.0 => 0f64.copysign(right),
        _ if (rest < 0.0) != (right < 0.0) => rest + right,
        _ => rest,
    }
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
        return finite(not_zero(first)?.powf(second)).map(Value::from);
    }
    if first < 0.0 && second.fract() != 0.0 {
        return Err(bounds::refused("a root of a number below zero"));
    }
    let whole = |base: i128, exponent: i128| base.checked_pow(u32::try_from(exponent).ok()?);
    let power = arithmetic("**", &left, &right, whole, f64::powf)?;
    if first.is_finite() && second.is_finite() {
        finite(float(&power)?)?;
    }
    Ok(power)
}

fn finite(number: f64) -> Result<f64, Error> {
    match number.is_finite() {
        true => Ok(number),
        false => Err(bounds::refused("a power beyond the largest number")),
    }
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
