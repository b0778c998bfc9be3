//! What a reader should see first: a few figures, large, each with what it was before.

use super::{element, escape};

/// A figure that is worth a card.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Highlight {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: String,
    /// A remark below it, such as what it was before; may be empty.
    pub note: String,
    /// Whether it became better; none where nothing is to compare with, or the difference may be chance.
    pub better: Option<bool>,
}

impl Highlight {
    pub(super) fn html(&self) -> String {
        let class = match self.better {
            Some(true) => " right",
            Some(false) => " wrong",
            None => "",
        };
        format!(
            "<div class=\"card\"><h3>{}</h3><b class=\"large{class}\">{}</b>{}</div>\n",
            escape(&self.name),
            escape(&self.value),
            element("p", "note", &self.note),
        )
    }
}
