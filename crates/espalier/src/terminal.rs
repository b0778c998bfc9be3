//! What a command writes: results to standard output, progress and remarks to standard error.
//!
//! On a terminal progress is a bar; elsewhere it is a line now and then, so that a log stays readable; with `--quiet` it is
//! nothing. Colours appear on terminals only, and never when `NO_COLOR` is set. Text that a model or a file supplies loses its
//! control characters on a terminal, where they could do harm.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::{Error, Result};

/// Time between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// How and where output goes.
///
/// ```
/// use espalier::terminal::Terminal;
/// let progress = Terminal::new(true).progress(10, "reading");
/// progress.set(10, "10 files");
/// progress.finish("read 10 files");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    quiet: bool,
    bars: bool,
    interactive: bool,
    colour: bool,
    /// Whether standard error, where remarks go, is coloured.
    colour_of_remarks: bool,
}

impl Terminal {
    /// Looks at standard output and error, and at the environment.
    pub fn new(quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
        let plain = dumb || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let interactive = io::stdout().is_terminal();
        let bars = io::stderr().is_terminal() && !dumb;
        Self {
            quiet,
            bars,
            interactive,
            colour: interactive && !plain,
            colour_of_remarks: io::stderr().is_terminal() && !plain,
        }
    }

    /// Whether standard output may be coloured.
    pub fn colour(&self) -> bool {
        self.colour
    }

    /// Whether standard output is a terminal.
    pub fn interactive(&self) -> bool {
        self.interactive
    }

    /// Starts a display of progress towards `total`.
    pub fn progress(&self, total: u64, label: &str) -> Progress {
        let display = match (self.quiet, self.bars) {
            (true, _) => Display::Nothing,
            (false, true) => Display::Bar(bar(total, label)),
            (false, false) => Display::Lines(Cell::new(Instant::now())),
        };
        Progress {
            display,
            label: label.into(),
            total,
            position: Cell::new(0),
        }
    }

    /// A remark to the user on standard error, unless `--quiet`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            // A remark that cannot be written must not stop the work.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// What the user should know of what was read, a remark each.
    pub fn notes<'a>(&self, remarks: impl IntoIterator<Item = &'a String>) {
        for remark in remarks {
            self.note(&format!("note: {}", harmless(remark)));
        }
    }

    /// A line of results.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn line(&self, text: &str) -> Result<()> {
        Ok(writeln!(io::stdout().lock(), "{text}")?)
    }

    /// A piece of text that a model or a file supplied, shown at once.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn foreign(&self, text: &str) -> Result<()> {
        let mut output = io::stdout().lock();
        match self.interactive {
            true => output.write_all(harmless(text).as_bytes())?,
            false => output.write_all(text.as_bytes())?,
        }
        Ok(output.flush()?)
    }

    /// One JSON value on a line.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        self.line(&serde_json::to_string(value).map_err(|error| Error::Work(error.to_string()))?)
    }

    /// Names and values, one pair a line, the values aligned; an empty name continues the line before.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn facts<S: AsRef<str>>(&self, facts: &[(S, String)]) -> Result<()> {
        let width = facts
            .iter()
            .map(|(name, _)| name.as_ref().chars().count())
            .max()
            .unwrap_or(0);
        for (name, value) in facts {
            let name = self.faint(&format!("{:<width$}", name.as_ref()));
            self.line(&format!("{name}  {}", harmless(value)))?;
        }
        Ok(())
    }

    /// The text in bold, where colours are shown.
    pub fn bold(&self, text: &str) -> String {
        self.styled("1", text)
    }

    /// The text in bold, for standard error where that is a terminal.
    pub fn bold_remark(&self, text: &str) -> String {
        Self {
            colour: self.colour_of_remarks,
            ..*self
        }
        .bold(text)
    }

    /// The text dimmed, where colours are shown.
    pub fn faint(&self, text: &str) -> String {
        self.styled("2", text)
    }

    /// The text in green, where colours are shown.
    pub fn green(&self, text: &str) -> String {
        self.styled("32", text)
    }

    fn styled(&self, code: &str, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.into()
        }
    }
}

/// The text without control characters other than line breaks and tabs.
pub fn harmless(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control() || matches!(character, '\n' | '\t'))
        .collect()
}

fn bar(total: u64, label: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    let template = "{prefix} {bar:24} {pos}/{len} {elapsed}<{eta} {wide_msg}";
    // The template is a constant; the default style stands in should it ever be malformed.
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("━╸─"));
    bar.set_prefix(label.to_string());
    bar
}

/// Work under way.
#[derive(Debug)]
pub struct Progress {
    display: Display,
    label: String,
    total: u64,
    position: Cell<u64>,
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    /// When the last line was written.
    Lines(Cell<Instant>),
    Nothing,
}

impl Progress {
    /// Shows how far the work is, and a few words about it.
    pub fn set(&self, position: u64, message: &str) {
        self.position.set(position);
        match &self.display {
            Display::Bar(bar) => {
                bar.set_message(message.to_string());
                bar.set_position(position);
            }
            Display::Lines(last) if last.get().elapsed() >= LINE_INTERVAL => {
                last.set(Instant::now());
                self.write_line(message);
            }
            _ => {}
        }
    }

    /// Shows a line above the display.
    pub fn note(&self, text: &str) {
        if !matches!(self.display, Display::Nothing) {
            self.suspend(|| _ = writeln!(io::stderr(), "{text}"));
        }
    }

    /// Does something that writes to the terminal while the display is out of the way.
    pub fn suspend<R>(&self, work: impl FnOnce() -> R) -> R {
        match &self.display {
            Display::Bar(bar) => bar.suspend(work),
            _ => work(),
        }
    }

    /// Ends the display; `message` stays in sight.
    pub fn finish(self, message: &str) {
        match &self.display {
            Display::Bar(bar) => {
                bar.finish_and_clear();
                let _ = writeln!(io::stderr(), "{}: {message}", self.label);
            }
            Display::Lines(_) => self.write_line(message),
            Display::Nothing => {}
        }
    }

    fn write_line(&self, message: &str) {
        let _ = writeln!(
            io::stderr(),
            "{} {}/{}: {message}",
            self.label,
            self.position.get(),
            self.total
        );
    }
}

impl Drop for Progress {
    /// Work that failed leaves no bar behind.
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display
            && !bar.is_finished()
        {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\r\u{9b}c\n\td"), "a[2Jbc\n\td");
    }

    #[test]
    fn styles_need_a_terminal() {
        let plain = Terminal {
            quiet: false,
            bars: false,
            interactive: false,
            colour: false,
            colour_of_remarks: false,
        };
        assert_eq!(plain.bold("a"), "a");
        // A log of remarks has none, whatever becomes of the results.
        let logged = Terminal {
            colour: true,
            ..plain
        };
        assert_eq!(logged.bold_remark("a"), "a");
        let seen = Terminal {
            colour_of_remarks: true,
            ..plain
        };
        assert_eq!(
            (seen.bold("a"), seen.bold_remark("a")),
            ("a".into(), "\x1b[1ma\x1b[0m".into())
        );
        assert_eq!(
            Terminal {
                colour: true,
                ..plain
            }
            .bold("a"),
            "\x1b[1ma\x1b[0m"
        );
    }
}
