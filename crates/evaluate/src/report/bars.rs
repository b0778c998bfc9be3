//! Bars: shares or other figures with their intervals, one below the other, drawn in HTML alone so that they fit a phone.

use super::{element, escape};

/// Shares side by side.
///
/// ```
/// use espalier_evaluate::report::{Bar, Bars, Report, Section};
/// let bar = Bar { name: "sort".into(), value: 0.8, low: 0.7, high: 0.9, text: "80.0 % (70.0-90.0)".into(), ..Bar::default() };
/// let report = Report { sections: vec![Section::Bars(Bars { title: "Accuracy".into(), note: String::new(), bars: vec![bar] })], ..Report::default() };
/// assert!(report.html()?.contains("80.0 %"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bars {
    /// The heading; may be empty.
    pub title: String,
    /// A remark below; may be empty.
    pub note: String,
    /// The bars, in order.
    pub bars: Vec<Bar>,
}

/// One share.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bar {
    /// What it is of.
    pub name: String,
    /// The share, from 0 to 1.
    pub value: f64,
    /// Its interval; none is drawn where both ends are the same.
    pub low: f64,
    /// Its interval.
    pub high: f64,
    /// The share in words.
    pub text: String,
    /// Which of several colours: 0 for this model, others for those beside it.
    pub series: usize,
}

impl Bars {
    pub(super) fn html(&self) -> String {
        let bars: String = self.bars.iter().map(Bar::html).collect();
        format!(
            "<section>\n{}<div class=\"bars\">\n{bars}</div>\n{}</section>\n",
            element("h2", "", &self.title),
            element("p", "note", &self.note),
        )
    }
}

impl Bar {
    fn html(&self) -> String {
        let percent = |share: f64| 100.0 * share.clamp(0.0, 1.0);
        let (low, high) = (percent(self.low), percent(self.high));
        let interval = match high > low {
            true => format!("<u style=\"left:{low:.2}%;width:{:.2}%\"></u>", high - low),
            false => String::new(),
        };
        format!(
            "<div class=\"bar\"><div class=\"bar-name\"><span>{}</span><b>{}</b></div>\
             <div class=\"track series-{}\"><i style=\"width:{:.2}%\"></i>{interval}</div></div>\n",
            escape(&self.name),
            escape(&self.text),
            self.series % 8,
            percent(self.value),
        )
    }
}
