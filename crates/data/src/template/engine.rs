//! The template engine, set up as `transformers` sets up Jinja, and bounded ([`super::bounds`]).
//!
//! A program is compiled and run on a thread of its own, whose stack holds what the bounds leave to recursion: nested expressions, and
//! lists of lists that are dropped.

use std::sync::LazyLock;
use std::thread;

use minijinja::machinery::{Vm, make_string_output};
use minijinja::value::Value as Jinja;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

use super::bounds::Limits;
use super::program::{ONE, Program, prepare};
use super::{OUTPUT_LIMIT, bounds, clock, filters, generation, numbers, operators, python};
use crate::{Error, Result};

/// Bytes of stack for parsing and for calls of macros in one another.
const STACK: usize = 32 << 20;

/// Bytes of stack that dropping a list in a list takes, and more.
const STACK_OF_LEVEL: usize = 640;

/// Checks the syntax of a program; the program to be rendered.
///
/// # Errors
/// [`Error::Template`] with the line.
pub(super) fn check(program: &str) -> Result<String> {
    let limits = Limits::new(0, 0);
    on_a_deep_stack(limits, || {
        let prepared = prepare(program)?;
        let checked = Program::new(&ENVIRONMENT, &prepared).map(|_| ());
        checked.map_err(|error| template_error(&error))?;
        Ok(prepared)
    })
}

/// Runs a program; `wrap` gets the text of each generation block.
pub(super) fn render(
    program: &str,
    variables: &Map<String, Value>,
    wrap: impl Fn(String) -> String + Send + Sync + 'static,
) -> Result<String> {
    let messages = variables.get("messages").and_then(Value::as_array);
    let texts = variables.values().map(length).sum();
    let limits = Limits::new(messages.map_or(0, Vec::len), texts);
    on_a_deep_stack(limits, || {
        let mut environment = ENVIRONMENT.clone();
        environment.add_filter(generation::FILTER, wrap);
        environment.set_fuel(Some(limits.instructions));
        let text = run(&environment, program, variables).map_err(|error| template_error(&error))?;
        if text.len() <= OUTPUT_LIMIT {
            return Ok(text);
        }
        Err(Error::Template(format!(
            "the template renders more than {OUTPUT_LIMIT} bytes"
        )))
    })
}

/// Renders a text template ([`super::render_text`]).
pub(super) fn render_text(source: &str, variables: &Map<String, Value>) -> Result<String> {
    let texts = variables.values().map(length).sum();
    let limits = Limits::new(0, texts);
    on_a_deep_stack(limits, || {
        let program = prepare(source)?;
        let mut environment = TEXTS.clone();
        environment.set_fuel(Some(limits.instructions));
        let text =
            run(&environment, &program, variables).map_err(|error| template_error(&error))?;
        if text.len() <= OUTPUT_LIMIT {
            return Ok(text);
        }
        Err(Error::Template(format!(
            "the template renders more than {OUTPUT_LIMIT} bytes"
        )))
    })
}

fn run(
    environment: &Environment,
    program: &str,
    variables: &Map<String, Value>,
) -> Result<String, minijinja::Error> {
    let program = Program::new(environment, program)?;
    let mut text = String::new();
    let mut output = make_string_output(&mut text);
    Vm::new(environment).eval(
        &program.instructions,
        Jinja::from_serialize(variables),
        &program.blocks,
        &mut output,
        AutoEscape::None,
    )?;
    Ok(text)
}

/// The bytes of all texts in a value.
fn length(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(length).sum(),
        Value::Object(fields) => fields.values().map(length).sum(),
        _ => 0,
    }
}

/// Does some work on a thread with the stack and the counts that its limits ask for.
fn on_a_deep_stack<T: Send>(limits: Limits, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let stack =
        STACK + STACK_OF_LEVEL * usize::try_from(limits.nested).unwrap_or(usize::MAX / 1024);
    let work = || {
        bounds::start(limits);
        work()
    };
    thread::scope(|scope| {
        let started = thread::Builder::new()
            .stack_size(stack)
            .spawn_scoped(scope, work);
        let started = started.map_err(|reason| {
            Error::Template(format!(
                "no thread with {stack} bytes of stack for it: {reason}"
            ))
        })?;
        // The engine must not take the process with it, whatever a template does.
        let failed = |_| Err(Error::Template("the template makes the engine fail".into()));
        started.join().unwrap_or_else(failed)
    })
}

/// The template engine with the settings, filters and functions that `transformers` gives templates, shared by all of them.
static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(false);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python::print);
    filters::add_to(&mut environment);
    operators::add_to(&mut environment);
    operators::add_tests_to(&mut environment);
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("sequence", |value: Jinja| numbers::is_sequence(&value));
    environment.add_test("number", |value: Jinja| numbers::is_number(&value));
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: String| clock::now(&format));
    environment.add_global(ONE, 1);
    // Replaced before rendering; here so that checking the syntax knows it.
    environment.add_filter(generation::FILTER, |body: String| body);
    environment
});

/// The same engine as `lm-evaluation-harness` sets it up.
static TEXTS: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = ENVIRONMENT.clone();
    environment.set_trim_blocks(false);
    environment.set_lstrip_blocks(false);
    environment.set_keep_trailing_newline(true);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("regex_replace", regex_replace);
    environment
});

fn regex_replace(
    text: String,
    pattern: String,
    to: String,
    count: Option<usize>,
) -> Result<String, minijinja::Error> {
    let regex = regex::Regex::new(&pattern);
    let regex = regex.map_err(|error| {
        minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("regex_replace: {error}"),
        )
    })?;
    Ok(regex.replacen(&text, count.unwrap_or(0), to).into_owned())
}

fn raise_exception(message: String) -> Result<Jinja, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The error's own words, its line, and the cause where a called part failed.
fn template_error(error: &minijinja::Error) -> Error {
    let cause = std::error::Error::source(error)
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    if error.kind() == ErrorKind::OutOfFuel {
        return Error::Template(format!(
            "the template runs more steps than any conversation asks for: {error}{cause}"
        ));
    }
    Error::Template(format!("{error}{cause}"))
}
