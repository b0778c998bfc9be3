//! The operators of a program, as functions that charge for what they touch ([`super::bounds`]), with Python's results.

mod division;

use std::cmp::Ordering;

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::{bounds, python, slices};

/// Names that no template can write, so that none can replace the functions.
pub(super) mod names {
    pub const ADD: &str = "operator +";
    pub const SUBTRACT: &str = "operator -";
    pub const MULTIPLY: &str = "operator *";
    pub const DIVIDE: &str = "operator /";
    pub const DIVIDE_WHOLE: &str = "operator //";
    pub const REMAINDER: &str = "operator %";
    pub const POWER: &str = "operator **";
    pub const CONCAT: &str = "operator ~";
    pub const SLICE: &str = "operator [:]";
    pub const ITEM: &str = "operator []";
    pub const IN: &str = "operator in";
    pub const NOT_IN: &str = "operator not in";
    pub const EQUAL: &str = "operator ==";
    pub const UNEQUAL: &str = "operator !=";
    pub const LESS: &str = "operator <";
    pub const LESS_OR_EQUAL: &str = "operator <=";
    pub const GREATER: &str = "operator >";
    pub const GREATER_OR_EQUAL: &str = "operator >=";
    /// A list or mapping has been made.
    pub const MADE: &str = "operator made";
    /// A macro has been made.
    pub const NEST: &str = "operator macro";
    /// A value is about to be gone through.
    pub const LOOK: &str = "operator for";
    /// A value is about to be compared.
    pub const WALK: &str = "operator walk";
    /// Escaping by itself is about to begin or end.
    pub const ESCAPE: &str = "operator autoescape";
    /// A place for a value between two instructions.
    pub const KEPT: &str = "operator kept";
}

/// Whether two values are in an order that an operator asks for.
type Comparison = fn(Ordering) -> bool;

/// Adds the operators.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function(names::ADD, add);
    environment.add_function(names::MULTIPLY, multiply);
    environment.add_function(names::SUBTRACT, |left: Value, right: Value| {
        arithmetic("-", &left, &right, i128::checked_sub, |left, right| {
            left - right
        })
    });
    environment.add_function(names::DIVIDE, division::divide);
    environment.add_function(names::DIVIDE_WHOLE, division::divide_whole);
    environment.add_function(names::REMAINDER, division::remainder);
    environment.add_function(names::POWER, division::power);
    environment.add_function(names::CONCAT, concat);
    environment.add_function(names::ITEM, item);
    environment.add_function(
        names::SLICE,
        |value: Value, start: Value, stop: Value, step: Value| {
            slices::slice(&value, &[start, stop, step])
        },
    );
    environment.add_function(names::IN, is_in);
    environment.add_function(
        names::NOT_IN,
        |state: &State, value: Value, container: Value| {
            is_in(state, value, container).map(|found| !found)
        },
    );
    environment.add_function(names::EQUAL, |left: Value, right: Value| {
        comparable(&left, &right).map(|()| left == right)
    });
    environment.add_function(names::UNEQUAL, |left: Value, right: Value| {
        comparable(&left, &right).map(|()| left != right)
    });
    let comparisons: [(&str, Comparison); 4] = [
        (names::LESS, Ordering::is_lt),
        (names::LESS_OR_EQUAL, Ordering::is_le),
        (names::GREATER, Ordering::is_gt),
        (names::GREATER_OR_EQUAL, Ordering::is_ge),
    ];
    for (name, holds) in comparisons {
        environment.add_function(name, move |left: Value, right: Value| {
            comparable(&left, &right)?;
            order(&left, &right).map(|ordering| ordering.is_some_and(holds))
        });
    }
    environment.add_function(names::ESCAPE, |value: Value| match value.is_true() {
        true => Err(bounds::refused(
            "`autoescape` is not supported; write `escape` where a text is to be escaped",
        )),
        false => Ok(value),
    });
    environment.add_function(names::MADE, bounds::made);
    environment.add_function(names::NEST, || bounds::nest().map(|()| Value::UNDEFINED));
    environment.add_function(names::LOOK, |value: Value| {
        bounds::look(&value).map(|()| value)
    });
    environment.add_function(names::WALK, |value: Value| {
        bounds::walk(&value).map(|()| value)
    });
}

/// Charges for a comparison: values of different kinds differ at once.
pub(super) fn comparable(left: &Value, right: &Value) -> Result<(), Error> {
    match bounds::is_container(left) && bounds::is_container(right) {
        true => bounds::walk(left).and_then(|()| bounds::walk(right)),
        false => {
            let length = |value: &Value| value.as_str().map_or(1, str::len);
            bounds::charge(length(left).min(length(right)))
        }
    }
}

/// The order of two values; nothing where one is no number.
///
/// # Errors
/// When values of their kinds have no order, as a text and a number.
pub(super) fn order(left: &Value, right: &Value) -> Result<Option<Ordering>, Error> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if is_number(left) && is_number(right) {
        let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
        let whole = |value: &Value| i128::try_from(value.clone()).ok();
        let both = whole(left).zip(whole(right));
        return match both.filter(|_| is_whole(left) && is_whole(right)) {
            Some((left, right)) => Ok(Some(left.cmp(&right))),
            None => Ok(float(left)?.partial_cmp(&float(right)?)),
        };
    }
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        return Ok(Some(left.cmp(right)));
    }
    if is_list(left) && is_list(right) {
        for (left, right) in left.try_iter()?.zip(right.try_iter()?) {
            if left != right {
                return order(&left, &right);
            }
        }
        return Ok(Some(left.len().cmp(&right.len())));
    }
    Err(bounds::refused(&format!(
        "a {} and a {} cannot be ordered",
        left.kind(),
        right.kind()
    )))
}

pub(super) fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

pub(super) fn add(left: Value, right: Value) -> Result<Value, Error> {
    if let (Some(first), Some(second)) = (left.as_str(), right.as_str()) {
        bounds::charge(first.len() + second.len())?;
        return Ok([first, second].concat().into());
    }
    if is_list(&left) && is_list(&right) {
        let length = |value: &Value| value.len().unwrap_or(0);
        bounds::charge(length(&left) + length(&right))?;
        let items = left.try_iter()?.chain(right.try_iter()?);
        return bounds::made(items.collect::<Vec<_>>().into());
    }
    arithmetic("+", &left, &right, i128::checked_add, |left, right| {
        left + right
    })
}

fn multiply(left: Value, right: Value) -> Result<Value, Error> {
    let repeats = |value: &Value| value.as_str().is_some() || is_list(value);
    let (what, times) = match (repeats(&left), repeats(&right)) {
        (true, false) => (&left, &right),
        (false, true) => (&right, &left),
        _ => {
            return arithmetic("*", &left, &right, i128::checked_mul, |left, right| {
                left * right
            });
        }
    };
    let whole = times
        .as_i64()
        .filter(|_| times.is_integer() || times.kind() == ValueKind::Bool);
    let times = whole.ok_or_else(|| unsupported("*", &left, &right))?;
    let times = usize::try_from(times).unwrap_or(0);
    if let Some(text) = what.as_str() {
        bounds::charge_times(times, text.len())?;
        return Ok(text.repeat(times).into());
    }
    bounds::look(what)?;
    let items: Vec<Value> = what.try_iter()?.collect();
    bounds::charge_times(times, items.len().saturating_mul(16))?;
    let times = if items.is_empty() { 0 } else { times };
    bounds::made(std::iter::repeat_n(items, times).flatten().collect())
}

/// Whole numbers stay whole, truth values are 0 and 1.
fn arithmetic(
    operator: &str,
    left: &Value,
    right: &Value,
    whole: fn(i128, i128) -> Option<i128>,
    real: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    let is_number = |value: &Value| is_whole(value) || value.kind() == ValueKind::Number;
    if !is_number(left) || !is_number(right) {
        return Err(unsupported(operator, left, right));
    }
    if is_whole(left) && is_whole(right) {
        let (first, second) = (
            i128::try_from(left.clone())?,
            i128::try_from(right.clone())?,
        );
        let number = whole(first, second).ok_or_else(|| {
            bounds::refused(&format!("{left} {operator} {right} is beyond 128 bits"))
        })?;
        return Ok(i64::try_from(number).map_or_else(|_| number.into(), Value::from));
    }
    Ok(real(float(left)?, float(right)?).into())
}

/// A number as a real one; truth values are 0 and 1.
fn float(value: &Value) -> Result<f64, Error> {
    match value.is_integer() || value.kind() == ValueKind::Bool {
        true => i128::try_from(value.clone()).map(|number| number as f64),
        false => f64::try_from(value.clone()),
    }
}

fn unsupported(operator: &str, left: &Value, right: &Value) -> Error {
    bounds::refused(&format!(
        "{} {operator} {} is not defined",
        left.kind(),
        right.kind()
    ))
}

fn concat(left: Value, right: Value) -> Result<Value, Error> {
    let (left, right) = (python::text(&left)?, python::text(&right)?);
    bounds::charge(left.len() + right.len())?;
    Ok((left + &right).into())
}

/// An item by its place or its key; what is not there is undefined.
fn item(container: Value, key: Value) -> Result<Value, Error> {
    if container.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    bounds::charge(container.as_str().map_or(1, str::len))?;
    if bounds::is_container(&key) {
        bounds::walk(&key)?;
    }
    container.get_item(&key)
}

fn is_in(state: &State, value: Value, container: Value) -> Result<bool, Error> {
    match bounds::is_container(&value) && is_list(&container) {
        true => bounds::walk(&container)?,
        false => bounds::look(&container)?,
    }
    bounds::walk(&value)?;
    if !bounds::is_container(&container)
        && container.as_str().is_none()
        && !container.is_undefined()
    {
        let kind = container.kind();
        return Err(bounds::refused(&format!("nothing can be in a {kind}")));
    }
    minijinja::tests::is_in(state, &value, &container)
}

/// Adds the tests that compare.
pub(super) fn add_tests_to(environment: &mut Environment<'static>) {
    let tests = [
        (["eq", "equalto", "=="], names::EQUAL),
        (["ne", "ne", "!="], names::UNEQUAL),
        (["lt", "lessthan", "<"], names::LESS),
        (["le", "le", "<="], names::LESS_OR_EQUAL),
        (["gt", "greaterthan", ">"], names::GREATER),
        (["ge", "ge", ">="], names::GREATER_OR_EQUAL),
        (["in", "in", "in"], names::IN),
    ];
    for (test_names, operator) in tests {
        for name in test_names {
            environment.add_test(name, move |state: &State, arguments: Rest<Value>| {
                bounds::charge(bounds::CALL)?;
                let function = state.lookup(operator).unwrap_or_default();
                function.call(state, &arguments)
            });
        }
    }
}
