//! Small plots, as SVG that can be read on a light and on a dark page.

use std::fmt::Write as _;

const WIDTH: f64 = 440.0;
/// Of the colours the first is for what the plot is about.
const COLOURS: [&str; 4] = ["#2f81f7", "#d4762c", "#8250df", "#7d8590"];
const ROW: f64 = 24.0;

/// A frame of this height, with a title and whatever is drawn in it.
fn frame(title: &str, height: f64, drawn: &str) -> String {
    let title = escaped(title);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{title}">
<style>text{{font:12px system-ui,sans-serif;fill:#57606a}}.title{{font-weight:600}}.grid{{stroke:#7d859055}}@media(prefers-color-scheme:dark){{text{{fill:#a2abb5}}}}</style>
<text class="title" x="8" y="18">{title}</text>
{drawn}</svg>
"##
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A bar for each value; the first is what the plot is about.
pub fn bars(title: &str, unit: &str, values: &[(&str, f64)]) -> String {
    const LEFT: f64 = 200.0;
    let most = values.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let mut drawn = String::new();
    for (at, (name, value)) in values.iter().enumerate() {
        let y = 30.0 + at as f64 * ROW;
        let long = (value / most * (WIDTH - LEFT - 70.0)).max(1.0);
        let colour = COLOURS[if at == 0 { 0 } else { 3 }];
        let (middle, end) = (y + 14.0, LEFT + long + 6.0);
        let (name, value) = (escaped(name), crate::number(*value));
        _ = writeln!(drawn, r#"<text x="{}" y="{middle}" text-anchor="end">{name}</text>"#, LEFT - 8.0);
        _ = writeln!(drawn, r#"<rect x="{LEFT}" y="{y}" width="{long:.1}" height="18" rx="2" fill="{colour}"/>"#);
        _ = writeln!(drawn, r#"<text x="{end:.1}" y="{middle}">{value}{unit}</text>"#);
    }
    frame(title, 36.0 + values.len() as f64 * ROW, &drawn)
}

/// How a figure changes with another one.
pub struct Line<'a> {
    pub name: &'a str,
    pub points: Vec<(f64, f64)>,
}

/// Lines over the places of `x`, which are evenly spaced; values are on a logarithmic scale.
pub fn lines(title: &str, x_name: &str, unit: &str, x: &[f64], lines: &[Line<'_>]) -> String {
    const LEFT: f64 = 56.0;
    const RIGHT: f64 = 16.0;
    const TOP: f64 = 34.0;
    const HIGH: f64 = 150.0;
    let values = || lines.iter().flat_map(|line| line.points.iter().map(|(_, value)| value.log10()));
    let low = values().fold(f64::INFINITY, f64::min).floor();
    let high = values().fold(f64::NEG_INFINITY, f64::max).ceil().max(low + 1.0);
    let across = |at: usize| LEFT + at as f64 / (x.len() - 1).max(1) as f64 * (WIDTH - LEFT - RIGHT);
    let up = |value: f64| TOP + HIGH - (value.log10() - low) / (high - low) * HIGH;
    let mut drawn = String::new();
    for power in low as i32..=high as i32 {
        let (y, label) = (up(10_f64.powi(power)), crate::number(10_f64.powi(power)));
        _ = writeln!(drawn, r#"<path class="grid" d="M{LEFT} {y:.1}H{}"/>"#, WIDTH - RIGHT);
        _ = writeln!(drawn, r#"<text x="{}" y="{:.1}" text-anchor="end">{label}{unit}</text>"#, LEFT - 6.0, y + 4.0);
    }
    for (at, place) in x.iter().enumerate() {
        let label = crate::number(*place);
        _ = writeln!(
            drawn,
            r#"<text x="{:.1}" y="{}" text-anchor="middle">{label}</text>"#,
            across(at),
            TOP + HIGH + 18.0
        );
    }
    let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
    let x_name = escaped(x_name);
    _ = writeln!(drawn, r#"<text x="{middle:.1}" y="{}" text-anchor="middle">{x_name}</text>"#, TOP + HIGH + 36.0);
    for (line, colour) in lines.iter().zip(COLOURS) {
        let mut path = String::new();
        for (place, value) in &line.points {
            let Some(at) = x.iter().position(|known| known == place) else { continue };
            let (x, y) = (across(at), up(*value));
            _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
            _ = writeln!(drawn, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#);
        }
        _ = writeln!(drawn, r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>"#);
    }
    for (at, (line, colour)) in lines.iter().zip(COLOURS).enumerate() {
        let y = TOP + HIGH + 56.0 + at as f64 * 18.0;
        let name = escaped(line.name);
        _ = writeln!(drawn, r#"<rect x="{LEFT}" y="{}" width="14" height="4" fill="{colour}"/>"#, y - 6.0);
        _ = writeln!(drawn, r#"<text x="{}" y="{y}">{name}</text>"#, LEFT + 22.0);
    }
    frame(title, TOP + HIGH + 50.0 + lines.len() as f64 * 18.0, &drawn)
}
