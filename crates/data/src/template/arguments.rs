//! The arguments of a filter or a method, by place or by name, as Python binds them.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};

use super::{bounds, python};

/// Arguments in the order of their names.
pub(super) struct Arguments {
    names: &'static [&'static str],
    values: Vec<Option<Value>>,
}

impl Arguments {
    /// Binds what was given to names.
    pub fn new(names: &'static [&'static str], given: &[Value]) -> Result<Self, Error> {
        let mut values = vec![None; names.len()];
        let (mut place, mut slots) = (0, values.iter_mut());
        for value in given {
            if value.is_kwargs() {
                break;
            }
            let slot = slots.next().ok_or(ErrorKind::TooManyArguments)?;
            *slot = Some(value.clone());
            place += 1;
        }
        for value in &given[place..] {
            let named = Kwargs::try_from(value.clone())?;
            for (name, slot) in names.iter().zip(&mut values) {
                if named.has(name) {
                    if slot.is_some() {
                        return Err(bounds::refused(&format!("`{name}` is given twice")));
                    }
                    *slot = Some(named.get::<Value>(name)?);
                }
            }
            named.assert_all_used()?;
        }
        Ok(Self { names, values })
    }

    /// The value of an argument that is given and not none.
    pub fn value(&self, place: usize) -> Option<&Value> {
        let value = self.values.get(place)?.as_ref();
        value.filter(|value| !value.is_none())
    }

    /// The value of an argument that must be given.
    pub fn required(&self, place: usize) -> Result<&Value, Error> {
        self.value(place).ok_or_else(|| {
            let name = self.names.get(place).copied().unwrap_or_default();
            Error::new(ErrorKind::MissingArgument, format!("`{name}` is missing"))
        })
    }

    /// A text.
    pub fn text(&self, place: usize) -> Result<Option<String>, Error> {
        let text = |value: &Value| match value.as_str() {
            Some(text) => Ok(text.to_string()),
            None => Err(self.wrong(place, "text", value)),
        };
        self.value(place).map(text).transpose()
    }

    /// A text that must be given.
    pub fn required_text(&self, place: usize) -> Result<String, Error> {
        let value = self.required(place)?;
        self.text(place)?
            .ok_or_else(|| self.wrong(place, "text", value))
    }

    /// A whole number.
    pub fn whole(&self, place: usize) -> Result<Option<i64>, Error> {
        let whole = |value: &Value| match value.as_i64() {
            Some(number) if value.is_integer() => Ok(number),
            _ => Err(self.wrong(place, "a whole number", value)),
        };
        self.value(place).map(whole).transpose()
    }

    /// A width of what is written, which is bounded.
    pub fn width(&self, place: usize) -> Result<Option<usize>, Error> {
        let width = self.whole(place)?;
        let checked = width.map(|width| bounds::check_width(&width.into()));
        Ok(checked.transpose()?.map(|width| width.max(0) as usize))
    }

    /// Whether an argument is given and true.
    pub fn flag(&self, place: usize) -> bool {
        self.value(place).is_some_and(Value::is_true)
    }

    fn wrong(&self, place: usize, expected: &str, found: &Value) -> Error {
        let name = self.names.get(place).copied().unwrap_or_default();
        let shown = python::text(found).unwrap_or_default();
        let shown: String = shown.chars().take(40).collect();
        bounds::refused(&format!("`{name}` must be {expected}, found {shown}"))
    }
}
