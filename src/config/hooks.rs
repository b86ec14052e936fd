//! Hooks: tables `hooks.NAME`, as many as there are names. In the environment a hook is named by its `kind`:
//! `RADDLE_HOOKS_AUDIT_KIND` makes the hook `audit`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use raddle_domain::{
    hook::{EventFilter, OnReject, Since},
    id::TenantId,
};
use secrecy::SecretString;

use super::{ConfigError, Keys, MIB, Origin, Secret, invalid};

/// One hook.
#[derive(Debug, Clone)]
pub struct HookConfig {
    pub name: String,
    pub sink: SinkConfig,
    pub events: EventFilter,
    /// Whose events; everybody's where nobody is named.
    pub tenants: Option<BTreeSet<TenantId>>,
    pub since: Since,
    pub on_reject: OnReject,
}

/// Where a hook's events go.
#[derive(Debug, Clone)]
pub enum SinkConfig {
    Jsonl {
        path: PathBuf,
        /// 0: never rotated.
        max_bytes: u64,
        keep: u32,
    },
    Stdout,
    Unix {
        path: PathBuf,
    },
    Webhook {
        /// It may hold a token.
        url: SecretString,
        secret: Secret,
        timeout: Duration,
    },
}

/// The longest name.
const NAME: usize = 32;

/// Which kinds a key is for; the others are for all.
const ONLY: [(&str, &[&str]); 7] = [
    ("path", &["jsonl", "unix"]),
    ("max_bytes", &["jsonl"]),
    ("keep", &["jsonl"]),
    ("url", &["webhook"]),
    ("secret", &["webhook"]),
    ("secret_file", &["webhook"]),
    ("timeout_ms", &["webhook"]),
];

/// All hooks that are configured.
pub(super) fn hooks(keys: &mut Keys) -> Result<Vec<HookConfig>, ConfigError> {
    let mut hooks = Vec::new();
    for (name, origin) in names(keys) {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if name.is_empty() || name.len() > NAME || !name.bytes().all(plain) {
            return Err(invalid(&format!("hooks.{name}"), origin, "is no name: 1 to 32 characters of a-z, 0-9 and _"));
        }
        hooks.push(hook(keys, &name)?);
    }
    let mut paths = BTreeMap::new();
    for hook in &hooks {
        if let SinkConfig::Jsonl { path, .. } = &hook.sink
            && let Some(other) = paths.insert(path, &hook.name)
        {
            let key = format!("hooks.{}.path", hook.name);
            return Err(invalid(&key, Origin::File, format!("is the file of `hooks.{other}` too")));
        }
    }
    Ok(hooks)
}

/// The names that are mentioned.
fn names(keys: &Keys) -> BTreeMap<String, Origin> {
    let file = keys.file.keys().filter_map(|key| Some(key.strip_prefix("hooks.")?.rsplit_once('.')?.0));
    let env = keys.env.keys().filter_map(|name| name.strip_prefix("RADDLE_HOOKS_")?.strip_suffix("_KIND"));
    let env = env.map(|name| (name.to_ascii_lowercase(), Origin::Environment));
    env.chain(file.map(|name| (name.to_owned(), Origin::File))).collect()
}

/// One hook. Asks for every key there is, so that the list of keys is whole.
pub(super) fn hook(keys: &mut Keys, name: &str) -> Result<HookConfig, ConfigError> {
    let key = |key: &str| format!("hooks.{name}.{key}");
    let given: Vec<_> =
        ONLY.iter().filter_map(|(only, kinds)| Some((*only, *kinds, keys.given(&key(only))?))).collect();
    let kind = keys.text(&key("kind"));
    let path = keys.text(&key("path"));
    let max_bytes = keys.number(&key("max_bytes"), 64 * MIB, 0, u64::MAX);
    let keep = keys.count(&key("keep"), 5, 1);
    let url = keys.secret(&key("url"));
    let secret = keys.secret(&key("secret"));
    let secret_file = keys.text(&key("secret_file"));
    let timeout = keys.millis(&key("timeout_ms"), 30_000, 1);
    let events = keys.texts(&key("events"));
    let tenants = keys.texts(&key("tenants"));
    let from = keys.text(&key("from"));
    let on_reject = keys.text(&key("on_reject"));

    let kinds = "must be `jsonl`, `stdout`, `unix` or `webhook`";
    let Some((kind, origin)) = kind? else { return Err(invalid(&key("kind"), Origin::Default, kinds)) };
    if let Some((only, _, origin)) = given.into_iter().find(|(_, kinds, _)| !kinds.contains(&kind.as_str())) {
        return Err(invalid(&key(only), origin, format!("is not for a hook of the kind `{kind}`")));
    }
    ONLY.iter().filter(|(_, kinds)| !kinds.contains(&kind.as_str())).for_each(|(only, _)| keys.passes_over(&key(only)));
    let lacks = |what: &str| invalid(&key(what), Origin::Default, format!("is needed for `{kind}`"));
    let path = path?.map(|(text, _)| PathBuf::from(text)).ok_or_else(|| lacks("path"));
    let sink = match kind.as_str() {
        "jsonl" => SinkConfig::Jsonl { path: path?, max_bytes: max_bytes?, keep: keep? },
        "stdout" => SinkConfig::Stdout,
        "unix" => SinkConfig::Unix { path: path? },
        "webhook" => SinkConfig::Webhook {
            url: url?.ok_or_else(|| lacks("url"))?.0,
            secret: match (secret?, secret_file?) {
                (Some(_), Some((_, origin))) => {
                    return Err(invalid(&key("secret_file"), origin, "is given beside `secret`: one of them"));
                }
                (None, Some((path, _))) => Secret::File(path.into()),
                (secret, None) => Secret::Value(secret.ok_or_else(|| lacks("secret"))?.0),
            },
            timeout: timeout?,
        },
        _ => return Err(invalid(&key("kind"), origin, kinds)),
    };
    Ok(HookConfig {
        name: name.to_owned(),
        sink,
        events: match events? {
            None => EventFilter::default(),
            Some((patterns, origin)) => {
                EventFilter::parse(patterns).map_err(|why| invalid(&key("events"), origin, why.to_string()))?
            }
        },
        tenants: match tenants? {
            None => None,
            Some((names, origin)) => {
                let tenant = |name: &String| {
                    name.parse().map_err(|why| invalid(&key("tenants"), origin, format!("holds `{name}`: {why}")))
                };
                Some(names.iter().map(tenant).collect::<Result<_, _>>()?)
            }
        },
        since: choice(&key("from"), from?, [("now", Since::Now), ("beginning", Since::Beginning)])?,
        on_reject: choice(&key("on_reject"), on_reject?, [("retry", OnReject::Retry), ("skip", OnReject::Skip)])?,
    })
}

/// One of two words; the first where none is given.
fn choice<T: Copy>(
    key: &str,
    given: Option<(String, Origin)>,
    [first, second]: [(&str, T); 2],
) -> Result<T, ConfigError> {
    match given {
        None => Ok(first.1),
        Some((text, _)) if text == first.0 => Ok(first.1),
        Some((text, _)) if text == second.0 => Ok(second.1),
        Some((_, origin)) => Err(invalid(key, origin, format!("must be `{}` or `{}`", first.0, second.0))),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Config, *};

    fn read(file: &str, env: &[(&str, &str)]) -> Result<Vec<HookConfig>, String> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::read(Some(file), env, []).map(|config| config.hooks).map_err(|why| why.to_string())
    }

    #[test]
    fn hooks_have_names_and_defaults() {
        assert!(read("", &[]).unwrap().is_empty());
        let hooks = read("[hooks.b]\nkind = \"stdout\"\n[hooks.a]\nkind = \"jsonl\"\npath = \"/tmp/a\"", &[]).unwrap();
        assert_eq!(hooks.iter().map(|hook| hook.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(matches!(&hooks[0].sink, SinkConfig::Jsonl { max_bytes, keep: 5, .. } if *max_bytes == 64 << 20));
        assert_eq!((hooks[1].since, hooks[1].on_reject, &hooks[1].tenants), (Since::Now, OnReject::Retry, &None));
        assert_eq!(hooks[1].events, EventFilter::default());
    }

    #[test]
    fn a_hook_can_be_made_or_changed_in_the_environment() {
        let made = [("RADDLE_HOOKS_MY_HOOK_KIND", "unix"), ("RADDLE_HOOKS_MY_HOOK_PATH", "/run/x")];
        let hooks = read("", &made).unwrap();
        assert_eq!(hooks[0].name, "my_hook");
        let changed = [("RADDLE_HOOKS_A_EVENTS", "turn.*, item.completed"), ("RADDLE_HOOKS_A_TENANTS", "x,y")];
        let hooks = read("hooks.a.kind = \"stdout\"\nhooks.a.from = \"beginning\"", &changed).unwrap();
        assert_eq!(hooks[0].events.patterns(), ["turn.*", "item.completed"]);
        assert_eq!((hooks[0].tenants.as_ref().unwrap().len(), hooks[0].since), (2, Since::Beginning));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let url = "kind = \"webhook\"\nurl = \"http://x\"";
        for (hook, says) in [
            ("path = \"x\"", "`hooks.a.kind`"),
            ("kind = \"ftp\"", "must be `jsonl`"),
            ("kind = \"jsonl\"", "`hooks.a.path` (the default) is needed"),
            ("kind = \"stdout\"\nurl = \"http://x\"", "is not for a hook of the kind `stdout`"),
            ("kind = \"unix\"\npath = \"x\"\nmax_bytes = 1", "is not for a hook of the kind `unix`"),
            (url, "`hooks.a.secret` (the default) is needed"),
            (&format!("{url}\nsecret = \"x\"\nsecret_file = \"y\""), "one of them"),
            ("kind = \"stdout\"\nevents = [\"turns.*\"]", "`turns.*`"),
            ("kind = \"stdout\"\nevents = \"turn.*\"", "must be a list"),
            ("kind = \"stdout\"\ntenants = [\"A B\"]", "`A B`"),
            ("kind = \"stdout\"\nfrom = \"yesterday\"", "must be `now` or `beginning`"),
            ("kind = \"stdout\"\non_reject = \"cry\"", "must be `retry` or `skip`"),
            ("kind = \"stdout\"\nkolor = 1", "names `hooks.a.kolor`"),
        ] {
            let why = read(&format!("[hooks.a]\n{hook}"), &[]).unwrap_err();
            assert!(why.contains(says), "{hook}: {why}");
        }
        assert!(read("hooks = 1", &[]).unwrap_err().contains("`hooks`"));
        assert!(read("hooks.a = 1", &[]).unwrap_err().contains("`hooks.a`"));
        assert!(read("[hooks.A]\nkind = \"stdout\"", &[]).unwrap_err().contains("is no name"));
        let two = "[hooks.a]\nkind = \"jsonl\"\npath = \"x\"\n[hooks.b]\nkind = \"jsonl\"\npath = \"x\"";
        assert!(read(two, &[]).unwrap_err().contains("is the file of `hooks.a` too"));
        assert!(read("", &[("RADDLE_HOOKS_A_PATH", "x")]).unwrap_err().contains("RADDLE_HOOKS_A_PATH"));
    }

    #[test]
    fn neither_a_secret_nor_a_url_shows() {
        let hooks = read("[hooks.a]\nkind = \"webhook\"\nurl = \"http://h/hush\"\nsecret = \"hush\"", &[]).unwrap();
        assert!(!format!("{hooks:?}").contains("hush"));
        let wrong = read("[hooks.a]\nkind = \"webhook\"\nurl = \"http://h\"\nsecret = [\"hush\"]", &[]).unwrap_err();
        assert!(!wrong.contains("hush"), "{wrong}");
    }
}
