//! Tokens that somebody else signs (RFC 7519), by keys of a JWKS file (RFC 7517): a claim says for which tenant.
//!
//! Only signatures with a key pair are taken: under a shared secret whoever can check a token could make one. The file
//! is read again when it has changed, looked at once a second, so keys are rotated without a restart. Issuer and
//! audience are not optional: a token that was made for somebody else's service is none for this one.
//! Absent on purpose: fetching the set over the network, and a way to revoke one token: let tokens be short-lived.

use std::{
    fs,
    path::PathBuf,
    sync::{PoisonError, RwLock},
    time::SystemTime,
};

use anyhow::{Context, bail};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, JwkSet},
};
use raddle_domain::{
    id::TenantId,
    tenant::{Scope, Scopes},
    time::UnixMs,
};
use serde_json::{Map, Value};

use super::{Member, Unknown};

/// Milliseconds between two looks at the file.
const LOOK_MS: u64 = 1_000;
/// Seconds by which two clocks may differ.
const LEEWAY_S: u64 = 30;
/// Characters of a subject that are kept.
const SUBJECT: usize = 128;

const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Whose tokens are taken, and how they are read.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    pub jwks_file: PathBuf,
    pub issuer: String,
    pub audience: String,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// The claim that lists scopes: a list, or words in one text. `raddle:read` is `read`, too.
    pub scopes_claim: String,
}

/// Checks tokens.
pub struct Tokens {
    config: JwtConfig,
    read: RwLock<Read>,
}

/// The set as it was read.
struct Read {
    set: JwkSet,
    changed: Option<SystemTime>,
    looked: UnixMs,
}

impl Tokens {
    /// Reads the set; one that cannot be used is an error.
    pub fn open(config: JwtConfig) -> anyhow::Result<Self> {
        let (set, changed) = load(&config)?;
        Ok(Self::of(config, set, changed, UnixMs(0)))
    }

    /// By this set, which was looked at then.
    pub(super) fn of(config: JwtConfig, set: JwkSet, changed: Option<SystemTime>, looked: UnixMs) -> Self {
        Self { config, read: RwLock::new(Read { set, changed, looked }) }
    }

    /// Who a token speaks for.
    pub fn member(&self, token: &str, now: UnixMs) -> Result<Member, Unknown> {
        self.look(now);
        let claims = self.verified(token).ok_or(Unknown::Key)?;
        let until = self.in_time(&claims, now)?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let tenant: TenantId = text(&self.config.tenant_claim).and_then(|id| id.parse().ok()).ok_or(Unknown::Key)?;
        let subject = text("sub").unwrap_or_default().chars().filter(|char| !char.is_control()).take(SUBJECT);
        Ok(Member {
            tenant,
            scopes: claims.get(&self.config.scopes_claim).map(scopes).unwrap_or_default(),
            name: format!("jwt:{}", subject.collect::<String>()),
            until: Some(until),
            cut: Vec::new(),
        })
    }

    /// The claims of a token that one of the keys has signed, for us.
    fn verified(&self, token: &str) -> Option<Map<String, Value>> {
        let header = decode_header(token).ok()?;
        if !ALGORITHMS.contains(&header.alg) {
            return None;
        }
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.audience]);
        validation.set_required_spec_claims(&["iss", "aud"]);
        // By our clock instead of the library's.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
        let named = |id: &Option<String>| header.kid.is_none() || *id == header.kid;
        let keys = read.set.keys.iter().filter(|key| named(&key.common.key_id));
        let fits =
            keys.filter(|key| key.common.key_algorithm.is_none_or(|is| is.to_string() == format!("{:?}", header.alg)));
        let keys = fits.filter_map(|key| DecodingKey::from_jwk(key).ok());
        keys.into_iter().find_map(|key| decode(token, &key, &validation).ok()).map(|data| data.claims)
    }

    /// When the token's time ends; an error where that was before, or its time has not come.
    fn in_time(&self, claims: &Map<String, Value>, now: UnixMs) -> Result<UnixMs, Unknown> {
        let at = |name: &str| claims.get(name).and_then(Value::as_f64).filter(|at| *at >= 0.0).map(|at| at as u64);
        let ends = at("exp").ok_or(Unknown::Key)?.saturating_add(LEEWAY_S);
        let ends = UnixMs(ends.saturating_mul(1000)).min(UnixMs::LAST);
        if ends <= now {
            return Err(Unknown::Expired);
        }
        let begins = at("nbf").unwrap_or(0).saturating_sub(LEEWAY_S).saturating_mul(1000);
        if begins > now.0 { Err(Unknown::Key) } else { Ok(ends) }
    }

    /// Reads the file again if it has changed. One that cannot be used changes nothing.
    fn look(&self, now: UnixMs) {
        {
            let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
            if now.since(read.looked) < LOOK_MS {
                return;
            }
        }
        let mut read = self.read.write().unwrap_or_else(PoisonError::into_inner);
        read.looked = now;
        if changed(&self.config) == read.changed {
            return;
        }
        match load(&self.config) {
            Ok((set, changed)) => {
                tracing::info!(keys = set.keys.len(), "the key set was read again");
                (read.set, read.changed) = (set, changed);
            }
            Err(err) => {
                tracing::error!(error = format!("{err:#}"), "the new key set cannot be used; the old one holds")
            }
        }
    }
}

fn changed(config: &JwtConfig) -> Option<SystemTime> {
    fs::metadata(&config.jwks_file).and_then(|meta| meta.modified()).ok()
}

fn load(config: &JwtConfig) -> anyhow::Result<(JwkSet, Option<SystemTime>)> {
    let path = &config.jwks_file;
    // Before the content: a change between the two is then seen at the next look.
    let changed = changed(config);
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((parse(&text).with_context(|| path.display().to_string())?, changed))
}

/// A set of keys, each of which can be used.
pub(super) fn parse(text: &str) -> anyhow::Result<JwkSet> {
    let set: JwkSet = serde_json::from_str(text).context("it is no key set")?;
    if set.keys.is_empty() {
        bail!("it holds no key");
    }
    for key in &set.keys {
        let name = key.common.key_id.as_deref().unwrap_or("(without a `kid`)");
        if matches!(key.algorithm, AlgorithmParameters::OctetKey(_)) {
            bail!("the key {name} is a shared secret; only public keys are taken");
        }
        DecodingKey::from_jwk(key).with_context(|| format!("the key {name} cannot be used"))?;
    }
    Ok(set)
}

/// Scopes of a claim; words that are none of ours are somebody else's.
fn scopes(claim: &Value) -> Scopes {
    let word = |word: &str| word.strip_prefix("raddle:").unwrap_or(word).parse::<Scope>().ok();
    match claim {
        Value::String(words) => words.split_whitespace().filter_map(word).collect(),
        Value::Array(words) => words.iter().filter_map(Value::as_str).filter_map(word).collect(),
        _ => Scopes::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;

    // Two Ed25519 pairs of RFC 8032, section 7.1 (tests 1 and 2): public examples.
    const PAIRS: [(&str, &str); 2] = [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        ),
    ];
    const NOW: UnixMs = UnixMs(1_800_000_000_000);

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
    }

    fn jwk(pair: usize, kid: &str) -> Value {
        let x = URL_SAFE_NO_PAD.encode(hex(PAIRS[pair].1));
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "alg": "EdDSA", "use": "sig", "x": x })
    }

    fn write(path: &Path, keys: &[Value]) {
        fs::write(path, json!({ "keys": keys }).to_string()).unwrap();
    }

    fn open(dir: &Path, keys: &[Value]) -> anyhow::Result<Tokens> {
        let jwks_file = dir.join("jwks.json");
        write(&jwks_file, keys);
        Tokens::open(JwtConfig {
            jwks_file,
            issuer: "https://issuer".into(),
            audience: "raddle".into(),
            tenant_claim: "tenant".into(),
            scopes_claim: "scope".into(),
        })
    }

    fn claims() -> Value {
        json!({
            "iss": "https://issuer", "aud": "raddle", "sub": "ada", "tenant": "acme", "scope": "raddle:read write mail",
            "exp": NOW.0 / 1000 + 60,
        })
    }

    fn sign(pair: usize, kid: &str, claims: &Value) -> String {
        // PKCS #8 (RFC 8410): a fixed beginning, and the 32 bytes of the secret.
        let der = [&hex("302e020100300506032b657004220420")[..], &hex(PAIRS[pair].0)].concat();
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::EdDSA) };
        encode(&header, claims, &EncodingKey::from_ed_der(&der)).unwrap()
    }

    #[test]
    fn a_token_speaks_for_the_tenant_in_its_claim() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = open(dir.path(), &[jwk(0, "a"), jwk(1, "b")]).unwrap();
        let member = tokens.member(&sign(1, "b", &claims()), NOW).unwrap();
        assert_eq!((member.tenant.as_str(), member.name.as_str()), ("acme", "jwt:ada"));
        assert_eq!(member.scopes, Scopes::of(&[Scope::Read, Scope::Write]));
        assert_eq!(member.until, Some(UnixMs(NOW.0 + 90_000)));
    }

    #[test]
    fn what_was_not_signed_for_us_and_for_now_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = open(dir.path(), &[jwk(0, "a")]).unwrap();
        let with = |name: &str, value: Value| {
            let mut claims = claims();
            claims[name] = value;
            tokens.member(&sign(0, "a", &claims), NOW).map(drop)
        };
        assert_eq!(with("sub", json!("bob")), Ok(()));
        for (name, value, why) in [
            ("iss", json!("https://other"), Unknown::Key),
            ("aud", json!("mail"), Unknown::Key),
            ("aud", Value::Null, Unknown::Key),
            ("exp", json!(NOW.0 / 1000 - 31), Unknown::Expired),
            ("exp", Value::Null, Unknown::Key),
            ("nbf", json!(NOW.0 / 1000 + 31), Unknown::Key),
            ("tenant", Value::Null, Unknown::Key),
            ("tenant", json!("No Tenant"), Unknown::Key),
        ] {
            assert_eq!(with(name, value.clone()), Err(why), "{name} {value}");
        }
        assert_eq!(with("scope", Value::Null), Ok(()));
    }

    #[test]
    fn a_signature_of_another_key_or_of_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = open(dir.path(), &[jwk(0, "a")]).unwrap();
        let good = sign(0, "a", &claims());
        assert!(tokens.member(&good, NOW).is_ok());
        let parts: Vec<&str> = good.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(json!({ "alg": "none", "kid": "a" }).to_string());
        let mut others = vec![
            sign(1, "a", &claims()),
            sign(0, "b", &claims()),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{none}.{}.", parts[1]),
            format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode("{}"), parts[2]),
            "a.b.c".to_owned(),
        ];
        // The public key as the secret of a symmetric signature: the classic confusion.
        let header = Header { kid: Some("a".into()), ..Header::new(Algorithm::HS256) };
        others.push(encode(&header, &claims(), &EncodingKey::from_secret(&hex(PAIRS[0].1))).unwrap());
        for token in others {
            assert_eq!(tokens.member(&token, NOW).map(drop), Err(Unknown::Key), "{token}");
        }
    }

    #[test]
    fn keys_are_rotated_without_a_restart_and_a_broken_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = open(dir.path(), &[jwk(0, "a")]).unwrap();
        let (old, new) = (sign(0, "a", &claims()), sign(1, "b", &claims()));
        assert!(tokens.member(&old, NOW).is_ok() && tokens.member(&new, NOW).is_err());
        let path = dir.path().join("jwks.json");
        let turn = |text: &dyn Fn(), at: u64| {
            text();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(at)).unwrap();
        };
        turn(&|| write(&path, &[jwk(1, "b")]), 1_000);
        let later = |seconds: u64| UnixMs(NOW.0 + 1000 * seconds);
        assert!(tokens.member(&new, later(2)).is_ok() && tokens.member(&old, later(2)).is_err());
        turn(&|| fs::write(&path, "{").unwrap(), 2_000);
        assert!(tokens.member(&new, later(4)).is_ok());
    }

    #[test]
    fn a_set_with_a_shared_secret_or_without_keys_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let secret = json!({ "kty": "oct", "kid": "s", "k": "c2VjcmV0" });
        let why = |keys: &[Value]| format!("{:#}", open(dir.path(), keys).map(drop).unwrap_err());
        assert!(why(&[jwk(0, "a"), secret]).contains("shared secret"));
        assert!(why(&[]).contains("no key"));
    }
}
