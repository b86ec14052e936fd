//! What a server says it can do, and what of it is offered. Pure.
//!
//! A server is a stranger: what it lists is bounded, renamed, checked and, where that fails, left out with a reason
//! that an operator can read; its other tools stay. A schema is compiled and later applied to what models write, so
//! it must not cost more than its size says: what refers to itself, to elsewhere, or to the same part again and
//! again is not taken.

use std::collections::{BTreeMap, HashMap};

use raddle_domain::record::EffectClass;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{config::Server, secrets::cut};
use crate::tools::arguments::Schema;

/// Between a server's name and its tool's.
const BETWEEN: &str = "__";
/// What providers allow.
const NAME_CHARS: usize = 64;
/// What of them a server's name may take.
const PREFIX_CHARS: usize = 32;
const HASH_CHARS: usize = 8;
/// Tools of one server.
pub const MAX_TOOLS: usize = 512;
const DESCRIPTION_CHARS: usize = 4_000;
const SCHEMA_BYTES: usize = 64 * 1024;
const SCHEMA_DEPTH: usize = 32;
/// Parts of a schema, counted as often as they are referred to.
const SCHEMA_PARTS: u64 = 20_000;
/// Of a name or a reason that is shown to people.
const SHOWN_CHARS: usize = 200;

/// A tool as its server lists it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    pub name: String,
    pub description: String,
    pub schema: Value,
    pub read_only: bool,
    pub idempotent: bool,
}

impl Listed {
    /// Reads an entry of `tools/list`. The error is the name, as far as there is one, and the reason.
    pub fn read(value: &Value) -> Result<Self, (String, String)> {
        let name = value["name"].as_str().unwrap_or_default();
        let refused = |why: &str| Err((name.to_owned(), why.to_owned()));
        if name.is_empty() {
            return refused("it has no name");
        }
        if !value["inputSchema"].is_object() {
            return refused("it has no schema");
        }
        let hint = |key: &str| value["annotations"][key].as_bool().unwrap_or(false);
        Ok(Self {
            name: name.to_owned(),
            description: value["description"].as_str().unwrap_or_default().to_owned(),
            schema: value["inputSchema"].clone(),
            read_only: hint("readOnlyHint"),
            idempotent: hint("idempotentHint"),
        })
    }
}

/// A tool that models may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Offered {
    /// Among all tools.
    pub name: String,
    /// Its server's name for it.
    pub tool: String,
    pub description: String,
    pub schema: Value,
    pub class: EffectClass,
}

/// A tool that is not offered, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    pub tool: String,
    pub why: String,
}

/// What is made of a server's list.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Catalogue {
    pub offered: Vec<Offered>,
    pub left_out: Vec<LeftOut>,
}

impl Catalogue {
    /// Judges each tool of the list.
    pub fn new(server: &Server, listed: &[Value]) -> Self {
        let mut found = Self::default();
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for value in listed {
            let judged = Listed::read(value).and_then(|tool| {
                let judged = offered(server, &tool);
                judged.map_err(|why| (tool.name, why))
            });
            let judged = judged.and_then(|tool| match names.get(&tool.name) {
                None if found.offered.len() >= MAX_TOOLS => {
                    Err((tool.tool, format!("the server has more than {MAX_TOOLS} tools")))
                }
                None => Ok(tool),
                Some(other) => Err((tool.tool, format!("its name would be `{}`, as that of `{other}`", tool.name))),
            });
            match judged {
                Ok(tool) => {
                    names.insert(tool.name.clone(), server.secrets.line(&tool.tool, SHOWN_CHARS));
                    found.offered.push(tool);
                }
                Err((tool, why)) if found.left_out.len() < MAX_TOOLS => {
                    let shown = |text: &str| server.secrets.line(text, SHOWN_CHARS);
                    found.left_out.push(LeftOut { tool: shown(&tool), why: shown(&why) });
                }
                Err(_) => {}
            }
        }
        found
    }
}

fn offered(server: &Server, tool: &Listed) -> Result<Offered, String> {
    let enabled = server.enabled_tools.as_ref().is_none_or(|names| names.contains(&tool.name));
    if !enabled || server.disabled_tools.contains(&tool.name) {
        return Err("it is disabled by the configuration".to_owned());
    }
    check(&tool.schema)?;
    Ok(Offered {
        name: qualified(&server.prefix, &tool.name),
        tool: tool.name.clone(),
        description: cut(&described(&server.secrets.hide(&tool.description)), DESCRIPTION_CHARS),
        schema: tool.schema.clone(),
        class: class(server, tool),
    })
}

/// What a call does to the world: by the operator's word, then by the server's where it is believed, else the worst.
fn class(server: &Server, tool: &Listed) -> EffectClass {
    match server.classes.get(&tool.name) {
        Some(class) => *class,
        None if !server.trust_hints => EffectClass::Once,
        None if tool.read_only => EffectClass::Read,
        None if tool.idempotent => EffectClass::Idempotent,
        None => EffectClass::Once,
    }
}

/// Without what could drive a terminal. Lines stay.
fn described(text: &str) -> String {
    text.chars().filter(|char| !char.is_control() || matches!(char, '\n' | '\t')).collect()
}

// ---- names ---------------------------------------------------------------------------------------

/// What the names of a server's tools begin with: never with `__` in it or `_` at its end, so that where it ends can
/// be told. `None` where nothing of the name is left.
pub fn prefix(server: &str) -> Option<String> {
    let words: Vec<String> = plain(server).split('_').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let name = words.join("_");
    (!name.trim_matches('-').is_empty()).then(|| bounded(name, server, PREFIX_CHARS))
}

/// Whether a tool of this name would be one of the server with this prefix.
pub fn belongs(prefix: &str, tool: &str) -> bool {
    tool.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(BETWEEN))
}

fn qualified(prefix: &str, tool: &str) -> String {
    let name = format!("{prefix}{BETWEEN}{}", plain(tool));
    bounded(name, tool, NAME_CHARS)
}

fn plain(name: &str) -> String {
    let allowed = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-');
    name.chars().map(|char| if allowed(char) { char } else { '_' }).collect()
}

/// A name that is too long keeps its beginning, and tells itself apart by a digest of the whole.
fn bounded(name: String, whole: &str, chars: usize) -> String {
    if name.len() <= chars {
        return name;
    }
    let digest: String = Sha256::digest(whole).iter().map(|byte| format!("{byte:02x}")).collect();
    let kept = name[..chars - HASH_CHARS - 1].trim_end_matches('_');
    format!("{kept}-{}", &digest[..HASH_CHARS])
}

// ---- schemas -------------------------------------------------------------------------------------

/// Whether arguments can be checked against it, at a price that is known. The error is a reason.
fn check(schema: &Value) -> Result<(), String> {
    if raddle_domain::record::nests_deeper(schema, SCHEMA_DEPTH) {
        return Err(format!("its schema nests deeper than {SCHEMA_DEPTH} levels"));
    }
    if schema.to_string().len() > SCHEMA_BYTES {
        return Err(format!("its schema is larger than {SCHEMA_BYTES} bytes"));
    }
    if schema["type"] != "object" {
        return Err("its schema is not one of an object".to_owned());
    }
    let mut weights = Weights { root: schema, known: HashMap::new(), open: Vec::new() };
    if weights.of(schema)? > SCHEMA_PARTS {
        return Err(format!("its schema has more than {SCHEMA_PARTS} parts, with those that it refers to"));
    }
    Schema::new(schema).map(drop).map_err(|bad| bad.to_string())
}

/// How many parts a schema has when each reference is replaced by what it refers to.
struct Weights<'a> {
    root: &'a Value,
    known: HashMap<&'a str, u64>,
    open: Vec<&'a str>,
}

impl<'a> Weights<'a> {
    fn of(&mut self, part: &'a Value) -> Result<u64, String> {
        let parts: Vec<&Value> = match part {
            Value::Array(parts) => parts.iter().collect(),
            Value::Object(parts) => {
                if let Some(other) = ["$dynamicRef", "$recursiveRef"].into_iter().find(|key| parts.contains_key(*key)) {
                    return Err(format!("its schema uses `{other}`"));
                }
                parts.values().collect()
            }
            _ => return Ok(1),
        };
        let mut weight: u64 = 1;
        // `$ref` is a reference only where it is a text: a property may be called so.
        if let Some(place) = part.get("$ref").and_then(Value::as_str) {
            weight = weight.saturating_add(self.of_reference(place)?);
        }
        for part in parts {
            weight = weight.saturating_add(self.of(part)?);
        }
        Ok(weight)
    }

    fn of_reference(&mut self, place: &'a str) -> Result<u64, String> {
        if let Some(weight) = self.known.get(place) {
            return Ok(*weight);
        }
        let Some(pointer) = place.strip_prefix('#').filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
            return Err("its schema refers to something outside of itself".to_owned());
        };
        if self.open.contains(&place) || pointer.is_empty() {
            return Err("its schema refers to itself".to_owned());
        }
        let Some(part) = self.root.pointer(pointer) else {
            return Err("its schema refers to something that is not there".to_owned());
        };
        self.open.push(place);
        let weight = self.of(part);
        self.open.pop();
        self.known.insert(place, weight.clone()?);
        weight
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::mcp::config;

    fn server(more: Value) -> Server {
        let mut server = json!({"command": "x", "env": {"KEY": "hush-hush"}});
        server.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let text = json!({"mcpServers": {"my server": server}}).to_string();
        config::read(&text, &|_| None).unwrap().remove(0)
    }

    fn tool(name: &str, schema: Value) -> Value {
        json!({"name": name, "description": "does", "inputSchema": schema})
    }

    fn object() -> Value {
        json!({"type": "object"})
    }

    fn names(found: &Catalogue) -> Vec<&str> {
        found.offered.iter().map(|tool| tool.name.as_str()).collect()
    }

    /// Why a tool with this schema is left out; a good one beside it stays.
    fn why(schema: Value) -> String {
        let found = Catalogue::new(&server(json!({})), &[tool("bad", schema), tool("good", object())]);
        assert_eq!(names(&found), ["my_server__good"]);
        found.left_out.into_iter().next().unwrap().why
    }

    #[test]
    fn a_name_says_its_server_and_is_one_that_providers_take() {
        for (name, expected) in [("a__b", "a_b"), ("_a.b_", "a_b"), ("My-1", "My-1"), ("ä b", "b")] {
            assert_eq!(prefix(name).as_deref(), Some(expected));
        }
        assert_eq!((prefix("__"), prefix("-"), prefix("é")), (None, None, None));
        assert_eq!(qualified("s", "read file/é"), "s__read_file__");
        let (one, other) = (qualified("s", &"x".repeat(100)), qualified("s", &"x".repeat(101)));
        assert_eq!((one.len(), other.len()), (64, 64));
        assert_ne!(one, other);
        assert!(one.starts_with("s__xxx"));
        assert!(belongs("s", &one) && belongs("a_b", "a_b__c") && !belongs("a", "a_b__c"));
        assert!(prefix(&"y".repeat(99)).is_some_and(|prefix| prefix.len() == 32));
    }

    #[test]
    fn of_two_tools_with_one_name_the_second_is_left_out_and_it_is_said() {
        let found =
            Catalogue::new(&server(json!({})), &[tool("a.b", object()), tool("a/b", object()), tool("c", object())]);
        assert_eq!(names(&found), ["my_server__a_b", "my_server__c"]);
        let why = "its name would be `my_server__a_b`, as that of `a.b`".to_owned();
        assert_eq!(found.left_out, [LeftOut { tool: "a/b".into(), why }]);
    }

    #[test]
    fn hints_count_where_they_are_trusted_and_the_operators_word_always() {
        let listed = |name: &str, hints: Value| json!({"name": name, "inputSchema": object(), "annotations": hints});
        let tools = [
            listed("reads", json!({"readOnlyHint": true})),
            listed("puts", json!({"idempotentHint": true})),
            listed("acts", json!({})),
            listed("known", json!({"readOnlyHint": true})),
        ];
        let classes = |more: Value| {
            let found = Catalogue::new(&server(more), &tools);
            found.offered.iter().map(|tool| tool.class).collect::<Vec<_>>()
        };
        use EffectClass::{Idempotent, Once, Read};
        assert_eq!(classes(json!({})), [Once, Once, Once, Once]);
        assert_eq!(classes(json!({"trust_hints": true, "classes": {"known": "once"}})), [Read, Idempotent, Once, Once]);
        assert_eq!(classes(json!({"classes": {"known": "idempotent"}})), [Once, Once, Once, Idempotent]);
    }

    #[test]
    fn only_what_the_configuration_allows_is_offered() {
        let tools = ["a", "b", "c"].map(|name| tool(name, object()));
        let offered = |more: Value| {
            let found = Catalogue::new(&server(more), &tools);
            found.offered.into_iter().map(|tool| tool.tool).collect::<Vec<_>>()
        };
        assert_eq!(offered(json!({"disabled_tools": ["b"]})), ["a", "c"]);
        assert_eq!(offered(json!({"enabled_tools": ["b", "c"], "disabled_tools": ["b"]})), ["c"]);
    }

    #[test]
    fn a_schema_that_is_too_large_or_too_deep_or_none_is_left_out_and_the_others_stay() {
        let deep = (0..40).fold(object(), |inner, _| json!({"type": "object", "properties": {"p": inner}}));
        assert_eq!(why(deep), "its schema nests deeper than 32 levels");
        let large = json!({"type": "object", "description": "x".repeat(SCHEMA_BYTES)});
        assert_eq!(why(large), "its schema is larger than 65536 bytes");
        assert_eq!(why(json!({"type": "string"})), "its schema is not one of an object");
        assert_eq!(why(json!({})), "its schema is not one of an object");
        assert_eq!(why(json!("x")), "it has no schema");
        assert!(why(json!({"type": "object", "properties": 7})).starts_with("its schema cannot be used: "));
        let long = json!({"type": "object", "properties": {"p": {"enum": "x".repeat(10_000)}}});
        assert!(why(long).chars().count() <= SHOWN_CHARS + 1);
    }

    #[test]
    fn a_schema_refers_neither_to_elsewhere_nor_to_itself_nor_too_often() {
        let refers = |to: &str| json!({"type": "object", "properties": {"p": {"$ref": to}}});
        for elsewhere in ["http://127.0.0.1:1/schema.json", "file:///etc/hostname", "other.json", "#anchor"] {
            assert_eq!(why(refers(elsewhere)), "its schema refers to something outside of itself");
        }
        assert_eq!(why(refers("#/$defs/gone")), "its schema refers to something that is not there");
        assert_eq!(why(refers("#")), "its schema refers to itself");
        assert_eq!(why(json!({"type": "object", "allOf": [{"$ref": "#/allOf/0"}]})), "its schema refers to itself");
        // Each level refers to the next one twice: two to the thirtieth parts.
        let mut definitions = serde_json::Map::new();
        for level in 0..30 {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            definitions.insert(format!("d{level}"), json!({"allOf": [next, next]}));
        }
        definitions.insert("d30".into(), json!({"type": "string"}));
        let laughs = json!({"type": "object", "$defs": definitions, "properties": {"p": {"$ref": "#/$defs/d0"}}});
        assert_eq!(why(laughs), "its schema has more than 20000 parts, with those that it refers to");
        let shared = json!({
            "type": "object", "$defs": {"name": {"type": "string"}},
            "properties": {"a": {"$ref": "#/$defs/name"}, "b": {"$ref": "#/$defs/name"}},
        });
        assert_eq!(Catalogue::new(&server(json!({})), &[tool("fine", shared)]).offered.len(), 1);
    }

    #[test]
    fn a_description_is_bounded_and_says_no_secret() {
        let said = format!("a\u{1b}[2J\nhush-hush {}", "x".repeat(10_000));
        let listed = json!({"name": "t", "description": said, "inputSchema": object()});
        let description = Catalogue::new(&server(json!({})), &[listed]).offered.remove(0).description;
        assert!(description.starts_with("a[2J\n[hidden] x"), "{description}");
        assert_eq!(description.chars().count(), DESCRIPTION_CHARS + 1);
    }

    #[test]
    fn a_server_with_too_many_tools_keeps_the_first() {
        let tools: Vec<_> = (0..MAX_TOOLS + 3).map(|at| tool(&format!("t{at}"), object())).collect();
        let found = Catalogue::new(&server(json!({"timeout_ms": 1})), &tools);
        assert_eq!((found.offered.len(), found.left_out.len()), (MAX_TOOLS, 3));
        assert_eq!(server(json!({"timeout_ms": 1})).call_timeout, Some(Duration::from_millis(1)));
    }
}
