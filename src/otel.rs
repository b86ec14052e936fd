//! Traces for OpenTelemetry: the spans of the log's own library, in the words of the semantic conventions, to a
//! collector over OTLP/HTTP.
//!
//! ```text
//! request                   HTTP server span; the caller's `traceparent` is its parent
//!  └─ turn                  invoke_agent: from here to its end, or to this process's
//!      ├─ model_call        chat MODEL: one call; over HTTP it carries `traceparent` on
//!      └─ tool              execute_tool NAME: one attempt
//! ```
//! The names on the left are those of [`tracing`], where they are placed: what the rest of the program says, and the
//! log shows. What a collector is told is decided here alone, in [`translate`].
//!
//! Invariants: nothing that was said by a person, a model or a tool is in a span, and no event of the log: names,
//! counts, ids and codes are. A request's span ends with its answer, though its turn goes on.
//! A turn that was queued, or went on after a restart or after its thread was unloaded, is a trace of its own: its
//! conversation is the way to the others.
//!
//! Without an endpoint (`otel.endpoint`, or the variables of the specification: `OTEL_EXPORTER_OTLP_ENDPOINT`,
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME` …) nothing is traced.

use std::{borrow::Cow, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Array, KeyValue, StringValue, Value,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{SpanKind, Status, TracerProvider},
};
use opentelemetry_otlp::{Protocol, SpanExporter as Otlp, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use secrecy::SecretString;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::filter_fn};

use crate::log::{self, Spans};

/// How long the last spans may take to get away.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// The ways of the specification to say where the collector is, and how to log in there.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"];

/// A way to a collector.
#[derive(Debug)]
pub struct Otel(SdkTracerProvider);

impl Otel {
    /// A way to the collector at `endpoint`, or where the environment says; `None` if nobody says where.
    pub fn start(endpoint: Option<&str>) -> Result<Option<Self>, String> {
        let given = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
        if endpoint.is_none() && !ENDPOINTS.iter().any(|name| given(name)) {
            return Ok(None);
        }
        let headers = HEADERS.iter().filter_map(|name| std::env::var(name).ok());
        let values = headers.flat_map(|all| {
            let value = |header: &str| Some(SecretString::from(header.split_once('=')?.1.trim()));
            all.split(',').filter_map(value).collect::<Vec<_>>()
        });
        log::hide(&values.collect::<Vec<_>>()).map_err(|why| why.to_string())?;
        let mut otlp = Otlp::builder().with_http().with_protocol(Protocol::HttpBinary);
        if let Some(endpoint) = endpoint {
            // As the variable of the specification: a base.
            otlp = otlp.with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')));
        }
        let otlp = otlp.build().map_err(|why| why.to_string())?;
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if !given("OTEL_SERVICE_NAME") {
            resource = resource.with_service_name("raddle");
        }
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(Translated(otlp)).with_resource(resource.build()).build();
        Ok(Some(Self(provider)))
    }

    /// What takes the spans that are traced out of all that the log's library knows.
    pub fn spans(&self) -> Spans {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("raddle"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|meta| meta.is_span() && meta.target().starts_with("raddle")))
            .boxed()
    }

    /// Sends what is left, for as long as it is worth waiting.
    pub async fn end(self) {
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(LAST_SPANS));
        match tokio::time::timeout(LAST_SPANS + Duration::from_secs(1), ended).await {
            Ok(Ok(Ok(()))) => {}
            failed => tracing::warn!(?failed, "the last spans were not sent"),
        }
    }
}

/// Makes the caller's span the parent of a request's.
pub fn adopt(span: &Span, headers: &HeaderMap) {
    struct Of<'a>(&'a HeaderMap);
    impl Extractor for Of<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key)?.to_str().ok()
        }
        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(HeaderName::as_str).collect()
        }
    }
    if headers.contains_key("traceparent") {
        // A span that nobody traces has no parent.
        drop(span.set_parent(TraceContextPropagator::new().extract(&Of(headers))));
    }
}

/// Adds the current span to what is sent to somebody else.
pub fn carry(headers: &mut HeaderMap) {
    struct To<'a>(&'a mut HeaderMap);
    impl Injector for To<'_> {
        fn set(&mut self, key: &str, value: String) {
            if let (Ok(key), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value))
                && !value.is_empty()
            {
                self.0.insert(key, value);
            }
        }
    }
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut To(headers));
}

/// Sends spans in the words of the conventions.
#[derive(Debug)]
struct Translated<E>(E);

impl<E: SpanExporter> SpanExporter for Translated<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.iter_mut().for_each(translate);
        self.0.export(batch).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// How fields are called outside, by span. A field that stands nowhere is not sent: what is added to a span for the log
/// is not told to anybody else by that.
const FIELDS: [(&str, &[(&str, &str)]); 4] = [
    (
        "request",
        &[
            ("method", "http.request.method"),
            ("route", "http.route"),
            ("status", "http.response.status_code"),
            ("request_id", "raddle.request.id"),
            ("tenant", "raddle.tenant"),
            ("key", "raddle.key.id"),
        ],
    ),
    (
        "turn",
        &[
            ("thread", "gen_ai.conversation.id"),
            ("engine", "gen_ai.provider.name"),
            ("model", "gen_ai.request.model"),
            ("turn", "raddle.turn.id"),
            ("tenant", "raddle.tenant"),
        ],
    ),
    (
        "model_call",
        &[
            ("thread", "gen_ai.conversation.id"),
            ("engine", "gen_ai.provider.name"),
            ("model", "gen_ai.request.model"),
            ("finish", "gen_ai.response.finish_reasons"),
            ("input_tokens", "gen_ai.usage.input_tokens"),
            ("output_tokens", "gen_ai.usage.output_tokens"),
            ("call", "raddle.model_call"),
            ("error", "error.type"),
        ],
    ),
    (
        "tool",
        &[
            ("thread", "gen_ai.conversation.id"),
            ("tool", "gen_ai.tool.name"),
            ("call_id", "gen_ai.tool.call.id"),
            ("attempt", "raddle.tool.attempt"),
            ("error", "error.type"),
        ],
    ),
];

/// Says a span of ours in the words of the conventions.
fn translate(span: &mut SpanData) {
    let Some((_, fields)) = FIELDS.iter().find(|(name, _)| *name == span.name) else {
        span.attributes.clear();
        return;
    };
    let get = |name: &str| {
        let field = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
        field.map(|attribute| attribute.value.as_str().into_owned()).unwrap_or_default()
    };
    let (operation, kind, name) = match &*span.name {
        "request" => (None, SpanKind::Server, format!("{} {}", get("method"), get("route"))),
        "turn" => (Some("invoke_agent"), SpanKind::Internal, "invoke_agent".to_owned()),
        "model_call" => (Some("chat"), SpanKind::Client, format!("chat {}", get("model"))),
        _ => (Some("execute_tool"), SpanKind::Internal, format!("execute_tool {}", get("tool"))),
    };
    let mut error = Some(get("error")).filter(|error| !error.is_empty());
    let status = get("status");
    if status.starts_with('5') {
        error = Some(status);
    }
    span.name = Cow::Owned(name);
    span.span_kind = kind;
    let renamed = |attribute: KeyValue| {
        let (_, name) = fields.iter().find(|(field, _)| *field == attribute.key.as_str())?;
        let value = match *name {
            "gen_ai.response.finish_reasons" => {
                Value::Array(Array::String(vec![StringValue::from(attribute.value.as_str().into_owned())]))
            }
            _ => attribute.value,
        };
        Some(KeyValue::new(*name, value))
    };
    let said = std::mem::take(&mut span.attributes);
    span.attributes = said.into_iter().filter_map(renamed).collect();
    span.attributes.extend(operation.map(|operation| KeyValue::new("gen_ai.operation.name", operation)));
    if let Some(error) = error {
        if !span.attributes.iter().any(|attribute| attribute.key.as_str() == "error.type") {
            span.attributes.push(KeyValue::new("error.type", error));
        }
        // The code says what there is to say; sentences may hold what somebody said.
        span.status = Status::error("");
    }
}
