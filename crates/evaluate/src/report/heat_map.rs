//! Heat maps: a grid of scores as inline SVG, such as how well needles are found by the text's length and their depth in it.
//!
//! Cells are rectangles of the page's accent whose opacity is the score, with the score in percent on them, so that the map is
//! read without colours too. What was not measured is an empty cell.

use std::fmt::Write as _;

use super::{element, escape};

/// Size of a cell in the drawing's own units.
const CELL: (usize, usize) = (80, 40);

/// Room for the columns' labels below.
const BELOW: usize = 34;

/// Room for the rows' labels on the left: at least so much, and so much for each letter.
const LEFT: (usize, usize) = (90, 9);

/// A grid of scores.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeatMap {
    /// The heading.
    pub title: String,
    /// What the columns are.
    pub x_label: String,
    /// What the rows are.
    pub y_label: String,
    /// The columns' labels, from left to right.
    pub columns: Vec<String>,
    /// The rows' labels, from the top down.
    pub rows: Vec<String>,
    /// Scores from 0 to 1, a list for each row; what is not a number was not measured.
    pub scores: Vec<Vec<f64>>,
}

impl HeatMap {
    /// The map as a section of the page.
    pub(super) fn html(&self) -> String {
        let title = element("h2", "", &self.title);
        if self.columns.is_empty() || self.rows.is_empty() {
            return format!(
                "<section>\n{title}<p class=\"note\">There is nothing to draw yet.</p>\n</section>\n"
            );
        }
        let label = |class: &str, text: &str| element("div", &format!("axis {class}"), text);
        format!(
            "<section>\n{title}<figure style=\"max-width:{}px\">\n{}{}{}</figure>\n</section>\n",
            self.left() + CELL.0 * self.columns.len(),
            label("vertical", &self.y_label),
            self.svg(),
            label("horizontal", &self.x_label)
        )
    }

    /// Room for the rows' labels.
    fn left(&self) -> usize {
        let longest = self.rows.iter().map(|name| name.chars().count()).max();
        LEFT.0.max(20 + LEFT.1 * longest.unwrap_or(0))
    }

    fn svg(&self) -> String {
        let left = self.left();
        let width = left + CELL.0 * self.columns.len();
        let height = BELOW + CELL.1 * self.rows.len();
        let mut svg = format!(
            "<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {width} {height}\" xmlns=\"http://www.w3.org/2000/svg\">\n",
            escape(&self.title)
        );
        for (row, name) in self.rows.iter().enumerate() {
            let y = row * CELL.1 + CELL.1 / 2;
            text(&mut svg, (left - 10, y), "end", "ink fill", name);
            for column in 0..self.columns.len() {
                let score = self.scores.get(row).and_then(|scores| scores.get(column));
                let corner = (left + column * CELL.0, row * CELL.1);
                cell(&mut svg, corner, score.copied().unwrap_or(f64::NAN));
            }
        }
        for (column, name) in self.columns.iter().enumerate() {
            let x = left + column * CELL.0 + CELL.0 / 2;
            let y = height - BELOW / 2;
            text(&mut svg, (x, y), "middle", "ink fill", name);
        }
        svg + "</svg>\n"
    }
}

fn cell(svg: &mut String, (x, y): (usize, usize), score: f64) {
    let rectangle = |class: &str, opacity: f64| {
        format!(
            "<rect class=\"{class} fill\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"4\" fill-opacity=\"{opacity:.2}\"/>\n",
            x + 1,
            y + 1,
            CELL.0 - 2,
            CELL.1 - 2
        )
    };
    if !score.is_finite() {
        svg.push_str(&rectangle("grid", 0.25));
        return;
    }
    let score = score.clamp(0.0, 1.0);
    svg.push_str(&rectangle("grid", 0.5));
    svg.push_str(&rectangle("series-0", score));
    let middle = (x + CELL.0 / 2, y + CELL.1 / 2);
    let class = if score > 0.6 {
        "paper fill"
    } else {
        "ink fill"
    };
    text(
        svg,
        middle,
        "middle",
        class,
        &format!("{:.0}", 100.0 * score),
    );
}

fn text(svg: &mut String, (x, y): (usize, usize), anchor: &str, class: &str, words: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" font-size=\"15\" text-anchor=\"{anchor}\" dominant-baseline=\"central\">{}</text>",
        escape(words)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_as_dark_as_their_scores() {
        let map = HeatMap {
            title: "<needles>".into(),
            x_label: "tokens".into(),
            y_label: "depth".into(),
            columns: vec!["1,024".into(), "2,048".into()],
            rows: vec!["0 %".into(), "100 %".into()],
            scores: vec![vec![1.0, 0.25], vec![f64::NAN]],
        };
        let html = map.html();
        assert_eq!(html.matches("series-0 fill").count(), 2, "{html}");
        assert!(html.contains("fill-opacity=\"1.00\"") && html.contains(">25</text>"));
        assert_eq!(html.matches("fill-opacity=\"0.25\"").count(), 3);
        assert!(html.contains("&lt;needles&gt;") && !html.contains("<needles>"));
        assert!(!html.contains("NaN") && html.contains("2,048"));
        assert!(HeatMap::default().html().contains("nothing to draw"));
    }
}
