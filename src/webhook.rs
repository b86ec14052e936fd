//! Webhook signatures as the Standard Webhooks specification has them, version `v1`.
//!
//! A message has an id, which stays the same however often it is sent, a time, and a body. What is signed is
//! `ID.TIME.BODY`, with HMAC-SHA256; the three headers say which message it is, when it was sent, and one signature
//! for each secret. While secrets are changed there are two of them, and a receiver that knows either is content.
//!
//! Invariants: a secret shows neither in `Debug` nor in an error, and signatures are compared in constant time.
//! Absent on purpose: sending (see `egress`), asymmetric signatures (`v1a`), a clock.

use std::{fmt, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::Sha256;

/// The headers' names.
pub const ID: &str = "webhook-id";
pub const TIMESTAMP: &str = "webhook-timestamp";
pub const SIGNATURE: &str = "webhook-signature";

/// How far the time of a message may be from a receiver's, either way.
pub const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// The fewest bytes of a secret, as the specification has it.
pub const LEAST_SECRET_BYTES: usize = 24;

/// What a secret in base64 begins with; one without is taken as the bytes of its text.
const PREFIX: &str = "whsec_";
/// What a signature of this version begins with.
const VERSION: &str = "v1,";

/// A text that holds no secret that can be used. It repeats none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    #[error("begins with `{PREFIX}` and goes on with what is not base64")]
    NotBase64,
    #[error("is shorter than {LEAST_SECRET_BYTES} bytes, which is too short to sign with")]
    Short,
    #[error("is empty")]
    Missing,
}

/// Why a message is not to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    #[error("the header `{0}` is missing")]
    Missing(&'static str),
    #[error("the header `{TIMESTAMP}` is no number of seconds")]
    Time,
    #[error("the message is too old, or comes from the future")]
    Stale,
    #[error("no signature is of any of the secrets")]
    Signature,
}

/// Secrets to sign with, or to verify with: more than one while they are changed.
#[derive(Clone)]
pub struct Secrets(Vec<SecretSlice<u8>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secret(s)", self.0.len())
    }
}

impl Secrets {
    /// Reads secrets with white space between them: `whsec_` and base64, or any other text as it is.
    pub fn parse(text: &str) -> Result<Self, BadSecret> {
        let secrets = text.split_whitespace().map(secret).collect::<Result<Vec<_>, _>>()?;
        if secrets.is_empty() { Err(BadSecret::Missing) } else { Ok(Self(secrets)) }
    }

    /// The headers of a message. An `id` holds neither a full stop nor a space; `timestamp` is in seconds since 1970.
    pub fn headers(&self, id: &str, timestamp: u64, body: &[u8]) -> [(&'static str, String); 3] {
        debug_assert!(!id.is_empty() && !id.contains(['.', ' ']), "what is signed could be read in two ways");
        let sign = |secret| STANDARD.encode(mac(secret, id, timestamp, body).finalize().into_bytes());
        let signatures: Vec<_> = self.0.iter().map(|secret| format!("{VERSION}{}", sign(secret))).collect();
        [(ID, id.to_owned()), (TIMESTAMP, timestamp.to_string()), (SIGNATURE, signatures.join(" "))]
    }

    /// Whether a message is from somebody who has one of the secrets, and sent about `now`, in seconds since 1970.
    /// `header` looks a header up by its name, in lower case.
    pub fn verify<'h>(
        &self,
        header: impl Fn(&'static str) -> Option<&'h str>,
        body: &[u8],
        now: u64,
    ) -> Result<(), Unverified> {
        let get = |name| header(name).ok_or(Unverified::Missing(name));
        let (id, timestamp, signatures) = (get(ID)?, get(TIMESTAMP)?, get(SIGNATURE)?);
        let timestamp: u64 = timestamp.parse().map_err(|_| Unverified::Time)?;
        if timestamp.abs_diff(now) > TOLERANCE.as_secs() {
            return Err(Unverified::Stale);
        }
        // Signatures of other versions may stand beside ours.
        let mut ours =
            signatures.split(' ').filter_map(|signature| STANDARD.decode(signature.strip_prefix(VERSION)?).ok());
        let fits =
            |given: Vec<u8>| self.0.iter().any(|secret| mac(secret, id, timestamp, body).verify_slice(&given).is_ok());
        if ours.any(fits) { Ok(()) } else { Err(Unverified::Signature) }
    }
}

fn secret(text: &str) -> Result<SecretSlice<u8>, BadSecret> {
    let bytes = match text.strip_prefix(PREFIX) {
        Some(base64) => STANDARD.decode(base64).map_err(|_| BadSecret::NotBase64)?,
        None => text.as_bytes().to_vec(),
    };
    if bytes.len() < LEAST_SECRET_BYTES { Err(BadSecret::Short) } else { Ok(bytes.into()) }
}

fn mac(secret: &SecretSlice<u8>, id: &str, timestamp: u64, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret()).expect("any length is a key of an HMAC");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector that the specification's own libraries are tested with.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const MESSAGE: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: u64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNED: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn secrets(text: &str) -> Secrets {
        Secrets::parse(text).unwrap()
    }

    fn verified(secret: &str, signatures: &str, timestamp: &str, now: u64) -> Result<(), Unverified> {
        let header = |name| match name {
            ID => Some(MESSAGE),
            TIMESTAMP => Some(timestamp),
            _ => Some(signatures),
        };
        secrets(secret).verify(header, BODY, now)
    }

    #[test]
    fn a_message_is_signed_as_the_specification_says() {
        let headers = secrets(SECRET).headers(MESSAGE, AT, BODY);
        assert_eq!(headers.each_ref().map(|(name, _)| *name), ["webhook-id", "webhook-timestamp", "webhook-signature"]);
        assert_eq!(headers.map(|(_, value)| value), [MESSAGE, "1614265330", SIGNED].map(str::to_owned));
        assert_eq!(verified(SECRET, SIGNED, "1614265330", AT), Ok(()));
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let [id, at, signature] = secrets(SECRET).headers(MESSAGE, AT, BODY);
        let verify = |changed: &str, value: &str, body: &[u8]| {
            let header = |name: &'static str| {
                let (_, sent) = [&id, &at, &signature].into_iter().find(|(known, _)| *known == name)?;
                Some(if name == changed { value } else { sent.as_str() })
            };
            secrets(SECRET).verify(header, body, AT)
        };
        assert_eq!(verify("", "", BODY), Ok(()));
        assert_eq!(verify("", "", br#"{"test": 2432232315}"#), Err(Unverified::Signature));
        assert_eq!(verify(ID, "msg_another", BODY), Err(Unverified::Signature));
        assert_eq!(verify(TIMESTAMP, "1614265331", BODY), Err(Unverified::Signature));
        assert_eq!(verify(TIMESTAMP, "soon", BODY), Err(Unverified::Time));
        assert_eq!(verify(SIGNATURE, "v1,AAAA", BODY), Err(Unverified::Signature));
        assert_eq!(verify(SIGNATURE, "", BODY), Err(Unverified::Signature));
        assert_eq!(secrets(SECRET).verify(|_| None, BODY, AT), Err(Unverified::Missing(ID)));
    }

    #[test]
    fn a_message_is_believed_for_five_minutes_either_way() {
        let at = AT.to_string();
        assert_eq!(verified(SECRET, SIGNED, &at, AT + 300), Ok(()));
        assert_eq!(verified(SECRET, SIGNED, &at, AT - 300), Ok(()));
        assert_eq!(verified(SECRET, SIGNED, &at, AT + 301), Err(Unverified::Stale));
        assert_eq!(verified(SECRET, SIGNED, &at, AT - 301), Err(Unverified::Stale));
    }

    #[test]
    fn while_secrets_change_a_receiver_that_knows_either_is_content() {
        let (old, new) = (SECRET, "a-text-of-24-bytes-or-so-is-a-secret-too");
        let [_, (_, at), (_, signatures)] = secrets(&format!("{new}\n{old}\n")).headers(MESSAGE, AT, BODY);
        assert_eq!(signatures.split(' ').count(), 2);
        assert!(signatures.ends_with(SIGNED));
        for known in [old, new] {
            assert_eq!(verified(known, &signatures, &at, AT), Ok(()));
        }
        assert_eq!(verified(&"x".repeat(24), &signatures, &at, AT), Err(Unverified::Signature));
        assert_eq!(verified(&format!("{new} {old}"), SIGNED, &at, AT), Ok(()));
        assert_eq!(verified(old, &format!("v1a,AAAA {SIGNED}"), &at, AT), Ok(()));
        assert_eq!(verified(old, &SIGNED.replace("v1,", "v2,"), &at, AT), Err(Unverified::Signature));
    }

    #[test]
    fn a_secret_that_cannot_be_used_is_refused_and_none_is_shown() {
        assert_eq!(Secrets::parse("whsec_###").unwrap_err(), BadSecret::NotBase64);
        assert_eq!(Secrets::parse("whsec_aHVzaA==").unwrap_err(), BadSecret::Short);
        assert_eq!(Secrets::parse("hush").unwrap_err(), BadSecret::Short);
        assert_eq!(Secrets::parse(" \n").unwrap_err(), BadSecret::Missing);
        assert_eq!(Secrets::parse(&format!("{SECRET} hush")).unwrap_err(), BadSecret::Short);
        assert_eq!(format!("{:?}", secrets(SECRET)), "1 secret(s)");
    }
}
