//! `raddle tenants`, `raddle keys`: who may use a server, and how much. With the operator's key.

use std::num::{NonZeroU32, NonZeroU64};

use clap::{Args, Subcommand, ValueEnum};
use raddle_domain::tenant::{ApiKey, AuditEntry, Tenant};
use serde_json::{Map, Value, json};

use crate::client::QuotaLine;

use super::{Failure, Remote, collect, plain, say, say_json, word};

/// What to do with tenants.
#[derive(Debug, Args)]
pub struct Tenants {
    #[command(subcommand)]
    verb: TenantVerb,
}

#[derive(Debug, Subcommand)]
enum TenantVerb {
    /// Make a tenant, and print its id
    Create {
        /// 1 to 32 of a-z, 0-9, `-` and `_`; made up unless given
        id: Option<String>,
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        remote: Remote,
    },
    /// List tenants
    #[command(alias = "ls")]
    List {
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show a tenant, and how much it uses
    Show(One),
    /// Change a tenant; what is not named stays
    Set {
        id: String,
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        remote: Remote,
    },
    /// Hear none of its keys, and call no model for it, until it is resumed
    Suspend(One),
    /// Hear it again
    Resume(One),
    /// Remove it with all that is stored of it, and print the proof
    Erase {
        id: String,
        /// Yes, all of it
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show what was done in its name, oldest first
    Audit {
        id: String,
        /// At most this many
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
struct One {
    id: String,
    #[command(flatten)]
    remote: Remote,
}

/// A number, or `none` for no bound.
#[derive(Debug, Clone, Copy)]
struct Bound(Option<u64>);

impl std::str::FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            number => number.parse().map(|number| Self(Some(number))).map_err(|_| "a number, or `none`".to_owned()),
        }
    }
}

/// What of a tenant is to be.
#[derive(Debug, Args)]
struct What {
    /// For people
    #[arg(long)]
    name: Option<String>,
    /// Its share where tenants wait for each other, from 1 to 1000
    #[arg(long)]
    weight: Option<NonZeroU32>,
    /// Threads that there may be
    #[arg(long, value_name = "N|none")]
    threads: Option<Bound>,
    /// Threads in memory
    #[arg(long, value_name = "N|none")]
    loaded_threads: Option<Bound>,
    /// Turns at work
    #[arg(long, value_name = "N|none")]
    active_turns: Option<Bound>,
    /// Prompts that wait
    #[arg(long, value_name = "N|none")]
    queued_prompts: Option<Bound>,
    /// Open streams
    #[arg(long, value_name = "N|none")]
    subscribers: Option<Bound>,
    /// Requests in a second, over time
    #[arg(long, value_name = "N|none")]
    requests_per_second: Option<Bound>,
    /// Requests at once, after a silence
    #[arg(long, value_name = "N|none")]
    request_burst: Option<Bound>,
    /// Bytes of events that are kept
    #[arg(long, value_name = "N|none")]
    stored_bytes: Option<Bound>,
    /// Tokens or dollars in a UTC day, a UTC month or ever, such as `day:usd=5` or `month:tokens=1000000`; `day:none`
    #[arg(long, value_name = "WINDOW:UNIT=N")]
    budget: Vec<Budgeted>,
}

/// One bound of a budget.
#[derive(Debug, Clone)]
struct Budgeted {
    window: String,
    /// The unit and how much of it; nothing for no budget.
    amount: Option<(String, Value)>,
}

impl std::str::FromStr for Budgeted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "such as `day:usd=5`, `month:tokens=1000000` or `total:none`".to_owned();
        let (window, rest) = text.split_once(':').ok_or_else(bad)?;
        if !["day", "month", "total"].contains(&window) {
            return Err(bad());
        }
        let amount = match rest.split_once('=') {
            None if rest == "none" => None,
            // What is no number has no JSON, and would be no bound at all.
            Some(("usd", dollars)) => {
                let dollars = dollars.parse::<f64>().ok().filter(|dollars| dollars.is_finite());
                Some(("usd", json!(dollars.ok_or_else(bad)?)))
            }
            Some(("tokens", tokens)) => Some(("tokens", json!(tokens.parse::<NonZeroU64>().map_err(|_| bad())?))),
            _ => return Err(bad()),
        };
        Ok(Self { window: window.to_owned(), amount: amount.map(|(unit, amount)| (unit.to_owned(), amount)) })
    }
}

impl What {
    /// The fields of a request. `quotas` and `budgets` are replaced as a whole, so what is not named is taken from
    /// `now`.
    fn into_body(self, now: Option<&Tenant>) -> Result<Map<String, Value>, Failure> {
        let mut body = Map::new();
        body.extend(self.name.map(|name| ("name".to_owned(), name.into())));
        body.extend(self.weight.map(|weight| ("weight".to_owned(), weight.get().into())));
        let bounds = [
            ("threads", self.threads),
            ("loaded_threads", self.loaded_threads),
            ("active_turns", self.active_turns),
            ("queued_prompts", self.queued_prompts),
            ("subscribers", self.subscribers),
            ("requests_per_second", self.requests_per_second),
            ("request_burst", self.request_burst),
            ("stored_bytes", self.stored_bytes),
        ];
        let given: Vec<_> = bounds.into_iter().filter_map(|(name, bound)| Some((name, bound?))).collect();
        if !given.is_empty() {
            let mut quotas = object(now.map(|now| json!(now.quotas)))?;
            for (name, Bound(bound)) in given {
                match bound {
                    Some(bound) => drop(quotas.insert(name.to_owned(), bound.into())),
                    None => drop(quotas.remove(name)),
                }
            }
            body.insert("quotas".to_owned(), quotas.into());
        }
        if !self.budget.is_empty() {
            let mut budgets = object(now.map(|now| json!(now.budgets)))?;
            for Budgeted { window, amount } in self.budget {
                match amount {
                    None => drop(budgets.remove(&window)),
                    Some((unit, amount)) => {
                        let mut budget = object(budgets.remove(&window))?;
                        budget.insert(unit, amount);
                        budgets.insert(window, budget.into());
                    }
                }
            }
            body.insert("budgets".to_owned(), budgets.into());
        }
        Ok(body)
    }
}

fn object(value: Option<Value>) -> Result<Map<String, Value>, Failure> {
    match value {
        None => Ok(Map::new()),
        Some(Value::Object(object)) => Ok(object),
        Some(_) => Err(Failure::Failed("the server's answer is not as expected".to_owned())),
    }
}

impl Tenants {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            TenantVerb::Create { id, what, remote } => {
                let mut body = what.into_body(None)?;
                body.extend(id.map(|id| ("id".to_owned(), id.into())));
                let tenant = remote.client()?.create_tenant(&body).await?;
                if remote.json { say_json(&tenant) } else { say(tenant.id.as_str()) }
            }
            TenantVerb::List { limit, remote } => {
                let client = remote.client()?;
                let found = collect(limit as usize, Vec::new(), async |query| client.tenants(&query).await).await?;
                if remote.json { say_json(&found) } else { found.iter().try_for_each(|tenant| say(&line(tenant))) }
            }
            TenantVerb::Show(One { id, remote }) => {
                let client = remote.client()?;
                let (tenant, usage) = (client.tenant(&id).await?, client.tenant_usage(&id).await?);
                if remote.json {
                    return say_json(&json!({ "tenant": tenant, "usage": usage }));
                }
                show(&tenant)?;
                usage.quotas.iter().try_for_each(|quota| say(&quota_line(quota)))?;
                usage.budgets.iter().try_for_each(|budget| say(&format!("budget   {budget}")))
            }
            TenantVerb::Set { id, what, remote } => {
                let client = remote.client()?;
                let now = client.tenant(&id).await?;
                let tenant = client.patch_tenant(&id, &what.into_body(Some(&now))?).await?;
                if remote.json { say_json(&tenant) } else { show(&tenant) }
            }
            TenantVerb::Suspend(one) => status(one, "suspended").await,
            TenantVerb::Resume(one) => status(one, "active").await,
            TenantVerb::Erase { yes: false, .. } => {
                Err(Failure::Usage("this removes everything of the tenant for good: say --yes".to_owned()))
            }
            TenantVerb::Erase { id, yes: true, remote } => say_json(&remote.client()?.erase_tenant(&id).await?),
            TenantVerb::Audit { id, limit, remote } => {
                let client = remote.client()?;
                let found = collect(limit as usize, Vec::new(), async |query| client.audit(&id, &query).await).await?;
                if remote.json { say_json(&found) } else { found.iter().try_for_each(|entry| say(&audit_line(entry))) }
            }
        }
    }
}

async fn status(One { id, remote }: One, status: &str) -> Result<(), Failure> {
    let patch = Map::from_iter([("status".to_owned(), status.into())]);
    let tenant = remote.client()?.patch_tenant(&id, &patch).await?;
    if remote.json { say_json(&tenant) } else { say(&line(&tenant)) }
}

fn line(tenant: &Tenant) -> String {
    format!("{:<32}  {:<9}  {}", tenant.id, word(&tenant.status), plain(&tenant.name))
}

fn show(tenant: &Tenant) -> Result<(), Failure> {
    say(&line(tenant))?;
    say(&format!("weight   {}", tenant.weight))?;
    for (name, what) in [("quotas", json!(tenant.quotas)), ("budgets", json!(tenant.budgets))] {
        let Value::Object(fields) = what else { continue };
        if fields.is_empty() {
            say(&format!("{name:<8} none"))?;
        }
        for (field, value) in fields {
            say(&format!("{name:<8} {field} {value}"))?;
        }
    }
    Ok(())
}

fn quota_line(quota: &QuotaLine) -> String {
    let max = quota.max.map_or_else(|| "no bound".to_owned(), |max| format!("of {max}"));
    format!("used     {:<20} {} {max}", quota.limit, quota.used)
}

fn audit_line(entry: &AuditEntry) -> String {
    let detail = if entry.detail.is_empty() { String::new() } else { Value::Object(entry.detail.clone()).to_string() };
    plain(&format!("{}  {:<24}  {:<20}  {}  {detail}", entry.at, entry.by, entry.action, entry.subject))
        .replace('\n', " ")
}

/// What to do with keys.
#[derive(Debug, Args)]
pub struct Keys {
    #[command(subcommand)]
    verb: KeyVerb,
}

#[derive(Debug, Subcommand)]
enum KeyVerb {
    /// Make a key and print it; it is shown this once
    Create {
        tenant: String,
        /// What its holder may do; each lets him read, `admin` is all of them
        #[arg(long = "scope", required = true, value_enum, value_delimiter = ',')]
        scopes: Vec<Scope>,
        /// For people
        #[arg(long)]
        name: Option<String>,
        /// Refused from then on, such as 2027-01-31T09:00:00Z
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// List the keys of a tenant, without what proves them
    #[command(alias = "ls")]
    List {
        tenant: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// End a key at once, and the streams that are open by it
    Revoke {
        tenant: String,
        /// Its id: what stands between `rdl_` and the secret
        key_id: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scope {
    Read,
    Write,
    Approve,
    Admin,
}

impl Keys {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            KeyVerb::Create { tenant, scopes, name, expires_at, remote } => {
                let scopes = scopes.iter().filter_map(ValueEnum::to_possible_value);
                let scopes: Vec<Value> = scopes.map(|scope| scope.get_name().into()).collect();
                let mut body = Map::from_iter([("scopes".to_owned(), scopes.into())]);
                body.extend(name.map(|name| ("name".to_owned(), name.into())));
                body.extend(expires_at.map(|at| ("expires_at".to_owned(), at.into())));
                let made = remote.client()?.create_key(&tenant, &body).await?;
                if remote.json { say_json(&made) } else { say(&made.key) }
            }
            KeyVerb::List { tenant, remote } => {
                let keys = remote.client()?.keys(&tenant).await?;
                if remote.json { say_json(&keys) } else { keys.iter().try_for_each(|key| say(&key_line(key))) }
            }
            KeyVerb::Revoke { tenant, key_id, remote } => Ok(remote.client()?.revoke_key(&tenant, &key_id).await?),
        }
    }
}

fn key_line(key: &ApiKey) -> String {
    let scopes: Vec<_> = key.scopes.iter().map(raddle_domain::tenant::Scope::as_str).collect();
    let expires = key.expires_at.map_or_else(|| "never expires".to_owned(), |at| format!("until {at}"));
    let name = plain(key.name.as_deref().unwrap_or_default()).replace('\n', " ");
    format!("{}  {:<20}  {}  {expires}  {name}", key.key_id, scopes.join(","), key.created_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(arguments: &[&'static str]) -> What {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            what: What,
        }
        <Line as clap::Parser>::parse_from([&["x"], arguments].concat()).what
    }

    #[test]
    fn what_is_not_named_stays() {
        let mut now = Tenant::implied("acme".parse().unwrap());
        now.quotas.threads = Some(5);
        now.quotas.subscribers = Some(7);
        now.budgets.day = serde_json::from_value(json!({ "tokens": 9 })).unwrap();
        let body = |arguments: &[&'static str]| Value::Object(what(arguments).into_body(Some(&now)).unwrap());
        assert_eq!(body(&["--name", "A"]), json!({ "name": "A" }));
        assert_eq!(
            body(&["--threads", "none", "--active-turns", "3"]),
            json!({ "quotas": { "subscribers": 7, "active_turns": 3 } })
        );
        assert_eq!(
            body(&["--budget", "day:usd=2.5", "--budget", "month:tokens=10"]),
            json!({ "budgets": { "day": { "tokens": 9, "usd": 2.5 }, "month": { "tokens": 10 } } })
        );
        assert_eq!(body(&["--budget", "day:none"]), json!({ "budgets": {} }));
    }

    #[test]
    fn a_budget_is_a_window_a_unit_and_an_amount() {
        for bad in [
            "usd=5",
            "day:usd=nan",
            "day:usd=1e400",
            "week:usd=5",
            "day:eur=5",
            "day:usd=x",
            "day:tokens=0",
            "day:tokens=1.5",
            "day",
        ] {
            assert!(bad.parse::<Budgeted>().is_err(), "{bad}");
        }
    }
}
