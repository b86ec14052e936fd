//! The verbs beyond starting and ending a turn: what waits is changed, a person decides, a conversation is shortened.
//!
//! Decisions name their record alone, as a person knows it; the record names its thread. What the thread's machine
//! no longer waits for is told apart here: unknown, or over, and then how it ended.

use raddle_domain::{
    command::{Answer, Command, Compact, Decide, EditPrompt, Refused, Reply, Resolve, StartTurn, Steer},
    event::Event,
    id::{ApprovalId, InputId, OperationId, QuestionId, TenantId, ThreadKey},
    ports::{RecordKind, StoreError, View},
    record::{
        Admission, AdmissionStatus, Approval, ApprovalStatus, Checkpoint, Decision, Effect, Question, QuestionStatus,
        Resolution, Turn,
    },
};
use uuid::Uuid;

use crate::{
    disk,
    handle::{Call, Done, Error, Runtime, Started, replay, started, unexpected},
    reads::Page,
    thread::{self, ThreadMachine},
};

/// Which approvals, questions or effects to list; oldest first.
#[derive(Debug, Clone, Default)]
pub struct RecordQuery {
    pub thread: Option<raddle_domain::id::ThreadId>,
    /// Only those on which somebody still has to act.
    pub open: bool,
    pub after: Option<Uuid>,
    pub limit: usize,
}

/// A record that the log holds and the index finds.
trait Indexed: Sized {
    const KIND: RecordKind;
    const WHAT: &'static str;
    fn of(event: Event) -> Option<Self>;
}

impl Indexed for Approval {
    const KIND: RecordKind = RecordKind::Approval;
    const WHAT: &'static str = "approval";
    fn of(event: Event) -> Option<Self> {
        match event {
            Event::ApprovalRequired(approval)
            | Event::ApprovalDecided(approval)
            | Event::ApprovalExpired(approval)
            | Event::ApprovalCancelled(approval) => Some(*approval),
            _ => None,
        }
    }
}

impl Indexed for Question {
    const KIND: RecordKind = RecordKind::Question;
    const WHAT: &'static str = "question";
    fn of(event: Event) -> Option<Self> {
        match event {
            Event::QuestionAsked(question)
            | Event::QuestionAnswered(question)
            | Event::QuestionExpired(question)
            | Event::QuestionCancelled(question) => Some(*question),
            _ => None,
        }
    }
}

impl Indexed for Effect {
    const KIND: RecordKind = RecordKind::Effect;
    const WHAT: &'static str = "effect";
    fn of(event: Event) -> Option<Self> {
        match event {
            Event::EffectStarted(effect)
            | Event::EffectSettled(effect)
            | Event::EffectUncertain(effect)
            | Event::EffectReconciled(effect) => Some(*effect),
            _ => None,
        }
    }
}

impl Indexed for Admission {
    const KIND: RecordKind = RecordKind::Input;
    const WHAT: &'static str = "prompt";
    fn of(event: Event) -> Option<Self> {
        match event {
            Event::PromptPromoted(admission)
            | Event::PromptWithdrawn(admission)
            | Event::PromptNotDelivered(admission) => Some(*admission),
            _ => None,
        }
    }
}

impl Runtime {
    // ---- the inbox -------------------------------------------------------------------------------

    /// Gives the model of an open turn something to see at its next step.
    pub async fn steer(&self, key: ThreadKey, steer: Steer, call: Call) -> Result<Done<Admission>, Error> {
        let turn = steer.turn;
        let steered = self.command::<ThreadMachine, _>(key, Command::Steer(steer), call, |reply| match reply {
            Reply::Queued { admission, .. } => Ok(*admission),
            other => Err(unexpected(&other)),
        });
        match steered.await {
            Err(Error::Refused(refused @ Refused::TurnNotActive { .. })) => {
                self.turn(key, turn).await?;
                Err(refused.into())
            }
            done => done,
        }
    }

    /// Changes a prompt that waits, or its place among those that wait.
    pub async fn edit_prompt(
        &self,
        key: ThreadKey,
        edit: EditPrompt,
        call: Call,
    ) -> Result<Done<(Admission, u32)>, Error> {
        let input = edit.input;
        let call = Call { idempotency: None, ..call };
        let edited = self.command::<ThreadMachine, _>(key, Command::EditPrompt(edit), call, |reply| match reply {
            Reply::Admission(admission, position) => Ok((*admission, position)),
            other => Err(unexpected(&other)),
        });
        self.waits_no_more(key, input, edited.await).await
    }

    /// Takes a prompt back that waits.
    pub async fn withdraw_prompt(&self, key: ThreadKey, input: InputId, call: Call) -> Result<Done<()>, Error> {
        let call = Call { idempotency: None, ..call };
        let withdrawn = self.command::<ThreadMachine, _>(key, Command::Withdraw(input), call, |reply| match reply {
            Reply::Withdrawn => Ok(()),
            other => Err(unexpected(&other)),
        });
        self.waits_no_more(key, input, withdrawn.await).await
    }

    /// Tells a prompt that became a turn from one that is not there.
    async fn waits_no_more<T>(&self, key: ThreadKey, input: InputId, done: Result<T, Error>) -> Result<T, Error> {
        match done {
            Err(Error::Refused(Refused::NotQueued { .. })) => {
                let id = Uuid::from_bytes(*input.as_bytes());
                match self.indexed::<Admission>(key.tenant, id).await? {
                    Some(gone) if gone.thread_id == key.thread && gone.status == AdmissionStatus::Promoted => {
                        Err(Error::AlreadyPromoted(Box::new(gone)))
                    }
                    _ => Err(Error::NotFound("prompt in the inbox")),
                }
            }
            done => done,
        }
    }

    // ---- the conversation ------------------------------------------------------------------------

    /// Takes the last prompt's turn out of the conversation and starts another in its place.
    pub async fn edit_last(&self, key: ThreadKey, start: StartTurn, call: Call) -> Result<Done<Turn>, Error> {
        let turn_of = |reply| match reply {
            Reply::Started(turn) => Ok(*turn),
            other => Err(unexpected(&other)),
        };
        let start = match self.routed(key.tenant, start).await {
            Ok(start) => start,
            Err(error) => match self.recall::<ThreadMachine>(key.tenant, call.idempotency).await? {
                Some(recalled) => return replay(recalled, turn_of),
                None => return Err(error),
            },
        };
        self.affordable(key.tenant, call.idempotency).await?;
        self.command::<ThreadMachine, _>(key, Command::Edit(start), call, turn_of).await
    }

    /// Replaces the conversation so far by a summary, in a turn of its own.
    pub async fn compact(&self, key: ThreadKey, compact: Compact, call: Call) -> Result<Done<Started>, Error> {
        self.affordable(key.tenant, call.idempotency).await?;
        self.command::<ThreadMachine, _>(key, Command::Compact(compact), call, started).await
    }

    /// Names the thread's last settled moment.
    pub async fn save_checkpoint(&self, key: ThreadKey, name: String, call: Call) -> Result<Done<Checkpoint>, Error> {
        self.command::<ThreadMachine, _>(key, Command::SaveCheckpoint(name), call, |reply| match reply {
            Reply::Checkpoint(checkpoint) => Ok(*checkpoint),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Forgets a name.
    pub async fn delete_checkpoint(&self, key: ThreadKey, name: String, call: Call) -> Result<Done<()>, Error> {
        let call = Call { idempotency: None, ..call };
        let deleted =
            self.command::<ThreadMachine, _>(key, Command::DeleteCheckpoint(name), call, |reply| match reply {
                Reply::Noted => Ok(()),
                other => Err(unexpected(&other)),
            });
        match deleted.await {
            Err(Error::Refused(Refused::NoCheckpoint { .. })) => Err(Error::NotFound("checkpoint")),
            done => done,
        }
    }

    // ---- a person decides ------------------------------------------------------------------------

    /// Decides an approval. The first decision wins; a later one is told of it.
    pub async fn decide(
        &self,
        tenant: TenantId,
        approval: ApprovalId,
        decision: Decision,
        reason: Option<String>,
        call: Call,
    ) -> Result<Done<Approval>, Error> {
        let id = Uuid::from_bytes(*approval.as_bytes());
        let key = self.whose::<Approval>(tenant, id).await?;
        let command = Command::Decide(Decide { approval, decision, reason });
        let decided = self.command::<ThreadMachine, _>(key, command, call, |reply| match reply {
            Reply::Approval(approval) => Ok(*approval),
            other => Err(unexpected(&other)),
        });
        match decided.await {
            Err(Error::Refused(Refused::NotPending { .. })) => {
                Err(Error::AlreadyDecided(self.known_record(tenant, id).await?))
            }
            Err(Error::Refused(Refused::Expired { .. })) => {
                // The log will say so with the thread's next tick.
                let pending: Box<Approval> = self.known_record(tenant, id).await?;
                Err(Error::AlreadyDecided(Box::new(Approval { status: ApprovalStatus::Expired, ..*pending })))
            }
            done => done,
        }
    }

    /// Answers a question.
    pub async fn answer(
        &self,
        tenant: TenantId,
        question: QuestionId,
        answer: String,
        call: Call,
    ) -> Result<Done<Question>, Error> {
        let id = Uuid::from_bytes(*question.as_bytes());
        let key = self.whose::<Question>(tenant, id).await?;
        let command = Command::Answer(Answer { question, answer });
        let answered = self.command::<ThreadMachine, _>(key, command, call, |reply| match reply {
            Reply::Question(question) => Ok(*question),
            other => Err(unexpected(&other)),
        });
        match answered.await {
            Err(Error::Refused(Refused::NotAsked { .. })) => {
                Err(Error::AlreadyAnswered(self.known_record(tenant, id).await?))
            }
            Err(Error::Refused(Refused::Expired { .. })) => {
                let pending: Box<Question> = self.known_record(tenant, id).await?;
                Err(Error::AlreadyAnswered(Box::new(Question { status: QuestionStatus::Expired, ..*pending })))
            }
            done => done,
        }
    }

    /// Says what is to become of an uncertain effect.
    pub async fn resolve(
        &self,
        tenant: TenantId,
        operation: OperationId,
        resolution: Resolution,
        output: Option<String>,
        call: Call,
    ) -> Result<Done<Effect>, Error> {
        let id = Uuid::from_bytes(*operation.as_bytes());
        let key = self.whose::<Effect>(tenant, id).await?;
        let command = Command::Resolve(Resolve { operation, resolution, output });
        let resolved = self.command::<ThreadMachine, _>(key, command, call, |reply| match reply {
            Reply::Effect(effect) => Ok(*effect),
            other => Err(unexpected(&other)),
        });
        match resolved.await {
            Err(Error::Refused(Refused::NotUncertain { .. })) => {
                Err(Error::AlreadyResolved(self.known_record(tenant, id).await?))
            }
            done => done,
        }
    }

    // ---- reading what was asked ------------------------------------------------------------------

    /// Approvals of a tenant, or of one of its threads; the cursor is the last one's id.
    pub async fn approvals(&self, tenant: TenantId, query: RecordQuery) -> Result<Page<Approval, Uuid>, Error> {
        self.listed(tenant, query).await
    }

    pub async fn approval(&self, tenant: TenantId, approval: ApprovalId) -> Result<Approval, Error> {
        self.known_record(tenant, Uuid::from_bytes(*approval.as_bytes())).await.map(|found| *found)
    }

    pub async fn question(&self, tenant: TenantId, question: QuestionId) -> Result<Question, Error> {
        self.known_record(tenant, Uuid::from_bytes(*question.as_bytes())).await.map(|found| *found)
    }

    pub async fn questions(&self, tenant: TenantId, query: RecordQuery) -> Result<Page<Question, Uuid>, Error> {
        self.listed(tenant, query).await
    }

    /// Effects whose outcome is, or was, uncertain.
    pub async fn effects(&self, tenant: TenantId, query: RecordQuery) -> Result<Page<Effect, Uuid>, Error> {
        self.listed(tenant, query).await
    }

    /// The checkpoints of a thread, oldest first.
    pub async fn checkpoints(&self, key: ThreadKey) -> Result<Vec<Checkpoint>, Error> {
        let read = move |view: &dyn View| {
            Ok(thread::state(view, key)?.map(|state| state.checkpoints().cloned().collect::<Vec<_>>()))
        };
        self.read_of(key.tenant, read).await?.ok_or(Error::NotFound("thread"))
    }

    /// The thread of a record.
    async fn whose<T: Indexed>(&self, tenant: TenantId, id: Uuid) -> Result<ThreadKey, Error> {
        let found = self.read_of(tenant, move |view| view.record(tenant, T::KIND, id)).await?;
        found.map(|found| ThreadKey { tenant, thread: found.thread }).ok_or(Error::NotFound(T::WHAT))
    }

    async fn known_record<T: Indexed + Send + 'static>(&self, tenant: TenantId, id: Uuid) -> Result<Box<T>, Error> {
        self.indexed(tenant, id).await?.map(Box::new).ok_or(Error::NotFound(T::WHAT))
    }

    async fn indexed<T: Indexed + Send + 'static>(&self, tenant: TenantId, id: Uuid) -> Result<Option<T>, Error> {
        let read = move |view: &dyn View| match view.record(tenant, T::KIND, id)? {
            Some(found) => record(view, tenant, &found),
            None => Ok(None),
        };
        self.read_of(tenant, read).await
    }

    async fn listed<T: Indexed + Send + 'static>(
        &self,
        tenant: TenantId,
        query: RecordQuery,
    ) -> Result<Page<T, Uuid>, Error> {
        let read = move |view: &dyn View| {
            let RecordQuery { thread, open, after, limit } = query;
            let mut found = view.records(tenant, T::KIND, thread, open, after, limit.saturating_add(1))?;
            let more = found.len() > limit;
            found.truncate(limit);
            let next = found.last().map(|last| last.id).filter(|_| more);
            let mut data = Vec::with_capacity(found.len());
            for found in &found {
                data.extend(record(view, tenant, found)?);
            }
            Ok(Page { data, next })
        };
        self.read_of(tenant, read).await
    }
}

/// The record that the index leads to.
fn record<T: Indexed>(
    view: &dyn View,
    tenant: TenantId,
    found: &raddle_domain::ports::Found,
) -> Result<Option<T>, StoreError> {
    let key = ThreadKey { tenant, thread: found.thread };
    let Some(stored) = view.event(key, found.seq)? else { return Ok(None) };
    Ok(T::of(disk::decode(key, found.seq, &stored)?.event))
}
