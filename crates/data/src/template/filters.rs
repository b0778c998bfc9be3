//! The engine's filters and functions, each behind a charge for what it touches ([`super::bounds`]).

use std::cmp::Ordering;

use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, Error, ErrorKind, State, filters, functions};

use super::arguments::Arguments;
use super::{bounds, format, numbers, python, strings, texts};

type Filter = fn(&Value, &Arguments) -> Result<Value, Error>;

/// Filters that are ours, with the names of their arguments.
const OWN: [(&str, &[&str], Filter); 20] = [
    ("center", &["width"], texts::center),
    (
        "dictsort",
        &["case_sensitive", "by", "reverse"],
        numbers::dict_sort,
    ),
    ("e", &[], |value, _| texts::escape(value)),
    ("escape", &[], |value, _| texts::escape(value)),
    ("float", &["default"], numbers::float),
    ("forceescape", &[], |value, _| texts::escape(value)),
    ("indent", &["width", "first", "blank"], texts::indent),
    ("int", &["default", "base"], numbers::int),
    ("join", &["d", "attribute"], numbers::join),
    ("max", &["case_sensitive", "attribute"], |value, given| {
        numbers::extreme(value, given, Ordering::Greater)
    }),
    ("min", &["case_sensitive", "attribute"], |value, given| {
        numbers::extreme(value, given, Ordering::Less)
    }),
    ("pprint", &["verbose"], |value, _| texts::pretty(value)),
    ("replace", &["old", "new", "count"], |value, given| {
        strings::replace(&python::text(value)?, given)
    }),
    ("round", &["precision", "method"], numbers::round),
    ("sum", &["attribute", "start"], numbers::sum),
    (
        "truncate",
        &["length", "killwords", "end", "leeway"],
        texts::truncate,
    ),
    ("urlencode", &[], |value, _| texts::url_encode(value)),
    ("wordcount", &[], |value, _| texts::word_count(value)),
    ("capitalize", &[], |value, _| {
        python::capitalize(&python::text(value)?).map(Value::from)
    }),
    ("title", &[], |value, _| {
        Ok(python::title(&python::text(value)?).into())
    }),
];

/// Adds filters and functions.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    let plain: [(&'static str, Value); 28] = [
        ("abs", Value::from_function(filters::abs)),
        ("attr", Value::from_function(filters::attr)),
        ("batch", Value::from_function(filters::batch)),
        ("bool", Value::from_function(filters::bool)),
        ("chain", Value::from_function(filters::chain)),
        ("count", Value::from_function(python::length)),
        ("d", Value::from_function(filters::default)),
        ("default", Value::from_function(filters::default)),
        ("first", Value::from_function(filters::first)),
        ("groupby", Value::from_function(filters::groupby)),
        ("items", Value::from_function(filters::items)),
        ("last", Value::from_function(filters::last)),
        ("length", Value::from_function(python::length)),
        ("lines", Value::from_function(filters::lines)),
        ("list", Value::from_function(filters::list)),
        ("lower", Value::from_function(filters::lower)),
        ("map", Value::from_function(filters::map)),
        ("reject", Value::from_function(filters::reject)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("reverse", Value::from_function(filters::reverse)),
        ("select", Value::from_function(filters::select)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("slice", Value::from_function(filters::slice)),
        ("sort", Value::from_function(filters::sort)),
        ("split", Value::from_function(filters::split)),
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
    for (name, names, filter) in OWN {
        environment.add_filter(name, move |_: &State, arguments: Rest<Value>| {
            charge(name, &arguments)?;
            let (value, given) = arguments.split_first().ok_or(ErrorKind::MissingArgument)?;
            bounds::made(filter(value, &Arguments::new(names, given)?)?)
        });
    }
    environment.add_filter("format", |text: Value, arguments: Rest<Value>| {
        let (names, values): (Vec<Value>, Vec<Value>) =
            arguments.0.into_iter().partition(Value::is_kwargs);
        values.iter().chain(&names).try_for_each(bounds::walk)?;
        format::percent(&python::text(&text)?, &values, names.first())
    });
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
        // Methods of lists that compare each item; the filter `count` takes nothing else.
        "index" | "count" if value.as_str().is_none() && !others.is_empty() => {
            bounds::walk(value)?;
            others.iter().try_for_each(bounds::look)?;
        }
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
    match name {
        "batch" | "slice" => {
            let counts = named(others, &["count", "slices", "linecount"])?;
            let mut counts = counts.iter().map(bounds::check_width);
            counts.try_for_each(|count| count.map(|_| ()))
        }
        "range" => arguments_within(others).and(arguments_within(std::slice::from_ref(value))),
        _ => Ok(()),
    }
}

/// Refuses bounds of a range from which its length could not be counted.
fn arguments_within(given: &[Value]) -> Result<(), Error> {
    const MOST: u64 = 1 << 60;
    let is_far = |bound: &&Value| {
        let number = bound.as_i64().map(i64::unsigned_abs);
        bound.is_integer() && number.is_none_or(|number| number > MOST)
    };
    match given.iter().find(is_far) {
        None => Ok(()),
        Some(far) => Err(bounds::refused(&format!("{far} is too large for a range"))),
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
