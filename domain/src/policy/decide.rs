//! The decision about one call: whether it may be made, by which rule, and why.
//!
//! The order is a contract: a denial is looked for first, so nobody is asked about what is denied; then a question, so
//! that no approval that was given before, and no setting of a turn, answers it; then allowances and permits; then the
//! mode. Where the mode is `never`, whatever would be asked is denied.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Action, AskMode, Layer, Policy,
    programs::{amendable, distrusted},
    rule::{Held, Place},
    script::Script,
};
use crate::{
    ports::Gate,
    record::{EffectClass, Permit},
};

/// A call, as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub tool: &'a str,
    pub class: EffectClass,
    /// What the tool itself asks for.
    pub gate: Gate,
    /// Whether the call wants to leave the sandbox.
    pub full_access: bool,
    /// Whether no sandbox holds it in to begin with.
    pub outside: bool,
    pub arguments_sha256: &'a str,
    /// Every path that it names: absolute, or relative to the workspace.
    pub paths: &'a [String],
    /// Every host that it reaches.
    pub hosts: &'a [String],
    /// Where the workspace is, if that is known.
    pub root: Option<&'a str>,
    /// The command that it runs, for tools that run one.
    pub script: Option<&'a Script>,
}

/// What has a say about a call.
#[derive(Debug, Clone, Default)]
pub struct Layers<'a> {
    pub policies: Vec<(Layer, &'a Policy)>,
    pub permits: &'a [(String, Permit)],
}

/// What is to become of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Decided {
    #[serde(rename = "decision")]
    pub action: Action,
    /// The rule that settled it, or the permit; none where the mode or the tool did.
    pub rule: Option<String>,
    /// Whose rule it is.
    pub layer: Option<Layer>,
    pub reason: String,
    /// The mode that holds for calls on which no rule speaks.
    pub ask: AskMode,
    /// Of what is asked: neither an earlier approval nor a setting of the turn answers it.
    pub in_person: bool,
    /// What a lasting approval would let pass; none where it would make no difference, or be too much.
    pub amendment: Option<Permit>,
    /// What the rules say of each part.
    pub steps: Vec<Step>,
}

/// What the rules say of one part of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// The part, as people read it: a command, a path, a host.
    pub part: String,
    /// What a rule says of it; none where no rule speaks.
    pub action: Option<Action>,
    pub rule: Option<String>,
    pub layer: Option<Layer>,
    /// What else is to be known.
    pub note: Option<String>,
}

/// Decides about a call.
pub fn decide(subject: &Subject<'_>, layers: &Layers<'_>) -> Decided {
    let held = held(subject, layers);
    let scene = Scene { subject, held: &held, permits: layers.permits, places: places(subject) };
    let (ask, is_never) = mode(layers);
    let mut verdict = scene.verdict(ask);
    if is_never && verdict.action == Action::Ask {
        verdict = Verdict {
            action: Action::Deny,
            reason: format!("it would have to be asked ({}), and nobody may be", verdict.reason).into(),
            ..verdict
        };
    }
    let may_amend = !(verdict.action == Action::Ask && verdict.in_person);
    Decided {
        action: verdict.action,
        rule: verdict.by.as_ref().map(|by| by.name.clone()),
        layer: verdict.by.as_ref().map(|by| by.layer),
        reason: verdict.reason.into_owned(),
        ask: if is_never { AskMode::Never } else { ask },
        in_person: verdict.action == Action::Ask && verdict.in_person,
        amendment: may_amend.then(|| amendment(subject)).flatten(),
        steps: scene.steps(),
    }
}

/// The rules that concern the tool, the built-in ones first.
fn held<'a>(subject: &Subject<'_>, layers: &Layers<'a>) -> Vec<Held<'a>> {
    let concerns = |held: &Held<'_>| held.rule.tool.as_deref().is_none_or(|tool| tool == subject.tool);
    // A rule that looks at nothing is refused where rules are taken; one that is here all the same allows nothing.
    let is_one = |held: &Held<'_>| held.denies_or_asks() || held.rule.tool.is_some() || !held.is_bare();
    let rules = layers
        .policies
        .iter()
        .flat_map(|(layer, policy)| policy.rules.iter().enumerate().map(|(at, rule)| Held::new(*layer, at, rule)));
    rules.filter(|held| concerns(held) && is_one(held)).collect()
}

fn places(subject: &Subject<'_>) -> Vec<Place> {
    subject.paths.iter().map(|path| Place::new(path, subject.root)).collect()
}

/// How strict the modes are together about what may run, and whether nobody may be asked.
fn mode(layers: &Layers<'_>) -> (AskMode, bool) {
    let said = || layers.policies.iter().filter_map(|(_, policy)| policy.ask);
    let strictness = |mode: AskMode| match mode {
        AskMode::OnFailure => 0,
        AskMode::Untrusted | AskMode::Never => 1,
        AskMode::OnRequest => 2,
    };
    let strictest = said().max_by_key(|mode| strictness(*mode)).unwrap_or_default();
    let is_never = said().any(|mode| mode == AskMode::Never);
    (if strictest == AskMode::Never { AskMode::Untrusted } else { strictest }, is_never)
}

/// The rule or the permit behind a verdict.
#[derive(Clone)]
struct By {
    name: String,
    layer: Layer,
}

struct Verdict {
    action: Action,
    by: Option<By>,
    reason: Cow<'static, str>,
    in_person: bool,
}

impl Verdict {
    fn new(action: Action, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { action, by: None, reason: reason.into(), in_person: false }
    }

    fn in_person(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { in_person: true, ..Self::new(Action::Ask, reason) }
    }

    fn of(held: &Held<'_>, otherwise: &'static str) -> Self {
        let by = Some(By { name: held.name(), layer: held.layer });
        let reason = held.rule.reason.clone().map_or(Cow::Borrowed(otherwise), Cow::Owned);
        Self { action: held.rule.action, by, reason, in_person: held.rule.action == Action::Ask }
    }
}

/// A call beside the rules that concern it.
struct Scene<'a> {
    subject: &'a Subject<'a>,
    held: &'a [Held<'a>],
    permits: &'a [(String, Permit)],
    places: Vec<Place>,
}

/// What of a call one allowance has to speak for, together.
struct Part<'a> {
    command: Option<&'a [String]>,
    place: Option<&'a Place>,
    host: Option<&'a str>,
}

impl Scene<'_> {
    fn verdict(&self, ask: AskMode) -> Verdict {
        let subject = self.subject;
        // Denied commands first: of several rules it is the one that says the most.
        let denies = |with_command: bool| {
            let mut rules = self.held.iter().filter(|held| held.rule.action == Action::Deny);
            rules.find(|held| held.rule.command.is_some() == with_command && self.touches(held))
        };
        if let Some(held) = denies(true).or_else(|| denies(false)) {
            return Verdict::of(held, "a rule denies it");
        }
        let mut asks = self.held.iter().filter(|held| held.rule.action == Action::Ask);
        if let Some(held) = asks.find(|held| self.touches(held)) {
            return Verdict::of(held, "a rule wants a person to see it");
        }
        if let Some(why) = subject.script.and_then(|script| script.unread) {
            return Verdict::in_person(format!("what it runs could not be read whole: {why}"));
        }
        let needs_nobody = subject.gate == Gate::Open;
        if subject.gate == Gate::Person {
            return Verdict::in_person("the tool wants a person to see it");
        }
        if ask == AskMode::OnRequest && !(needs_nobody && subject.class == EffectClass::Read) {
            return Verdict::in_person("everything is asked (mode `on_request`)");
        }
        if let Some(why) = self.beyond_bounds() {
            return Verdict::new(Action::Ask, why);
        }
        if let Some(by) = self.allowed() {
            return Verdict { by: Some(by), ..Verdict::new(Action::Allow, "every part of it is allowed") };
        }
        if needs_nobody {
            return Verdict::new(Action::Allow, "the tool needs nobody's word, and no rule speaks");
        }
        let leaves =
            subject.full_access || subject.outside || subject.gate == Gate::FullAccess || !subject.hosts.is_empty();
        match ask {
            AskMode::OnFailure if leaves => Verdict::new(Action::Ask, "it is to leave the sandbox (mode `on_failure`)"),
            AskMode::OnFailure => Verdict::new(Action::Allow, "it stays in the sandbox (mode `on_failure`)"),
            _ => Verdict::new(Action::Ask, self.why_untrusted()),
        }
    }

    /// Why no allowance may speak for the command: it is more than we are ready to judge.
    fn beyond_bounds(&self) -> Option<String> {
        let opaque = self.subject.script?.commands.as_ref().err()?;
        opaque.is_bound().then(|| opaque.to_string())
    }

    fn why_untrusted(&self) -> Cow<'static, str> {
        match self.subject.script.map(|script| &script.commands) {
            Some(Err(opaque)) => format!("only a shell can say what it does: {opaque}").into(),
            _ => "no rule allows every part of it (mode `untrusted`)".into(),
        }
    }

    /// Whether a rule that denies or asks speaks of the call: of any of its parts, in everything that it looks at.
    fn touches(&self, held: &Held<'_>) -> bool {
        let suspects = self.subject.script.map_or(&[][..], |script| script.suspects.as_slice());
        let any = |looks: bool, found: bool| !looks || found;
        any(held.rule.command.is_some(), suspects.iter().any(|words| held.covers_command(words) == Some(true)))
            && any(held.rule.path.is_some(), self.places.iter().any(|place| held.covers_path(place) == Some(true)))
            && any(held.rule.host.is_some(), self.subject.hosts.iter().any(|host| held.covers_host(host) == Some(true)))
    }

    /// The last of the rules and permits that together allow every part of the call, if they do.
    fn allowed(&self) -> Option<By> {
        let Subject { tool, arguments_sha256, hosts, full_access, .. } = *self.subject;
        let permit = |words: Option<&[String]>| {
            let mut permits = self.permits.iter();
            let found = permits.find(|(_, permit)| permit.covers(tool, arguments_sha256, words, hosts));
            found.map(|(name, _)| By { name: name.clone(), layer: Layer::Permits })
        };
        if let Some(by) = permit(None) {
            return Some(by);
        }
        let mut by = None;
        for part in self.parts() {
            let prefix = part.command.filter(|words| !full_access && distrusted(words).is_none());
            by = Some(match prefix.and_then(|words| permit(Some(words))) {
                Some(by) => by,
                None => self.allows(&part).map(|held| By { name: held.name(), layer: held.layer })?,
            });
        }
        by
    }

    /// A rule that allows a part.
    fn allows(&self, part: &Part<'_>) -> Option<&Held<'_>> {
        self.held.iter().filter(|held| held.rule.action == Action::Allow).find(|held| {
            // The beginning of a command says what it does where it stays in the sandbox, and nothing of leaving it.
            let trusts = |words: &&[String]| !self.subject.full_access && distrusted(words).is_none();
            let command = || part.command.filter(trusts).and_then(|words| held.covers_command(words)) == Some(true);
            let place = || part.place.and_then(|place| held.covers_path(place)) == Some(true);
            let host = || part.host.and_then(|host| held.covers_host(host)) == Some(true);
            (held.rule.command.is_none() || command())
                && (held.rule.path.is_none() || place())
                && (held.rule.host.is_none() || host())
        })
    }

    /// Every command with every path and every host: what is not there stands in for itself.
    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        fn or_none<T>(of: impl Iterator<Item = T>) -> Vec<Option<T>> {
            let found: Vec<_> = of.map(Some).collect();
            if found.is_empty() { vec![None] } else { found }
        }
        let commands = self.subject.script.and_then(|script| script.commands.as_deref().ok()).unwrap_or_default();
        let commands = or_none(commands.iter().map(Vec::as_slice));
        let places = or_none(self.places.iter());
        let hosts = or_none(self.subject.hosts.iter().map(String::as_str));
        commands.into_iter().flat_map(move |command| {
            let (places, hosts) = (places.clone(), hosts.clone());
            places
                .into_iter()
                .flat_map(move |place| hosts.clone().into_iter().map(move |host| Part { command, place, host }))
        })
    }

    // ---- for people ---------------------------------------------------------------------------------

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some(script) = self.subject.script {
            self.command_steps(script, &mut steps);
        }
        for (path, place) in self.subject.paths.iter().zip(&self.places) {
            let held = self.strictest(|held| held.covers_path(place) == Some(true));
            steps.push(step(format!("the path {path}"), held, None));
        }
        for host in self.subject.hosts {
            let held = self.strictest(|held| held.covers_host(host) == Some(true));
            steps.push(step(format!("the host {host}"), held, None));
        }
        if let Some(held) = self.strictest(|held| held.is_bare()) {
            steps.push(step(format!("the tool {}", self.subject.tool), Some(held), None));
        }
        steps
    }

    fn command_steps(&self, script: &Script, steps: &mut Vec<Step>) {
        let commands = script.commands.as_deref().unwrap_or_default();
        if let Err(opaque) = script.commands {
            steps.push(step("the whole text".to_owned(), None, Some(opaque.to_string())));
        }
        for words in commands {
            let why = distrusted(words).map(|why| format!("no beginning of it is trusted: {why}"));
            let is_trusted = why.is_none() && !self.subject.full_access;
            let covers =
                |held: &Held<'_>| (held.denies_or_asks() || is_trusted) && held.covers_command(words) == Some(true);
            steps.push(step(shown(words), self.strictest(covers), why));
        }
        for words in script.suspects.iter().filter(|words| !commands.contains(words)) {
            let covers = |held: &Held<'_>| held.denies_or_asks() && held.covers_command(words) == Some(true);
            if let Some(held) = self.strictest(covers) {
                let note = Some("it may be run by what was given".to_owned());
                steps.push(step(shown(words), Some(held), note));
            }
        }
    }

    fn strictest(&self, covers: impl Fn(&Held<'_>) -> bool) -> Option<&Held<'_>> {
        // Of equally strict ones the first.
        self.held.iter().rev().filter(|held| covers(held)).max_by_key(|held| held.rule.action)
    }
}

fn step(part: String, held: Option<&Held<'_>>, note: Option<String>) -> Step {
    Step {
        part,
        action: held.map(|held| held.rule.action),
        rule: held.map(Held::name),
        layer: held.map(|held| held.layer),
        note,
    }
}

/// Words as a person would type them.
fn shown(words: &[String]) -> String {
    let is_plain = |char: char| char.is_alphanumeric() || "_-./:,@%+=^".contains(char);
    let quoted = |word: &String| match word.chars().all(is_plain) && !word.is_empty() {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// What a lasting approval of the call would let pass: commands that begin as it does, calls of its host, or else
/// these arguments. Of a text that only a shell can read, nothing: whoever approves it has seen it once.
fn amendment(subject: &Subject<'_>) -> Option<Permit> {
    let Subject { tool, arguments_sha256, full_access, .. } = *subject;
    let permit = Permit { tool: tool.to_owned(), ..Permit::default() };
    let exactly = Permit { arguments_sha256: Some(arguments_sha256.to_owned()), ..permit.clone() };
    let Some(script) = subject.script else {
        return Some(match (subject.hosts, subject.paths) {
            ([host], []) if !full_access => Permit { host: Some(host.clone()), ..permit },
            _ => exactly,
        });
    };
    if script.commands.is_err() {
        return None;
    }
    let words = script.trusted_words().filter(|_| !full_access && subject.paths.is_empty() && subject.hosts.is_empty());
    Some(match words.and_then(amendable) {
        Some(prefix) => Permit { command_prefix: Some(prefix.to_vec()), ..permit },
        None => exactly,
    })
}

#[cfg(test)]
mod tests;
