//! `ask_user`: the tool that is a question to a person. It is not run: the thread asks, and the answer is the result.

use raddle_domain::ports::{Judgement, ToolSpec};
use serde::Deserialize;
use serde_json::{Value, json};

/// Its name.
pub const ASK_USER: &str = "ask_user";

/// A question is read on one screen.
const QUESTION_CHARS: usize = 4_000;
const OPTIONS: usize = 20;
const OPTION_CHARS: usize = 200;

/// What models are told about it.
pub fn spec() -> ToolSpec {
    ToolSpec {
        name: ASK_USER.to_owned(),
        description: "Asks the user a question and waits for the answer, which may be any text. Use it when you \
            cannot go on without knowing something that only the user can tell."
            .to_owned(),
        schema: json!({
            "type": "object",
            "properties": {
                "question": {"type": "string", "minLength": 1, "maxLength": QUESTION_CHARS},
                "options": {
                    "type": "array",
                    "description": "Answers to choose from, if there are likely ones.",
                    "items": {"type": "string", "minLength": 1, "maxLength": OPTION_CHARS},
                    "maxItems": OPTIONS,
                },
            },
            "required": ["question"],
            "additionalProperties": false,
        }),
    }
}

#[derive(Deserialize)]
struct Asked {
    question: String,
    #[serde(default)]
    options: Vec<String>,
}

/// What is to be made of arguments that fit the schema. The error is a sentence for the model.
pub fn judge(arguments: &Value) -> Result<Judgement, String> {
    let Asked { question, options } = Asked::deserialize(arguments).map_err(|why| why.to_string())?;
    if question.trim().is_empty() {
        return Err("at `/question`: the value is blank".to_owned());
    }
    if let Some(blank) = options.iter().position(|option| option.trim().is_empty()) {
        return Err(format!("at `/options/{blank}`: the value is blank"));
    }
    Ok(Judgement::Question { question, options })
}
