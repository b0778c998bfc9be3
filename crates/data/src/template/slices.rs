//! Slices, such as `text[1:]` and `text[::-1]`, as Python takes them.
//!
//! The engine's own go wrong: empty values and some bounds make it panic, and slices of slices are read through all of them.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind};

use super::bounds;

/// The slice of a string or a list.
pub(super) fn slice(value: &Value, arguments: &[Value]) -> Result<Value, Error> {
    let (start, stop, step): (Option<i64>, Option<i64>, Option<i64>) = from_args(arguments)?;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "a slice's step must not be 0",
        ));
    }
    bounds::look(value)?;
    if let Some(text) = value.as_str() {
        bounds::charge_times(4, text.len())?;
        let characters: Vec<char> = text.chars().collect();
        let places = places(characters.len() as i64, start, stop, step);
        return Ok(places
            .filter_map(|place| characters.get(place))
            .collect::<String>()
            .into());
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("a {} cannot be sliced", value.kind()),
        ));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let places = places(items.len() as i64, start, stop, step);
    let kept = places.filter_map(|place| items.get(place).cloned());
    bounds::made(kept.collect::<Vec<_>>().into())
}

/// Python's rule for the places of a slice.
fn places(
    length: i64,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let (lowest, highest) = if step > 0 {
        (0, length)
    } else {
        (-1, length - 1)
    };
    let bound = |place: Option<i64>, missing: i64| match place {
        None => missing,
        Some(place) if place < 0 => place.saturating_add(length).max(lowest),
        Some(place) => place.min(highest),
    };
    let (first, last) = if step > 0 {
        (lowest, highest)
    } else {
        (highest, lowest)
    };
    let (start, stop) = (bound(start, first), bound(stop, last));
    std::iter::successors(Some(start), move |place| place.checked_add(step))
        .take_while(move |place| {
            if step > 0 {
                *place < stop
            } else {
                *place > stop
            }
        })
        .map(|place| place as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_pythons() {
        let of = |length, start, stop, step| places(length, start, stop, step).collect::<Vec<_>>();
        assert_eq!(of(4, None, None, -1), [3, 2, 1, 0]);
        assert!(of(0, None, None, -1).is_empty());
        assert_eq!(of(4, None, Some(0), -1), [3, 2, 1]);
        assert!(of(4, Some(1), Some(3), -1).is_empty());
        assert_eq!(of(4, Some(-2), None, -2), [2, 0]);
        assert_eq!(of(5, Some(1), Some(99), 2), [1, 3]);
        assert_eq!(of(3, Some(-99), Some(i64::MAX), i64::MAX), [0]);
        assert_eq!(of(3, Some(99), Some(-99), i64::MIN), [2]);
    }

    #[test]
    fn strings_and_lists_are_sliced() {
        bounds::start(bounds::Limits::new(0));
        let reversed = [Value::from(()), Value::from(()), Value::from(-1)];
        assert_eq!(
            slice(&Value::from("aé日"), &reversed).unwrap(),
            Value::from("日éa")
        );
        assert_eq!(slice(&Value::from(""), &reversed).unwrap(), Value::from(""));
        assert_eq!(
            slice(&Value::from(vec![1, 2]), &reversed).unwrap(),
            Value::from(vec![2, 1])
        );
        assert!(
            slice(
                &Value::from("a"),
                &[Value::from(()), Value::from(()), Value::from(0)]
            )
            .is_err()
        );
        assert!(slice(&Value::from(1), &reversed).is_err());
    }
}
