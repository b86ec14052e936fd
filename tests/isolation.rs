//! No tenant sees another: every route of the OpenAPI document, asked by everybody who may not, about everything that
//! a tenant has. A foreign id is answered like one that nobody has, and nothing of one tenant's is in an answer to
//! another, in the log, or in a metric.
//!
//! The requests are made from the document, by the rows of `support/matrix.rs`; a route that no row covers fails by
//! name. Absent on purpose: how long an answer takes.

#[path = "support/estate.rs"]
mod estate;
#[path = "support/matrix.rs"]
mod matrix;
mod support;
#[path = "support/tenants.rs"]
mod tenants;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use estate::Estate;
use matrix::{Asks, Means, Operation, Rows, fields, gaps, may_name, operations, put};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::*;
use tokio::{task::JoinHandle, time::timeout};

/// Two tenants, and a text that is in whatever either ever said.
const ALPHA: (&str, &str) = ("tenant-alpha", "vq7xw0k2");
const BETA: (&str, &str) = ("tenant-beta", "k3m9zr5p");

// ---- what is asked -------------------------------------------------------------------------------

/// A request before it is sent.
#[derive(Debug, Clone, Default)]
struct Ask {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Option<String>,
    /// The tenant that it claims to speak for, in headers that nobody should believe.
    claims: Option<String>,
}

const CLAIMS: &[&str] = &["x-tenant", "x-tenant-id", "x-raddle-tenant", "x-forwarded-user"];

impl Ask {
    fn request(&self, api: &Api) -> reqwest::RequestBuilder {
        let mut query = form(&self.query);
        if !query.is_empty() {
            query.insert(0, '?');
        }
        let mut request = api.request(self.method.clone(), &format!("{}{query}", self.path));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(tenant) = &self.claims {
            request = CLAIMS.iter().fold(request, |request, name| request.header(*name, tenant));
        }
        match &self.body {
            Some(body) => request.body(body.clone()),
            None => request,
        }
    }

    fn name(&self) -> String {
        let body = self.body.as_deref().unwrap_or_default();
        let body: String = body.chars().take(300).collect();
        format!("{} {} {:?} {:?} {body}", self.method, self.path, self.query, self.headers)
    }
}

fn form(pairs: &[(String, String)]) -> String {
    let escape = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect()
    };
    pairs.iter().map(|(name, value)| format!("{}={}", escape(name), escape(value))).collect::<Vec<_>>().join("&")
}

/// The request of a route about what `of` has, and nobody else.
fn plain(operation: &Operation, rows: &Rows, of: &Estate) -> Ask {
    let mut path = operation.path.clone();
    for name in operation.path_names() {
        let Means::Thing(kind) = rows.paths[name] else { panic!("a path names things: {name}") };
        path = path.replace(&format!("{{{name}}}"), &of.things[kind]);
    }
    // Nobody waits longer than for an answer.
    let waits = operation.of("query").any(|(name, _)| name == "timeout_ms");
    let query = waits.then(|| ("timeout_ms".to_owned(), "0".to_owned())).into_iter().collect();
    let mut headers = Vec::new();
    let mut body = None;
    if let Some((kind, _)) = &operation.body {
        headers.push(("content-type".to_owned(), kind.clone()));
        let mut text = rows.bodies[&*operation.name()].to_owned();
        for (name, value) in &of.things {
            text = text.replace(&format!("{{{name}}}"), value);
        }
        body = Some(text);
    }
    Ask { method: operation.method.clone(), path, query, headers, body, claims: None }
}

/// Lines of a run, with their digest as it must be.
fn sealed(lines: &str) -> String {
    let lines: Vec<_> = lines.lines().collect();
    let [head, events @ .., _] = &lines[..] else { panic!("an export has a first and a last line") };
    let events: String = events.iter().map(|event| format!("{event}\n")).collect();
    let digest: String = Sha256::digest(&events).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{head}\n{events}{}\n", json!({ "end": true, "sha256": digest }))
}

/// A value like this one that nobody has.
fn nobodys(value: &str) -> String {
    let mut bytes = value.replace(ALPHA.0, "tenant-nobody").replace(ALPHA.1, "nobodyw0").into_bytes();
    let uuid = bytes.len() >= 36 && bytes[bytes.len() - 13] == b'-';
    if uuid {
        let at = bytes.len() - 12;
        bytes[at..].copy_from_slice(b"00000000abcd");
    } else if value == String::from_utf8_lossy(&bytes) {
        // A key's id, a token, a cursor.
        let last = bytes.last_mut().unwrap();
        *last = if *last == b'a' { b'b' } else { b'a' };
    }
    String::from_utf8(bytes).unwrap()
}

// ---- what may not be in an answer ----------------------------------------------------------------

/// Every UUID in a text.
fn uuids(text: &str) -> BTreeSet<String> {
    let bytes = text.as_bytes();
    let is = |window: &[u8]| {
        window.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
        })
    };
    bytes.windows(36).filter(|window| is(window)).map(|window| String::from_utf8(window.to_vec()).unwrap()).collect()
}

/// What is a tenant's alone.
struct Secrets {
    mark: String,
    ids: BTreeSet<String>,
}

impl Secrets {
    /// What of it is in a text, beside what was said by who reads it.
    fn seen_in(&self, text: &str, said: &[String]) -> Option<String> {
        let mut text = text.to_owned();
        for known in said.iter().filter(|known| !known.is_empty()) {
            text = text.replace(known.as_str(), "");
        }
        if text.contains(&self.mark) {
            let at = text.find(&self.mark).unwrap();
            let around: String = text[..at].chars().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect();
            return Some(format!("{around}{}", self.mark));
        }
        let found = uuids(&text).into_iter().find(|id| self.ids.contains(id));
        found.or_else(|| self.ids.iter().filter(|id| id.len() != 36).find(|id| text.contains(id.as_str())).cloned())
    }
}

// ---- the matrix ----------------------------------------------------------------------------------

struct World {
    server: Server,
    earlier: String,
    alpha: Estate,
    beta: Estate,
    operations: Vec<Operation>,
    document: Value,
    rows: Rows,
    /// A place in each list, of the first tenant's.
    cursors: BTreeMap<String, String>,
    _dirs: [tempfile::TempDir; 3],
}

impl World {
    async fn start() -> Self {
        let dirs: [tempfile::TempDir; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let [data, demo, root] = &dirs;
        let env = estate::env(demo.path(), root.path());
        let mut server = tenants::start(data.path(), &env).await;
        let alpha = estate::begin(&server, ALPHA, demo.path()).await;
        let beta = estate::begin(&server, BETA, demo.path()).await;
        server.kill();
        let earlier = server.said();
        drop(server);
        let server = tenants::start(data.path(), &env).await;
        let alpha = estate::finish(&server, alpha).await;
        let beta = estate::finish(&server, beta).await;
        let document = server.api.get("/openapi.json").await.expect(200);
        let operations = operations(&document);
        let cursors = BTreeMap::new();
        let mut world =
            Self { server, earlier, alpha, beta, operations, document, rows: Rows::all(), cursors, _dirs: dirs };
        for operation in &world.operations {
            let texts = operation.of("query").filter(|(_, schema)| may_name(&world.document, schema));
            let paged = texts.into_iter().any(|(name, _)| world.rows.queries.get(name) == Some(&Means::Cursor));
            if paged && operation.asks != Asks::Operator {
                world.cursors.insert(operation.name(), world.cursor(operation).await);
            }
        }
        world
    }

    /// Everything that a tenant can read of what it has: every route that reads, about each of its threads and runs.
    async fn state(&self, of: &Estate) -> Vec<(String, Vec<u8>)> {
        let mut state = Vec::new();
        for operation in &self.operations {
            let reads = operation.method == Method::GET && operation.asks != Asks::Nothing;
            // What is to come is nothing that it has.
            if !reads || operation.asks == Asks::Operator || operation.path == "/v1/trace" {
                continue;
            }
            let names = operation.path_names();
            let whose = match names[..] {
                ["thread"] => ("thread", of.threads.clone()),
                ["run"] => ("run", of.runs.clone()),
                _ => ("", vec![String::new()]),
            };
            for one in whose.1 {
                let mut ask = plain(operation, &self.rows, of);
                if !whose.0.is_empty() {
                    ask.path = operation.path.replace(&format!("{{{}}}", whose.0), &one);
                }
                if operation.of("query").any(|(name, _)| name == "limit") {
                    ask.query.push(("limit".to_owned(), "500".to_owned()));
                }
                let answer = of.admin.send(ask.request(&of.admin)).await;
                state.push((format!("{}: {}", ask.name(), answer.status), answer.body));
            }
        }
        state
    }

    /// A place in the list of a route, as the tenant is told it.
    async fn cursor(&self, operation: &Operation) -> String {
        let of = &self.alpha;
        let mut ask = plain(operation, &self.rows, of);
        ask.query.push(("limit".to_owned(), "1".to_owned()));
        if operation.of("header").any(|(name, _)| name == "Accept") {
            ask.headers.push(("accept".to_owned(), "application/json".to_owned()));
        }
        let page = of.admin.send(ask.request(&of.admin)).await.expect(200);
        let next = page["next_cursor"].as_str();
        next.unwrap_or_else(|| panic!("{}: there must be two of them: {page}", operation.name())).to_owned()
    }
}

/// What is found wrong, by request.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn note(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(what());
        }
    }

    /// What holds for every answer: its status is in the document, and the server did not fail.
    fn declared(&mut self, operation: &Operation, who: &str, ask: &Ask, answer: &Answer) {
        let fine = operation.statuses.contains(&answer.status) && (answer.status < 500 || answer.status == 501);
        self.note(fine, || format!("{who}: {}: {} is not in the document", ask.name(), answer.status));
    }

    #[track_caller]
    fn none(&self) {
        let (count, some) = (self.0.len(), self.0.iter().take(25).cloned().collect::<Vec<_>>().join("\n"));
        assert!(self.0.is_empty(), "{count} findings:\n{some}");
    }
}

fn code(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    body["code"].as_str().unwrap_or_default().to_owned()
}

/// An answer without what differs between any two: the request's name, the time, and the ids that were asked for.
fn compared(answer: &Answer, asked: &[String]) -> String {
    let mut text = String::from_utf8_lossy(&answer.body).into_owned();
    for (name, value) in &answer.headers {
        if !["date", "x-request-id", "content-length"].contains(&name.as_str()) {
            text += &format!("\n{name}: {}", value.to_str().unwrap());
        }
    }
    let request = answer.header("x-request-id").unwrap_or_default().to_owned();
    for value in asked.iter().chain([&request]).filter(|value| !value.is_empty()) {
        text = text.replace(value.as_str(), "<it>");
    }
    format!("{}\n{text}", answer.status)
}

/// A stream that somebody opened.
struct Watcher {
    name: String,
    /// What its reader said himself.
    said: Vec<String>,
    seen: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<()>,
}

/// The streams that somebody opened, and what came on them.
#[derive(Default)]
struct Watchers(Vec<Watcher>);

impl Watchers {
    /// Sends; a stream is read on while the test goes on, and gives an answer without a body.
    async fn send(&mut self, api: &Api, ask: &Ask, said: &[String]) -> Answer {
        let mut response = timeout(LOST, ask.request(api).send()).await.expect("no answer").unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // A recording has no end either.
        let records = matches!(&*ask.path, "/v1/trace" | "/v1/admin/trace");
        let kind = headers.get("content-type").map(|kind| kind.as_bytes());
        let streams = kind == Some(b"text/event-stream") || (records && kind == Some(b"application/x-ndjson"));
        if !streams {
            let body = response.bytes().await.unwrap().to_vec();
            return Answer { status, headers, body };
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sees = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok(Some(bytes)) = response.chunk().await {
                sees.lock().unwrap().extend_from_slice(&bytes);
            }
        });
        self.0.push(Watcher { name: ask.name(), said: said.to_vec(), seen, task });
        Answer { status, headers, body: Vec::new() }
    }

    /// Waits until one of them has seen this.
    async fn until(&self, at: usize, wanted: &str) {
        let sees = async {
            while !String::from_utf8_lossy(&self.0[at].seen.lock().unwrap()).contains(wanted) {
                tokio::task::yield_now().await;
            }
        };
        timeout(LOST, sees).await.expect("the watcher sees nothing");
    }
}

/// A request about something foreign, and the same about what nobody has.
struct Variation {
    foreign: Ask,
    unknown: Ask,
    /// What the two name, foreign and unknown.
    named: [Vec<String>; 2],
    means: Means,
    in_path: bool,
}

/// Every way to ask a route about what is `alpha`'s, for somebody who has what is `beta`'s.
fn variations(world: &World, operation: &Operation) -> Vec<Variation> {
    let (rows, alpha, beta) = (&world.rows, &world.alpha, &world.beta);
    let base = Ask { claims: Some(alpha.tenant.clone()), ..plain(operation, rows, beta) };
    let mut all = Vec::new();
    // Path: each alone, and all at once; with preconditions that hold, and that do not.
    let names = operation.path_names();
    let mut subsets: Vec<Vec<&str>> = names.iter().map(|name| vec![*name]).collect();
    if names.len() > 1 {
        subsets.push(names.clone());
    }
    for subset in &subsets {
        let fill = |value: &dyn Fn(&str) -> String| {
            let mut path = operation.path.clone();
            for name in &names {
                let Means::Thing(kind) = rows.paths[name] else { unreachable!("checked by `plain`") };
                let value = if subset.contains(name) { value(kind) } else { beta.things[kind].clone() };
                path = path.replace(&format!("{{{name}}}"), &value);
            }
            path
        };
        let kinds = subset.iter().map(|name| match rows.paths[name] {
            Means::Thing(kind) => alpha.things[kind].clone(),
            _ => unreachable!("checked by `plain`"),
        });
        let foreign: Vec<String> = kinds.collect();
        let unknown: Vec<String> = foreign.iter().map(|value| nobodys(value)).collect();
        let mut heads = vec![vec![]];
        if operation.of("header").any(|(name, _)| name == "If-Match") {
            heads.push(vec![("if-match".to_owned(), "*".to_owned())]);
            heads.push(vec![("if-match".to_owned(), "\"1\"".to_owned())]);
        }
        if operation.of("header").any(|(name, _)| name == "Last-Event-ID") {
            heads.push(vec![("last-event-id".to_owned(), "1".to_owned())]);
        }
        if operation.streams {
            heads.push(vec![("accept".to_owned(), "text/event-stream".to_owned())]);
        }
        let mut methods = vec![operation.method.clone()];
        if operation.method == Method::GET {
            methods.push(Method::HEAD);
        }
        for (head, method) in heads.iter().flat_map(|head| methods.iter().map(move |method| (head, method))) {
            let of = |path: String| {
                let headers = [base.headers.clone(), head.clone()].concat();
                Ask { method: method.clone(), path, headers, ..base.clone() }
            };
            all.push(Variation {
                foreign: of(fill(&|kind| alpha.things[kind].clone())),
                unknown: of(fill(&|kind| nobodys(&alpha.things[kind]))),
                named: [foreign.clone(), unknown.clone()],
                means: Means::Thing(""),
                in_path: true,
            });
        }
    }
    let value = |means: Means| match means {
        Means::Thing(kind) | Means::Things(kind) => Some(alpha.things[kind].clone()),
        Means::Label => Some(alpha.things["label"].clone()),
        Means::Cursor => Some(world.cursors[&operation.name()].clone()),
        Means::Plain => None,
    };
    // Query, and the header that means the same.
    for (name, _) in operation.of("query").filter(|(_, schema)| may_name(&world.document, schema)) {
        let means = rows.queries[name];
        if operation.asks == Asks::Operator {
            continue;
        }
        let Some(is) = value(means) else { continue };
        let not = nobodys(&is);
        let mut places = vec!["query"];
        if name == "after" && operation.of("header").any(|(name, _)| name == "Last-Event-ID") {
            places.push("last-event-id");
        }
        for (place, streams) in places.iter().flat_map(|place| [(*place, false), (*place, true)]) {
            if streams && !operation.streams {
                continue;
            }
            let of = |value: &str| {
                let mut ask = base.clone();
                match place {
                    "query" => ask.query.push((name.to_owned(), value.to_owned())),
                    header => ask.headers.push((header.to_owned(), value.to_owned())),
                }
                if streams {
                    ask.headers.push(("accept".to_owned(), "text/event-stream".to_owned()));
                }
                ask
            };
            let (foreign, unknown) = (of(&is), of(&not));
            let named = [vec![is.clone()], vec![not.clone()]];
            all.push(Variation { foreign, unknown, named, means, in_path: false });
        }
    }
    // Body.
    let Some((_, schema)) = &operation.body else { return all };
    if operation.path.ends_with("/runs/import") {
        // Lines: another's id wherever one's own stands.
        let of = |value: &str| {
            let body = base.body.as_ref().map(|body| sealed(&body.replace(&beta.things["other_run"], value)));
            Ask { body, ..base.clone() }
        };
        let (is, not) = (alpha.things["other_run"].clone(), nobodys(&alpha.things["other_run"]));
        let (foreign, unknown) = (of(&is), of(&not));
        all.push(Variation { foreign, unknown, named: [vec![is], vec![not]], means: Means::Label, in_path: false });
        return all;
    }
    for field in fields(&world.document, rows, schema) {
        let means = rows.field(&field).expect("the document has no gaps");
        let Some(is) = value(means) else { continue };
        let not = nobodys(&is);
        let of = |value: &str| {
            let mut body: Value = serde_json::from_str(base.body.as_ref().unwrap()).unwrap();
            put(&mut body, &field.way, if field.list { json!([value]) } else { json!(value) });
            Ask { body: Some(body.to_string()), ..base.clone() }
        };
        let (foreign, unknown) = (of(&is), of(&not));
        all.push(Variation { foreign, unknown, named: [vec![is], vec![not]], means, in_path: false });
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reads_or_changes_what_is_another_tenants_by_any_route_of_the_document() {
    let world = World::start().await;
    assert_eq!(gaps(&world.document, &world.rows), [] as [String; 0]);
    let World { server, alpha, beta, operations, rows, .. } = &world;
    let before = world.state(alpha).await;
    assert!(before.iter().all(|(name, _)| name.ends_with(": 200") || name.ends_with(": 202")), "all of it can be read");
    let mut ids = BTreeSet::new();
    for (_, body) in &before {
        ids.extend(uuids(&String::from_utf8_lossy(body)));
    }
    // A plain hex form is in cursors.
    ids.extend(alpha.threads.iter().chain(&alpha.runs).map(|id| id.rsplit('_').next().unwrap().replace('-', "")));
    ids.extend(["tenant", "key", "rule", "lease_token"].map(|kind| alpha.things[kind].clone()));
    assert!(ids.len() > 100 && alpha.threads.iter().all(|id| ids.contains(id.split_once('_').unwrap().1)));
    let secrets = Secrets { mark: ALPHA.1.to_owned(), ids };

    let mut findings = Findings::default();
    let mut watchers = Watchers::default();
    for path in ["/v1/events", "/v1/runs/stream"] {
        let headers = vec![("accept".to_owned(), "text/event-stream".to_owned())];
        let ask = Ask { method: Method::GET, path: path.to_owned(), headers, ..Ask::default() };
        assert_eq!(watchers.send(&beta.admin, &ask, &[]).await.status, 200);
    }

    // ---- who is not known, or may only read
    let strangers = [
        ("no key", server.api.clone()),
        ("garbage", server.api.with_key("garbage")),
        ("revoked", alpha.revoked.clone()),
    ];
    let operator = tenants::operator(server);
    for operation in operations {
        let ask = plain(operation, rows, alpha);
        for (who, api) in &strangers {
            let answer = watchers.send(api, &ask, &[]).await;
            findings.declared(operation, who, &ask, &answer);
            let is = answer.status == 401 && code(&answer) == "unauthenticated";
            findings
                .note(is == (operation.asks != Asks::Nothing), || format!("{who}: {}: {}", ask.name(), answer.status));
            let seen = secrets.seen_in(&String::from_utf8_lossy(&answer.body), &[]);
            findings.note(seen.is_none(), || format!("{who}: {}: sees {seen:?}", ask.name()));
        }
        let reads = matches!(operation.asks, Asks::Nothing | Asks::Scope("read"));
        let speaks_for_none = matches!(operation.asks, Asks::Scope(_));
        for (who, api, refused) in [("read-only", &alpha.reads, !reads), ("operator", &operator, speaks_for_none)] {
            if who == "operator" && !refused {
                continue;
            }
            let answer = watchers.send(api, &ask, &[]).await;
            findings.declared(operation, who, &ask, &answer);
            let is = answer.status == 403 && code(&answer) == "insufficient-scope";
            let right = if refused { is } else { ![401, 403].contains(&answer.status) };
            findings.note(right, || format!("{who}: {}: {}", ask.name(), answer.status));
        }
    }

    // ---- another tenant, with every scope
    let mut asked = 0;
    // What it said of itself, which it may be told again.
    let mut kept = vec![alpha.things["label"].clone(), alpha.things["other_run"].clone()];
    kept.extend(kept.clone().iter().map(|known| nobodys(known)));
    for operation in operations {
        let about_itself = operation.method == Method::GET || operation.path_names().is_empty();
        if about_itself {
            let ask = Ask { claims: Some(alpha.tenant.clone()), ..plain(operation, rows, beta) };
            let answer = watchers.send(&beta.admin, &ask, &kept).await;
            findings.declared(operation, "foreign", &ask, &answer);
            let refused = [401, 403].contains(&answer.status);
            findings.note(refused == (operation.asks == Asks::Operator), || {
                format!("foreign: {}: {} {}", ask.name(), answer.status, String::from_utf8_lossy(&answer.body))
            });
            let seen = secrets.seen_in(&whole(&answer), &kept);
            findings.note(seen.is_none(), || format!("foreign: {}: sees {seen:?}", ask.name()));
        }
        for variation in variations(&world, operation) {
            let Variation { foreign, unknown, named: [is, not], means, in_path } = variation;
            asked += 1;
            let said = [kept.clone(), is.clone()].concat();
            let of_nobody = watchers.send(&beta.admin, &unknown, &[kept.clone(), not.clone()].concat()).await;
            let answer = watchers.send(&beta.admin, &foreign, &said).await;
            findings.declared(operation, "foreign", &foreign, &answer);
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let seen = secrets.seen_in(&whole(&answer), &said);
            findings.note(seen.is_none(), || format!("foreign: {}: sees {seen:?} in {text}", foreign.name()));
            // What changes nothing is the same in full; what makes something makes another thing each time.
            let changes = operation.method != Method::GET && answer.status < 300;
            let (here, there) = match changes {
                true => (answer.status.to_string(), of_nobody.status.to_string()),
                false => (compared(&answer, &is), compared(&of_nobody, &not)),
            };
            findings.note(here == there, || {
                format!("foreign: {}: is told from what nobody has:\n{here}\n{there}", foreign.name())
            });
            let owns = foreign.headers.iter().any(|(name, value)| name == "if-match" && value == "\"1\"")
                && beta.threads.iter().chain(&beta.runs).any(|id| foreign.path.contains(id));
            let expected = match (operation.asks, in_path, means) {
                (Asks::Operator, ..) => answer.status == 403,
                // Who has the thread, or the run, may be told that it has moved on.
                (_, true, _) if owns && answer.status == 412 => true,
                (_, true, _) if foreign.method == Method::HEAD => answer.status == 404,
                (_, true, _) => answer.status == 404 && code(&answer) == "not-found",
                (_, _, Means::Cursor) => answer.status == 422 && code(&answer) == "invalid",
                // A filter that fits nothing, or a request that is refused.
                (_, _, Means::Thing(_) | Means::Things(_)) if operation.method != Method::GET => answer.status >= 400,
                _ => true,
            };
            findings.note(expected, || format!("foreign: {}: {} {text}", foreign.name(), answer.status));
        }
    }
    println!("{} operations, {asked} requests about something foreign", operations.len());

    // ---- what was accepted once
    let (key, body, reply) = &alpha.once;
    let again = beta.admin.send(beta.admin.keyed("/v1/threads", key, body)).await;
    findings.note(again.status == 201 && !again.replayed() && again.body != *reply, || {
        format!("a key of another tenant is replayed: {}", String::from_utf8_lossy(&again.body))
    });
    let own = alpha.admin.send(alpha.admin.keyed("/v1/threads", key, body)).await;
    assert!(own.replayed() && own.body == *reply);
    // A worker's name is the server's to give, whoever's thread it is.
    let claims = format!("/v1/runs/{}/tasks/claim", beta.things["run"]);
    for thread in [&alpha.things["thread"], &beta.things["thread"]] {
        for name in [thread.clone(), format!("{thread}/{}", alpha.things["turn"])] {
            beta.admin.post(&claims, json!({ "agent_id": name })).await.problem(422, "invalid");
        }
    }

    // ---- nothing has come of it
    let after = world.state(alpha).await;
    for ((name, was), (now, is)) in before.iter().zip(&after) {
        findings.note(name == now && was == is, || {
            let [was, is] = [was, is].map(|body| String::from_utf8_lossy(body).into_owned());
            format!("it is changed: {name}:\n{was}\n{is}")
        });
    }
    assert_eq!(before.len(), after.len());

    // ---- who may, may; and while things happen to the one, the other hears nothing of it
    for (who, api) in [("admin", &alpha.admin), ("operator", &operator)] {
        // What ends the tenant comes last.
        let ends = |operation: &Operation| {
            let name = operation.name();
            name == "DELETE /v1/admin/tenants/{tenant}" || name == "POST /v1/admin/tenants/{tenant}/erase"
        };
        let in_order = operations.iter().filter(|operation| !ends(operation));
        for operation in in_order.chain(operations.iter().filter(|operation| ends(operation))) {
            let of_operator = matches!(operation.asks, Asks::Operator | Asks::Keeper);
            if who == "operator" && !of_operator {
                continue;
            }
            let ask = plain(operation, rows, alpha);
            let answer = watchers.send(api, &ask, &[ALPHA.0.to_owned()]).await;
            findings.declared(operation, who, &ask, &answer);
            let refused = [401, 403].contains(&answer.status) && code(&answer) != "forbidden";
            let right = refused == (who == "admin" && operation.asks == Asks::Operator);
            findings.note(right, || {
                format!("{who}: {}: {} {}", ask.name(), answer.status, String::from_utf8_lossy(&answer.body))
            });
        }
    }
    let last = beta.admin.create(json!({ "title": "the last of it" })).await;
    watchers.until(0, &last).await;
    let run = text(&beta.admin.post("/v1/runs", json!({ "objective": "the last of it" })).await.expect(201)["run_id"]);
    watchers.until(1, &run).await;
    for Watcher { name, said, seen, task } in watchers.0 {
        task.abort();
        // A tenant watches itself.
        if said.iter().any(|known| known == ALPHA.0) {
            continue;
        }
        let seen = String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
        let found = secrets.seen_in(&seen, &[said, kept.clone()].concat());
        findings.note(found.is_none(), || format!("a watcher of {name} sees {found:?}"));
    }

    // ---- nor has the log, or anybody who counts
    let metrics = String::from_utf8(server.api.get("/metrics").await.body).unwrap();
    let found = secrets.seen_in(&metrics, &[]);
    findings.note(found.is_none(), || format!("/metrics has {found:?}"));
    for log in [&world.earlier, &server.said()] {
        assert!(log.contains("DEBUG"), "the log says everything: {log}");
        // Who did it is in the log; what was said is not.
        let marked = log.lines().find(|line| line.contains(ALPHA.1) || line.contains(BETA.1));
        findings.note(marked.is_none(), || format!("the log has {marked:?}"));
    }
    findings.none();
}

/// All that a caller gets.
fn whole(answer: &Answer) -> String {
    let headers: String = answer
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap_or_default()))
        .collect();
    format!("{headers}\n{}", String::from_utf8_lossy(&answer.body))
}

// ---- the rows ------------------------------------------------------------------------------------

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/openapi.json")).unwrap()
}

#[test]
fn a_route_that_no_row_covers_is_named() {
    let rows = Rows::all();
    assert_eq!(gaps(&golden(), &rows), [] as [String; 0]);
    let mut document = golden();
    let body = json!({ "content": { "application/json": { "schema": {
        "type": "object", "properties": { "invoice_id": { "type": "string" }, "others": { "type": "array", "items": {
            "type": "object", "properties": { "ids": { "type": "array", "items": { "type": "string" } } } } } }
    } } } });
    let ok = json!({ "200": { "description": "" } });
    document["paths"]["/v1/things/{thing}"] = json!({
        "get": { "parameters": [{ "in": "query", "name": "owner", "schema": { "type": "string" } }], "responses": ok },
        "put": { "parameters": [{ "in": "header", "name": "X-Thing", "schema": { "type": "string" } }],
            "requestBody": body, "responses": ok },
    });
    let expected = [
        "GET /v1/things/{thing}: no row of PATHS says what `{thing}` is",
        "GET /v1/things/{thing}: no row of QUERIES says what `owner` is",
        "PUT /v1/things/{thing}: no row of PATHS says what `{thing}` is",
        "PUT /v1/things/{thing}: no row of HEADERS says what `X-Thing` is",
        "PUT /v1/things/{thing}: no row of BODIES has one",
        "PUT /v1/things/{thing}: no row of FIELDS says what `invoice_id` is",
        "PUT /v1/things/{thing}: no row of FIELDS says what `others.0.ids` is",
    ];
    assert_eq!(gaps(&document, &rows), expected);
}

/// A row that is needed by no route covers one that is gone, or never did.
#[test]
fn every_row_is_there_for_a_route() {
    let (document, rows) = (golden(), Rows::all());
    let mut idle = Vec::new();
    macro_rules! without {
        ($table:ident) => {
            for name in rows.$table.keys() {
                let mut less = rows.clone();
                less.$table.remove(name);
                if gaps(&document, &less).is_empty() {
                    idle.push(format!("{} {name}", stringify!($table)));
                }
            }
        };
    }
    without!(paths);
    without!(queries);
    without!(headers);
    without!(bodies);
    let known = operations(&document).into_iter().filter_map(|operation| operation.body);
    let known: Vec<_> = known.flat_map(|(_, schema)| fields(&document, &rows, &schema)).collect();
    for name in rows.fields.keys() {
        let mut less = rows.clone();
        less.fields.remove(name);
        if known.iter().all(|field| less.field(field) == rows.field(field)) {
            idle.push(format!("fields {name}"));
        }
    }
    let names: BTreeSet<String> = operations(&document).iter().map(Operation::name).collect();
    idle.extend(matrix::KEEPERS.iter().filter(|row| !names.contains(**row)).map(|row| format!("keepers {row}")));
    assert_eq!(idle, [] as [String; 0]);
}
