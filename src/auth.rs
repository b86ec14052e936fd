//! Who a caller is: keys, tokens of somebody else's making, and the operator.
//!
//! A key is `rdl_<key id>_<secret>`: the id says which, 256 random bits prove it. Kept of the secret is
//! HMAC-SHA-256 under the server's *pepper*, which is a file beside the store and in no backup of it: whoever reads the
//! store learns no key, and whoever writes to it makes none. A slow hash would add nothing to a secret that nobody can
//! guess, but a way to keep the server busy.
//!
//! Every comparison of secrets is one of MACs, in constant time. Why a key is not taken is told only to who has shown
//! that it is his.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use axum::http::{HeaderMap, header};
use hmac::{Hmac, KeyInit as _, Mac as _};
use raddle_actors::{HeldKey, Runtime};
use raddle_domain::{
    id::{KeyId, TenantId},
    tenant::{ApiKey, Scopes, StoredKey, TenantStatus},
    time::UnixMs,
};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use sha2::Sha256;
use tokio_util::sync::CancellationToken;

#[cfg(all(feature = "jwt", any(test, feature = "fuzzing")))]
pub(crate) mod fuzzing;
#[cfg(feature = "jwt")]
pub mod jwt;

/// What every key begins with.
pub const PREFIX: &str = "rdl_";

type HmacSha256 = Hmac<Sha256>;

/// What a server knows callers by.
pub struct Auth {
    pepper: Pepper,
    /// Of the operator's key.
    operator: Option<[u8; 32]>,
    #[cfg(feature = "jwt")]
    jwt: Option<jwt::Tokens>,
}

/// Nothing of it is shown: all of it is secret.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth")
    }
}

/// Somebody who has shown who he is.
#[derive(Debug, Clone)]
pub enum Known {
    /// Whoever runs the server: he administers tenants, and is none.
    Operator,
    Tenant(Member),
}

/// Somebody who speaks for a tenant.
#[derive(Debug, Clone)]
pub struct Member {
    pub tenant: TenantId,
    pub scopes: Scopes,
    /// `key:ID` or `jwt:SUBJECT`.
    pub name: String,
    /// When he is not known any more.
    pub until: Option<UnixMs>,
    /// Cancelled when he is not to be heard any more, whatever he is in the middle of.
    pub cut: Vec<CancellationToken>,
}

/// Why a caller is not known, or not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    #[error("no key was sent: `Authorization: Bearer rdl_…`")]
    Absent,
    #[error("`Authorization` is given twice, or is not `Bearer` and a key")]
    Malformed,
    #[error("nobody is known by this key")]
    Key,
    #[error("the key has expired")]
    Expired,
    #[error("the tenant is suspended")]
    Suspended,
}

/// A key that was just made. Its text is told once.
pub struct NewKey {
    pub stored: StoredKey,
    pub text: SecretString,
}

/// The secret that digests are made with.
struct Pepper(SecretBox<[u8; 32]>);

impl Pepper {
    /// The pepper in `path`, made if there is none and there may be a new one.
    fn open(path: &Path, make: bool) -> anyhow::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => {
                let bytes: [u8; 32] = bytes
                    .as_slice()
                    .try_into()
                    .ok()
                    .with_context(|| format!("{} does not hold 32 bytes", path.display()))?;
                Ok(Self(SecretBox::new(Box::new(bytes))))
            }
            Err(err) if err.kind() == ErrorKind::NotFound && make => {
                let bytes = random::<32>()?;
                // Written whole before it has its name: a crash leaves no half of one.
                let fresh = path.with_extension("new");
                let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                fs::rename(&fresh, path)?;
                Ok(Self(SecretBox::new(Box::new(bytes))))
            }
            Err(err) if err.kind() == ErrorKind::NotFound => bail!(
                "{} is missing, by which the keys in the store are checked: put it back (it is in no backup of the \
                 store). To end all keys instead, write a new one: head -c 32 /dev/urandom > {}",
                path.display(),
                path.display()
            ),
            Err(err) => Err(err).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn mac(&self, what: &str, id: &str, secret: &str) -> HmacSha256 {
        // HMAC takes keys of any length.
        let mut mac = HmacSha256::new_from_slice(self.0.expose_secret()).expect("any length");
        for part in [what, id, secret] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }

    fn digest(&self, what: &str, id: &str, secret: &str) -> [u8; 32] {
        self.mac(what, id, secret).finalize().into_bytes().into()
    }

    /// Whether the digest is of this secret; in constant time.
    fn is(&self, digest: &[u8; 32], what: &str, id: &str, secret: &str) -> bool {
        self.mac(what, id, secret).verify_slice(digest).is_ok()
    }
}

/// What [`Auth`] is made of.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// The operator's key, already read.
    pub admin_key: Option<SecretString>,
    pub pepper_file: PathBuf,
    #[cfg(feature = "jwt")]
    pub jwt: Option<jwt::JwtConfig>,
}

impl AuthConfig {
    /// Whether callers have to be known, whatever keys there are.
    fn is_asked_for(&self) -> bool {
        #[cfg(feature = "jwt")]
        let tokens = self.jwt.is_some();
        #[cfg(not(feature = "jwt"))]
        let tokens = false;
        self.admin_key.is_some() || tokens
    }
}

impl Auth {
    /// Who callers of `runtime` are known by; nothing where nobody needs a key: no operator's key is configured, no
    /// tokens, and the store has no key.
    pub fn open(config: AuthConfig, runtime: &Runtime) -> anyhow::Result<Option<Self>> {
        let keys = runtime.has_keys();
        if !keys && !config.is_asked_for() {
            return Ok(None);
        }
        let pepper = Pepper::open(&config.pepper_file, !keys).context("the pepper")?;
        let operator = config.admin_key.map(|key| pepper.digest("operator", "", key.expose_secret()));
        #[cfg(feature = "jwt")]
        let jwt = config.jwt.map(jwt::Tokens::open).transpose().context("`auth.jwt`")?;
        Ok(Some(Self {
            pepper,
            operator,
            #[cfg(feature = "jwt")]
            jwt,
        }))
    }

    /// A fresh key, with `key_id` and time of birth in its record.
    pub fn make(
        &self,
        name: Option<String>,
        scopes: Scopes,
        now: UnixMs,
        until: Option<UnixMs>,
    ) -> anyhow::Result<NewKey> {
        let key_id = KeyId::from_random(random()?);
        let secret: String = random::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = self.pepper.digest("key", key_id.as_str(), &secret);
        let key = ApiKey { key_id, name, scopes, created_at: now, expires_at: until };
        Ok(NewKey { stored: StoredKey { key, digest }, text: format!("{PREFIX}{key_id}_{secret}").into() })
    }

    /// Who sends these headers.
    pub fn known(&self, headers: &HeaderMap, runtime: &Runtime) -> Result<Known, Unknown> {
        let token = bearer(headers)?;
        let now = runtime.now();
        if let Some(operator) = &self.operator
            && self.pepper.is(operator, "operator", "", token)
        {
            return Ok(Known::Operator);
        }
        let member = match token.strip_prefix(PREFIX) {
            Some(key) => self.by_key(key, runtime, now)?,
            None => self.by_token(token, now)?,
        };
        // One that was made by nobody has no callers: its id is only a word in a token.
        let tenant = runtime.tenant(member.tenant).map_err(|_| Unknown::Key)?;
        let heard = runtime.heard(member.tenant);
        match tenant.status {
            TenantStatus::Active => {}
            TenantStatus::Suspended => return Err(Unknown::Suspended),
            TenantStatus::Erasing => return Err(Unknown::Key),
        }
        Ok(Known::Tenant(Member { cut: member.cut.into_iter().chain([heard]).collect(), ..member }))
    }

    fn by_key(&self, key: &str, runtime: &Runtime, now: UnixMs) -> Result<Member, Unknown> {
        let (id, secret) = key.split_once('_').ok_or(Unknown::Key)?;
        let held: Option<HeldKey> = id.parse().ok().and_then(|id: KeyId| runtime.key(&id));
        let held = held.ok_or(Unknown::Key)?;
        if !self.pepper.is(&held.stored.digest, "key", id, secret) {
            return Err(Unknown::Key);
        }
        let key = &held.stored.key;
        if key.is_expired(now) {
            return Err(Unknown::Expired);
        }
        Ok(Member {
            tenant: held.tenant,
            scopes: key.scopes,
            name: format!("key:{id}"),
            until: key.expires_at,
            cut: vec![held.revoked],
        })
    }

    #[cfg(feature = "jwt")]
    fn by_token(&self, token: &str, now: UnixMs) -> Result<Member, Unknown> {
        self.jwt.as_ref().ok_or(Unknown::Key)?.member(token, now)
    }

    #[cfg(not(feature = "jwt"))]
    fn by_token(&self, _: &str, _: UnixMs) -> Result<Member, Unknown> {
        Err(Unknown::Key)
    }
}

/// The one bearer token.
fn bearer(headers: &HeaderMap) -> Result<&str, Unknown> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(Unknown::Absent)?;
    if values.next().is_some() {
        return Err(Unknown::Malformed);
    }
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Unknown::Malformed)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() { Ok(token) } else { Err(Unknown::Malformed) }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|err| anyhow::anyhow!("the system has no randomness: {err}"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pepper(byte: u8) -> Pepper {
        Pepper(SecretBox::new(Box::new([byte; 32])))
    }

    fn auth(byte: u8) -> Auth {
        Auth {
            pepper: pepper(byte),
            operator: None,
            #[cfg(feature = "jwt")]
            jwt: None,
        }
    }

    #[test]
    fn a_key_is_its_id_and_a_secret_that_is_kept_as_a_digest_alone() {
        let made = auth(1).make(None, Scopes::ALL, UnixMs(5), None).unwrap();
        let text = made.text.expose_secret();
        let (id, secret) = text.strip_prefix(PREFIX).unwrap().split_once('_').unwrap();
        assert_eq!(id, made.stored.key.key_id.as_str());
        assert_eq!(secret.len(), 64);
        assert!(!serde_json::to_string(&made.stored).unwrap().contains(secret));
        assert!(!format!("{:?}", made.stored).contains(secret));
    }

    #[test]
    fn a_digest_fits_one_secret_of_one_key_under_one_pepper() {
        let digest = pepper(1).digest("key", "a", "secret");
        assert!(pepper(1).is(&digest, "key", "a", "secret"));
        for (pepper, what, id, secret) in [
            (pepper(2), "key", "a", "secret"),
            (pepper(1), "operator", "a", "secret"),
            (pepper(1), "key", "b", "secret"),
            (pepper(1), "key", "as", "ecret"),
            (pepper(1), "key", "a", "secret "),
        ] {
            assert!(!pepper.is(&digest, what, id, secret), "{what} {id} {secret}");
        }
    }

    #[test]
    fn the_pepper_stays_and_is_nobody_elses_to_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pepper");
        let first = Pepper::open(&path, true).unwrap().digest("key", "a", "b");
        assert_eq!(Pepper::open(&path, false).unwrap().digest("key", "a", "b"), first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_pepper_that_is_lost_is_not_replaced_behind_the_keys_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pepper");
        let why = Pepper::open(&path, false).map(drop).unwrap_err().to_string();
        assert!(why.contains("is missing") && !path.exists(), "{why}");
        fs::write(&path, "short").unwrap();
        assert!(Pepper::open(&path, true).is_err());
    }

    #[test]
    fn one_bearer_token_is_looked_for_and_nothing_else() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(read(&["Bearer abc"]), Ok("abc".to_owned()));
        assert_eq!(read(&["bearer  abc "]), Ok("abc".to_owned()));
        assert_eq!(read(&[]), Err(Unknown::Absent));
        for bad in [&["Basic abc"][..], &["Bearer"], &["Bearer "], &["abc"], &[""], &["Bearer a", "Bearer a"]] {
            assert_eq!(read(bad), Err(Unknown::Malformed), "{bad:?}");
        }
    }
}
