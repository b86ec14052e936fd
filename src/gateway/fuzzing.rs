//! What callers send: bodies, and the text of cursors.

use raddle_actors::{ItemPlace, TenantCursor};
use raddle_domain::{
    id::{AuditId, InputId, Seq, TenantId, ThreadId, ThreadKey},
    policy::Policy,
    ports::Place,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    admin,
    cursor::{self, List, Point},
    jobs, policy, request, routing, runs, schedules, wire,
};

fn body<B: DeserializeOwned>(object: &Map<String, Value>) {
    // Whatever it is, the answer is a command or a sentence.
    let _ = request::typed::<B>(object.clone());
}

/// A body, as each of the verbs may be sent it.
pub fn request_body(data: &[u8]) {
    let Ok(object) = request::object(data) else { return };
    body::<wire::NewThread>(&object);
    body::<wire::PatchThread>(&object);
    body::<wire::StartTurn>(&object);
    body::<wire::EditThread>(&object);
    body::<wire::SteerTurn>(&object);
    body::<wire::Interrupt>(&object);
    body::<wire::CompactThread>(&object);
    body::<wire::ForkThread>(&object);
    body::<wire::PatchInput>(&object);
    body::<wire::SaveCheckpoint>(&object);
    body::<wire::RestoreCheckpoint>(&object);
    body::<wire::DecideApproval>(&object);
    body::<wire::AnswerQuestion>(&object);
    body::<wire::ResolveEffect>(&object);
    body::<jobs::CreateJob>(&object);
    body::<schedules::CreateSchedule>(&object);
    body::<schedules::PatchSchedule>(&object);
    body::<routing::Rules>(&object);
    body::<policy::CheckPolicy>(&object);
    body::<Policy>(&object);
    body::<admin::CreateTenant>(&object);
    body::<admin::PatchTenant>(&object);
    body::<admin::CreateKey>(&object);
    body::<runs::CreateRun>(&object);
    body::<runs::PutRun>(&object);
    body::<runs::TellRun>(&object);
    body::<runs::DriveRun>(&object);
    body::<runs::ValidateRunLease>(&object);
    body::<runs::history::SaveRunCheckpoint>(&object);
    body::<runs::SyncRunTodos>(&object);
    body::<runs::board::PatchBoard>(&object);
    body::<runs::ledger::ExecuteRollback>(&object);
    body::<runs::tasks::CreateTasks>(&object);
    body::<runs::tasks::ClaimTask>(&object);
    body::<runs::tasks::TransitionTask>(&object);
}

fn place<P: Point>(list: List, text: &str) {
    if let Ok(place) = cursor::decode::<P>(list, text) {
        assert_eq!(cursor::encode(list, &place), text, "a place has one text");
    }
}

/// The text of a place in any list; and the bytes as a place, which reads back in its own list and in no other.
pub fn cursor(data: &[u8]) {
    let key = ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::from_bytes([7; 16]) };
    if let Ok(text) = std::str::from_utf8(data) {
        place::<Place>(List::Threads(key.tenant), text);
        place::<Seq>(List::Turns(key), text);
        place::<ItemPlace>(List::Items(key), text);
        place::<InputId>(List::Inbox(key), text);
        place::<Uuid>(List::Effects(key.tenant), text);
        place::<TenantCursor>(List::Events(key.tenant), text);
        place::<TenantId>(List::Tenants, text);
        place::<AuditId>(List::Audit(key.tenant), text);
    }
    if let Some(at) = TenantCursor::read(data) {
        let (own, other) = (List::Events(key.tenant), List::Events(TenantId::SYSTEM));
        let text = cursor::encode(own, &at);
        assert_eq!(cursor::decode(own, &text), Ok(at));
        assert!(cursor::decode::<TenantCursor>(other, &text).is_err());
    }
}
