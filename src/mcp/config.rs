//! The servers that are configured, in the shape that other programs use too. Pure: a text and an environment in,
//! [`Server`]s or a sentence out.
//!
//! ```json
//! {"mcpServers": {
//!   "files": {"command": "npx", "args": ["-y", "some-server"], "env": {"TOKEN": "${TOKEN}"}, "cwd": "/srv"},
//!   "search": {"type": "http", "url": "https://search.example/mcp", "headers": {"Authorization": "Bearer ${KEY}"}}
//! }}
//! ```
//! Invariants: a field that nobody reads is an error that names it; no value of `env` or `headers`, and none that
//! came out of `${…}`, is in an error or in `Debug`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::Duration,
};

use raddle_domain::record::EffectClass;
use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use secrecy::SecretString;
use serde_json::{Map, Value};

use super::{catalogue, secrets::Secrets};

/// One server.
#[derive(Debug, Clone)]
pub struct Server {
    /// As the file calls it.
    pub name: String,
    /// What the names of its tools begin with.
    pub prefix: String,
    pub reach: Reach,
    pub disabled: bool,
    /// Its tools that are offered, by its own names; all of them where nothing is said.
    pub enabled_tools: Option<BTreeSet<String>>,
    pub disabled_tools: BTreeSet<String>,
    /// How long one call may take without a sign of life; the server's default where nothing is said.
    pub call_timeout: Option<Duration>,
    /// Whether what it says about its tools is believed.
    pub trust_hints: bool,
    /// What the operator knows about its tools, by its own names: stronger than hints.
    pub classes: BTreeMap<String, EffectClass>,
    /// What must not be read in anything that it says.
    pub secrets: Secrets,
}

/// How a server is reached.
#[derive(Debug, Clone)]
pub enum Reach {
    Stdio(Program),
    Http { url: Url, headers: HeaderMap },
}

impl Reach {
    pub const fn transport(&self) -> &'static str {
        match self {
            Self::Stdio(_) => "stdio",
            Self::Http { .. } => "http",
        }
    }
}

/// A process that is a server.
#[derive(Clone)]
pub struct Program {
    pub command: String,
    pub args: Vec<String>,
    pub env: Vec<(String, SecretString)>,
    pub cwd: Option<PathBuf>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments may hold what came out of the environment.
        f.debug_struct("Program").field("command", &self.command).field("args", &self.args.len()).finish()
    }
}

/// Why the servers cannot be used. Says where, and never what stands there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("it is not JSON: line {line}, column {column}")]
    Syntax { line: usize, column: usize },
    #[error("`{0}` is not known")]
    Unknown(String),
    #[error("`{place}` {why}")]
    Invalid { place: String, why: String },
    #[error("`{place}` names the variable `{variable}`, which is not set")]
    Unset { place: String, variable: String },
}

type Result<T> = std::result::Result<T, ConfigError>;

/// Reads the servers, in the order of their names; `variable` is the environment.
pub fn read(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Server>> {
    let value: Value = serde_json::from_str(text)
        .map_err(|error| ConfigError::Syntax { line: error.line(), column: error.column() })?;
    let mut top = Fields::new(String::new(), value, variable)?;
    let servers = top.map("mcpServers")?;
    top.end()?;
    let mut servers: Vec<Server> =
        servers.into_iter().map(|(name, value)| server(name, value, variable)).collect::<Result<_>>()?;
    servers.sort_by(|one, other| one.name.cmp(&other.name));
    for (at, server) in servers.iter().enumerate() {
        if let Some(other) = servers[..at].iter().find(|other| other.prefix == server.prefix) {
            let why = format!("and `{}` would both be `{}` in the names of tools", other.name, server.prefix);
            return Err(invalid(format!("mcpServers.{}", server.name), why));
        }
    }
    Ok(servers)
}

fn server(name: String, value: Value, variable: &dyn Fn(&str) -> Option<String>) -> Result<Server> {
    let place = format!("mcpServers.{name}");
    let prefix = catalogue::prefix(&name).ok_or_else(|| invalid(&place, "has no letter or digit in its name"))?;
    let mut fields = Fields::new(place.clone(), value, variable)?;
    let reach = fields.reach()?;
    let server = Server {
        prefix,
        reach,
        disabled: fields.flag("disabled")?,
        enabled_tools: fields.names("enabled_tools")?,
        disabled_tools: fields.names("disabled_tools")?.unwrap_or_default(),
        call_timeout: fields.millis("timeout_ms")?,
        trust_hints: fields.flag("trust_hints")?,
        classes: fields.classes("classes")?,
        secrets: std::mem::take(&mut fields.secrets),
        name,
    };
    fields.end()?;
    Ok(server)
}

fn invalid(place: impl Into<String>, why: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { place: place.into(), why: why.into() }
}

/// The fields of an object, until somebody takes them. What is left at the end is unknown.
struct Fields<'a> {
    place: String,
    left: Map<String, Value>,
    variable: &'a dyn Fn(&str) -> Option<String>,
    secrets: Secrets,
}

impl<'a> Fields<'a> {
    fn new(place: String, value: Value, variable: &'a dyn Fn(&str) -> Option<String>) -> Result<Self> {
        match value {
            Value::Object(left) => Ok(Self { place, left, variable, secrets: Secrets::default() }),
            _ if place.is_empty() => Err(invalid("the file", "must hold an object")),
            _ => Err(invalid(place, "must be an object")),
        }
    }

    fn at(&self, key: &str) -> String {
        if self.place.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place) }
    }

    fn end(self) -> Result<()> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(key) => Err(ConfigError::Unknown(self.at(key))),
        }
    }

    fn reach(&mut self) -> Result<Reach> {
        let kind = self.text("type")?;
        let url = self.text("url")?;
        match (kind.as_deref(), url) {
            (None | Some("http" | "streamable-http" | "streamableHttp"), Some(url)) => self.http(&url),
            (None | Some("stdio"), None) => self.program(),
            (Some("stdio"), Some(_)) => Err(invalid(self.at("url"), "does not belong to a server of type `stdio`")),
            (Some("http" | "streamable-http" | "streamableHttp"), None) => Err(invalid(self.at("url"), "is missing")),
            (Some("sse"), _) => {
                Err(invalid(self.at("type"), "is `sse`, which MCP has given up: use `http`, where the server has it"))
            }
            (Some(_), _) => Err(invalid(self.at("type"), "must be `stdio` or `http`")),
        }
    }

    fn http(&mut self, url: &str) -> Result<Reach> {
        let place = self.at("url");
        let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url = url.ok_or_else(|| invalid(place, "must be an address that starts with http:// or https://"))?;
        if let Some(password) = url.password() {
            self.secrets.add(password);
        }
        let mut headers = HeaderMap::new();
        for (name, value) in self.secret_texts("headers")? {
            let place = self.at(&format!("headers.{name}"));
            let name: HeaderName =
                name.parse().map_err(|_| invalid(place.clone(), "has a name that is none of a header"))?;
            let value = HeaderValue::from_str(&value);
            let mut value = value.map_err(|_| invalid(place, "has a value that no header can carry"))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(Reach::Http { url, headers })
    }

    fn program(&mut self) -> Result<Reach> {
        let command = self.text("command")?.ok_or_else(|| invalid(self.at("command"), "is missing"))?;
        let place = self.at("args");
        let args = match self.left.remove("args") {
            None => Vec::new(),
            Some(Value::Array(args)) => {
                let args = args.into_iter().enumerate();
                args.map(|(at, arg)| self.expanded(&format!("{place}[{at}]"), arg)).collect::<Result<_>>()?
            }
            Some(_) => return Err(invalid(place, "must be a list of texts")),
        };
        let mut env = Vec::new();
        for (name, value) in self.secret_texts("env")? {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(invalid(self.at("env"), "holds what cannot be a variable"));
            }
            env.push((name, value.into()));
        }
        let cwd = self.text("cwd")?.map(PathBuf::from);
        Ok(Reach::Stdio(Program { command, args, env, cwd }))
    }

    /// A text that is not empty, expanded.
    fn text(&mut self, key: &str) -> Result<Option<String>> {
        let place = self.at(key);
        let Some(value) = self.left.remove(key) else { return Ok(None) };
        match self.expanded(&place, value)? {
            text if text.is_empty() => Err(invalid(place, "must be a text that is not empty")),
            text => Ok(Some(text)),
        }
    }

    fn expanded(&mut self, place: &str, value: Value) -> Result<String> {
        let Value::String(text) = value else { return Err(invalid(place, "must be a text")) };
        expand(&text, place, self.variable, &mut self.secrets)
    }

    fn map(&mut self, key: &str) -> Result<Map<String, Value>> {
        match self.left.remove(key) {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map),
            Some(_) => Err(invalid(self.at(key), "must be an object")),
        }
    }

    /// Texts by name, each of them a secret.
    fn secret_texts(&mut self, key: &str) -> Result<Vec<(String, String)>> {
        let mut texts = Vec::new();
        for (name, value) in self.map(key)? {
            let value = self.expanded(&self.at(&format!("{key}.{name}")), value)?;
            self.secrets.add(&value);
            // The secret of `Authorization: Bearer TOKEN` is the token.
            value.split_whitespace().for_each(|word| self.secrets.add(word));
            texts.push((name, value));
        }
        Ok(texts)
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        match self.left.remove(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(invalid(self.at(key), "must be true or false")),
        }
    }

    fn millis(&mut self, key: &str) -> Result<Option<Duration>> {
        match self.left.remove(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|millis| *millis > 0) {
                Some(millis) => Ok(Some(Duration::from_millis(millis))),
                None => Err(invalid(self.at(key), "must be a whole number of at least 1")),
            },
        }
    }

    fn names(&mut self, key: &str) -> Result<Option<BTreeSet<String>>> {
        let Some(value) = self.left.remove(key) else { return Ok(None) };
        let names = serde_json::from_value(value).map_err(|_| invalid(self.at(key), "must be a list of texts"))?;
        Ok(Some(names))
    }

    fn classes(&mut self, key: &str) -> Result<BTreeMap<String, EffectClass>> {
        let class = |(tool, value): (String, Value)| match value.as_str() {
            Some("read") => Ok((tool, EffectClass::Read)),
            Some("idempotent") => Ok((tool, EffectClass::Idempotent)),
            Some("once") => Ok((tool, EffectClass::Once)),
            _ => Err(invalid(self.at(&format!("{key}.{tool}")), "must be `read`, `idempotent` or `once`")),
        };
        let classes = match self.left.get(key) {
            None => Map::new(),
            Some(Value::Object(classes)) => classes.clone(),
            Some(_) => return Err(invalid(self.at(key), "must be an object")),
        };
        let classes = classes.into_iter().map(class).collect();
        self.left.remove(key);
        classes
    }
}

/// Puts variables in the place of `${NAME}`. What comes out of one is a secret.
fn expand(text: &str, place: &str, variable: &dyn Fn(&str) -> Option<String>, secrets: &mut Secrets) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else {
            return Err(invalid(place, "has a `${` without its `}`"));
        };
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name {
            return Err(invalid(place, "has a `${…}` that names no variable"));
        }
        let unset = || ConfigError::Unset { place: place.to_owned(), variable: name.to_owned() };
        let value = variable(name).ok_or_else(unset)?;
        secrets.add(&value);
        out.push_str(before);
        out.push_str(&value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use serde_json::json;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        (name == "TOKEN").then(|| "hush-hush".to_owned())
    }

    fn servers(servers: Value) -> Result<Vec<Server>> {
        read(&json!({ "mcpServers": servers }).to_string(), &environment)
    }

    fn one(server: Value) -> Result<Server> {
        servers(json!({ "s": server })).map(|mut servers| servers.remove(0))
    }

    #[test]
    fn a_program_and_an_address_are_servers() {
        let program = one(json!({
            "command": "npx", "args": ["-y", "a=${TOKEN}"], "env": {"KEY": "${TOKEN}!"}, "cwd": "/srv",
            "disabled": true, "enabled_tools": ["a"], "disabled_tools": ["b"], "timeout_ms": 5, "trust_hints": true,
            "classes": {"a": "read", "c": "once"},
        }));
        let program = program.unwrap();
        assert_eq!((program.disabled, program.trust_hints, program.reach.transport()), (true, true, "stdio"));
        assert_eq!(program.call_timeout, Some(Duration::from_millis(5)));
        assert_eq!(program.classes["a"], EffectClass::Read);
        let Reach::Stdio(spawned) = &program.reach else { panic!("{program:?}") };
        assert_eq!(
            (spawned.args.as_slice(), spawned.cwd.as_deref()),
            (&["-y".into(), "a=hush-hush".into()][..], Some("/srv".as_ref()))
        );
        assert_eq!(spawned.env[0].1.expose_secret(), "hush-hush!");
        let http =
            one(json!({"type": "http", "url": "http://h:1/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}}));
        let http = http.unwrap();
        assert_eq!(http.reach.transport(), "http");
        assert_eq!(http.secrets.hide("Bearer hush-hush, hush-hush"), "[hidden], [hidden]");
        for server in [program, http] {
            assert!(!format!("{server:?}").contains("hush-hush"), "{server:?}");
        }
        assert!(read("{}", &environment).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_known_is_named() {
        let unknown = |found: Result<Server>| match found {
            Err(ConfigError::Unknown(name)) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(unknown(one(json!({"command": "x", "comand": "y"}))), "mcpServers.s.comand");
        assert_eq!(unknown(one(json!({"command": "x", "headers": {}}))), "mcpServers.s.headers");
        assert_eq!(unknown(one(json!({"url": "http://h", "env": {}}))), "mcpServers.s.env");
        let top = read(r#"{"servers": {}}"#, &environment).unwrap_err();
        assert_eq!(top, ConfigError::Unknown("servers".into()));
    }

    #[test]
    fn what_is_wrong_is_placed_and_not_shown() {
        let rows = [
            (json!({}), "`mcpServers.s.command` is missing"),
            (json!({"type": "http"}), "`mcpServers.s.url` is missing"),
            (json!({"type": "hush-hush"}), "`mcpServers.s.type` must be `stdio` or `http`"),
            (
                json!({"url": "ftp://hush-hush"}),
                "`mcpServers.s.url` must be an address that starts with http:// or https://",
            ),
            (json!({"command": ["hush-hush"]}), "`mcpServers.s.command` must be a text"),
            (json!({"command": "x", "args": [1]}), "`mcpServers.s.args[0]` must be a text"),
            (json!({"command": "x", "env": "hush-hush"}), "`mcpServers.s.env` must be an object"),
            (json!({"command": "x", "env": {"A": {"hush-hush": 1}}}), "`mcpServers.s.env.A` must be a text"),
            (
                json!({"url": "http://h", "headers": {"A": "hush\nhush-hush"}}),
                "`mcpServers.s.headers.A` has a value that no header can carry",
            ),
            (
                json!({"command": "x", "env": {"A": "${GONE}"}}),
                "`mcpServers.s.env.A` names the variable `GONE`, which is not set",
            ),
            (json!({"command": "${TOKEN"}), "`mcpServers.s.command` has a `${` without its `}`"),
            (
                json!({"command": "x", "timeout_ms": 0}),
                "`mcpServers.s.timeout_ms` must be a whole number of at least 1",
            ),
            (
                json!({"command": "x", "classes": {"a": "reconcilable"}}),
                "`mcpServers.s.classes.a` must be `read`, `idempotent` or `once`",
            ),
            (json!("hush-hush"), "`mcpServers.s` must be an object"),
        ];
        for (server, expected) in rows {
            let error = one(server).unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert!(!format!("{error:?}").contains("hush-hush"), "{error:?}");
        }
        let syntax = read("{\n \"hush-hush\"", &environment).unwrap_err();
        assert_eq!(syntax.to_string(), "it is not JSON: line 2, column 12");
    }

    #[test]
    fn two_servers_whose_tools_could_be_mistaken_are_refused() {
        let error = servers(json!({"a.b": {"command": "x"}, "a/b": {"command": "y"}})).unwrap_err();
        assert_eq!(error.to_string(), "`mcpServers.a/b` and `a.b` would both be `a_b` in the names of tools");
        assert!(servers(json!({"…": {"command": "x"}})).is_err());
    }
}
