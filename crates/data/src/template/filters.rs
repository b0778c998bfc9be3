//! The engine's filters and functions, each behind a charge for what it touches ([`super::bounds`]).

use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, Error, State, filters, functions};

use super::{bounds, python};

/// Adds filters and functions.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    let plain: [(&'static str, Value); 42] = [
        ("abs", Value::from_function(filters::abs)),
        ("attr", Value::from_function(filters::attr)),
        ("batch", Value::from_function(filters::batch)),
        ("bool", Value::from_function(filters::bool)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("chain", Value::from_function(filters::chain)),
        ("count", Value::from_function(python::length)),
        ("d", Value::from_function(filters::default)),
        ("default", Value::from_function(filters::default)),
        ("dictsort", Value::from_function(filters::dictsort)),
        ("first", Value::from_function(filters::first)),
        ("float", Value::from_function(filters::float)),
        ("format", Value::from_function(filters::format)),
        ("groupby", Value::from_function(filters::groupby)),
        ("indent", Value::from_function(filters::indent)),
        ("int", Value::from_function(filters::int)),
        ("items", Value::from_function(filters::items)),
        ("join", Value::from_function(filters::join)),
        ("last", Value::from_function(filters::last)),
        ("length", Value::from_function(python::length)),
        ("lines", Value::from_function(filters::lines)),
        ("list", Value::from_function(filters::list)),
        ("lower", Value::from_function(filters::lower)),
        ("map", Value::from_function(filters::map)),
        ("max", Value::from_function(filters::max)),
        ("min", Value::from_function(filters::min)),
        ("pprint", Value::from_function(filters::pprint)),
        ("reject", Value::from_function(filters::reject)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("replace", Value::from_function(filters::replace)),
        ("reverse", Value::from_function(filters::reverse)),
        ("round", Value::from_function(filters::round)),
        ("select", Value::from_function(filters::select)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("slice", Value::from_function(filters::slice)),
        ("sort", Value::from_function(filters::sort)),
        ("split", Value::from_function(filters::split)),
        ("sum", Value::from_function(filters::sum)),
        (
            "title",
            Value::from_function(|text: String| python::title(&text)),
        ),
        ("trim", Value::from_function(python::trim)),
        ("upper", Value::from_function(filters::upper)),
        ("zip", Value::from_function(filters::zip)),
    ];
    let unique = ("unique", Value::from_function(filters::unique));
    for (name, filter) in plain.into_iter().chain([unique]) {
        environment.add_filter(name, move |state: &State, arguments: Rest<Value>| {
            charge(name, &arguments)?;
            bounds::made(filter.call(state, &arguments)?)
        });
    }
    // These charge for what they write.
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("string", |value: Value| python::text(&value));
    add_functions(environment);
}

fn add_functions(environment: &mut Environment<'static>) {
    let plain = [
        ("range", Value::from_function(functions::range)),
        ("dict", Value::from_function(functions::dict)),
    ];
    for (name, function) in plain {
        environment.add_function(name, move |state: &State, arguments: Rest<Value>| {
            charge(name, &arguments)?;
            bounds::made(function.call(state, &arguments)?)
        });
    }
    environment.add_function("namespace", |defaults: Option<Value>| {
        bounds::nest()?;
        functions::namespace(defaults)
    });
    // It writes all variables, and Jinja has it in no template of `transformers`.
    environment.remove_global("debug");
}

/// Charges for a call of a filter, a function or a method; the first argument is the value that it is called on.
pub(super) fn charge(name: &str, arguments: &[Value]) -> Result<(), Error> {
    let value = arguments.first().unwrap_or(&Value::UNDEFINED);
    let others = arguments.get(1..).unwrap_or_default();
    bounds::charge(bounds::CALL)?;
    match name {
        "length" | "count" | "first" | "d" | "default" | "attr" | "get"
            if value.as_str().is_none() =>
        {
            return Ok(());
        }
        // A sort compares each item some times.
        "sort" | "unique" | "groupby" | "min" | "max" | "dictsort" | "join" | "pprint" => {
            arguments
                .iter()
                .try_for_each(|argument| bounds::walk_times(4, argument))?;
        }
        // They make an item of each character, or of parts as small.
        "list" | "split" | "splitlines" | "lines" | "batch" | "slice" => {
            bounds::look_times(8, value)?;
        }
        _ => arguments.iter().try_for_each(bounds::look)?,
    }
    charge_growth(name, value, others)
}

/// Charges for texts that become longer than all that goes in.
fn charge_growth(name: &str, value: &Value, others: &[Value]) -> Result<(), Error> {
    let text = value.as_str().unwrap_or_default();
    let given = |index: usize| others.get(index).and_then(Value::as_str);
    match name {
        "indent" => {
            let widths = named(others, &["width"])?;
            let widest = widths.iter().map(bounds::check_width);
            let widest = widest.collect::<Result<Vec<_>, _>>()?;
            let widest = widest.into_iter().max().unwrap_or(0).unsigned_abs() as usize;
            let prefixes = widths.iter().filter_map(Value::as_str).map(str::len);
            let lines = text.matches(['\n', '\r']).count() + 1;
            bounds::charge_times(lines, widest.max(prefixes.max().unwrap_or(0)).max(4))
        }
        "batch" | "slice" => {
            let counts = named(others, &["count", "slices", "linecount"])?;
            let mut counts = counts.iter().map(bounds::check_width);
            counts.try_for_each(|count| count.map(|_| ()))
        }
        "replace" => {
            let matches = text.matches(given(0).unwrap_or_default()).count();
            bounds::charge_times(matches, given(1).unwrap_or_default().len())
        }
        "join" => {
            let separators = named(others, &["d"])?;
            let length = separators.iter().filter_map(Value::as_str).map(str::len);
            let length = length.max().unwrap_or(0);
            let items = value.len().unwrap_or(0).max(text.len());
            bounds::charge_times(items, length)
        }
        "format" => {
            others.iter().try_for_each(bounds::walk)?;
            check_format(text)
        }
        _ => Ok(()),
    }
}

/// The values given by place, and those given by some names.
fn named(others: &[Value], names: &[&str]) -> Result<Vec<Value>, Error> {
    let (places, named): (Vec<Value>, Vec<Value>) =
        others.iter().cloned().partition(|value| !value.is_kwargs());
    let mut found = places;
    for given in named {
        let given = Kwargs::try_from(given)?;
        for name in names.iter().filter(|name| given.has(name)) {
            found.push(given.get::<Value>(name)?);
        }
    }
    Ok(found)
}

/// Refuses widths and precisions of five digits or more in a format, each of which would be written out.
fn check_format(text: &str) -> Result<(), Error> {
    let mut digits = 0;
    for character in text.chars() {
        digits = if character.is_ascii_digit() {
            digits + 1
        } else {
            0
        };
        if digits > 4 && text.contains(['%', '{']) {
            return Err(bounds::refused(
                "a number of five digits or more in a format: write it in the text around it",
            ));
        }
    }
    // Each part may be as wide as four digits say.
    bounds::charge_times(text.matches(['%', '{']).count(), 10_000)
}
