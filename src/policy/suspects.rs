//! Every command that a text may come to run, as far as that can be guessed without running it.
//!
//! For rules that deny or ask. So where a text can be read in several ways, all of them are taken: with its quotes, line
//! by line (what a here-document holds may open a quote that is none), and without any quotes, parted wherever
//! anything may begin. What is guessed too much is denied or asked about too often; what is missed is a way around a
//! rule. A text of plain words is not guessed at: only what its programs run in turn is looked for.
//!
//! The work is bounded, and where a bound is met it is said (`unread`), so that nothing passes by being too much.
//!
//! Absent on purpose: variables, arithmetic, globs, what programs read from files. Nothing is expanded, so a word that
//! is put together when the text runs is not seen.

use std::collections::HashSet;

use raddle_domain::policy::programs::{
    base_name, is_assignment, is_keyword, is_shell, is_wrapper, reads_text, runs_behind,
};

/// Texts in texts.
const DEPTH: usize = 8;
/// Bytes read, over all readings.
const WORK: usize = 1 << 20;
/// Suspects.
const MOST: usize = 8192;
/// Words of a command behind each of which another one may begin, and words that are kept of each.
const WORDS: usize = 512;
const KEPT: usize = 64;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    pub commands: Vec<Vec<String>>,
    /// Why there may be more.
    pub unread: Option<&'static str>,
    known: HashSet<Vec<String>>,
    texts: HashSet<String>,
    work: usize,
}

impl Suspects {
    /// Of commands that are what they say.
    pub fn of_commands(commands: &[Vec<String>]) -> Self {
        let mut found = Self::default();
        for words in commands {
            found.command(words, 0);
        }
        found.piped();
        found
    }

    /// Of a text that only a shell can read.
    pub fn of_text(text: &str) -> Self {
        let mut found = Self::default();
        found.text(text, 0);
        found.piped();
        found
    }

    fn text(&mut self, text: &str, depth: usize) {
        if text.trim().is_empty() || self.texts.contains(text) {
            return;
        }
        self.work = self.work.saturating_add(3 * text.len() + 16);
        if depth > DEPTH {
            self.unread = Some("it nests too deeply");
            return;
        }
        if self.work > WORK {
            self.unread = Some("it is too much to be read");
            return;
        }
        self.texts.insert(text.to_owned());
        self.reading(Lexer::read(text), depth);
        if text.trim_end().contains(['\n', '\r']) {
            for line in text.split(['\n', '\r']) {
                self.reading(Lexer::read(line), depth);
            }
        }
        self.reading(Lexer::read_unquoted(text), depth);
    }

    fn reading(&mut self, lexer: Lexer, depth: usize) {
        for words in &lexer.segments {
            self.command(words, depth);
            let expanded = braces(words);
            if expanded != *words {
                self.command(&expanded, depth);
            }
        }
        for text in &lexer.texts {
            self.text(text, depth + 1);
        }
    }

    fn command(&mut self, words: &[String], depth: usize) {
        let is_before = |word: &&String| word.is_empty() || is_keyword(word) || is_assignment(word);
        let words = &words[words.iter().take_while(is_before).count()..];
        let Some(program) = words.first() else { return };
        self.suspect(words);
        self.texts_of(words, depth);
        let behind = runs_behind(program);
        // What a shell is given behind its text is words of that text: `sh -c '"$@"' x command`.
        let wraps = is_wrapper(program) || is_shell(program);
        if !wraps && behind.is_empty() {
            return;
        }
        if words.len() > WORDS {
            self.unread = Some("a program that runs others has too many words");
        }
        let mut runs = wraps;
        for at in 1..words.len().min(WORDS) {
            if runs {
                let inner = &words[at..];
                let inner = &inner[inner.iter().take_while(is_before).count()..];
                self.suspect(inner);
                self.texts_of(inner, depth);
                runs = wraps || inner.first().is_some_and(|program| is_wrapper(program));
            }
            let (name, value) = words[at].split_once('=').unwrap_or((&words[at], ""));
            if behind.contains(&name) {
                runs = true;
                self.text(value, depth + 1);
                if let Some(text) = words.get(at + 1).filter(|text| text.contains(char::is_whitespace)) {
                    self.text(text, depth + 1);
                }
            }
            // `git -c alias.x='!command'`, and whatever else is configured to be a command.
            if let Some(text) = value.strip_prefix('!').filter(|_| !behind.is_empty()) {
                self.text(text, depth + 1);
            }
        }
    }

    /// Reads the arguments of a program that reads them as commands.
    fn texts_of(&mut self, words: &[String], depth: usize) {
        let [program, arguments @ ..] = words else { return };
        if !reads_text(program) {
            return;
        }
        if arguments.len() > WORDS {
            self.unread = Some("a program that runs others has too many words");
        }
        for argument in arguments.iter().take(WORDS) {
            // `--split-string=text`, `-Stext`.
            let value = argument.split_once('=').filter(|_| argument.starts_with('-')).map(|(_, value)| value);
            let joined = argument.strip_prefix('-').filter(|rest| rest.contains(char::is_whitespace));
            let bare = joined.and_then(|rest| rest.get(rest.chars().next().map_or(0, char::len_utf8)..));
            for text in [Some(argument.as_str()), value, bare].into_iter().flatten() {
                self.text(text, depth + 1);
            }
        }
        if base_name(program) == "eval" {
            self.text(&arguments.join(" "), depth + 1);
        }
    }

    fn suspect(&mut self, words: &[String]) {
        let words = &words[..words.len().min(KEPT)];
        if words.is_empty() || self.known.contains(words) {
            return;
        }
        if self.commands.len() >= MOST {
            self.unread = Some("it has too many commands");
            return;
        }
        self.known.insert(words.to_vec());
        self.commands.push(words.to_vec());
    }

    /// What is written into a shell, and what `xargs` puts behind its words: wherever the pipe is.
    fn piped(&mut self) {
        let is = |words: &[String], names: &[&str]| names.contains(&base_name(&words[0]).as_str());
        let written: Vec<Vec<String>> = self
            .commands
            .iter()
            .filter(|words| is(words, &["echo", "printf"]))
            .map(|words| words[1..].to_vec())
            .collect();
        if written.is_empty() {
            return;
        }
        if self.commands.iter().any(|words| is_shell(&words[0])) {
            for words in &written {
                self.text(&words.join(" "), 1);
                words.iter().for_each(|word| self.text(word, 1));
            }
        }
        let fed: Vec<Vec<String>> =
            self.commands.iter().filter(|words| is(words, &["xargs", "parallel"])).cloned().collect();
        for words in fed.iter().flat_map(|words| written.iter().map(move |more| [words.as_slice(), more].concat())) {
            self.command(&words, 1);
        }
    }
}

/// The words with `{a,b}` written out, a few levels deep.
fn braces(words: &[String]) -> Vec<String> {
    let mut words = words.to_vec();
    for _ in 0..4 {
        let once = |word: &String| -> Option<Vec<String>> {
            let close = word.find('}')?;
            let open = word[..close].rfind('{')?;
            let inner = word.get(open + 1..close)?.split(',').collect::<Vec<_>>();
            let written = |part: &&str| format!("{}{part}{}", &word[..open], &word[close + 1..]);
            (inner.len() > 1 && inner.len() <= KEPT).then(|| inner.iter().map(written).collect())
        };
        let Some((at, written)) = words.iter().enumerate().find_map(|(at, word)| Some((at, once(word)?))) else {
            break;
        };
        words.splice(at..=at, written);
    }
    words
}

/// A text as words between which something may part commands. It knows enough of a shell to see words in any spelling,
/// and takes everything.
#[derive(Default)]
pub(super) struct Lexer {
    chars: Vec<char>,
    at: usize,
    word: Option<String>,
    words: Vec<String>,
    /// What the next word is, if it is not one of the command.
    next: Next,
    pub segments: Vec<Vec<String>>,
    /// Texts that are commands of their own, or what a shell reads.
    texts: Vec<String>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Next {
    #[default]
    Word,
    /// Where a redirection leads.
    Target,
    /// What a program is given to read.
    Text,
}

impl Lexer {
    pub fn read(text: &str) -> Self {
        let mut lexer = Self { chars: text.chars().filter(|char| *char != '\0').collect(), ..Self::default() };
        while let Some(char) = lexer.take() {
            lexer.quoted(char);
        }
        lexer.end_command();
        lexer
    }

    /// Without regard to quotes.
    fn read_unquoted(text: &str) -> Self {
        let mut lexer = Self::default();
        for char in text.chars() {
            match char {
                '\'' | '"' | '\\' | '\0' | '$' => {}
                '(' | ')' | '{' | '}' | '`' | ';' | '&' | '|' | '\n' | '\r' => lexer.end_command(),
                '<' | '>' => lexer.end_word(),
                char if char.is_ascii_whitespace() || char.is_ascii_control() => lexer.end_word(),
                char => lexer.push(char),
            }
        }
        lexer.end_command();
        lexer
    }

    fn take(&mut self) -> Option<char> {
        let char = self.chars.get(self.at).copied();
        self.at += usize::from(char.is_some());
        char
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn takes(&mut self, char: char) -> bool {
        let is = self.peek() == Some(char);
        self.at += usize::from(is);
        is
    }

    fn push(&mut self, char: char) {
        self.word.get_or_insert_default().push(char);
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        match std::mem::take(&mut self.next) {
            Next::Word => self.words.push(word),
            Next::Target => {}
            Next::Text => self.texts.push(word),
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        self.next = Next::Word;
        if !self.words.is_empty() {
            self.segments.push(std::mem::take(&mut self.words));
        }
    }

    fn quoted(&mut self, char: char) {
        match char {
            '\'' => {
                let text = self.until('\'');
                self.word.get_or_insert_default().push_str(&text);
            }
            '"' => self.double_quotes(),
            '\\' => match self.take() {
                // A line that goes on.
                Some('\n') | None => {}
                Some(char) => self.push(char),
            },
            '$' => self.dollar(),
            '`' => {
                let text = self.backquotes();
                self.texts.push(text);
            }
            '<' | '>' => self.redirection(char),
            '&' if self.peek() == Some('>') => {
                self.at += 1;
                self.redirection('>');
            }
            ';' | '&' | '|' | '\n' | '\r' | '(' | ')' => self.end_command(),
            '#' if self.word.is_none() => {
                while self.peek().is_some_and(|char| char != '\n' && char != '\r') {
                    self.at += 1;
                }
            }
            char if char.is_ascii_whitespace() || char.is_ascii_control() => self.end_word(),
            char => self.push(char),
        }
    }

    fn until(&mut self, end: char) -> String {
        let mut text = String::new();
        while let Some(char) = self.take().filter(|char| *char != end) {
            text.push(char);
        }
        text
    }

    fn double_quotes(&mut self) {
        self.word.get_or_insert_default();
        while let Some(char) = self.take() {
            match char {
                '"' => return,
                '\\' => match self.take() {
                    Some('\n') | None => {}
                    Some(char @ ('"' | '\\' | '$' | '`')) => self.push(char),
                    Some(char) => {
                        self.push('\\');
                        self.push(char);
                    }
                },
                '$' => self.dollar(),
                '`' => {
                    let text = self.backquotes();
                    self.texts.push(text);
                }
                char => self.push(char),
            }
        }
    }

    /// What follows a `$`. What it expands to is nothing, for all we know.
    fn dollar(&mut self) {
        match self.peek() {
            Some('(') => {
                self.at += 1;
                let text = self.balanced('(', ')');
                self.texts.push(text);
            }
            Some('{') => {
                self.at += 1;
                let text = self.balanced('{', '}');
                if text.starts_with("IFS") {
                    self.end_word();
                } else if let Some(default) = text.split_once(['-', '=', '+']).map(|(_, default)| default.to_owned()) {
                    // What it may stand for is read in its place.
                    self.texts.push(default.clone());
                    self.chars.splice(self.at..self.at, default.chars());
                }
            }
            Some('\'') => {
                self.at += 1;
                self.ansi_c();
            }
            Some(char) if char.is_ascii_alphabetic() || char == '_' => {
                let mut name = String::new();
                while let Some(char) = self.peek().filter(|char| char.is_ascii_alphanumeric() || *char == '_') {
                    name.push(char);
                    self.at += 1;
                }
                if name == "IFS" {
                    self.end_word();
                }
            }
            Some(char) if char.is_ascii_digit() || "@*#?$!-".contains(char) => self.at += 1,
            _ => {}
        }
    }

    /// `$'…'`.
    fn ansi_c(&mut self) {
        self.word.get_or_insert_default();
        while let Some(char) = self.take().filter(|char| *char != '\'') {
            if char != '\\' {
                self.push(char);
                continue;
            }
            let Some(escaped) = self.take() else { return };
            let code = match escaped {
                'x' => self.digits(16, 2),
                'u' => self.digits(16, 4),
                'U' => self.digits(16, 8),
                '0'..='7' => {
                    self.at -= 1;
                    self.digits(8, 3)
                }
                'n' => Some('\n'),
                't' => Some('\t'),
                'r' => Some('\r'),
                'a' | 'b' | 'e' | 'E' | 'f' | 'v' => Some(' '),
                char => Some(char),
            };
            if let Some(char) = code {
                self.push(char);
            }
        }
    }

    fn digits(&mut self, radix: u32, most: usize) -> Option<char> {
        let mut code = 0_u32;
        for _ in 0..most {
            let Some(digit) = self.peek().and_then(|char| char.to_digit(radix)) else { break };
            code = code.saturating_mul(radix).saturating_add(digit);
            self.at += 1;
        }
        char::from_u32(code)
    }

    fn backquotes(&mut self) -> String {
        let mut text = String::new();
        while let Some(char) = self.take().filter(|char| *char != '`') {
            match char {
                '\\' if matches!(self.peek(), Some('`' | '\\' | '$')) => text.extend(self.take()),
                char => text.push(char),
            }
        }
        text
    }

    /// Up to the sign that closes what is open; to the end if there is none.
    fn balanced(&mut self, open: char, close: char) -> String {
        let start = self.at;
        let mut depth = 1;
        while let Some(char) = self.take() {
            match char {
                '\\' => {
                    self.take();
                }
                '\'' | '"' => {
                    // A sign without its other half quotes nothing.
                    let rest = &self.chars[self.at..];
                    let end = match char {
                        '\'' => rest.iter().position(|other| *other == '\''),
                        _ => (0..rest.len()).find(|at| rest[*at] == '"' && (*at == 0 || rest[*at - 1] != '\\')),
                    };
                    self.at += end.map_or(0, |end| end + 1);
                }
                char if char == open => depth += 1,
                char if char == close => {
                    depth -= 1;
                    if depth == 0 {
                        return self.chars[start..self.at - 1].iter().collect();
                    }
                }
                _ => {}
            }
        }
        self.chars[start..].iter().collect()
    }

    fn redirection(&mut self, first: char) {
        if self.takes('(') {
            let text = self.balanced('(', ')');
            self.texts.push(text);
            return;
        }
        // The number of a file, as in `2>`.
        if self.word.as_ref().is_some_and(|word| word.chars().all(|char| char.is_ascii_digit())) {
            self.word = None;
        }
        self.end_word();
        let mut operator = String::from(first);
        while let Some(char) = self.peek().filter(|char| "<>&|-".contains(*char)) {
            operator.push(char);
            self.at += 1;
        }
        self.next = if operator == "<<<" { Next::Text } else { Next::Target };
    }
}
