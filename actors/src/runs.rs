//! What hosts ask of context runs: the verbs. Reads are in `reads`, streams in `watch`, what leaves and comes back as
//! lines in `transfer`.
//!
//! Each verb is a function of its own: what only the runtime may say, a ledger's entries and how a rollback ended, no
//! caller can say by any of them.

pub(crate) mod journal;
mod reads;
mod transfer;
mod watch;
pub(crate) mod worker;

use raddle_domain::{
    id::{CheckpointId, RunId, Seq, TenantId},
    run::{
        Checkpoint, Command, Entry, Reply, Rollback, Run, RunState, Task,
        command::{
            AskRollback, Claim, Claimed, Driven, Journal, LeaseReply, NewRun, NewTask, Patch, Replace, SyncTodos, Tell,
            Transition, ValidateLease,
        },
        event::RollbackBlocked,
    },
};

pub use self::{
    reads::{
        Board, LedgerEntry, LedgerPage, Replayed, RollbackEntry, RollbackWhat, RunPage, RunQuery, RunWhole, TaskQuery,
    },
    transfer::Exported,
    worker::WorkEnd,
};
use crate::{
    handle::{Begun, Call, Done, Error, Runtime},
    run::RunMachine,
};

/// What became of asking for a rollback.
#[derive(Debug, Clone, PartialEq)]
pub enum RollbackAsked {
    /// Files are being put back.
    Started(Rollback),
    /// It was refused, which is on record.
    Blocked(RollbackBlocked),
}

/// How a rollback ended.
#[derive(Debug, Clone, PartialEq)]
pub enum RollbackEnded {
    Applied { seq: Seq, files: u32 },
    Blocked(RollbackBlocked),
}

/// A machine gave another verb's reply.
fn unexpected(reply: &Reply) -> Error {
    Error::Internal(format!("a run gave another verb's reply: {reply:?}"))
}

/// Takes the one reply that a verb has.
macro_rules! reply {
    ($pattern:pat => $value:expr) => {
        |reply| match reply {
            $pattern => Ok($value),
            other => Err(unexpected(&other)),
        }
    };
}

/// Whether it is an id as they are made. Ids that differ in the version alone would have one log.
fn is_minted(run: RunId) -> bool {
    run.as_bytes()[6] >> 4 == 7
}

/// A run that there is not is a run, to whoever asked for one.
fn no_run(error: Error) -> Error {
    match error {
        Error::NotFound("thread") | Error::Deleted => Error::NotFound("run"),
        error => error,
    }
}

impl Runtime {
    /// Makes a run. Its name is made up: one that was used before would be followed by what happened under it.
    pub async fn create_run(&self, tenant: TenantId, new: NewRun, call: Call) -> Result<Done<Run>, Error> {
        let shared = self.shared().clone();
        let id = RunId::new(shared.ids.mint());
        let begin = async {
            let cx = raddle_domain::run::Cx { now: shared.clock.now(), ids: &*shared.ids };
            Ok(RunState::create(id, tenant, new, cx)?)
        };
        self.make_run(tenant, id, call, begin).await
    }

    /// Makes a run that begins as another one was when this checkpoint was saved.
    pub async fn restore_run(
        &self,
        tenant: TenantId,
        run: RunId,
        checkpoint: CheckpointId,
        call: Call,
    ) -> Result<Done<Run>, Error> {
        let shared = self.shared().clone();
        let id = RunId::new(shared.ids.mint());
        let begin = async {
            let (checkpoint, image) = self.run_checkpoint(tenant, run, checkpoint).await?;
            let cx = raddle_domain::run::Cx { now: shared.clock.now(), ids: &*shared.ids };
            Ok(raddle_domain::run::restored(id, tenant, (Some(checkpoint.id), checkpoint.seq), image, cx)?)
        };
        self.make_run(tenant, id, call, begin).await
    }

    async fn make_run(
        &self,
        tenant: TenantId,
        id: RunId,
        call: Call,
        begin: impl Future<Output = Result<(RunState, raddle_domain::run::Step), Error>>,
    ) -> Result<Done<Run>, Error> {
        let begin = async {
            let (state, step) = begin.await?;
            Ok(Begun { key: id.log(tenant), machine: RunMachine::new(state), step, fork: None, given: false })
        };
        self.make(tenant, call, begin, reply!(Reply::Run(run) => *run)).await
    }

    async fn run_verb<T>(
        &self,
        tenant: TenantId,
        run: RunId,
        command: Command,
        call: Call,
        expect: impl Fn(Reply) -> Result<T, Error>,
    ) -> Result<Done<T>, Error> {
        if !is_minted(run) {
            return Err(Error::NotFound("run"));
        }
        self.command::<RunMachine, T>(run.log(tenant), command, call, expect).await.map_err(no_run)
    }

    /// Puts another record in the place of the run's.
    pub async fn replace_run(
        &self,
        tenant: TenantId,
        run: RunId,
        replace: Replace,
        call: Call,
    ) -> Result<Done<Run>, Error> {
        let command = Command::Replace(Box::new(replace));
        self.run_verb(tenant, run, command, call, reply!(Reply::Run(run) => *run)).await
    }

    /// Removes a run with everything that was ever stored of it.
    pub async fn delete_run(&self, tenant: TenantId, run: RunId, call: Call) -> Result<Done<()>, Error> {
        let call = Call { idempotency: None, ..call };
        let if_match = call.if_match;
        match self.run_verb(tenant, run, Command::Delete, call, reply!(Reply::Deleted => ())).await {
            // One that cannot be loaded has no actor to ask; it can still be removed.
            Err(Error::ThreadUnavailable(_)) if if_match.is_none() => self.purge(run.log(tenant)).await,
            deleted => deleted,
        }
    }

    /// Puts on record what a client says happened, and does what follows from it. Where the event stands.
    pub async fn tell_run(&self, tenant: TenantId, run: RunId, tell: Tell, call: Call) -> Result<Done<Seq>, Error> {
        self.run_verb(tenant, run, Command::Tell(tell), call, reply!(Reply::Told { seq } => seq)).await
    }

    /// Makes a todo list the plan of the run.
    pub async fn sync_todos(
        &self,
        tenant: TenantId,
        run: RunId,
        todos: SyncTodos,
        call: Call,
    ) -> Result<Done<Run>, Error> {
        let command = Command::SyncTodos(todos);
        self.run_verb(tenant, run, command, call, reply!(Reply::Run(run) => *run)).await
    }

    /// Says what comes next, and unless `dry_run` begins it.
    pub async fn drive_run(
        &self,
        tenant: TenantId,
        run: RunId,
        dry_run: bool,
        call: Call,
    ) -> Result<Done<Driven>, Error> {
        let command = Command::Drive { dry_run };
        self.run_verb(tenant, run, command, call, reply!(Reply::Driven(driven) => *driven)).await
    }

    /// Changes the blackboard; the line that was changed, unless it was a summary.
    pub async fn patch_board(
        &self,
        tenant: TenantId,
        run: RunId,
        patch: Patch,
        call: Call,
    ) -> Result<Done<Option<Entry>>, Error> {
        let expect = |reply| match reply {
            Reply::Entry(entry) => Ok(Some(*entry)),
            Reply::Summary => Ok(None),
            other => Err(unexpected(&other)),
        };
        self.run_verb(tenant, run, Command::Patch(patch), call, expect).await
    }

    /// Makes all of the tasks or none.
    pub async fn create_tasks(
        &self,
        tenant: TenantId,
        run: RunId,
        tasks: Vec<NewTask>,
        call: Call,
    ) -> Result<Done<Vec<Task>>, Error> {
        let command = Command::CreateTasks(tasks);
        self.run_verb(tenant, run, command, call, reply!(Reply::Tasks(tasks) => tasks)).await
    }

    /// Hands out the task that is next, with the token of its lease.
    pub async fn claim_task(
        &self,
        tenant: TenantId,
        run: RunId,
        claim: Claim,
        call: Call,
    ) -> Result<Done<Claimed>, Error> {
        let command = Command::Claim(claim);
        self.run_verb(tenant, run, command, call, reply!(Reply::Claimed(claimed) => *claimed)).await
    }

    /// Takes a word about a task.
    pub async fn transition_task(
        &self,
        tenant: TenantId,
        run: RunId,
        transition: Transition,
        call: Call,
    ) -> Result<Done<Task>, Error> {
        let command = Command::Transition(transition);
        self.run_verb(tenant, run, command, call, reply!(Reply::Task(task) => *task)).await
    }

    /// Compares where an agent works with where the run is bound to.
    pub async fn validate_run_lease(
        &self,
        tenant: TenantId,
        run: RunId,
        lease: ValidateLease,
        call: Call,
    ) -> Result<Done<LeaseReply>, Error> {
        let command = Command::ValidateLease(lease);
        self.run_verb(tenant, run, command, call, reply!(Reply::Lease(lease) => lease)).await
    }

    /// Keeps a copy of the run as it is.
    pub async fn save_run_checkpoint(
        &self,
        tenant: TenantId,
        run: RunId,
        reason: Option<String>,
        call: Call,
    ) -> Result<Done<Checkpoint>, Error> {
        let command = Command::SaveCheckpoint { reason };
        self.run_verb(tenant, run, command, call, reply!(Reply::Checkpoint(checkpoint) => checkpoint)).await
    }

    pub async fn delete_run_checkpoint(
        &self,
        tenant: TenantId,
        run: RunId,
        checkpoint: CheckpointId,
        call: Call,
    ) -> Result<Done<Checkpoint>, Error> {
        let call = Call { idempotency: None, ..call };
        let command = Command::DeleteCheckpoint(checkpoint);
        self.run_verb(tenant, run, command, call, reply!(Reply::Checkpoint(checkpoint) => checkpoint)).await
    }

    /// Begins to put files back. How it ends, [`Runtime::rollback_ended`] says.
    pub async fn ask_rollback(
        &self,
        tenant: TenantId,
        run: RunId,
        asked: AskRollback,
        call: Call,
    ) -> Result<Done<RollbackAsked>, Error> {
        let expect = |reply| match reply {
            Reply::Rollback(rollback) => Ok(RollbackAsked::Started(rollback)),
            Reply::RollbackBlocked(blocked) => Ok(RollbackAsked::Blocked(blocked)),
            other => Err(unexpected(&other)),
        };
        self.run_verb(tenant, run, Command::Rollback(asked), call, expect).await
    }

    /// Puts on record what threads did for a run.
    pub(crate) async fn journal(&self, tenant: TenantId, run: RunId, entries: Vec<Journal>) -> Result<(), Error> {
        let command = Command::Journal(entries);
        self.run_verb(tenant, run, command, Call::default(), reply!(Reply::Noted => ())).await?;
        Ok(())
    }
}
