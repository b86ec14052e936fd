//! What a provider means by an error: pure, from statuses, headers and bodies to a [`ModelError`].
//!
//! What a provider says is shown to the caller, without its control characters and cut to [`SHOWN_CHARS`].
//! Keeping the key out of it is the caller's part: see [`Secrets`].

use std::time::Duration;

use chrono::DateTime;
use raddle_domain::ports::{ModelError, ModelErrorKind};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

/// The most of a provider's sentence that is shown, in characters.
pub const SHOWN_CHARS: usize = 500;

/// A provider that asks for more is not waited for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

pub fn error(kind: ModelErrorKind, message: impl Into<String>) -> ModelError {
    ModelError { kind, message: message.into(), retry_after: None }
}

/// What is written as JSON.
pub fn parse(data: &[u8]) -> Result<Value, ModelError> {
    serde_json::from_slice(data).map_err(|why| {
        // The parser's sentence holds a place, never the text itself.
        error(ModelErrorKind::Malformed, format!("the model provider sent what is no JSON: {why}"))
    })
}

/// What must not be seen in an error: providers repeat the key that they refuse.
#[derive(Debug, Clone, Default)]
pub struct Secrets(Vec<SecretString>);

impl Secrets {
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        Self(secrets.into_iter().filter(|secret| !secret.expose_secret().is_empty()).cloned().collect())
    }

    fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose_secret(), "[secret]"))
    }

    /// A provider's sentence as it may be shown. Secrets go first: a cut one would not be recognised.
    pub fn shown(&self, text: &str) -> String {
        let text = self.hide(text);
        let mut shown = String::new();
        for (count, letter) in text.trim().chars().enumerate() {
            if count == SHOWN_CHARS {
                shown.push('…');
                break;
            }
            shown.push(if letter.is_control() { ' ' } else { letter });
        }
        shown
    }
}

/// A refused request: `body` is the beginning of what came with `status`.
pub fn of_status(status: u16, body: &[u8], retry_after: Option<Duration>, secrets: &Secrets) -> ModelError {
    let said = said(body).map(|text| secrets.shown(&text)).filter(|text| !text.is_empty());
    let kind = kind_of_status(status);
    let what = match kind {
        _ if (300..400).contains(&status) => "the model provider redirects, which is not followed",
        ModelErrorKind::RateLimited => "the model provider limits the rate of calls",
        ModelErrorKind::Rejected => "the model provider refused the call",
        _ => "the model provider is not available",
    };
    let message = match said {
        Some(said) => format!("{what} (status {status}): {said}"),
        None => format!("{what} (status {status})"),
    };
    ModelError { kind, message, retry_after: retry_after.filter(|_| kind.is_transient()) }
}

fn kind_of_status(status: u16) -> ModelErrorKind {
    match status {
        429 => ModelErrorKind::RateLimited,
        408 => ModelErrorKind::Timeout,
        500..=599 => ModelErrorKind::Unavailable,
        _ => ModelErrorKind::Rejected,
    }
}

/// An error object within an answer.
pub fn of_object(object: &Value, secrets: &Secrets) -> ModelError {
    let said = sentence(object).unwrap_or_else(|| object.to_string());
    error(kind_of_object(object), format!("the model provider broke off: {}", secrets.shown(&said)))
}

/// Numbers are taken for statuses, words for what they contain: providers agree on neither.
fn kind_of_object(object: &Value) -> ModelErrorKind {
    let mut kind = None;
    for key in ["code", "status", "status_code", "type"] {
        let number = match &object[key] {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        if let Some(status) = number.and_then(|number| u16::try_from(number).ok()) {
            return kind_of_status(status);
        }
        let word = object[key].as_str().unwrap_or_default().to_ascii_lowercase();
        let means = |words: &[&str]| words.iter().any(|part| word.contains(part));
        if means(&["rate_limit", "rate-limit", "ratelimit", "too_many_requests", "resource_exhausted"]) {
            kind = kind.or(Some(ModelErrorKind::RateLimited));
        } else if means(&["overloaded", "server_error", "internal", "unavailable", "timeout", "api_error"]) {
            kind = kind.or(Some(ModelErrorKind::Unavailable));
        }
    }
    kind.unwrap_or(ModelErrorKind::Rejected)
}

/// What the body of a refusal says, if it is for reading.
fn said(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?.trim();
    match serde_json::from_str::<Value>(text) {
        Ok(value) => sentence(&value["error"]).or_else(|| sentence(&value)),
        // A page of a proxy tells a person nothing, and neither does half an object.
        Err(_) => Some(text.to_owned()).filter(|text| !text.starts_with(['<', '{', '['])),
    }
}

fn sentence(value: &Value) -> Option<String> {
    let texts = [value, &value["message"], &value["detail"], &value["error"], &value["type"], &value["code"]];
    texts.into_iter().find_map(Value::as_str).map(str::to_owned)
}

/// `Retry-After`, in seconds or as a date. A date counts from the `Date` of the same answer, so that neither clock
/// matters; without one it says nothing.
pub fn retry_after(retry_after: Option<&str>, date: Option<&str>) -> Option<Duration> {
    let asked = retry_after?.trim();
    let seconds = match asked.parse::<f64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let at = |text: &str| DateTime::parse_from_rfc2822(text.trim()).ok();
            let wait = at(asked)?.signed_duration_since(at(date?)?);
            wait.num_seconds() as f64
        }
    };
    // A moment that has passed asks for no wait; what is no number, or below nothing, asks for nothing.
    let wait = if seconds.is_nan() { return None } else { seconds.clamp(0.0, LONGEST_WAIT.as_secs_f64()) };
    Some(Duration::from_secs_f64(wait))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn none() -> Secrets {
        Secrets::default()
    }

    fn object(object: Value) -> ModelErrorKind {
        of_object(&object, &none()).kind
    }

    #[test]
    fn statuses_have_kinds() {
        let kind = |status| of_status(status, b"", None, &none()).kind;
        assert_eq!(kind(429), ModelErrorKind::RateLimited);
        assert_eq!(kind(408), ModelErrorKind::Timeout);
        for status in [500, 502, 503, 529] {
            assert_eq!(kind(status), ModelErrorKind::Unavailable);
        }
        for status in [302, 400, 401, 403, 404, 422] {
            assert_eq!(kind(status), ModelErrorKind::Rejected);
        }
    }

    #[test]
    fn a_refusal_says_what_the_provider_said() {
        let message = |body: &str| of_status(400, body.as_bytes(), None, &none()).message;
        let said = "the model provider refused the call (status 400): no such model";
        for body in [
            r#"{"error": {"message": "no such model", "type": "x"}}"#,
            r#"{"error": "no such model"}"#,
            r#"{"message": "no such model"}"#,
            r#"{"detail": "no such model"}"#,
            "no such model\n",
        ] {
            assert_eq!(message(body), said, "{body}");
        }
        for body in ["", "<html>no such model", "{\"error\": {\"mess", "{}", "[]"] {
            assert_eq!(message(body), "the model provider refused the call (status 400)", "{body}");
        }
    }

    #[test]
    fn what_a_provider_says_is_cut_and_on_one_line_and_without_the_key() {
        let secrets = Secrets::new(&[SecretString::from("sk-1234")]);
        assert_eq!(secrets.shown(" bad key\r\nsk-1234! "), "bad key  [secret]!");
        let long = format!("{}sk-1234", "x".repeat(SHOWN_CHARS - 3));
        assert_eq!(secrets.shown(&long), format!("{}[se…", "x".repeat(SHOWN_CHARS - 3)));
        assert_eq!(Secrets::new(&[SecretString::from("")]).shown("hi"), "hi");
    }

    #[test]
    fn error_objects_have_kinds() {
        for transient in [
            json!({"type": "overloaded_error"}),
            json!({"type": "server_error"}),
            json!({"code": "internal_error", "type": null}),
            json!({"code": 502}),
            json!({"code": "503"}),
            json!({"status": 529, "type": "invalid_request_error"}),
        ] {
            assert_eq!(object(transient.clone()), ModelErrorKind::Unavailable, "{transient}");
        }
        for limited in
            [json!({"code": 429}), json!({"type": "rate_limit_error"}), json!({"code": "rate_limit_exceeded"})]
        {
            assert_eq!(object(limited.clone()), ModelErrorKind::RateLimited, "{limited}");
        }
        for refused in [json!({"type": "invalid_request_error"}), json!({"code": 400}), json!("no"), json!({})] {
            assert_eq!(object(refused.clone()), ModelErrorKind::Rejected, "{refused}");
        }
    }

    #[test]
    fn an_error_object_says_its_message() {
        let message = |object| of_object(&object, &none()).message;
        assert_eq!(message(json!({"message": "too much"})), "the model provider broke off: too much");
        assert_eq!(message(json!("too much")), "the model provider broke off: too much");
        assert_eq!(message(json!({"odd": 1})), "the model provider broke off: {\"odd\":1}");
    }

    #[test]
    fn a_wait_is_asked_for_in_seconds_or_as_a_date() {
        let seconds = |text| retry_after(Some(text), None).map(|wait| wait.as_secs_f64());
        assert_eq!(seconds("7"), Some(7.0));
        assert_eq!(seconds(" 0.5 "), Some(0.5));
        assert_eq!(seconds("-3"), Some(0.0));
        assert_eq!(seconds("1e300"), Some(86_400.0));
        for nothing in ["", "soon", "NaN", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(seconds(nothing), None, "{nothing}");
        }
        let date = |text| retry_after(Some(text), Some("Wed, 21 Oct 2015 07:28:00 GMT"));
        assert_eq!(date("Wed, 21 Oct 2015 07:29:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(date("Wed, 21 Oct 2015 07:00:00 GMT"), Some(Duration::ZERO));
    }

    #[test]
    fn a_wait_is_kept_only_where_the_call_may_be_made_again() {
        let wait = Some(Duration::from_secs(3));
        assert_eq!(of_status(503, b"", wait, &none()).retry_after, wait);
        assert_eq!(of_status(400, b"", wait, &none()).retry_after, None);
    }
}
