//! The report of a run: one self-contained HTML page with curves, tables and sample conversations.
//!
//! Nothing is loaded from outside and nothing runs: one inline style sheet, curves as inline SVG, and a content policy
//! that forbids the rest, since a report quotes what a model wrote. Light or dark as the reader's system says; readable on
//! a phone; fit for paper.
//!
//! Left out: interaction (zoom, hover), which would need scripts.

mod axis;
mod bars;
mod chart;
mod heat_map;
mod highlight;
mod sample;
mod table;

use std::path::{Path, PathBuf};

use espalier_data::disk;

pub use bars::{Bar, Bars};
pub use chart::{Chart, Series};
pub use heat_map::HeatMap;
pub use highlight::Highlight;
pub use sample::{Answered, Sample};
pub use table::Table;

/// The page's style sheet.
const STYLE: &str = include_str!("style.css");

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A curve could not be drawn.
    #[error("chart `{title}`: {reason}")]
    Chart {
        /// The chart's title.
        title: String,
        /// The drawing library's reason.
        reason: String,
    },
    /// The page could not be written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// This module's result.
pub type Result<T, E = ReportError> = std::result::Result<T, E>;

/// Everything that a report says. All text is plain: it is escaped where it enters the page.
///
/// ```
/// use espalier_evaluate::report::{Chart, Report, Section, Series};
/// let loss = Series { name: "training".into(), points: vec![(0.0, 5.2), (100.0, 2.3)] };
/// let chart = Chart { title: "Loss".into(), x_label: "step".into(), series: vec![loss], ..Chart::default() };
/// let report = Report { title: "tiny-lm".into(), sections: vec![Section::Chart(chart)], ..Report::default() };
/// assert!(report.html().unwrap().contains("<svg"));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The page's heading.
    pub title: String,
    /// One line below it; may be empty.
    pub subtitle: String,
    /// Names and values that are worth a glance: parameters, tokens, wall time.
    pub facts: Vec<(String, String)>,
    /// The body, in order.
    pub sections: Vec<Section>,
}

/// A part of a report.
#[derive(Debug, Clone, PartialEq)]
pub enum Section {
    /// Curves.
    Chart(Chart),
    /// A grid of scores.
    HeatMap(HeatMap),
    /// Rows and columns.
    Table(Table),
    /// Shares with their intervals.
    Bars(Bars),
    /// The figures that a reader should see first.
    Highlights(Vec<Highlight>),
    /// Charts and bars side by side, as many as fit, under one heading.
    Grid {
        /// The heading; may be empty.
        title: String,
        /// A remark below the heading; may be empty.
        note: String,
        /// What stands in it.
        sections: Vec<Section>,
    },
    /// Questions with the answers of one or several models.
    Samples {
        /// The heading; may be empty.
        title: String,
        /// A remark below the heading; may be empty.
        note: String,
        /// The samples, in order.
        samples: Vec<Sample>,
    },
    /// Sections that are folded away under their heading.
    Details {
        /// The heading.
        title: String,
        /// What is folded away.
        sections: Vec<Section>,
    },
    /// Text as it stands, folded away under its heading.
    Folded {
        /// The heading.
        title: String,
        /// The text.
        body: String,
    },
    /// Samples of a model, under one heading.
    Conversations(Vec<Conversation>),
    /// Paragraphs, separated by blank lines.
    Text {
        /// The heading; may be empty.
        title: String,
        /// The paragraphs.
        body: String,
    },
}

/// An exchange with a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The heading; may be empty.
    pub title: String,
    /// Role and text of each turn; a turn of role `assistant` is set off as the model's.
    pub turns: Vec<(String, String)>,
    /// Whether the answer is right, where that was checked.
    pub verdict: Option<bool>,
}

impl Report {
    /// The page.
    ///
    /// # Errors
    /// [`ReportError::Chart`] when the drawing library refuses a chart.
    pub fn html(&self) -> Result<String> {
        let sections = all_html(&self.sections)?;
        let title = escape(&self.title);
        Ok(format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
             <header>\n<h1>{title}</h1>\n{}{}</header>\n{sections}\
             <footer>Made by espalier. This page stands alone: it loads nothing.</footer>\n</main>\n</body>\n</html>\n",
            element("p", "subtitle", &self.subtitle),
            self.facts_html(),
        ))
    }

    /// Writes the page beside `path` and renames it, so that a reader never finds half of it.
    ///
    /// # Errors
    /// As [`Report::html`], or [`ReportError::File`] when the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let html = self.html()?;
        disk::write_whole(path, html.as_bytes()).map_err(|source| ReportError::File {
            path: path.into(),
            source,
        })
    }

    fn facts_html(&self) -> String {
        if self.facts.is_empty() {
            return String::new();
        }
        let fact = |(name, value): &(String, String)| {
            format!(
                "<div><dt>{}</dt><dd>{}</dd></div>\n",
                escape(name),
                escape(value)
            )
        };
        format!(
            "<dl class=\"facts\">\n{}</dl>\n",
            self.facts.iter().map(fact).collect::<String>()
        )
    }
}

impl Section {
    fn html(&self) -> Result<String> {
        Ok(match self {
            Self::Chart(chart) => chart.html()?,
            Self::HeatMap(map) => map.html(),
            Self::Table(table) => table.html(),
            Self::Bars(bars) => bars.html(),
            Self::Highlights(highlights) => {
                let cards: String = highlights.iter().map(Highlight::html).collect();
                format!("<section class=\"cards\">\n{cards}</section>\n")
            }
            Self::Grid {
                title,
                note,
                sections,
            } => {
                let (title, note) = (element("h2", "", title), element("p", "note", note));
                let inner = all_html(sections)?;
                format!(
                    "<section>\n{title}{note}<div class=\"columns\">\n{inner}</div>\n</section>\n"
                )
            }
            Self::Samples {
                title,
                note,
                samples,
            } => {
                let (title, note) = (element("h2", "", title), element("p", "note", note));
                let inner: String = samples.iter().map(Sample::html).collect();
                format!("<section class=\"conversations\">\n{title}{note}{inner}</section>\n")
            }
            Self::Details { title, sections } => format!(
                "<section class=\"folded\">\n<details><summary>{}</summary>\n{}</details>\n</section>\n",
                escape(title),
                all_html(sections)?
            ),
            Self::Folded { title, body } => format!(
                "<section class=\"folded\">\n<details><summary>{}</summary>\n<pre>{}</pre></details>\n</section>\n",
                escape(title),
                escape(body)
            ),
            Self::Conversations(conversations) => {
                let all: String = conversations.iter().map(Conversation::html).collect();
                format!("<section class=\"conversations\">\n{all}</section>\n")
            }
            Self::Text { title, body } => {
                let paragraphs = body
                    .split("\n\n")
                    .map(|paragraph| element("p", "", paragraph.trim()));
                format!(
                    "<section>\n{}{}</section>\n",
                    element("h2", "", title),
                    paragraphs.collect::<String>()
                )
            }
        })
    }
}

fn all_html(sections: &[Section]) -> Result<String> {
    sections.iter().map(Section::html).collect()
}

impl Conversation {
    fn html(&self) -> String {
        let verdict = match self.verdict {
            Some(true) => "<span class=\"verdict right\">✓ right</span>",
            Some(false) => "<span class=\"verdict wrong\">✗ wrong</span>",
            None => "",
        };
        let turns: String = self
            .turns
            .iter()
            .map(|(role, text)| turn_html(role, text))
            .collect();
        let title = escape(&self.title);
        format!(
            "<article>\n<div class=\"heading\"><h3>{title}</h3>{verdict}</div>\n{turns}</article>\n"
        )
    }
}

fn turn_html(role: &str, text: &str) -> String {
    let class = if role == "assistant" {
        "turn model"
    } else {
        "turn"
    };
    let (role, text) = (escape(role), escape(text));
    format!(
        "<div class=\"{class}\"><span class=\"role\">{role}</span><div class=\"said\">{text}</div></div>\n"
    )
}

/// An element with text in it, or nothing where there is no text.
fn element(tag: &str, class: &str, text: &str) -> String {
    let class = if class.is_empty() {
        String::new()
    } else {
        format!(" class=\"{class}\"")
    };
    if text.is_empty() {
        String::new()
    } else {
        format!("<{tag}{class}>{}</{tag}>\n", escape(text))
    }
}

/// Text made safe between tags and inside quoted attributes; control characters, which HTML forbids, become visible.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(character),
            control if control.is_control() => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests;
