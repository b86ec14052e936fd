//! Counts and gauges for Prometheus. Labels are route templates, known methods and status classes: their number
//! is fixed by the route table, not by what callers send.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::http::{Method, StatusCode};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::Histogram,
        info::Info,
    },
    registry::Registry,
};
use raddle_actors::{BOUNDS, Distribution, EngineFigures, Figures, GateFigures, Health, HookFigures, Runtime};

use super::problem::Code;
use crate::{
    listener,
    mcp::{Mcp, board::Status},
};

mod process;

/// Upper bounds in seconds: from a read in memory to a disk in trouble.
const BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    route: String,
    method: &'static str,
    status: &'static str,
}

/// The gateway's own registry: two runtimes in one process do not mix.
pub struct Metrics {
    registry: Registry,
    /// Of the process, which is the same for all runtimes in it.
    process: Registry,
    requests: Family<Labels, Counter>,
    latency: Family<Labels, Histogram, fn() -> Histogram>,
    refused: Family<Refused, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    code: &'static str,
}

impl Metrics {
    pub fn new(runtime: Runtime, mcp: Option<Mcp>, connections: Option<Arc<listener::Figures>>) -> Self {
        let mut registry = Registry::with_prefix("raddle");
        let requests = Family::default();
        let latency = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register("http_request_seconds", "Time until the answer began", latency.clone());
        let refused = Family::<Refused, Counter>::default();
        registry.register("http_requests_refused", "Requests that did not get as far as a handler", refused.clone());
        // There from the start, so that the first one is seen as a rise.
        for code in
            [Code::Unauthenticated, Code::InsufficientScope, Code::TenantSuspended, Code::RateLimited, Code::Busy]
        {
            drop(refused.get_or_create(&Refused { code: code.as_str() }));
        }
        registry.register("build", "What is running", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        registry.register_collector(Box::new(process::Disk(runtime.config().store.data_dir.clone())));
        registry.register_collector(Box::new(RuntimeHealth(runtime)));
        if let Some(mcp) = mcp {
            registry.register_collector(Box::new(McpHealth(mcp)));
        }
        if let Some(connections) = connections {
            registry.register_collector(Box::new(Connections(connections)));
        }
        let mut process = Registry::default();
        process.register_collector(Box::new(process::Process::new()));
        Self { registry, process, requests, latency, refused }
    }

    /// Counts an answer.
    pub fn request(&self, route: &str, method: &Method, status: StatusCode, elapsed: Duration) {
        let labels = Labels { route: route.to_owned(), method: method_label(method), status: class(status) };
        self.requests.get_or_create(&labels).inc();
        self.latency.get_or_create(&labels).observe(elapsed.as_secs_f64());
    }

    /// Counts a request that was not let pass.
    pub fn refused(&self, code: Code) {
        self.refused.get_or_create(&Refused { code: code.as_str() }).inc();
    }

    /// Everything, as Prometheus reads it.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry)?;
        text::encode_registry(&mut text, &self.process)?;
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Methods are the caller's to invent; labels are not.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// The runtime's own figures, read when somebody looks.
struct RuntimeHealth(Runtime);

impl std::fmt::Debug for RuntimeHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RuntimeHealth")
    }
}

impl Collector for RuntimeHealth {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let health = self.0.health();
        figures(&health, &mut encoder)?;
        gates(&health, &mut encoder)?;
        times(&self.0.figures(), &mut encoder)?;
        hook_figures(&self.0.hook_figures(), &mut encoder)
    }
}

/// One series for each hook that is configured.
fn hook_figures(hooks: &[HookFigures], encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
    type Figure = fn(&HookFigures) -> u64;
    let gauges: [(&str, &str, Figure); 2] = [
        ("hook_behind", "Steps that a hook has not looked at yet", |hook| hook.behind),
        ("hook_failing", "Tenants for whom a hook fails", |hook| hook.failing),
    ];
    let counters: [(&str, &str, Figure); 3] = [
        ("hook_delivered", "Events that a hook's sink took", |hook| hook.delivered),
        ("hook_skipped", "What a hook gave up", |hook| hook.skipped),
        ("hook_failures", "Deliveries of a hook that failed", |hook| hook.failures),
    ];
    if hooks.is_empty() {
        return Ok(());
    }
    for (name, help, figure) in gauges {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for hook in hooks {
            let gauge = ConstGauge::new(i64::try_from(figure(hook)).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("hook", &*hook.name)])?)?;
        }
    }
    for (name, help, figure) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for hook in hooks {
            ConstCounter::new(figure(hook)).encode(family.encode_family(&[("hook", &*hook.name)])?)?;
        }
    }
    Ok(())
}

/// Where tenants wait for places.
fn gates(health: &Health, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
    type Figure = fn(&GateFigures) -> u64;
    let gates = [
        ("commands", &health.commands_at_work),
        ("reads", &health.turn_reads),
        ("models", &health.model_calls),
        ("tools", &health.tool_runs),
    ];
    let gauges: [(&str, &str, Figure); 3] = [
        ("gate_places", "Places of a gate", |gate| gate.places),
        ("gate_in_use", "Places of a gate that are taken", |gate| gate.in_use),
        ("gate_waiting", "Who waits for a place of a gate", |gate| gate.waiting),
    ];
    for (name, help, figure) in gauges {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (gate, figures) in gates {
            let gauge = ConstGauge::new(i64::try_from(figure(figures)).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("gate", gate)])?)?;
        }
    }
    let help = "What all who got a place of a gate waited for it";
    let mut family = encoder.encode_descriptor("gate_wait_seconds", help, None, MetricType::Counter)?;
    for (gate, figures) in gates {
        let waited = ConstCounter::new(figures.waited_us as f64 / 1e6);
        waited.encode(family.encode_family(&[("gate", gate)])?)?;
    }
    Ok(())
}

fn figures(health: &Health, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
    let gauges = [
        ("store_writable", "1 while the store takes writes", u64::from(health.store_writable)),
        ("store_full", "1 while the store takes no writes for lack of room", u64::from(health.store_full)),
        ("draining", "1 while the server shuts down, or is about to", u64::from(health.leaving)),
        ("loaded_threads", "Threads in memory", health.loaded_threads),
        ("loaded_bytes", "Bytes held by loaded threads, estimated", health.loaded_bytes),
        ("running_turns", "Turns that are open", health.running_turns),
        ("subscribers", "Watchers of threads", health.subscribers),
        ("jobs_running", "Runs of jobs that are under way", health.jobs.running),
        ("commands_in_flight", "Commands that are being answered", health.commands_in_flight),
        ("commands_limit", "Commands that may be, from how long they take", health.commands_limit),
    ];
    let counters = [
        ("store_commits", "Commits of the store", health.commits),
        ("store_steps", "Steps of threads stored", health.steps),
        ("store_events", "Events stored", health.events),
        ("store_errors", "Errors of the store", health.store_errors),
        ("turns_completed", "Turns that were completed", health.turns_completed),
        ("turns_failed", "Turns that failed", health.turns_failed),
        ("turns_interrupted", "Turns that were interrupted", health.turns_interrupted),
        ("model_retries", "Model calls that failed and were to be tried again", health.model_retries),
        ("jobs_created", "Jobs made", health.jobs.created),
        ("jobs_runs", "Runs of jobs begun", health.jobs.runs),
        ("jobs_retries", "Runs of jobs that failed and were to be tried again", health.jobs.retries),
        ("jobs_completed", "Jobs that were completed", health.jobs.completed),
        ("jobs_failed", "Jobs that failed for good", health.jobs.failed),
        ("jobs_cancelled", "Jobs that were cancelled", health.jobs.cancelled),
        ("jobs_uncertain", "Jobs of which nobody knew whether they were done", health.jobs.uncertain),
        ("schedules_fired", "Slots of schedules for which a job was made", health.jobs.fired),
        ("schedules_skipped", "Slots of schedules that were left out", health.jobs.skipped),
        ("evictions", "Threads put out of memory", health.evictions),
        ("subscribers_dropped", "Watchers cut off for slowness", health.subscribers_dropped),
    ];
    for (name, help, value) in gauges {
        // Gauges are signed in the exposition library; these never come near the bound.
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    for (name, help, value) in counters {
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    Ok(())
}

/// How long things take, and what is refused.
fn times(figures: &Figures, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
    for (name, help, times) in [
        ("store_commit_seconds", "Commits of the store", &figures.commit),
        ("store_wait_seconds", "What writes waited until their commit began", &figures.commit_wait),
        ("turn_start_seconds", "From the admission of a start to its turn being durable", &figures.turn_start),
        ("prompt_wait_seconds", "What queued prompts waited until their turn began", &figures.prompt_wait),
        ("tool_seconds", "Attempts of tools", &figures.tool),
    ] {
        histogram(times, encoder.encode_descriptor(name, help, None, MetricType::Histogram)?)?;
    }
    type Times = fn(&EngineFigures) -> &Distribution;
    let histograms: [(&str, &str, Times); 2] = [
        ("model_call_seconds", "Model calls, to their end", |engine| &engine.whole),
        ("model_first_token_seconds", "Model calls, to the first piece of the answer", |engine| &engine.first),
    ];
    for (name, help, times) in histograms {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for engine in &figures.engines {
            histogram(times(engine), family.encode_family(&[("engine", &*engine.engine)])?)?;
        }
    }
    type Count = fn(&EngineFigures) -> u64;
    let counters: [(&str, &str, Count); 3] = [
        ("model_calls_failed", "Model calls that failed, those that were tried again included", |engine| engine.failed),
        ("model_input_tokens", "Tokens that models read, as they report it", |engine| engine.input_tokens),
        ("model_output_tokens", "Tokens that models wrote, as they report it", |engine| engine.output_tokens),
    ];
    for (name, help, count) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for engine in &figures.engines {
            ConstCounter::new(count(engine)).encode(family.encode_family(&[("engine", &*engine.engine)])?)?;
        }
    }
    let help = "Requests refused because a bound was reached, by what was full";
    let mut family = encoder.encode_descriptor("refused", help, None, MetricType::Counter)?;
    for (what, count) in &figures.refused {
        let label = what.trim_start_matches("the ").replace([' ', '\''], "_");
        ConstCounter::new(*count).encode(family.encode_family(&[("full", label.as_str())])?)?;
    }
    Ok(())
}

fn histogram(times: &Distribution, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
    let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(times.counts.iter().copied()).collect();
    let count = times.counts.iter().sum();
    encoder.encode_histogram::<NoLabelSet>(times.seconds, count, &buckets, None)
}

/// What listeners say of connections.
#[derive(Debug)]
struct Connections(Arc<listener::Figures>);

impl Collector for Connections {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let figures = &self.0;
        let open = ConstGauge::new(i64::try_from(figures.open.load(Relaxed)).unwrap_or(i64::MAX));
        open.encode(encoder.encode_descriptor("connections", "Connections that are open", None, MetricType::Gauge)?)?;
        let counters = [
            ("connections_refused", "Connections for which there was no place", &figures.refused),
            ("accept_errors", "Times that no connection could be accepted", &figures.accept_errors),
        ];
        for (name, help, count) in counters {
            let counter = ConstCounter::new(count.load(Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let help = "Connections that were ended for what did not happen on them";
        let mut cut = encoder.encode_descriptor("connections_cut", help, None, MetricType::Counter)?;
        let reasons = [("header", &figures.cut_header), ("idle", &figures.cut_idle), ("stall", &figures.cut_stall)];
        for (reason, count) in reasons {
            ConstCounter::new(count.load(Relaxed)).encode(cut.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

/// The servers whose tools are offered.
#[derive(Debug)]
struct McpHealth(Mcp);

impl Collector for McpHealth {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let (servers, _) = self.0.states();
        let help = "MCP servers by their status";
        let mut gauges = encoder.encode_descriptor("mcp_servers", help, None, MetricType::Gauge)?;
        for status in Status::ALL {
            let count = servers.iter().filter(|server| server.status == status).count();
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(gauges.encode_family(&[("status", status.as_str())])?)?;
        }
        let help = "Starts of MCP servers after they had failed";
        let restarts = ConstCounter::new(servers.iter().map(|server| server.restarts).sum::<u64>());
        restarts.encode(encoder.encode_descriptor("mcp_restarts", help, None, restarts.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed(Health);
    impl Collector for Fixed {
        fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
            figures(&self.0, &mut encoder)?;
            gates(&self.0, &mut encoder)
        }
    }

    #[test]
    fn the_runtimes_figures_are_exposed_under_the_prefix() {
        let mut registry = Registry::with_prefix("raddle");
        registry.register_collector(Box::new(Fixed(Health {
            loaded_threads: 3,
            commits: 9,
            model_calls: GateFigures { places: 8, in_use: 8, waiting: 2, waited_us: 1_500_000 },
            ..Health::default()
        })));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("raddle_loaded_threads 3\n"), "{text}");
        assert!(text.contains("raddle_store_commits_total 9\n"), "{text}");
        assert!(text.contains("raddle_gate_waiting{gate=\"models\"} 2\n"), "{text}");
        assert!(text.contains("raddle_gate_wait_seconds_total{gate=\"models\"} 1.5\n"), "{text}");
    }

    #[derive(Debug)]
    struct Timed(Figures);
    impl Collector for Timed {
        fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
            times(&self.0, &mut encoder)
        }
    }

    #[test]
    fn times_are_histograms_and_refusals_say_what_was_full() {
        let mut counts = vec![0; BOUNDS.len() + 1];
        (counts[0], counts[2], counts[BOUNDS.len()]) = (3, 2, 1);
        let commit = Distribution { counts, seconds: 4.5 };
        let engine = EngineFigures { engine: "openai".into(), first: commit.clone(), failed: 7, ..Default::default() };
        let refused = vec![("the thread's command queue", 9)];
        let mut registry = Registry::with_prefix("raddle");
        registry.register_collector(Box::new(Timed(Figures {
            commit,
            engines: vec![engine],
            refused,
            ..Figures::default()
        })));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        for line in [
            "raddle_store_commit_seconds_sum 4.5",
            "raddle_store_commit_seconds_count 6",
            "raddle_store_commit_seconds_bucket{le=\"0.0005\"} 3",
            "raddle_store_commit_seconds_bucket{le=\"0.0025\"} 5",
            "raddle_store_commit_seconds_bucket{le=\"1800.0\"} 5",
            "raddle_store_commit_seconds_bucket{le=\"+Inf\"} 6",
            "raddle_model_first_token_seconds_bucket{le=\"+Inf\",engine=\"openai\"} 6",
            "raddle_model_calls_failed_total{engine=\"openai\"} 7",
            "raddle_refused_total{full=\"thread_s_command_queue\"} 9",
        ] {
            assert!(text.lines().any(|said| said == line), "{line}: {text}");
        }
    }

    #[test]
    fn an_invented_method_gets_no_label_of_its_own() {
        assert_eq!(method_label(&Method::from_bytes(b"BREW").unwrap()), "other");
    }
}
