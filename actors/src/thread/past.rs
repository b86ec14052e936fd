//! The conversation before the open turn, kept from one model call to the next, so that a call need not read it again.
//!
//! What is kept is what would be read: a call that has read it leaves it here, and a turn that ends is added to it by
//! the same [`Past`] that is made of what is read. A turn that is taken out of the conversation, or a conversation that
//! begins elsewhere, makes an end of it, and the next call reads.
//!
//! It belongs to the thread's machine. A call holds on to the conversation that it was started with, which is known at
//! most once: what a call learns too late, nobody asks for any more. It is counted among the thread's bytes, and goes
//! with the thread when that is unloaded.

use std::sync::{Arc, OnceLock};

use raddle_domain::{
    history::Past,
    id::Seq,
    thread::{Step, ThreadState},
};

/// Bytes of a conversation beyond which it is read for each call.
const MOST: usize = 256 * 1024;

/// What a thread's conversation was at one time before the open turn, once somebody knows it.
#[derive(Clone, Default)]
pub(crate) struct Before(Arc<OnceLock<Past>>);

impl Before {
    pub fn get(&self) -> Option<&Past> {
        self.0.get()
    }

    /// Somebody has read it.
    pub fn learn(&self, past: Past) {
        if past.held_bytes() <= MOST {
            // Another call of the same turn may have been quicker, with the same.
            let _ = self.0.set(past);
        }
    }
}

/// What a thread keeps.
pub(super) struct Kept {
    before: Before,
    /// Where the conversation begins.
    context_seq: Seq,
}

impl Kept {
    pub fn nothing(state: &ThreadState) -> Self {
        let before = Before::default();
        // Only the thread's creation stands before the first turn's start.
        if state.seq() == 1 || state.open().is_some_and(|open| open.started_seq() == 2) {
            before.learn(Past::default());
        }
        Self { before, context_seq: state.context_seq() }
    }

    /// A step was made that led to `state`.
    pub fn step(&mut self, step: &Step, state: &ThreadState) {
        if !step.reverted.is_empty() || state.context_seq() != self.context_seq {
            *self = Self { before: Before::default(), context_seq: state.context_seq() };
            return;
        }
        for settled in &step.settled {
            let before = std::mem::take(&mut self.before);
            if let Some(past) = Arc::unwrap_or_clone(before.0).into_inner() {
                self.before.learn(past.then(&settled.said));
            }
        }
    }

    /// What a call of the turn that is open need not read, or is to leave here.
    pub fn before_open(&self) -> Before {
        self.before.clone()
    }

    pub fn held_bytes(&self) -> usize {
        self.before.get().map_or(0, Past::held_bytes)
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::{
        command::{Command, Limits, NewThread, Reply, Report, StartTurn, TextKind},
        history::{History, Message},
        id::ThreadId,
        ports::{Answered, Boundless, FinishReason, Ids as _},
        price::Prices,
        record::ModelChoice,
        thread::Cx,
        time::UnixMs,
    };

    use super::*;
    use crate::UuidIds;

    struct Talk {
        state: ThreadState,
        kept: Kept,
    }

    fn with<T>(work: impl FnOnce(Cx<'_>) -> T) -> T {
        let (limits, prices) = (Limits::default(), Prices::default());
        let now = UnixMs(1_795_000_000_000);
        work(Cx { now, ids: &UuidIds, limits: &limits, prices: &prices, draining: false, room: &Boundless })
    }

    impl Talk {
        fn new() -> Self {
            let new = NewThread::with(ModelChoice { engine: "test".into(), model: "test".into() });
            let (state, _) = with(|cx| ThreadState::create(ThreadId::new(UuidIds.mint()), new, cx)).unwrap();
            Self { kept: Kept::nothing(&state), state }
        }

        fn step(&mut self, command: Command) -> Reply {
            let step = with(|cx| self.state.step(command.into(), cx)).unwrap();
            self.kept.step(&step, &self.state);
            step.reply
        }

        fn begin(&mut self, prompt: &str) -> Reply {
            self.step(Command::Start(StartTurn { prompt: prompt.into(), ..StartTurn::default() }))
        }

        fn answer(&mut self, begun: Reply, text: &str) {
            let Reply::Started(turn) = begun else { panic!("{begun:?}") };
            let answered = Answered { reason: FinishReason::Stop, usage: None, tool_calls: Vec::new() };
            let text = vec![(TextKind::Answer, text.to_owned())];
            let end = Some(Ok(answered));
            self.step(Command::Report(Report { turn: turn.id, call: 1, text, acts: Vec::new(), metered: None, end }));
        }

        fn say(&mut self, prompt: &str) {
            let begun = self.begin(prompt);
            self.answer(begun, "so it is");
        }

        fn kept(&self) -> Option<Vec<Message>> {
            self.kept.before_open().get().map(|past| History::after(past, None).finish())
        }
    }

    fn turn(prompt: &str) -> [Message; 2] {
        let content = "so it is".to_owned();
        let answer = Message::Assistant { content, reasoning: String::new(), tool_calls: Vec::new() };
        [Message::User { content: prompt.into() }, answer]
    }

    #[test]
    fn a_turn_that_ends_is_added_to_what_is_known_before_it() {
        let mut talk = Talk::new();
        talk.say("one");
        assert_eq!(talk.kept(), Some(turn("one").to_vec()));
        let begun = talk.begin("two");
        assert_eq!(talk.kept(), Some(turn("one").to_vec()), "an open turn is not part of it");
        talk.answer(begun, "so it is");
        assert_eq!(talk.kept(), Some([turn("one"), turn("two")].concat()));
        assert!(talk.kept.held_bytes() > "oneso it istwoso it is".len());
    }

    #[test]
    fn a_turn_that_ends_after_something_unknown_is_not_all_that_was_said() {
        let mut talk = Talk::new();
        talk.say("one");
        talk.kept = Kept::nothing(&talk.state);
        talk.say("two");
        assert_eq!(talk.kept(), None);
        // As a call leaves it that has read it.
        let begun = talk.begin("three");
        let read = turn("one").into_iter().chain(turn("two"));
        talk.kept.before_open().learn(Past::of(read.collect()));
        talk.answer(begun, "so it is");
        assert_eq!(talk.kept(), Some([turn("one"), turn("two"), turn("three")].concat()));
    }

    #[test]
    fn what_is_taken_out_of_a_conversation_makes_an_end_of_what_is_known() {
        let mut talk = Talk::new();
        talk.say("one");
        talk.say("two");
        let held = talk.kept.before_open();
        talk.step(Command::Edit(StartTurn { prompt: "three".into(), ..StartTurn::default() }));
        assert_eq!(talk.kept(), None);
        // A call that was started before, and reads late.
        held.learn(Past::default());
        assert_eq!(talk.kept(), None);
    }

    #[test]
    fn a_long_conversation_is_not_kept() {
        let mut talk = Talk::new();
        talk.say(&"long ".repeat(MOST / 10));
        assert!(talk.kept.held_bytes() > MOST / 2);
        talk.say(&"long ".repeat(MOST / 10));
        assert_eq!((talk.kept(), talk.kept.held_bytes()), (None, 0));
    }
}
