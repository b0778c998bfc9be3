//! The template engine, set up as `transformers` sets up Jinja, and bounded: what it renders, and how many instructions it runs.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use minijinja::value::Value as Jinja;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use super::{OUTPUT_LIMIT, clock, generation, python};
use crate::{Error, Result};

/// The most instructions that one rendering may run: some seconds of work, which only a hostile template asks for.
const MOST_WORK: u64 = 50_000_000;

/// Checks the syntax of a program.
pub(super) fn check(program: &str) -> Result<()> {
    let checked = ENVIRONMENT.template_from_named_str("chat_template", program);
    checked.map(|_| ()).map_err(|error| template_error(&error))
}

/// Runs a program; `wrap` gets the text of each generation block.
pub(super) fn render(
    program: &str,
    variables: &Map<String, Value>,
    wrap: impl Fn(String) -> String + Send + Sync + 'static,
) -> Result<String> {
    let mut environment = ENVIRONMENT.clone();
    environment.add_filter(generation::FILTER, wrap);
    // The engine must not take the process with it, whatever a template does.
    let output = catch_unwind(AssertUnwindSafe(|| run(&environment, program, variables)));
    output.unwrap_or_else(|_| Err(Error::Template("the template makes the engine fail".into())))
}

fn run(environment: &Environment, program: &str, variables: &Map<String, Value>) -> Result<String> {
    let mut output = Bounded(Vec::new());
    let template = environment.template_from_named_str("chat_template", program);
    let rendered = template.and_then(|template| {
        template
            .render_captured_to(variables, &mut output)
            .map(|_| ())
    });
    rendered.map_err(|error| template_error(&error))?;
    String::from_utf8(output.0).map_err(|error| Error::Template(error.to_string()))
}

/// The template engine with the settings, filters and functions that `transformers` gives templates, shared by all of them.
static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(false);
    environment.set_unknown_method_callback(python::method);
    environment.set_fuel(Some(MOST_WORK));
    environment.set_formatter(python::print);
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("title", |text: String| python::title(&text));
    environment.add_filter("string", |value: Jinja| python::text(&value));
    environment.add_filter("trim", python::trim);
    environment.add_filter("length", python::length);
    environment.add_filter("count", python::length);
    environment.add_test("iterable", python::is_iterable);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: String| clock::now(&format));
    // Replaced before rendering; here so that checking the syntax knows it.
    environment.add_filter(generation::FILTER, |body: String| body);
    environment
});

fn raise_exception(message: String) -> Result<Jinja, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The error's own words, its line, and the cause where a called part failed.
fn template_error(error: &minijinja::Error) -> Error {
    let cause = std::error::Error::source(error)
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    Error::Template(format!("{error}{cause}"))
}

/// A buffer that refuses to grow beyond [`OUTPUT_LIMIT`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_LIMIT {
            return Err(io::Error::other(format!(
                "the template renders more than {OUTPUT_LIMIT} bytes"
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
