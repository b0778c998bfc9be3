//! Charts: curves as inline SVG, drawn by `plotters`.
//!
//! The library sets the geometry; colours are left to the page's style sheet (each series is drawn in a colour of its own
//! that is then replaced by a class), so that a dark page has light lines. Labels and the legend are HTML around the
//! drawing, which stay readable where it shrinks.
//!
//! A long series is thinned to the smallest and the largest value of each of a thousand slices: its spikes stay.

use plotters::prelude::*;

use super::axis::{Axis, LARGEST, significant};
use super::{ReportError, Result, element, escape};

/// Size of the drawing in its own units, four for each pixel of the page at full width: positions are whole numbers.
const SIZE: (u32, u32) = (3040, 1280);

/// A label's height in the same units.
const TEXT_HEIGHT: u32 = 58;

/// Series beyond this number are thinned.
const MOST_POINTS: usize = 2000;

/// Up to so many points, each is marked with a dot; two points are a level to compare with, and stay plain.
const MARKED_POINTS: usize = 30;

/// Colours in the style sheet; further series repeat them with dashed lines.
const COLOURS: usize = 8;

/// Curves on one pair of axes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chart {
    /// The heading.
    pub title: String,
    /// Label of the horizontal axis.
    pub x_label: String,
    /// Label of the vertical axis.
    pub y_label: String,
    /// Whether the vertical axis is logarithmic; values that are not positive are then left out.
    pub log_y: bool,
    /// The curves.
    pub series: Vec<Series>,
}

/// One curve.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

impl Chart {
    /// The chart as a section of the page.
    pub(super) fn html(&self) -> Result<String> {
        let curves: Vec<Vec<(f64, f64)>> = self
            .series
            .iter()
            .map(|series| self.drawable(series))
            .collect();
        let drawing = match Axis::around(curves.iter().flatten().map(|point| point.0), false) {
            None => "<p class=\"note\">There is nothing to draw yet.</p>\n".to_string(),
            Some(x) => self.figure(&curves, x)?,
        };
        let all: usize = self.series.iter().map(|series| series.points.len()).sum();
        let left_out = all - curves.iter().map(Vec::len).sum::<usize>();
        let (title, legend) = (element("h2", "", &self.title), self.legend());
        Ok(format!(
            "<section>\n{title}{legend}{drawing}{}</section>\n",
            self.note(left_out)
        ))
    }

    fn figure(&self, curves: &[Vec<(f64, f64)>], x: Axis) -> Result<String> {
        let Some(y) = Axis::around(curves.iter().flatten().map(|point| point.1), self.log_y) else {
            return Ok(String::new());
        };
        let thinned: Vec<Vec<(f64, f64)>> = curves.iter().map(|points| thin(points)).collect();
        let fail = |reason: String| ReportError::Chart {
            title: self.title.clone(),
            reason,
        };
        let svg = draw(&thinned, x, y).map_err(|error| fail(error.to_string()))?;
        let name = escape(&self.title);
        let svg = styled(&svg, curves.len()).replacen(
            "<svg ",
            &format!("<svg role=\"img\" aria-label=\"{name}\" "),
            1,
        );
        let label = |class: &str, text: &str| element("div", &format!("axis {class}"), text);
        let (above, below) = (
            label("vertical", &self.y_label),
            label("horizontal", &self.x_label),
        );
        Ok(format!(
            "<figure class=\"chart\">\n{above}{svg}{below}</figure>\n"
        ))
    }

    /// The points that can be drawn, on a linear scale.
    fn drawable(&self, series: &Series) -> Vec<(f64, f64)> {
        let scaled = series
            .points
            .iter()
            .map(|&(x, y)| (x, if self.log_y { y.log10() } else { y }));
        scaled
            .filter(|(x, y)| x.abs() < LARGEST && y.abs() < LARGEST)
            .collect()
    }

    fn legend(&self) -> String {
        let entry = |(index, series): (usize, &Series)| {
            let last = series.points.iter().rev().find(|point| point.1.is_finite());
            let last = last.map_or(String::new(), |point| {
                format!(" <b>{}</b>", significant(point.1))
            });
            format!(
                "<li><i class=\"{}\"></i>{}{last}</li>\n",
                class(index),
                escape(&series.name)
            )
        };
        let entries: String = self.series.iter().enumerate().map(entry).collect();
        if entries.is_empty() {
            entries
        } else {
            format!("<ul class=\"legend\">\n{entries}</ul>\n")
        }
    }

    fn note(&self, left_out: usize) -> String {
        let kind = if self.log_y {
            "not positive, not finite"
        } else {
            "not finite"
        };
        let points = if left_out == 1 {
            "1 point is".to_string()
        } else {
            format!("{left_out} points are")
        };
        let text = format!("{points} left out: {kind} or too large to draw.");
        if left_out == 0 {
            String::new()
        } else {
            element("p", "note", &text)
        }
    }
}

/// The smallest and the largest value of each slice of a series that is too long, in their order.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let slice = points.len().div_ceil(MOST_POINTS / 2);
    points.chunks(slice).flat_map(extremes).collect()
}

fn extremes(slice: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let order = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
    let (low, high) = (slice.iter().min_by(order), slice.iter().max_by(order));
    let mut both: Vec<(f64, f64)> = low.into_iter().chain(high).copied().collect();
    both.sort_by(|a, b| a.0.total_cmp(&b.0));
    both
}

/// Draws the curves; series and axes are in key colours, which [`styled`] replaces.
fn draw(
    curves: &[Vec<(f64, f64)>],
    x: Axis,
    y: Axis,
) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .margin_right(80)
            .margin_top(32)
            .x_label_area_size(96)
            .y_label_area_size(240)
            .build_cartesian_2d(x.clone(), y.clone())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(ShapeStyle::from(&GRID).stroke_width(3))
            .axis_style(ShapeStyle::from(&GRID).stroke_width(5))
            .label_style(("sans-serif", TEXT_HEIGHT).into_font().color(&INK))
            .set_all_tick_mark_size(16)
            .x_label_formatter(&|value| x.label(*value))
            .y_label_formatter(&|value| y.label(*value))
            .draw()?;
        for (index, points) in curves.iter().enumerate() {
            let style = ShapeStyle::from(&key_colour(index));
            chart.draw_series(LineSeries::new(
                points.iter().copied(),
                style.stroke_width(7),
            ))?;
            if points.len() <= MARKED_POINTS && points.len() != 2 {
                chart.draw_series(
                    points
                        .iter()
                        .map(|point| Circle::new(*point, 14, style.filled())),
                )?;
            }
        }
        root.present()?;
    }
    Ok(svg)
}

/// Key colour of text.
const INK: RGBColor = RGBColor(1, 0, 0);

/// Key colour of axes and lines across.
const GRID: RGBColor = RGBColor(2, 0, 0);

/// Key colour of a series.
fn key_colour(index: usize) -> RGBColor {
    RGBColor(3, (index / 256 % 256) as u8, (index % 256) as u8)
}

/// The drawing with classes in place of key colours, and without a size of its own.
fn styled(svg: &str, series: usize) -> String {
    let size = format!("width=\"{}\" height=\"{}\" ", SIZE.0, SIZE.1);
    let fixed = [(INK, "ink".to_string()), (GRID, "grid".to_string())];
    let keyed = fixed
        .into_iter()
        .chain((0..series).map(|index| (key_colour(index), class(index))));
    keyed.fold(svg.replacen(&size, "", 1), |svg, (key, class)| {
        let hex = format!("#{:02X}{:02X}{:02X}", key.0, key.1, key.2);
        let with_class = |svg: String, paint: &str| {
            svg.replace(
                &format!("{paint}=\"{hex}\""),
                &format!("class=\"{class} {paint}\""),
            )
        };
        with_class(with_class(svg, "stroke"), "fill")
    })
}

/// The style sheet's class of a series.
fn class(index: usize) -> String {
    let dashed = if index / COLOURS % 2 == 1 {
        " dashed"
    } else {
        ""
    };
    format!("series-{}{dashed}", index % COLOURS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(log_y: bool, points: Vec<(f64, f64)>) -> Chart {
        let series = vec![Series {
            name: "training".into(),
            points,
        }];
        Chart {
            title: "Loss".into(),
            x_label: "step".into(),
            y_label: "nats".into(),
            log_y,
            series,
        }
    }

    #[test]
    fn points_that_cannot_be_drawn_are_counted() {
        let points = vec![
            (0.0, 1.0),
            (1.0, f64::NAN),
            (2.0, f64::INFINITY),
            (3.0, -1.0),
            (4.0, 0.0),
            (5.0, 2.0),
        ];
        let linear = chart(false, points.clone()).html().unwrap();
        assert!(
            linear.contains("2 points are left out: not finite or too large"),
            "{linear}"
        );
        let logarithmic = chart(true, points).html().unwrap();
        assert!(
            logarithmic.contains("4 points are left out: not positive, not finite or too large"),
            "{logarithmic}"
        );
        assert!(
            !chart(false, vec![(0.0, 1.0)])
                .html()
                .unwrap()
                .contains("left out")
        );
        let nothing = chart(false, vec![(0.0, f64::NAN)]).html().unwrap();
        assert!(
            nothing.contains("nothing to draw") && nothing.contains("1 point is left out"),
            "{nothing}"
        );
        assert!(Chart::default().html().unwrap().contains("nothing to draw"));
    }

    #[test]
    fn long_series_keep_their_extremes() {
        let mut points: Vec<(f64, f64)> = (0..100_000)
            .map(|x| (f64::from(x), f64::from(x % 10)))
            .collect();
        points[54_321].1 = 1000.0;
        points[98_765].1 = -1000.0;
        let thinned = thin(&points);
        assert!(thinned.len() <= MOST_POINTS && thinned.is_sorted_by(|a, b| a.0 <= b.0));
        assert!(thinned.contains(&(54_321.0, 1000.0)) && thinned.contains(&(98_765.0, -1000.0)));
        assert_eq!(thin(&points[..MOST_POINTS]), points[..MOST_POINTS]);
    }

    #[test]
    fn colours_are_the_style_sheets() {
        let mut chart = chart(false, vec![(0.0, 1.0), (10.0, 2.0)]);
        chart.series = vec![chart.series[0].clone(); 10];
        let html = chart.html().unwrap();
        assert!(!html.contains("=\"#"), "{html}");
        assert!(
            html.contains("class=\"series-0 stroke\"")
                && html.contains("class=\"series-1 dashed stroke\"")
        );
        assert!(html.contains("class=\"ink fill\"") && html.contains("class=\"grid stroke\""));
        assert!(html.contains("viewBox") && !html.contains("width=\"3040\""));
    }

    #[test]
    fn extreme_values_are_drawn_without_trouble() {
        let extremes = [
            0.0,
            1.0,
            -1.0,
            1e-300,
            5e-324,
            1e299,
            -1e299,
            f64::MAX,
            f64::MIN,
            1.0 + f64::EPSILON,
            f64::NAN,
        ];
        for low in extremes {
            for high in extremes {
                for log_y in [false, true] {
                    chart(log_y, vec![(low, low), (high, high), (high, low)])
                        .html()
                        .unwrap();
                }
            }
        }
    }
}
