//! What a server answered to a call, as a model gets it. Pure.
//!
//! Text is joined; what is not text is named with its kind and size, because a conversation holds text. Bounded, and
//! what was cut is said.

use raddle_domain::ports::ToolEnd;
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

use super::secrets::Secrets;

/// Of one answer.
pub const OUTPUT_BYTES: usize = 128 * 1024;
/// Of a name or an address in it.
const NAME_CHARS: usize = 300;

/// The end of a call that was answered.
pub fn end(result: &CallToolResult, secrets: &Secrets) -> ToolEnd {
    let mut parts: Vec<String> = result.content.iter().map(|block| part(block, secrets)).collect();
    if let (true, Some(value)) = (parts.is_empty(), &result.structured_content) {
        parts.push(value.to_string());
    }
    let text = bounded(secrets.hide(&parts.join("\n")));
    match result.is_error {
        Some(true) if text.is_empty() => ToolEnd::Failed("the tool failed, and did not say why".to_owned()),
        Some(true) => ToolEnd::Failed(text),
        _ => ToolEnd::Done(text),
    }
}

fn part(block: &ContentBlock, secrets: &Secrets) -> String {
    // Before it is cut: half a secret would not be found any more.
    let short = |text: &str| secrets.line(text, NAME_CHARS);
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => data("an image", Some(short(&image.mime_type)), &image.data),
        ContentBlock::Audio(audio) => data("audio", Some(short(&audio.mime_type)), &audio.data),
        ContentBlock::Resource(embedded) => match &embedded.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => format!("[resource {}]\n{text}", short(uri)),
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                data(&format!("resource {}", short(uri)), mime_type.as_deref().map(short), blob)
            }
            _ => "[a resource of an unknown kind]".to_owned(),
        },
        ContentBlock::ResourceLink(link) => {
            let size = link.size.map(|size| format!(", {size} bytes")).unwrap_or_default();
            format!("[link to {} ({}){size}]", short(&link.uri), short(&link.name))
        }
        _ => "[content of an unknown kind]".to_owned(),
    }
}

/// What bytes in Base64 are, without them.
fn data(what: &str, kind: Option<String>, base64: &str) -> String {
    let padding = base64.bytes().rev().take_while(|byte| *byte == b'=').count();
    let size = (base64.len() / 4 * 3).saturating_sub(padding);
    match kind {
        Some(kind) => format!("[{what}, {kind}, {size} bytes, not shown]"),
        None => format!("[{what}, {size} bytes, not shown]"),
    }
}

fn bounded(mut text: String) -> String {
    let whole = text.len();
    if whole > OUTPUT_BYTES {
        text.truncate(text.floor_char_boundary(OUTPUT_BYTES));
        let kept = text.len();
        text.push_str(&format!("\n[cut: the answer has {whole} bytes, and these are the first {kept}]"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ended(result: Value) -> ToolEnd {
        let mut secrets = Secrets::default();
        secrets.add("hush-hush");
        end(&serde_json::from_value(result).unwrap(), &secrets)
    }

    fn done(content: Value) -> String {
        match ended(json!({ "content": content })) {
            ToolEnd::Done(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn text_is_joined_and_anything_else_is_named_with_its_size() {
        let said = done(json!([
            {"type": "text", "text": "one"},
            {"type": "image", "data": "aGVsbG8=", "mimeType": "image/png"},
            {"type": "audio", "data": "aGVsbG8h", "mimeType": "audio/wav"},
            {"type": "resource", "resource": {"uri": "a:b", "text": "inside"}},
            {"type": "resource", "resource": {"uri": "a:c", "blob": "aGk=", "mimeType": "x/y"}},
            {"type": "resource_link", "uri": "a:d", "name": "d", "size": 7},
            {"type": "text", "text": "two"},
        ]));
        let expected = [
            "one",
            "[an image, image/png, 5 bytes, not shown]",
            "[audio, audio/wav, 6 bytes, not shown]",
            "[resource a:b]",
            "inside",
            "[resource a:c, x/y, 2 bytes, not shown]",
            "[link to a:d (d), 7 bytes]",
            "two",
        ];
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_error_of_the_tool_is_a_failure() {
        let failed = |content: Value| ended(json!({ "content": content, "isError": true }));
        assert_eq!(failed(json!([{"type": "text", "text": "no such file"}])), ToolEnd::Failed("no such file".into()));
        assert_eq!(failed(json!([])), ToolEnd::Failed("the tool failed, and did not say why".into()));
    }

    #[test]
    fn structured_content_stands_in_for_text_that_is_missing() {
        let only = ended(json!({"content": [], "structuredContent": {"n": 1}}));
        assert_eq!(only, ToolEnd::Done("{\"n\":1}".into()));
        let both = ended(json!({"content": [{"type": "text", "text": "one"}], "structuredContent": {"n": 1}}));
        assert_eq!(both, ToolEnd::Done("one".into()));
    }

    #[test]
    fn a_long_answer_is_cut_between_characters_and_says_so() {
        let said = done(json!([{"type": "text", "text": "é".repeat(OUTPUT_BYTES)}]));
        let whole = 2 * OUTPUT_BYTES;
        let last = format!("[cut: the answer has {whole} bytes, and these are the first {OUTPUT_BYTES}]");
        assert_eq!(said.lines().last(), Some(last.as_str()));
        assert!(said.len() < OUTPUT_BYTES + 100);
    }

    #[test]
    fn a_secret_in_an_answer_is_hidden() {
        assert_eq!(done(json!([{"type": "text", "text": "KEY=hush-hush"}])), "KEY=[hidden]");
    }

    #[test]
    fn a_secret_across_the_cut_of_a_name_is_hidden() {
        let name = format!("{}hush-hush", "x".repeat(NAME_CHARS - 4));
        let said = done(json!([{"type": "resource_link", "uri": name, "name": name}]));
        assert!(said.contains("[hid…") && !said.contains("hush"), "{said}");
    }
}
