//! Reads the text of a command as far as it says what it does.
//!
//! A text is judged if it is made of plain words, quoted ones among them, joined by `&&`, `||`, `;` or `|`, and of
//! nothing else. That is an allow-list, kept twice: by characters outside of quotes, and by the kinds of nodes that a
//! grammar of bash finds. Then the words that the grammar sees must be those that a reading of our own sees, or the
//! text is not judged. So a mistake in one of the three is a question too many, not a command that passes unseen.
//!
//! Everything else is [`Opaque`], with a reason, and is guessed at for rules that deny or ask, see [`super::suspects`].
//! Opaque are also globs: the names of files become words that nobody has read.

use raddle_domain::policy::{Opaque, Script, programs};
use tree_sitter::{Node, Parser};

use super::suspects::{Lexer, Suspects};

/// The longest text that is judged.
const MAX_BYTES: usize = 16 * 1024;
/// The most commands in a text that is judged.
pub const MAX_COMMANDS: usize = 50;

/// Reads a command line.
pub fn read(text: &str) -> Script {
    let commands = plain(text);
    let found = match &commands {
        Ok(commands) => Suspects::of_commands(commands),
        Err(_) => Suspects::of_text(text),
    };
    Script { commands, suspects: found.commands, unread: found.unread }
}

/// A command that is given as words, and runs without a shell.
pub fn words(words: &[String]) -> Script {
    let commands = vec![words.to_vec()];
    let found = Suspects::of_commands(&commands);
    let commands = if words.is_empty() { Err(Opaque::Empty) } else { Ok(commands) };
    Script { commands, suspects: found.commands, unread: found.unread }
}

fn plain(text: &str) -> Result<Vec<Vec<String>>, Opaque> {
    if text.len() > MAX_BYTES {
        return Err(Opaque::TooLong);
    }
    // Space around it means nothing to a shell; a carriage return is not space to it.
    let text = text.trim_matches([' ', '\t', '\n']);
    if text.is_empty() {
        return Err(Opaque::Empty);
    }
    characters(text)?;
    let commands = parsed(text)?;
    if commands.iter().any(|words| words.first().is_none_or(String::is_empty)) {
        return Err(Opaque::Empty);
    }
    if commands.iter().any(|words| programs::is_assignment(&words[0])) {
        return Err(Opaque::Assignment);
    }
    if Lexer::read(text).segments != commands {
        return Err(Opaque::Syntax);
    }
    Ok(commands)
}

/// Whether there is nothing but what a plain text is written with.
fn characters(text: &str) -> Result<(), Opaque> {
    let mut quote = None;
    let mut chars = text.chars().peekable();
    let mut before = ' ';
    while let Some(char) = chars.next() {
        let next = chars.peek().copied();
        match (quote, char) {
            (_, '\0') => return Err(Opaque::Nul),
            (_, '\r') => return Err(Opaque::CarriageReturn),
            (_, char) if char.is_control() && !matches!(char, '\n' | '\t') => return Err(Opaque::Control),
            (Some('\''), char) => quote = (char != '\'').then_some('\''),
            (Some(_), '"') => quote = None,
            (_, '$') => return Err(if next == Some('(') { Opaque::Substitution } else { Opaque::Expansion }),
            (_, '`') => return Err(Opaque::Substitution),
            (_, '\\') => return Err(Opaque::Escape),
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(char),
            (None, '\n') => return Err(Opaque::Lines),
            (None, '&') if next == Some('&') && before != '&' => {}
            (None, '&') if before == '&' && next != Some('&') => {
                before = ' ';
                continue;
            }
            (None, '&') if next == Some('>') => return Err(Opaque::Redirection),
            (None, '&') => return Err(Opaque::Background),
            (None, '<') if next == Some('<') => return Err(Opaque::HereDocument),
            (None, '<' | '>') if next == Some('(') => return Err(Opaque::Substitution),
            (None, '<' | '>') => return Err(Opaque::Redirection),
            (None, '(' | ')') => return Err(Opaque::Subshell),
            (None, '*' | '?' | '[' | ']') => return Err(Opaque::Glob),
            (None, '{' | '}' | '~') => return Err(Opaque::Expansion),
            (None, '!') => return Err(Opaque::Compound),
            (None, '#') => return Err(Opaque::Comment),
            (None, ' ' | '\t' | ';' | '|') => {}
            (None, '_' | '-' | '.' | '/' | ':' | ',' | '@' | '%' | '+' | '=' | '^') => {}
            (None, char) if char.is_alphanumeric() => {}
            (None, _) => return Err(Opaque::Other),
        }
        before = char;
    }
    if quote.is_some() { Err(Opaque::Syntax) } else { Ok(()) }
}

/// The commands as the grammar finds them.
fn parsed(text: &str) -> Result<Vec<Vec<String>>, Opaque> {
    let mut parser = Parser::new();
    parser.set_language(&tree_sitter_bash::LANGUAGE.into()).map_err(|_| Opaque::Syntax)?;
    let tree = parser.parse(text, None).ok_or(Opaque::Syntax)?;
    let root = tree.root_node();
    if root.has_error() {
        return Err(Opaque::Syntax);
    }
    let mut commands = Vec::new();
    let source = Source(text);
    source.commands(root, 0, &mut commands)?;
    if commands.is_empty() { Err(Opaque::Empty) } else { Ok(commands) }
}

/// Why a kind of node is not judged.
fn kind(node: Node<'_>) -> Opaque {
    match node.kind() {
        "variable_assignment" | "variable_assignments" | "declaration_command" | "unset_command" => Opaque::Assignment,
        "command_substitution" | "process_substitution" => Opaque::Substitution,
        "simple_expansion"
        | "expansion"
        | "brace_expression"
        | "arithmetic_expansion"
        | "translated_string"
        | "ansi_c_string" => Opaque::Expansion,
        "redirected_statement" | "file_redirect" | "herestring_redirect" => Opaque::Redirection,
        "heredoc_redirect" | "heredoc_body" => Opaque::HereDocument,
        "subshell" | "compound_statement" => Opaque::Subshell,
        "comment" => Opaque::Comment,
        "if_statement"
        | "while_statement"
        | "for_statement"
        | "c_style_for_statement"
        | "case_statement"
        | "function_definition"
        | "test_command"
        | "negated_command" => Opaque::Compound,
        "extglob_pattern" | "regex" => Opaque::Glob,
        "&" => Opaque::Background,
        "ERROR" => Opaque::Syntax,
        _ => Opaque::Other,
    }
}

struct Source<'a>(&'a str);

impl Source<'_> {
    fn text(&self, node: Node<'_>) -> Result<&str, Opaque> {
        self.0.get(node.byte_range()).ok_or(Opaque::Syntax)
    }

    fn commands(&self, node: Node<'_>, depth: usize, found: &mut Vec<Vec<String>>) -> Result<(), Opaque> {
        // A chain nests by one for each of its commands.
        if depth > MAX_COMMANDS + 2 || found.len() > MAX_COMMANDS {
            return Err(Opaque::TooMany);
        }
        let mut cursor = node.walk();
        match node.kind() {
            "program" | "list" | "pipeline" => {
                for child in node.children(&mut cursor) {
                    match child.kind() {
                        "&&" | "||" | ";" | "|" | "\n" => {}
                        _ => self.commands(child, depth + 1, found)?,
                    }
                }
            }
            "command" => {
                let words: Result<Vec<_>, _> = node.children(&mut cursor).map(|word| self.word(word)).collect();
                found.push(words?);
                if found.len() > MAX_COMMANDS {
                    return Err(Opaque::TooMany);
                }
            }
            _ => return Err(kind(node)),
        }
        Ok(())
    }

    fn word(&self, node: Node<'_>) -> Result<String, Opaque> {
        let mut cursor = node.walk();
        match node.kind() {
            "command_name" => {
                let mut parts = node.children(&mut cursor);
                match (parts.next(), parts.next()) {
                    (Some(only), None) => self.word(only),
                    _ => Err(Opaque::Other),
                }
            }
            // A name may hold what only a grammar takes for one; the characters were looked at before.
            "word" | "number" if node.child_count() == 0 => Ok(self.text(node)?.to_owned()),
            "raw_string" => {
                let text = self.text(node)?;
                text.strip_prefix('\'')
                    .and_then(|text| text.strip_suffix('\''))
                    .map(str::to_owned)
                    .ok_or(Opaque::Syntax)
            }
            "string" => {
                if let Some(child) = node.named_children(&mut cursor).find(|child| child.kind() != "string_content") {
                    return Err(kind(child));
                }
                let text = self.text(node)?;
                text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).map(str::to_owned).ok_or(Opaque::Syntax)
            }
            "concatenation" => {
                let parts: Result<Vec<_>, _> = node.children(&mut cursor).map(|part| self.word(part)).collect();
                Ok(parts?.concat())
            }
            _ => Err(kind(node)),
        }
    }
}

#[cfg(test)]
mod tests;
