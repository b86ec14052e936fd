//! The pictures: SVG whose colours come from the page.

use std::fmt::Write;

use super::{escaped, number, time};
use crate::stress::outcome::{Bar, OfOperation, Outcome};

/// Bars of a distribution.
const BARS: usize = 56;
/// The most bars side by side in time; what is longer is told in steps of several seconds.
const STEPS: usize = 160;

/// A drawing area within its margins.
struct Frame {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    svg: String,
}

/// A scale of time that grows by factors.
#[derive(Debug, Clone, Copy)]
struct Log {
    low: f64,
    high: f64,
}

impl Log {
    /// Around these, with some air.
    fn around(low: f64, high: f64) -> Self {
        let low = low.max(0.001).ln() - 0.15;
        Self { low, high: high.max(0.001).ln().max(low + 1.0) + 0.15 }
    }

    fn place(self, value: f64) -> f64 {
        ((value.max(1e-6).ln() - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Round values on it, not too many.
    fn ticks(self) -> Vec<f64> {
        let decades = (self.high - self.low) / std::f64::consts::LN_10;
        let steps: &[f64] = if decades > 3.0 {
            &[1.0]
        } else if decades > 1.4 {
            &[1.0, 3.0]
        } else {
            &[1.0, 2.0, 5.0]
        };
        let all = (-3..7).flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
        all.filter(|tick| (self.low..=self.high).contains(&tick.ln())).collect()
    }
}

/// A round number of at least a quarter of `most`: the distance of the lines in a chart that begins at zero.
fn step(most: f64) -> f64 {
    let rough = (most / 4.0).max(0.25);
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough).max(1.0)
}

impl Frame {
    fn new(width: f64, height: f64, label: &str) -> Self {
        let svg = format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n", escaped(label));
        Self { width, height, left: 46.0, right: 14.0, top: 18.0, bottom: 24.0, svg }
    }

    /// Where a part of the width is.
    fn x(&self, part: f64) -> f64 {
        self.left + part * (self.width - self.left - self.right)
    }

    /// Where a part of the height is, from below.
    fn y(&self, part: f64) -> f64 {
        self.height - self.bottom - part * (self.height - self.top - self.bottom)
    }

    fn draw(&mut self, what: std::fmt::Arguments<'_>) {
        // Text grows.
        let _ = self.svg.write_fmt(what);
        self.svg.push('\n');
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        self.draw(format_args!(
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    fn text(&mut self, anchor: &str, class: &str, at: (f64, f64), text: &str) {
        let text = escaped(text);
        self.draw(format_args!(
            "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            at.0, at.1
        ));
    }

    /// A bar from one part of the width to another, between two parts of the height.
    fn bar(&mut self, class: &str, (from, to): (f64, f64), (low, high): (f64, f64), says: &str) {
        let (x, y) = (self.x(from), self.y(high));
        let whole = self.x(to) - x;
        let (width, height) = ((whole - if whole > 4.0 { 1.0 } else { 0.3 }).max(0.7), self.y(low) - y);
        if height > 0.0 {
            self.draw(format_args!(
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"><title>{}</title></rect>",
                escaped(says)
            ));
        }
    }

    /// A line across at a part of the height, with its name.
    fn across(&mut self, part: f64, name: &str) {
        let (y, from, to) = (self.y(part), self.x(0.0), self.x(1.0));
        self.line("grid", (from, y), (to, y));
        self.text("end", "", (from - 6.0, y + 4.0), name);
    }

    fn below(&mut self, part: f64, name: &str) {
        let x = self.x(part);
        // What would reach over the edge ends at it.
        let (anchor, x) = if x > self.width - 24.0 { ("end", self.width - 2.0) } else { ("middle", x) };
        self.text(anchor, "", (x, self.height - 7.0), name);
    }

    fn end(mut self) -> String {
        let y = self.y(0.0);
        let (from, to) = (self.x(0.0), self.x(1.0));
        self.line("axis", (from, y), (to, y));
        self.svg + "</svg>\n"
    }
}

/// What was answered when, and when the server was dead.
pub fn throughput(outcome: &Outcome) -> String {
    let wide = outcome.timeline.len().max(1).div_ceil(STEPS);
    let step_seconds = wide as f64 * outcome.step_ms / 1000.0;
    let steps: Vec<[u64; 3]> = outcome
        .timeline
        .chunks(wide)
        .map(|some| {
            some.iter().fold([0; 3], |[done, refused, failed], step| {
                [done + step.done, refused + step.refused, failed + step.failed]
            })
        })
        .collect();
    // A rate: the last step may be shorter than the others.
    let whole = outcome.lasted_ms / 1000.0;
    let rate = |step: usize, count: u64| {
        let begins = step as f64 * step_seconds;
        count as f64 / (whole - begins).clamp(step_seconds / 2.0, step_seconds.max(0.001))
    };
    let rates: Vec<[f64; 3]> =
        steps.iter().enumerate().map(|(at, counts)| counts.map(|count| rate(at, count))).collect();
    let most = rates.iter().map(|rates| rates.iter().sum::<f64>()).fold(1.0, f64::max);
    let apart = step(most);
    let top = (most / apart).ceil() * apart;
    let mut frame = Frame::new(980.0, 250.0, "answers per second over time");
    let mut line = 0.0;
    while line <= top {
        frame.across(line / top, &number(line as u64));
        line += apart;
    }
    frame.text("end", "", (40.0, 10.0), "1/s");
    let span = whole.max(0.001);
    for kill in &outcome.kills {
        let (from, to) = (kill.at_ms / 1000.0 / span, (kill.at_ms + kill.recovery_ms) / 1000.0 / span);
        frame.bar("dead", (from.min(1.0), to.min(1.0)), (0.0, 1.0), &format!("dead for {}", time(kill.recovery_ms)));
    }
    for (at, counts) in rates.iter().enumerate() {
        let from = at as f64 * step_seconds / span;
        let to = ((at + 1) as f64 * step_seconds / span).min(1.0);
        let mut below = 0.0;
        for ((class, rate), count) in ["done", "refused", "failed"].into_iter().zip(counts).zip(steps[at]) {
            let above = below + rate / top;
            let says = format!("from {:.2} s: {} {class}", at as f64 * step_seconds, number(count));
            frame.bar(class, (from, to), (below, above), &says);
            below = above;
        }
    }
    for kill in &outcome.kills {
        let x = frame.x((kill.at_ms / 1000.0 / span).min(1.0));
        let (top, bottom) = (frame.y(1.0) - 6.0, frame.y(0.0));
        frame.line("kill", (x, top), (x, bottom));
    }
    let apart = step(span).max(1.0);
    let mut second = 0.0;
    while second <= span {
        frame.below(second / span, &format!("{second:.0} s"));
        second += apart;
    }
    format!("<figure>\n{}</figure>\n", frame.end())
}

/// How many took how long.
pub fn distribution(of: &OfOperation) -> String {
    let (Some(latency), bars) = (of.latency_ms, &of.histogram) else { return String::new() };
    let scale = Log::around(latency.min, latency.max);
    let mut heights = [0.0; BARS];
    for bar in bars {
        spread(&mut heights, scale, bar);
    }
    let most = heights.iter().copied().fold(1.0, f64::max);
    let mut frame = Frame::new(470.0, 180.0, &format!("how many of {} took how long", of.name));
    let apart = step(most);
    let top = most * 1.04;
    let mut line = 0.0;
    while line <= top {
        frame.across(line / top, &number(line as u64));
        line += apart;
    }
    for (at, height) in heights.iter().enumerate() {
        let (from, to) = (at as f64 / BARS as f64, (at + 1) as f64 / BARS as f64);
        let low = (scale.low + from * (scale.high - scale.low)).exp();
        frame.bar("bar", (from, to), (0.0, height / top), &format!("around {}: {height:.0}", time(low)));
    }
    for tick in scale.ticks() {
        frame.below(scale.place(tick), &short(tick));
    }
    let mut last = f64::MIN;
    for (name, value) in [("p50", latency.p50), ("p99", latency.p99)] {
        let x = frame.x(scale.place(value));
        let (top, bottom) = (frame.y(1.0), frame.y(0.0));
        frame.line("mark", (x, top), (x, bottom));
        // Two names in one place would be none.
        if x - last > 26.0 {
            frame.text("middle", "name", (x, top - 5.0), name);
        }
        last = x;
    }
    frame.end()
}

/// Shares a bar of the histogram among those of the picture that it touches.
fn spread(heights: &mut [f64; BARS], scale: Log, bar: &Bar) {
    let [from, to] = [bar.from_ms, bar.to_ms].map(|ms| scale.place(ms) * BARS as f64);
    let to = to.max(from + 1e-9);
    let mut at = from;
    while at < to {
        let end = (at.floor() + 1.0).min(to);
        heights[(at as usize).min(BARS - 1)] += bar.count as f64 * (end - at) / (to - from);
        at = end;
    }
}

/// How long the slowest took: the share of those that were faster grows to the right, each step being a tenth of what is
/// left.
pub fn percentiles(of: &OfOperation) -> String {
    let Some(latency) = of.latency_ms else { return String::new() };
    // The slowest stands a little behind the last that others were slower than.
    let nines = (latency.count as f64).log10().clamp(1.0, 5.0) + 0.15;
    let scale = Log::around(latency.min, latency.max);
    let mut frame = Frame::new(470.0, 180.0, &format!("percentiles of {}", of.name));
    for tick in scale.ticks() {
        frame.across(scale.place(tick), &short(tick));
    }
    let mut points = vec![(0.0, latency.min)];
    let mut faster = 0;
    for bar in &of.histogram {
        faster += bar.count;
        let left = 1.0 - faster as f64 / latency.count as f64;
        let place = if left <= 0.0 { nines } else { -left.log10() };
        points.push((place.min(nines), bar.to_ms.min(latency.max)));
    }
    let line: Vec<_> = points
        .iter()
        .map(|(nine, ms)| format!("{:.1},{:.1}", frame.x(nine / nines), frame.y(scale.place(*ms))))
        .collect();
    let line = line.join(" L");
    let (left, right, bottom) = (frame.x(0.0), frame.x(1.0), frame.y(0.0));
    frame.draw(format_args!("<path class=\"below\" d=\"M{line} L{right:.1},{bottom:.1} L{left:.1},{bottom:.1} Z\"/>"));
    frame.draw(format_args!("<path class=\"curve\" d=\"M{line}\"/>"));
    let names = [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];
    for (part, name) in names {
        let nine = -f64::log10(1.0 - part);
        if nine <= nines + 1e-9 {
            let x = frame.x(nine / nines);
            let (top, bottom) = (frame.y(1.0), frame.y(0.0));
            frame.line("grid", (x, top), (x, bottom));
            frame.below(nine / nines, name);
        }
    }
    frame.end()
}

/// A time at an axis.
fn short(ms: f64) -> String {
    match ms {
        ..0.0999 => format!("{:.0} µs", ms * 1000.0),
        ..0.999 => format!("{ms:.1} ms"),
        ..999.0 => format!("{ms:.0} ms"),
        _ => format!("{:.0} s", ms / 1000.0),
    }
}
