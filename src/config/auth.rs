//! Who callers are known by.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{ConfigError, Keys, Origin, Secret, invalid};

/// Who callers are known by.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// The operator's key: whatever somebody chose.
    pub admin_key: Option<Secret>,
    /// What the digests of keys are made with; made if it is not there.
    pub pepper_file: PathBuf,
    pub jwt: Option<JwtConfig>,
}

/// Tokens that somebody else signs.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    pub jwks_file: PathBuf,
    pub issuer: String,
    pub audience: String,
    pub tenant_claim: String,
    pub scopes_claim: String,
}

pub(super) fn auth(keys: &mut Keys, data_dir: &Path) -> Result<AuthConfig, ConfigError> {
    let admin_key = match (keys.secret("auth.admin_key")?, keys.text("auth.admin_key_file")?) {
        (Some(_), Some((_, origin))) => {
            return Err(invalid("auth.admin_key_file", origin, "is given beside `auth.admin_key`: one of them"));
        }
        (Some((key, _)), None) => Some(Secret::Value(key)),
        (None, Some((path, _))) => Some(Secret::File(path.into())),
        (None, None) => None,
    };
    let beside = data_dir.join("pepper").to_string_lossy().into_owned();
    let pepper_file = keys.text_or("auth.pepper_file", &beside)?.0.into();
    Ok(AuthConfig { admin_key, pepper_file, jwt: jwt(keys)? })
}

/// Tokens are taken as soon as somebody says whose.
fn jwt(keys: &mut Keys) -> Result<Option<JwtConfig>, ConfigError> {
    let jwks_file = keys.text("auth.jwt.jwks_file")?;
    let issuer = keys.text("auth.jwt.issuer")?;
    let audience = keys.text("auth.jwt.audience")?;
    let tenant_claim = keys.text("auth.jwt.tenant_claim")?;
    let scopes_claim = keys.text("auth.jwt.scopes_claim")?;
    let Some((jwks_file, origin)) = jwks_file else {
        let rest = [
            ("issuer", issuer),
            ("audience", audience),
            ("tenant_claim", tenant_claim),
            ("scopes_claim", scopes_claim),
        ];
        return match rest.into_iter().find_map(|(name, value)| Some((name, value?.1))) {
            None => Ok(None),
            Some((name, origin)) => {
                Err(invalid(&format!("auth.jwt.{name}"), origin, "needs `auth.jwt.jwks_file` beside it"))
            }
        };
    };
    if !cfg!(feature = "jwt") {
        return Err(invalid("auth.jwt.jwks_file", origin, "cannot be used: this program was built without `jwt`"));
    }
    let needed = |name: &str, value: Option<(String, Origin)>| {
        let why = "is needed: a token that was made for another service is none for this one";
        value.map(|(text, _)| text).ok_or_else(|| invalid(&format!("auth.jwt.{name}"), Origin::Default, why))
    };
    Ok(Some(JwtConfig {
        jwks_file: jwks_file.into(),
        issuer: needed("issuer", issuer)?,
        audience: needed("audience", audience)?,
        tenant_claim: tenant_claim.map_or_else(|| "tenant".to_owned(), |(claim, _)| claim),
        scopes_claim: scopes_claim.map_or_else(|| "scope".to_owned(), |(claim, _)| claim),
    }))
}

/// A place of its own for the operator.
pub(super) fn admin_listen(keys: &mut Keys, listen: SocketAddr) -> Result<Option<SocketAddr>, ConfigError> {
    let Some((text, origin)) = keys.text("admin.listen")? else { return Ok(None) };
    match text.parse::<SocketAddr>() {
        Ok(admin) if admin == listen && admin.port() != 0 => {
            Err(invalid("admin.listen", origin, "is where `listen` is: leave it out to serve both there"))
        }
        Ok(admin) => Ok(Some(admin)),
        Err(_) => Err(invalid("admin.listen", origin, "must be an address and a port, such as 127.0.0.1:7879")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(file: &str) -> Result<Config, ConfigError> {
        Config::read(Some(file), [], [])
    }

    #[test]
    fn the_operators_key_is_a_value_or_a_file_and_does_not_show() {
        let config = read("[auth]\nadmin_key = \"hush\"").unwrap();
        assert!(matches!(config.auth.admin_key, Some(Secret::Value(_))) && !format!("{config:?}").contains("hush"));
        assert!(matches!(read("auth.admin_key_file = \"/k\"").unwrap().auth.admin_key, Some(Secret::File(_))));
        assert!(read("[auth]\nadmin_key = \"a\"\nadmin_key_file = \"/k\"").is_err());
        assert!(read("").unwrap().auth.admin_key.is_none());
    }

    #[test]
    fn the_pepper_is_beside_the_store_unless_it_is_said_where() {
        assert_eq!(read("data_dir = \"/d\"").unwrap().auth.pepper_file, Path::new("/d/pepper"));
        assert_eq!(read("auth.pepper_file = \"/p\"").unwrap().auth.pepper_file, Path::new("/p"));
    }

    #[test]
    fn tokens_are_taken_from_one_issuer_for_this_service() {
        let whole = "[auth.jwt]\njwks_file = \"/j\"\nissuer = \"i\"\naudience = \"a\"";
        let jwt = read(whole).unwrap().auth.jwt.unwrap();
        assert_eq!((jwt.tenant_claim.as_str(), jwt.scopes_claim.as_str()), ("tenant", "scope"));
        assert!(read("").unwrap().auth.jwt.is_none());
        for bad in
            ["auth.jwt.jwks_file = \"/j\"", "auth.jwt.issuer = \"i\"", "[auth.jwt]\njwks_file = \"/j\"\nissuer = \"i\""]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_operators_place_is_another_one() {
        assert_eq!(read("").unwrap().admin_listen, None);
        assert_eq!(read("admin.listen = \"127.0.0.1:7879\"").unwrap().admin_listen.unwrap().port(), 7879);
        assert!(read("admin.listen = \"127.0.0.1:7878\"").is_err());
        assert!(read("admin.listen = \"here\"").is_err());
    }
}
