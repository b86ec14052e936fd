//! An outcome as a page: one file, without scripts and without anything from elsewhere, for light and dark rooms.
//!
//! It is made of the [`Outcome`] alone, so that the JSON can be made into a page later as well.

use std::fmt::Write;

use super::{
    Check, Holds, Outcome, Scenario,
    outcome::{OfOperation, Planned},
};

mod chart;

const STYLE: &str = include_str!("report/style.css");

/// The page.
pub fn html(outcome: &Outcome) -> String {
    let scenario = outcome.plan.scenario.word();
    let mut page = String::new();
    let failed = outcome.checks.iter().filter(|check| check.holds == Holds::No).count();
    let (class, verdict) = match failed {
        0 => ("yes", format!("all {} checks hold", outcome.checks.len())),
        1 => ("no", "a check failed".to_owned()),
        failed => ("no", format!("{failed} checks failed")),
    };
    write(&mut page, format_args!("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"));
    write(
        &mut page,
        format_args!(
            "<meta name=\"viewport\" content=\"width=device-width\">\n<title>raddle stress {scenario}</title>\n"
        ),
    );
    write(&mut page, format_args!("<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"));
    write(&mut page, format_args!("<header>\n<p class=\"over\">raddle stress</p>\n<h1>{scenario}</h1>\n"));
    write(&mut page, format_args!("<p class=\"lead\">{}</p>\n", outcome.plan.scenario.says()));
    write(&mut page, format_args!("<p class=\"badge {class}\">{verdict}</p>\n</header>\n"));
    page.push_str(&figures(outcome));
    write(&mut page, format_args!("<section>\n<h2>Checks</h2>\n{}</section>\n", checks(&outcome.checks)));
    write(
        &mut page,
        format_args!("<section>\n<h2>Throughput</h2>\n{}{}</section>\n", chart::throughput(outcome), legend(outcome)),
    );
    let mut shown: Vec<_> = outcome.operations.iter().filter(|of| of.latency_ms.is_some()).collect();
    shown.sort_by_key(|of| std::cmp::Reverse(of.count));
    write(
        &mut page,
        format_args!(
            "<section>\n<h2>Latency</h2>\n<p class=\"note\">Of requests that were done, from question to answer. To the left \
             how many took how long; to the right how long the slowest took. Both scales of time are logarithmic.</p>\n"
        ),
    );
    for of in &shown {
        page.push_str(&operation(of));
    }
    page.push_str("</section>\n");
    write(&mut page, format_args!("<section>\n<h2>Operations</h2>\n{}</section>\n", table(&outcome.operations)));
    write(
        &mut page,
        format_args!(
            "<footer>\n<p>raddle {} · {} · again: <code>{}</code></p>\n</footer>\n</main>\n</body>\n</html>\n",
            escaped(&outcome.raddle),
            outcome.began_at,
            escaped(&command(&outcome.plan))
        ),
    );
    page
}

/// Text grows; that it cannot is not among what can happen.
fn write(to: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = to.write_fmt(what);
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

/// Milliseconds as people say them.
fn time(ms: f64) -> String {
    match ms {
        ..1.0 => format!("{ms:.2} ms"),
        ..10.0 => format!("{ms:.1} ms"),
        ..1000.0 => format!("{ms:.0} ms"),
        ..10_000.0 => format!("{:.2} s", ms / 1000.0),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

/// A number with thin spaces between thousands.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut told = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            told.push('\u{202f}');
        }
        told.push(digit);
    }
    told
}

/// What was asked for, to ask for it again.
fn command(plan: &Planned) -> String {
    let mut line = format!(
        "raddle stress {} --threads {} --clients {} --duration {}ms --seed {}",
        plan.scenario.word(),
        plan.threads,
        plan.clients,
        plan.duration_ms,
        plan.seed
    );
    let mut more = |wanted: bool, flag: &str, value: String| {
        if wanted {
            write(&mut line, format_args!(" {flag} {value}"));
        }
    };
    more(plan.kills > 0, "--kill", plan.kills.to_string());
    more(plan.disk_latency_ms > 0.0, "--disk-latency", plan.disk_latency_ms.to_string());
    more(plan.disk_fault_rate > 0.0, "--disk-faults", plan.disk_fault_rate.to_string());
    more(plan.slow_subscribers > 0, "--slow-subscribers", plan.slow_subscribers.to_string());
    more(plan.server.is_some(), "--server", plan.server.clone().unwrap_or_default());
    line
}

/// The few numbers that somebody looks for first.
fn figures(outcome: &Outcome) -> String {
    let done: u64 = outcome.timeline.iter().map(|step| step.done).sum();
    let seconds = (outcome.lasted_ms / 1000.0).max(0.001);
    let plan = &outcome.plan;
    let of = |name: &str| outcome.operations.iter().find(|of| of.name == name).and_then(|of| of.latency_ms);
    let main = if plan.scenario == Scenario::Board { "task.claim" } else { "start" };
    let mut all = vec![
        (number(done), "requests".to_owned()),
        (number((done as f64 / seconds).round() as u64), "a second".to_owned()),
    ];
    let main = [main, "queue"].into_iter().find_map(|name| Some((name, of(name)?)));
    if let Some((name, latency)) = main {
        all.push((time(latency.p50), format!("{name}, median")));
        all.push((time(latency.p99), format!("{name}, p99")));
    }
    if let Some(recovery) = outcome.recovery_ms {
        all.push((outcome.kills.len().to_string(), "kills".to_owned()));
        all.push((time(recovery.p99), "recovery, p99".to_owned()));
    }
    all.push((plan.clients.to_string(), "clients".to_owned()));
    if plan.slow_subscribers > 0 {
        all.push((outcome.slow_subscribers.to_string(), "slow subscribers".to_owned()));
    }
    let things = if plan.scenario == Scenario::Board { "runs" } else { "threads" };
    all.push((plan.threads.to_string(), things.to_owned()));
    let mut html = "<div class=\"figures\">\n".to_owned();
    for (figure, of) in all {
        write(&mut html, format_args!("<div><b>{figure}</b><span>{of}</span></div>\n"));
    }
    html + "</div>\n"
}

fn checks(checks: &[Check]) -> String {
    let mut html = "<table class=\"checks\">\n".to_owned();
    for check in checks {
        let (class, sign) = match check.holds {
            Holds::Yes => ("yes", "✓"),
            Holds::No => ("no", "✗"),
            Holds::Undecided => ("maybe", "?"),
        };
        write(
            &mut html,
            format_args!(
                "<tr class=\"{class}\"><td class=\"sign\">{sign}</td><th>{}</th><td>{}",
                escaped(&check.name),
                escaped(&check.says)
            ),
        );
        if !check.faults.is_empty() {
            html.push_str("<ul>");
            for fault in &check.faults {
                write(&mut html, format_args!("<li>{}</li>", escaped(fault)));
            }
            if check.more > 0 {
                write(&mut html, format_args!("<li>and {} more</li>", check.more));
            }
            html.push_str("</ul>");
        }
        write(
            &mut html,
            format_args!("</td><td class=\"count\">{} {}</td></tr>\n", number(check.examined), escaped(&check.of)),
        );
    }
    html + "</table>\n"
}

fn legend(outcome: &Outcome) -> String {
    let mut html = "<p class=\"legend\"><i class=\"done\"></i>done <i class=\"refused\"></i>refused: by the rules, or \
                    too much at once <i class=\"failed\"></i>no answer, or a failure"
        .to_owned();
    if !outcome.kills.is_empty() {
        html.push_str(" <i class=\"kill\"></i>killed, until a command is acknowledged");
    }
    html + "</p>\n"
}

/// The two pictures of an operation.
fn operation(of: &OfOperation) -> String {
    let Some(latency) = &of.latency_ms else { return String::new() };
    format!(
        "<article>\n<h3>{} <small>{} done · median {} · p99 {} · slowest {}</small></h3>\n<div class=\"pair\">\n{}{}</div>\n\
         </article>\n",
        escaped(&of.name),
        number(latency.count),
        time(latency.p50),
        time(latency.p99),
        time(latency.max),
        chart::distribution(of),
        chart::percentiles(of),
    )
}

fn table(operations: &[OfOperation]) -> String {
    let mut html =
        "<div class=\"wide\"><table class=\"operations\">\n<tr><th></th><th>asked</th><th>done</th><th>p50</th>\
                    <th>p90</th><th>p99</th><th>p99.9</th><th>max</th><th class=\"text\">not done</th></tr>\n"
            .to_owned();
    for of in operations {
        let done = of.outcomes.get("ok").copied().unwrap_or(0);
        let others: Vec<_> = of.outcomes.iter().filter(|(outcome, _)| *outcome != "ok").collect();
        let others: Vec<_> =
            others.iter().map(|(outcome, count)| format!("{} {}", escaped(outcome), number(**count))).collect();
        write(
            &mut html,
            format_args!("<tr><th>{}</th><td>{}</td><td>{}</td>", escaped(&of.name), number(of.count), number(done)),
        );
        let latency = of.latency_ms;
        let figures = latency.map(|of| [of.p50, of.p90, of.p99, of.p999, of.max]);
        for at in 0..5 {
            let figure = figures.map_or("–".to_owned(), |figures| time(figures[at]));
            write(&mut html, format_args!("<td>{figure}</td>"));
        }
        write(&mut html, format_args!("<td class=\"text\">{}</td></tr>\n", others.join(" · ")));
    }
    html + "</table></div>\n"
}

#[cfg(test)]
mod tests;
