//! What one rendering may take: instructions, bytes made or looked at, and containers inside of containers.
//!
//! The engine counts instructions alone, and one of them may sort a long list or double a text. So whatever a program's operators,
//! filters and methods touch is charged here, before they touch it. A rendering has a thread of its own ([`super::engine`]), and so
//! its own counts.

use std::cell::Cell;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Bytes charged for an item of a list or a mapping.
const ITEM: usize = 16;

/// Bytes charged for a call of a filter, which takes longer than an operator.
pub(super) const CALL: usize = 32;

/// The largest number that a filter takes for a width or a count.
const WIDEST: i64 = 100_000;

/// The limits of a rendering.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Instructions of the engine.
    pub instructions: u64,
    /// Bytes made or looked at.
    pub bytes: u64,
    /// Containers that hold containers: as many may be dropped inside of one another.
    pub nested: u64,
}

impl Limits {
    /// The limits for a conversation: some seconds of work, which only a hostile template asks for.
    pub fn new(messages: usize) -> Self {
        let messages = messages as u64;
        Self {
            instructions: 10_000_000 + 2_000 * messages,
            bytes: (1 << 29) + 65_536 * messages,
            nested: 100_000 + 8 * messages,
        }
    }
}

thread_local! {
    static BYTES: Cell<u64> = const { Cell::new(0) };
    static NESTED: Cell<u64> = const { Cell::new(0) };
}

/// Sets this thread's limits.
pub(super) fn start(limits: Limits) {
    BYTES.set(limits.bytes);
    NESTED.set(limits.nested);
}

/// Takes bytes from what is left.
pub(super) fn charge(bytes: usize) -> Result<(), Error> {
    let left = BYTES.get().checked_sub(bytes as u64);
    BYTES.set(left.unwrap_or(0));
    left.map(|_| ()).ok_or_else(|| {
        refused("the template makes or reads more than any conversation asks for (texts or lists that grow, or work on large ones)")
    })
}

/// Takes a number of repetitions of some bytes from what is left.
pub(super) fn charge_times(count: usize, bytes: usize) -> Result<(), Error> {
    charge(count.saturating_mul(bytes))
}

/// Counts a container that holds others.
pub(super) fn nest() -> Result<(), Error> {
    let left = NESTED.get().checked_sub(1);
    NESTED.set(left.unwrap_or(0));
    left.map(|_| ())
        .ok_or_else(|| refused("the template makes too many lists of lists"))
}

/// Charges for a value as such: a text's bytes, a container's items, not what these hold.
pub(super) fn look(value: &Value) -> Result<(), Error> {
    charge(size(value))
}

fn size(value: &Value) -> usize {
    match value.as_str() {
        Some(text) => 1 + text.len(),
        None if is_container(value) => value.len().unwrap_or(1).saturating_mul(ITEM) + 1,
        None => 1,
    }
}

/// Charges for a value as such, a number of times.
pub(super) fn look_times(count: usize, value: &Value) -> Result<(), Error> {
    charge_times(count, size(value))
}

/// Charges for a value and all that it holds, a number of times.
///
/// # Errors
/// As [`walk`].
pub(super) fn walk_times(count: usize, value: &Value) -> Result<(), Error> {
    let before = BYTES.get();
    walk(value)?;
    let once = usize::try_from(before - BYTES.get()).unwrap_or(usize::MAX);
    charge_times(count - 1, once)
}

/// Charges for a value and all that it holds.
///
/// # Errors
/// When it is nested deeper than [`DEEPEST`](super::python::DEEPEST) levels: what compares, sorts or writes it would overflow the stack.
pub(super) fn walk(value: &Value) -> Result<(), Error> {
    walk_from(value, 0)
}

fn walk_from(value: &Value, depth: usize) -> Result<(), Error> {
    super::python::check_depth(depth)?;
    look(value)?;
    if !is_container(value) {
        return Ok(());
    }
    let is_map = matches!(value.kind(), ValueKind::Map);
    for item in value.try_iter()? {
        if is_map {
            walk_from(&value.get_item(&item)?, depth + 1)?;
        }
        walk_from(&item, depth + 1)?;
    }
    Ok(())
}

/// A value that has been made, with all its items there.
pub(super) fn made(value: Value) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::Iterable => {
            look(&value)?;
            // What is made while it is read might be read through many layers.
            let items = value.try_iter()?;
            let charged = items.map(|item| charge(ITEM).map(|()| item));
            charged.collect::<Result<Vec<Value>, Error>>()?.into()
        }
        _ => value,
    };
    look(&value)?;
    let nested = match value.kind() {
        ValueKind::Seq => value.try_iter()?.any(|item| is_container(&item)),
        ValueKind::Map | ValueKind::Plain => true,
        _ => false,
    };
    if nested {
        nest()?;
    }
    Ok(value)
}

pub(super) fn is_container(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Plain, Seq};
    matches!(value.kind(), Seq | Map | Iterable | Plain)
}

/// Refuses numbers that ask a filter for more than it should write.
pub(super) fn check_width(number: &Value) -> Result<i64, Error> {
    let width = number.as_i64().unwrap_or(0);
    let is_narrow = width.unsigned_abs() <= WIDEST.unsigned_abs()
        && (!number.is_integer() || number.as_i64().is_some());
    is_narrow.then_some(width).ok_or_else(|| {
        refused(&format!(
            "{number} is more than a filter takes, which is at most {WIDEST}"
        ))
    })
}

/// An operation that cannot be done.
pub(super) fn refused(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.to_string())
}
