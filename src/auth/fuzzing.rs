//! What callers say to be known by.

use std::time::SystemTime;

use axum::http::{HeaderMap, HeaderValue, header};
use raddle_domain::time::UnixMs;

use super::{
    bearer,
    jwt::{self, JwtConfig, Tokens},
};

/// The first key of RFC 8032, section 7.1, which is public, and the token that was signed with it: the beginning of its
/// seed.
const KEYS: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "alg": "EdDSA", "use": "sig",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
const SIGNED: &str = include_str!("../../fuzz/seeds/token/signed");

/// A token: none is taken but the one that was signed.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(value) = HeaderValue::from_bytes(data) {
        let _ = bearer(&HeaderMap::from_iter([(header::AUTHORIZATION, value)]));
    }
    if is_taken(text) {
        // What is signed; that a signature can be written in one way only is nobody's concern.
        let signed = |text: &str| text.rsplit_once('.').map(|(signed, _)| signed.to_owned());
        assert_eq!(signed(text), signed(SIGNED));
    }
}

fn is_taken(token: &str) -> bool {
    let config = JwtConfig {
        jwks_file: "not read".into(),
        issuer: "https://issuer.example".into(),
        audience: "raddle".into(),
        tenant_claim: "tenant".into(),
        scopes_claim: "scope".into(),
    };
    let tokens = Tokens::of(config, jwt::parse(KEYS).expect("a set"), None::<SystemTime>, UnixMs::LAST);
    tokens.member(token, UnixMs(1_800_000_000_000)).is_ok()
}

/// A set of keys.
pub fn key_set(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(set) = jwt::parse(text) {
        assert!(!set.keys.is_empty());
    }
}

#[test]
fn the_signed_token_is_taken() {
    assert!(is_taken(SIGNED));
}
