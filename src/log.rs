//! What is logged, on its way to stderr: no secret passes.
//!
//! ```text
//! tracing ─▶ text or JSON ─▶ one finished line ─▶ Redacted ─▶ stderr
//! panics ──▶                                         ▲
//!                      what is configured as a secret, and what looks like one
//! ```
//! The line is looked at once, as it is, after everything that could put a secret into it: a field, an error's cause, a
//! URL in a message of some library. What is found is replaced by `[hidden]`, what is around it is written as it is; so
//! nothing is copied, and a line without a secret costs one search.
//!
//! Two kinds are found: values that were configured ([`hide`]), wherever they stand; and texts that look like a
//! secret ([`LOOKS`]), whoever they belong to, for callers send theirs too. Of a key of ours (`rdl_ID_SECRET`) the id
//! stays: it is what an operator looks for.
//!
//! Absent on purpose: short values ([`Secrets`]). `1` and `true` are in many lines, and hide nothing.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    borrow::Cow,
    io::{self, IsTerminal, Write},
    panic::PanicHookInfo,
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use regex::bytes::{Captures, Regex, RegexBuilder};
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt::MakeWriter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    config::{LogConfig, LogFormat},
    mcp::{self, secrets::Secrets},
};

const INSTEAD: &[u8] = b"[hidden]";

/// What secrets look like. What `keep` names stays, and so does what `after` names.
const LOOKS: &str = r#"(?x-u)
    (?P<keep>rdl_[0-9A-Za-z]+_) [0-9A-Za-z+/=_-]+
  | \b (?P<bearer>(?i:bearer)[\ +]) [^\s"'\\,;)\]}]+
  | (?P<quoted>(?i:authorization|x-api-key|api[-_]key|password) (?:\\*["'])? \s* [:=] \s* \\*["']) [^"'\\\n]+
  | (?P<plain>(?i:authorization|x-api-key|api[-_]key|password) (?:\\*["'])? \s* [:=] \s*)
      (?:(?i:bearer|basic|digest|negotiate|token)\ +)? [^\s"'\\,;)\]}]+
  | (?P<cookie>\b(?i:cookie) (?:\\*["'])? \s* [:=] \s* (?:\\*["'])?) (?:[^"'\\\n]+)
  | \b sk-[0-9A-Za-z_-]{8,}
  | whsec_[0-9A-Za-z+/=_-]+
  | \b eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]*)?
  | (?P<scheme>://) [^\s/"'\\<>@?\#]+ (?P<at>@)
  | (?P<query>[?&;][0-9A-Za-z_.-]*(?i:token|key|secret|sig|pass|auth|cred)[0-9A-Za-z_.-]*=) [^\s&\#"'\\]+
"#;

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("`log.level` is not a filter: {0}")]
    Filter(String),
    #[error("cannot log: {0}")]
    Other(String),
}

/// Where spans go beside the log.
pub type Spans = Box<dyn Layer<Registry> + Send + Sync>;

/// Begins to log to stderr, panics included.
pub fn to_stderr(config: &LogConfig, spans: Option<Spans>) -> Result<(), LogError> {
    let filter = filter(config)?;
    let lines = tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal());
    let lines = match config.format {
        LogFormat::Text => lines.with_writer(Redacted(|| io::stderr().lock())).boxed(),
        LogFormat::Json => lines.json().with_writer(Redacted(|| io::stderr().lock())).boxed(),
    };
    tracing_subscriber::registry()
        .with(spans)
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|why| LogError::Other(why.to_string()))?;
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

/// What is logged, by the configuration.
pub fn filter(config: &LogConfig) -> Result<EnvFilter, LogError> {
    let filter = EnvFilter::try_new(&config.level).map_err(|why| LogError::Filter(why.to_string()))?;
    let quiet =
        mcp::QUIET.parse().map_err(|why: tracing_subscriber::filter::ParseError| LogError::Other(why.to_string()))?;
    Ok(filter.add_directive(quiet))
}

/// A panic is a line like any other: what it says may come from whoever asked.
fn panicked(panic: &PanicHookInfo<'_>) {
    let why = sentence(panic.payload());
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or_default();
    match backtrace.status() {
        BacktraceStatus::Captured => tracing::error!(thread, place, %backtrace, "panicked: {why}"),
        _ => tracing::error!(thread, place, "panicked: {why}"),
    }
}

/// What a panic says.
pub fn sentence(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default()
}

/// What is looked for by everybody: there is one stderr.
static KNOWN: LazyLock<RwLock<Known>> = LazyLock::new(RwLock::default);

#[derive(Default)]
struct Known {
    values: Secrets,
    pattern: Option<Arc<Regex>>,
}

/// What looks like a secret, for as long as no value is known.
static LOOKING: LazyLock<Option<Arc<Regex>>> = LazyLock::new(|| pattern(&Secrets::default()).map(Arc::new));

/// Adds values that are in no line from now on.
pub fn hide<'a>(values: impl IntoIterator<Item = &'a SecretString>) -> Result<(), LogError> {
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    values.into_iter().for_each(|value| known.values.add(value.expose_secret()));
    let pattern = pattern(&known.values);
    known.pattern = Some(Arc::new(pattern.ok_or_else(|| LogError::Other("there are too many secrets".to_owned()))?));
    Ok(())
}

/// What finds these values, and what looks like a secret.
fn pattern(values: &Secrets) -> Option<Regex> {
    // Of two that begin alike the longer one is tried first.
    let values = values.values().map(|value| regex::escape(value.expose_secret()));
    let all: Vec<String> = values.chain([LOOKS.to_owned()]).collect();
    // Each is a choice; the flags of the last one hold for it alone.
    let all = all.iter().map(|one| format!("(?:{one})")).collect::<Vec<_>>().join("|");
    RegexBuilder::new(&all).size_limit(64 << 20).build().ok()
}

fn known() -> Option<Arc<Regex>> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner).pattern.clone();
    known.or_else(|| LOOKING.clone())
}

/// Writes what stays of a text, piece by piece; whether something was hidden.
fn redact<'a>(pattern: &Regex, text: &'a [u8], mut write: impl FnMut(&'a [u8]) -> io::Result<()>) -> io::Result<bool> {
    let mut done = 0;
    for found in pattern.captures_iter(text) {
        let Some(whole) = found.get(0) else { continue };
        write(&text[done..whole.start()])?;
        write(group(&found, &["keep", "bearer", "quoted", "plain", "cookie", "scheme", "query"]))?;
        write(INSTEAD)?;
        write(group(&found, &["at"]))?;
        done = whole.end();
    }
    write(&text[done..])?;
    Ok(done > 0)
}

/// What of a find stays.
fn group<'a>(found: &Captures<'a>, names: &[&str]) -> &'a [u8] {
    names.iter().find_map(|name| found.name(name)).map_or(b"", |found| found.as_bytes())
}

/// A text for people, without what the log would not say either.
pub fn redacted(text: &str) -> Cow<'_, str> {
    let mut clean = Vec::new();
    let found = known().map(|pattern| redact(&pattern, text.as_bytes(), |piece| clean.write_all(piece)));
    match found {
        Some(Ok(false)) => Cow::Borrowed(text),
        Some(Ok(true)) => Cow::Owned(String::from_utf8_lossy(&clean).into_owned()),
        // Better nothing than a secret.
        Some(Err(_)) | None => Cow::Borrowed("[hidden]"),
    }
}

/// Whether something in a text looks like a secret, or is one that is known.
pub fn holds_secret(text: &str) -> bool {
    known().is_none_or(|pattern| pattern.is_match(text.as_bytes()))
}

/// Makes writers that hide secrets.
struct Redacted<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Redacted<M> {
    type Writer = RedactedWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        RedactedWriter(self.0.make_writer())
    }
}

/// Writes lines that it is handed whole. What it writes to is held alone until the last piece is written.
struct RedactedWriter<W>(W);

impl<W: Write> Write for RedactedWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Better nothing than a secret.
        let Some(pattern) = known() else { return Ok(line.len()) };
        redact(&pattern, line, |piece| self.0.write_all(piece))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(values: &[&str], line: &str) -> String {
        let mut known = Secrets::default();
        values.iter().for_each(|value| known.add(value));
        let (pattern, mut out) = (pattern(&known).unwrap(), Vec::new());
        redact(&pattern, line.as_bytes(), |piece| out.write_all(piece)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_looks_like_a_secret_is_hidden_and_what_names_it_stays() {
        for (line, left) in [
            ("key rdl_k7Qa_s3cr3t-x_y was used", "key rdl_k7Qa_[hidden] was used"),
            (r#""authorization": "Bearer abc.def""#, r#""authorization": "[hidden]""#),
            (r#"{\"authorization\":\"Basic dTpw\"}"#, r#"{\"authorization\":\"[hidden]\"}"#),
            ("Authorization: abc, next", "Authorization: [hidden], next"),
            ("authorization=Basic dTpw status=200", "authorization=[hidden] status=200"),
            ("sent 'authorization': 'AWS4 Cred=a, Sig=b' to", "sent 'authorization': '[hidden]' to"),
            ("HeaderValue(Bearer abc.def)", "HeaderValue(Bearer [hidden])"),
            ("x-api-key=abcd z", "x-api-key=[hidden] z"),
            ("cookie: a=b; c=d\nnext", "cookie: [hidden]\nnext"),
            ("with sk-ant-0123456789 at", "with [hidden] at"),
            ("whsec_MfKQ9r8G= ", "[hidden] "),
            ("eyJhbGciOiJI.eyJzdWIi.c2ln!", "[hidden]!"),
            ("GET http://me:pw@h/x", "GET http://[hidden]@h/x"),
            ("url=https://h/x?a=1&access_token=abc&b=2#f", "url=https://h/x?a=1&access_token=[hidden]&b=2#f"),
            ("/events?after=3&key=rdl_k_s HTTP", "/events?after=3&key=[hidden] HTTP"),
        ] {
            assert_eq!(clean(&[], line), left);
        }
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        for line in [
            "request{request_id=job-7 method=GET route=/v1/threads/{id}}: answered status=200 elapsed=1.2ms",
            "a task-list of risk-averse-people, max_tokens: 5, api_key_file=/run/key, tenant@host",
            "thread thr_0190d1b2-0000-7000-8000-000000000001 http://127.0.0.1:9/v1?after=3&limit=5",
            "",
        ] {
            assert_eq!(clean(&["1", "value-that-is-known"], line), line);
        }
    }

    #[test]
    fn a_value_that_is_known_is_hidden_wherever_it_stands() {
        let known = ["hush-hush", "hush-hush-é-longer", r#"quo"ted\value"#];
        assert_eq!(clean(&known, "a hush-hush b hush-hush-é-longerc"), "a [hidden] b [hidden]c");
        hide(&[SecretString::from("known-quo\"ted")]).unwrap();
        assert_eq!(redacted(r#"{"it":"known-quo\"ted"}"#), r#"{"it":"[hidden]"}"#);
        assert!(holds_secret("known-quo\"ted") && !holds_secret("known-quo"));
        // Short ones are words.
        hide(&[SecretString::from("info")]).unwrap();
        assert_eq!(redacted("info"), "info");
    }

    #[derive(Clone, Default)]
    struct Heard(Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_secret_passes_in_a_field_a_message_a_chain_of_causes_or_a_panic() {
        let heard = Heard::default();
        let to = heard.clone();
        let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
        let lines = lines.json().with_writer(Redacted(move || to.clone())).finish();
        tracing::subscriber::with_default(lines, || {
            let span = tracing::info_span!("request", request_id = "sk-planted-0001");
            let _in = span.enter();
            let why = anyhow::anyhow!("https://u:planted-0002@h").context("asked with Bearer planted-0003");
            tracing::error!(authorization = "Basic planted-0004", error = format!("{why:#}"), "{why:?}");
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(panicked));
            drop(std::panic::catch_unwind(|| panic!("with whsec_planted0005")));
            std::panic::set_hook(before);
        });
        let said = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        assert!(said.contains("asked with Bearer [hidden]") && said.contains("panicked: with [hidden]"), "{said}");
        assert!(!said.contains("planted"), "{said}");
        assert!(said.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{said}");
    }
}
