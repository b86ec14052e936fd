//! What a request is made of, checked: who calls, which thing, which parameters, which body, which conditions.
//!
//! Nothing here knows a route. A caller's mistake is answered with the name of the field, header or parameter
//! that is wrong; what is not understood is refused, never ignored.

use std::{collections::BTreeMap, str::FromStr, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{FromRequest, FromRequestParts, MatchedPath, RawPathParams, Request},
    http::{HeaderMap, HeaderValue, Method, header, request::Parts},
};
use futures_util::StreamExt;
use raddle_actors::{Call, Idempotency};
use raddle_domain::{
    id::{
        ApprovalId, CheckpointId, InputId, JobId, KeyId, OperationId, QuestionId, RunId, ScheduleId, Seq, TenantId,
        ThreadId, ThreadKey, TurnId,
    },
    tenant::{Attribution, Scope},
};
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::{
    Gateway,
    access::{self, Identity},
    problem::{Code, Problem},
};

/// How much of a body that is too large is still read, so that the caller gets to see the answer.
const DRAIN_BYTES: usize = 8 * 1024 * 1024;

/// How many things a list holds when the caller does not say.
pub const DEFAULT_PAGE: usize = 50;
/// How many things a list holds at most.
pub const MAX_PAGE: usize = 500;

// ---- who -----------------------------------------------------------------------------------------

/// Who calls, as a tenant: whose data a request may touch. [`access`] says so.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    pub tenant: TenantId,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let identity = Identity::from_request_parts(parts, state).await?;
        let (tenant, _) = identity.tenant().ok_or_else(|| access::needs(Scope::Read))?;
        Ok(Self { tenant })
    }
}

/// Whether a body hands a person's decisions over in advance: to `auto_approve`, to `trust_mode`, or to rules of a
/// thread; also in the work of a job, or of a schedule.
fn hands_over(body: &Map<String, Value>) -> bool {
    let given = |name: &str| body.get(name);
    let flags = ["auto_approve", "trust_mode"].into_iter().any(|flag| given(flag) == Some(&Value::Bool(true)));
    let below = ["payload", "job"].into_iter().filter_map(given).filter_map(Value::as_object).any(hands_over);
    flags || body.contains_key("policy") || below
}

/// Refuses to decide in advance in the name of somebody who may not decide.
fn may_hand_over(identity: Option<&Identity>, body: &Map<String, Value>) -> Result<(), Problem> {
    let decides = identity.and_then(Identity::tenant).is_none_or(|(_, scopes)| scopes.allows(Scope::Approve));
    if decides || !hands_over(body) {
        return Ok(());
    }
    let problem = access::needs(Scope::Approve);
    let detail = format!("to decide in advance (`auto_approve`, `trust_mode`, `policy`), {}", problem.detail);
    Err(Problem { detail, ..problem })
}

/// A tenant that is administered: any for the operator, his own for a tenant's administrator. Another one's is told
/// from one that there is not by nobody.
#[derive(Debug, Clone)]
pub struct OfKeeper {
    pub tenant: TenantId,
    pub by: Arc<Attribution>,
}

impl<S: Sync> FromRequestParts<S> for OfKeeper {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let identity = Identity::from_request_parts(parts, state).await?;
        let tenant: TenantId = in_path(parts, "tenant", "tenant").await?;
        match identity.tenant() {
            Some((own, _)) if own != tenant => Err(Problem::not_found("tenant")),
            _ => Ok(Self { tenant, by: identity.by }),
        }
    }
}

/// The key that the path names.
#[derive(Debug, Clone, Copy)]
pub struct OfKey(pub KeyId);

impl<S: Sync> FromRequestParts<S> for OfKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self(in_path(parts, "key_id", "key").await?))
    }
}

// ---- which thing ---------------------------------------------------------------------------------

/// The thread that the path names, of the caller's tenant.
#[derive(Debug, Clone, Copy)]
pub struct OfThread(pub ThreadKey);

/// The turn that the path names.
#[derive(Debug, Clone, Copy)]
pub struct OfTurn(pub ThreadKey, pub TurnId);

/// The prompt in the thread's inbox that the path names.
#[derive(Debug, Clone, Copy)]
pub struct OfInput(pub ThreadKey, pub InputId);

/// The thread's checkpoint that the path names.
#[derive(Debug, Clone)]
pub struct OfCheckpoint(pub ThreadKey, pub String);

/// The rule, made by an approval for ever, that the path names.
#[derive(Debug, Clone)]
pub struct OfPermit(pub TenantId, pub String);

/// A task of a run, which the path names by the id that its maker chose.
#[derive(Debug, Clone)]
pub struct OfTask(pub TenantId, pub RunId, pub String);

/// A run's checkpoint that the path names.
#[derive(Debug, Clone, Copy)]
pub struct OfRunCheckpoint(pub TenantId, pub RunId, pub CheckpointId);

/// Something of the caller's tenant that the path names without its thread: a person who decides knows no more.
#[derive(Debug, Clone, Copy)]
pub struct OfTenant<T>(pub TenantId, pub T);

/// An id that stands in a path without the thread's.
pub trait Alone: FromStr {
    /// The path's name for it.
    const NAME: &'static str;
    /// What there is none of, for a caller.
    const WHAT: &'static str;
}

impl Alone for ApprovalId {
    const NAME: &'static str = "approval";
    const WHAT: &'static str = "approval";
}

impl Alone for QuestionId {
    const NAME: &'static str = "question";
    const WHAT: &'static str = "question";
}

impl Alone for JobId {
    const NAME: &'static str = "job";
    const WHAT: &'static str = "job";
}

impl Alone for ScheduleId {
    const NAME: &'static str = "schedule";
    const WHAT: &'static str = "schedule";
}

impl Alone for RunId {
    const NAME: &'static str = "run";
    const WHAT: &'static str = "run";
}

impl Alone for OperationId {
    const NAME: &'static str = "operation";
    const WHAT: &'static str = "effect";
}

impl FromRequestParts<Arc<Gateway>> for OfThread {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let Caller { tenant } = Caller::from_request_parts(parts, gateway).await?;
        let thread: ThreadId = in_path(parts, "thread", "thread").await?;
        Ok(Self(ThreadKey { tenant, thread }))
    }
}

impl FromRequestParts<Arc<Gateway>> for OfTurn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let OfThread(key) = OfThread::from_request_parts(parts, gateway).await?;
        Ok(Self(key, in_path(parts, "turn", "turn").await?))
    }
}

impl FromRequestParts<Arc<Gateway>> for OfInput {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let OfThread(key) = OfThread::from_request_parts(parts, gateway).await?;
        Ok(Self(key, in_path(parts, "input", "prompt in the inbox").await?))
    }
}

impl FromRequestParts<Arc<Gateway>> for OfCheckpoint {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let OfThread(key) = OfThread::from_request_parts(parts, gateway).await?;
        Ok(Self(key, in_path(parts, "name", "checkpoint").await?))
    }
}

impl FromRequestParts<Arc<Gateway>> for OfPermit {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let Caller { tenant } = Caller::from_request_parts(parts, gateway).await?;
        Ok(Self(tenant, in_path(parts, "rule", "permit").await?))
    }
}

impl<T: Alone> FromRequestParts<Arc<Gateway>> for OfTenant<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let Caller { tenant } = Caller::from_request_parts(parts, gateway).await?;
        Ok(Self(tenant, in_path(parts, T::NAME, T::WHAT).await?))
    }
}

impl FromRequestParts<Arc<Gateway>> for OfTask {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let OfTenant(tenant, run) = OfTenant::from_request_parts(parts, gateway).await?;
        Ok(Self(tenant, run, in_path(parts, "task", "task").await?))
    }
}

impl FromRequestParts<Arc<Gateway>> for OfRunCheckpoint {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let OfTenant(tenant, run) = OfTenant::from_request_parts(parts, gateway).await?;
        Ok(Self(tenant, run, in_path(parts, "checkpoint", "checkpoint").await?))
    }
}

/// A name in the path. A text that is no id names nothing, exactly like an id that nobody has.
async fn in_path<T: FromStr>(parts: &mut Parts, name: &str, what: &str) -> Result<T, Problem> {
    let params = RawPathParams::from_request_parts(parts, &()).await.map_err(|_| Problem::not_found(what))?;
    let found = params.iter().find_map(|(key, value)| (key == name).then(|| value.parse().ok())?);
    found.ok_or_else(|| Problem::not_found(what))
}

// ---- parameters ----------------------------------------------------------------------------------

/// The query string, taken apart. A handler takes what it knows and calls [`Params::end`].
#[derive(Debug, Default)]
pub struct Params(BTreeMap<String, String>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

impl Params {
    pub fn parse(query: &str) -> Result<Self, Problem> {
        let mut params = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if params.contains_key(&*name) {
                return Err(Problem::invalid(&name, "is given twice"));
            }
            params.insert(name.into_owned(), value.into_owned());
        }
        Ok(Self(params))
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// A value that reads as `T`; `what` says what it should have been.
    pub fn take<T: FromStr>(&mut self, name: &str, what: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.0.remove(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Problem::invalid(name, format_args!("must be {what}")))
    }

    /// One of several words.
    pub fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, Problem> {
        let Some(text) = self.0.remove(name) else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let known: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
                Err(Problem::invalid(name, format_args!("must be one of {}", known.join(", "))))
            }
        }
    }

    /// How many things the caller wants.
    pub fn limit(&mut self) -> Result<usize, Problem> {
        let what = format!("a number from 1 to {MAX_PAGE}");
        match self.take("limit", &what)? {
            None => Ok(DEFAULT_PAGE),
            Some(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
            Some(_) => Err(Problem::invalid("limit", format_args!("must be {what}"))),
        }
    }

    /// Refuses what nobody took.
    pub fn end(self) -> Result<(), Problem> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Problem::invalid(name, "is not a parameter of this route")),
        }
    }
}

// ---- commands ------------------------------------------------------------------------------------

/// A request that changes something: its body, and what the caller says about repeating and preconditions.
#[derive(Debug)]
pub struct Verb<B> {
    pub body: B,
    pub call: Call,
}

impl<B: DeserializeOwned> FromRequest<Arc<Gateway>> for Verb<B> {
    type Rejection = Problem;

    async fn from_request(request: Request, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        Params::parse(parts.uri.query().unwrap_or_default())?.end()?;
        let if_match = if_match(&parts.headers)?;
        let identity: Option<Identity> = parts.extensions.get().cloned();
        let key = match parts.method {
            Method::POST => idempotency_key(&parts.headers)?,
            _ => None,
        };
        let time = gateway.config.body_time;
        let bytes = timeout(time, read(&parts.headers, body, gateway.config.body_bytes)).await;
        let late = |_| Problem::new(Code::BadRequest, format!("the body did not arrive within {time:?}"));
        let bytes = bytes.map_err(late)??;
        if parts.method == Method::PUT && bytes.is_empty() {
            // It would replace whatever there is by nothing.
            return Err(Problem::new(Code::BadRequest, "a PUT needs a body; `{}` is one that says nothing"));
        }
        let value = object(&bytes)?;
        may_hand_over(identity.as_ref(), &value)?;
        let by = identity.map(|identity| identity.by);
        let idempotency = key.map(|key| {
            let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
            Idempotency {
                key: digest([parts.method.as_str(), route, &key]),
                request: digest([parts.uri.path(), &canonical(&value)]),
            }
        });
        Ok(Self { body: typed(value)?, call: Call { idempotency, if_match, by } })
    }
}

/// A body that is no JSON object, and what its caller says about repeating.
pub async fn imported(
    headers: &HeaderMap,
    body: Body,
    route: &str,
    limit: usize,
    time: Duration,
) -> Result<(Bytes, Call), Problem> {
    let key = idempotency_key(headers)?;
    let bytes = timeout(time, read(headers, body, limit)).await;
    let bytes =
        bytes.map_err(|_| Problem::new(Code::BadRequest, format!("the body did not arrive within {time:?}")))??;
    let idempotency = key.map(|key| {
        let content: [u8; 32] = Sha256::digest(&bytes).into();
        let content: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
        Idempotency { key: digest([Method::POST.as_str(), route, &key]), request: digest([route, &content]) }
    });
    Ok((bytes, Call { idempotency, ..Call::default() }))
}

/// Reads a body up to `limit` bytes. A body that is compressed is not read: its limit would be of the wrong thing.
async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
        return Err(Problem::invalid("Content-Encoding", "must be absent: bodies are taken as they are"));
    }
    let too_large = || {
        Problem::new(Code::TooLarge, format!("the body has more than {limit} bytes, the limit")).with("limit", limit)
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        // A caller that waits for a 100 sends nothing more; any other would not read the answer before it has sent.
        if !headers.contains_key(header::EXPECT) {
            drain(body).await;
        }
        return Err(too_large());
    }
    if announced.is_some() {
        // Within the limit, and HTTP holds the sender to its word.
        return to_bytes(body, limit).await.map_err(|_| Problem::new(Code::BadRequest, "the body ended early"));
    }
    let mut stream = body.into_data_stream();
    let mut whole = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|_| Problem::new(Code::BadRequest, "the body ended early"))?;
        if whole.len() + piece.len() > limit {
            drain(Body::from_stream(stream)).await;
            return Err(too_large());
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.into())
}

async fn drain(body: Body) {
    let mut stream = body.into_data_stream();
    let mut read = 0;
    while let Some(Ok(piece)) = stream.next().await {
        read += piece.len();
        if read > DRAIN_BYTES {
            break;
        }
    }
}

/// A JSON object; no body at all is an empty one.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Problem::invalid("body", "must be a JSON object")),
        Err(err) => Err(Problem::new(Code::BadRequest, format!("the body is not JSON: {err}"))),
    }
}

/// The body as `B`, or the name of what is wrong with it.
pub(super) fn typed<B: DeserializeOwned>(object: Map<String, Value>) -> Result<B, Problem> {
    let known = fields_of::<B>();
    if let Some(unknown) = object.keys().find(|name| !known.contains(&name.as_str())) {
        let detail = format!("`{unknown}` is not a field of this request");
        return Err(Problem::new(Code::UnknownField, detail).with("field", unknown.as_str()));
    }
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|err| {
        let path = err.path().to_string();
        let field = if path == "." { "body" } else { path.as_str() };
        Problem::invalid(field, format_args!("is not acceptable: {}", err.inner()))
    })
}

/// The names of a struct's fields, learned from its own `Deserialize`: the list cannot go stale.
fn fields_of<B: DeserializeOwned>() -> &'static [&'static str] {
    struct Probe<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(Self::Error::custom("a probe"))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(Self::Error::custom("a probe"))
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut fields: &'static [&'static str] = &[];
    // The probe always refuses; what it was asked for is the answer.
    let _ = B::deserialize(Probe(&mut fields));
    fields
}

/// `Idempotency-Key`, if it is one.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = single(headers, "idempotency-key")? else { return Ok(None) };
    match key {
        Some(key) if (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Problem::invalid("Idempotency-Key", "must be 1 to 255 visible ASCII characters")),
    }
}

/// The seq of `If-Match: "<seq>"`; `*` asks for nothing but that the thing exists, which every verb asks anyway.
fn if_match(headers: &HeaderMap) -> Result<Option<Seq>, Problem> {
    let malformed = || {
        Problem::new(Code::BadRequest, "`If-Match` must be one number in quotes, as an `ETag` has it, such as \"12\"")
    };
    match single(headers, header::IF_MATCH.as_str()).map_err(|_| malformed())? {
        None | Some(Some("*")) => Ok(None),
        Some(None) => Err(malformed()),
        Some(Some(text)) => {
            let seq = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).and_then(digits);
            seq.map(Some).ok_or_else(malformed)
        }
    }
}

/// A seq in digits and nothing else: `parse` alone would take `+7`.
pub fn digits(text: &str) -> Option<Seq> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// The one value of a header; the inner `None` is a value that is not text.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<Option<&'a str>>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| value.to_str().ok());
    if values.next().is_some() { Err(Problem::invalid(name, "is given twice")) } else { Ok(first) }
}

fn digest<const N: usize>(parts: [&str; N]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        // A length before each part: no two lists of parts give the same bytes.
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// The same text for the same object, whatever the order of its keys and the space between them.
fn canonical(object: &Map<String, Value>) -> String {
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Object(object) => {
                let sorted: BTreeMap<_, _> = object.iter().collect();
                out.push('{');
                for (name, value) in sorted {
                    write(&Value::String(name.clone()), out);
                    out.push(':');
                    write(value, out);
                    out.push(',');
                }
                out.push('}');
            }
            Value::Array(list) => {
                out.push('[');
                for value in list {
                    write(value, out);
                    out.push(',');
                }
                out.push(']');
            }
            scalar => out.push_str(&scalar.to_string()),
        }
    }
    let mut out = String::new();
    write(&Value::Object(object.clone()), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use raddle_domain::record::Delivery;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        prompt: Option<String>,
        #[allow(dead_code)]
        delivery: Option<Delivery>,
        #[allow(dead_code)]
        max_tokens: Option<u32>,
    }

    fn sample(text: &str) -> Result<Sample, Problem> {
        typed(object(text.as_bytes())?)
    }

    fn fault(text: &str) -> (Code, Option<String>) {
        let problem = sample(text).unwrap_err();
        (problem.code, problem.extra.get("field").and_then(Value::as_str).map(str::to_owned))
    }

    fn headers(name: &'static str, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, axum::http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn what_is_wrong_with_a_body_is_named() {
        assert_eq!(fault("{"), (Code::BadRequest, None));
        assert_eq!(fault("\"x\""), (Code::Invalid, Some("body".into())));
        assert_eq!(fault(r#"{"prompts":"x"}"#), (Code::UnknownField, Some("prompts".into())));
        assert_eq!(fault(r#"{"prompt":7}"#), (Code::Invalid, Some("prompt".into())));
        assert_eq!(fault(r#"{"delivery":"later"}"#), (Code::Invalid, Some("delivery".into())));
        assert_eq!(fault(r#"{"max_tokens":-1}"#), (Code::Invalid, Some("max_tokens".into())));
        assert_eq!(fault(&"[".repeat(10_000)), (Code::BadRequest, None));
    }

    #[test]
    fn who_decides_in_advance_is_found_wherever_it_stands() {
        let hands = |json: &str| hands_over(&object(json.as_bytes()).unwrap());
        for over in [
            r#"{"auto_approve": true}"#,
            r#"{"prompt": "x", "trust_mode": true}"#,
            r#"{"policy": {"rules": []}}"#,
            r#"{"policy": null}"#,
            r#"{"kind": "turn", "payload": {"auto_approve": true}}"#,
            r#"{"cron": "* * * * *", "job": {"payload": {"trust_mode": true}}}"#,
        ] {
            assert!(hands(over), "{over}");
        }
        for not in [r#"{}"#, r#"{"auto_approve": false, "allow_shell": true}"#, r#"{"prompt": "auto_approve"}"#] {
            assert!(!hands(not), "{not}");
        }
    }

    #[test]
    fn no_body_is_an_empty_object() {
        assert!(sample("").is_ok());
        assert!(sample(" \n").is_ok());
        assert!(sample("{}").is_ok());
    }

    #[test]
    fn the_order_of_keys_does_not_make_another_request() {
        let text = |json: &str| canonical(&object(json.as_bytes()).unwrap());
        assert_eq!(text(r#"{"a":1,"b":{"x":[1,2],"y":null}}"#), text(r#"{ "b":{"y":null,"x":[1, 2]}, "a":1 }"#));
        assert_ne!(text(r#"{"a":[1,2]}"#), text(r#"{"a":[2,1]}"#));
        assert_ne!(text(r#"{"a":"1"}"#), text(r#"{"a":1}"#));
    }

    #[test]
    fn a_digest_does_not_depend_on_where_its_parts_are_joined_by_accident() {
        assert_ne!(digest(["ab", "c"]), digest(["a", "bc"]));
    }

    #[test]
    fn a_precondition_is_one_seq_in_quotes() {
        let read = |values: &[&'static str]| if_match(&headers("if-match", values));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["\"12\""]), Ok(Some(12)));
        assert_eq!(read(&["*"]), Ok(None));
        for bad in
            ["12", "W/\"12\"", "\"\"", "\"x\"", "\"+1\"", "\"1\", \"2\"", "\"-1\"", "\"99999999999999999999\"", "é"]
        {
            assert_eq!(read(&[bad]).map_err(|problem| problem.code), Err(Code::BadRequest), "{bad}");
        }
        assert_eq!(read(&["\"1\"", "\"2\""]).map_err(|problem| problem.code), Err(Code::BadRequest));
    }

    #[test]
    fn an_idempotency_key_is_bounded_and_visible() {
        let read = |values: &[&'static str]| idempotency_key(&headers("idempotency-key", values));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["a-1"]), Ok(Some("a-1".into())));
        let long: &'static str = Box::leak("k".repeat(256).into_boxed_str());
        assert!(read(&[&long[..255]]).is_ok());
        for bad in [&["" as &'static str][..], &[long], &["a b"], &["é"], &["a", "b"]] {
            assert_eq!(read(bad).map_err(|problem| problem.code), Err(Code::Invalid), "{bad:?}");
        }
    }

    #[test]
    fn a_parameter_that_nobody_knows_is_refused_by_name() {
        let fault = |query: &str| {
            let run = || {
                let mut params = Params::parse(query)?;
                params.limit()?;
                params.end()
            };
            run().err().map(|problem: Problem| problem.extra["field"].clone())
        };
        assert_eq!(fault("limit=500"), None);
        assert_eq!(fault("limit=501"), Some("limit".into()));
        assert_eq!(fault("limit=0"), Some("limit".into()));
        assert_eq!(fault("limit=ten"), Some("limit".into()));
        assert_eq!(fault("limit=1&limit=2"), Some("limit".into()));
        assert_eq!(fault("offset=3"), Some("offset".into()));
    }
}
