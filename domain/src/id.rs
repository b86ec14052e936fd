//! Names of things. An id is its prefix and a UUIDv7; it says *which*, never *when* or *in what order*:
//! order comes from the per-thread sequence alone.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Why a text is not an id of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind} id: expected `{prefix}` followed by a UUID")]
pub struct BadId {
    kind: &'static str,
    prefix: &'static str,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal, $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// What the text form starts with.
            pub const PREFIX: &'static str = $prefix;

            /// Wraps a UUID minted by [`crate::ports::Ids`].
            pub const fn new(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The name without its kind.
            pub const fn uuid(&self) -> Uuid {
                self.0
            }

            /// The sixteen bytes used in storage keys.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Reads the sixteen bytes of a storage key.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.as_hyphenated())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            /// Accepts the one form that is ever written: lower case, hyphenated.
            fn from_str(text: &str) -> Result<Self, BadId> {
                let bad = BadId { kind: $kind, prefix: $prefix };
                let hex = text.strip_prefix($prefix).ok_or(bad.clone())?;
                let uuid = Uuid::try_parse(hex).map_err(|_| bad.clone())?;
                let mut canonical = Uuid::encode_buffer();
                // What names a log that is no thread's is nobody's id.
                let named = uuid.as_hyphenated().encode_lower(&mut canonical) == hex && !is_log_of_work(uuid);
                if named { Ok(Self(uuid)) } else { Err(bad) }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .pattern(Some(concat!("^", $prefix, "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")))
                    .into()
            }
        }
        impl utoipa::ToSchema for $name {}
    )*};
}

ids! {
    /// A durable conversation.
    ThreadId = "thr_", "thread";
    /// One prompt to its outcome.
    TurnId = "turn_", "turn";
    /// A visible unit of a turn.
    ItemId = "item_", "item";
    /// A prompt in a thread's inbox.
    InputId = "inp_", "input";
    /// One call of the model: what a report of the engine names, so that a late one is recognised.
    CallId = "call_", "call";
    /// A call that a person must let pass.
    ApprovalId = "apr_", "approval";
    /// Something a person is asked.
    QuestionId = "qst_", "question";
    /// One effect on the world, however often it is attempted. Tools get it as their idempotency key.
    OperationId = "op_", "operation";
    /// Work for later.
    JobId = "job_", "job";
    /// When jobs are made.
    ScheduleId = "sch_", "schedule";
    /// A board that many agents work on.
    RunId = "run_", "run";
    /// A run as it was at one moment.
    CheckpointId = "cp_", "checkpoint";
    /// Something that somebody did, in a tenant's audit log.
    AuditId = "aud_", "audit entry";
}

/// The public half of an API key: 16 random characters of `a-z` and `2-7` (base 32, RFC 4648, in lower case). It says
/// which key, and proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 16]);

/// Why a text is not the id of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the id of a key is 16 characters of a-z and 2-7")]
pub struct BadKeyId;

impl KeyId {
    const ALPHABET: &'static [u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

    /// Made of fresh randomness: five bits of each byte, so 80 in all.
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(random.map(|byte| Self::ALPHABET[usize::from(byte & 31)]))
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for KeyId {
    type Err = BadKeyId;

    fn from_str(text: &str) -> Result<Self, BadKeyId> {
        let bytes: [u8; 16] = text.as_bytes().try_into().map_err(|_| BadKeyId)?;
        if bytes.iter().all(|byte| Self::ALPHABET.contains(byte)) { Ok(Self(bytes)) } else { Err(BadKeyId) }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for KeyId {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^[a-z2-7]{16}$"))
            .into()
    }
}
impl utoipa::ToSchema for KeyId {}

/// Whose it is. Part of every storage key, so that a record cannot be reached without naming its owner.
///
/// Text form: 1 to 32 of `a-z`, `0-9`, `-`, `_`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId([u8; 32]);

/// Why a text is not a tenant id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tenant id is 1 to 32 characters of a-z, 0-9, '-' and '_'")]
pub struct BadTenant;

impl TenantId {
    /// The tenant of a server without keys.
    pub const DEFAULT: TenantId = Self::named(b"default");

    /// Whom records are of that are the installation's own. No text has this name, so no request and no configuration
    /// can mean it.
    pub const SYSTEM: TenantId = Self::named(b"@raddle");

    const fn named(name: &[u8]) -> Self {
        let (mut bytes, mut at) = ([0; 32], 0);
        while at < name.len() {
            bytes[at] = name[at];
            at += 1;
        }
        TenantId(bytes)
    }

    /// The text, padded with zeros to the width that keys need.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads the padded bytes of a storage key.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, BadTenant> {
        if bytes == Self::SYSTEM.0 {
            return Ok(Self::SYSTEM);
        }
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = std::str::from_utf8(&bytes[..length]).map_err(|_| BadTenant)?;
        let tenant: TenantId = text.parse()?;
        if tenant.0 == bytes { Ok(tenant) } else { Err(BadTenant) }
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

impl FromStr for TenantId {
    type Err = BadTenant;

    fn from_str(text: &str) -> Result<Self, BadTenant> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        if text.is_empty() || text.len() > 32 || !text.bytes().all(allowed) {
            return Err(BadTenant);
        }
        let mut bytes = [0; 32];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(bytes))
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for TenantId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for TenantId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The full name of a thread: nothing finds a thread by its id alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadKey {
    /// Whose thread.
    pub tenant: TenantId,
    /// Which of theirs.
    pub thread: ThreadId,
}

impl fmt::Display for ThreadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.thread)
    }
}

impl fmt::Debug for ThreadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The version digits of the UUIDs under which the logs of jobs, schedules and runs are kept; no id has them.
const JOB_LOG: u8 = 8;
const SCHEDULE_LOG: u8 = 9;
const RUN_LOG: u8 = 10;

/// A job's, a schedule's or a run's log stands beside those of threads, under a key of the same shape. Its name is the id with
/// another version digit, which no text of an id may have: so a request that names a thread never reaches a job, and
/// the other way round. This is the one place that makes such names.
fn log_key(tenant: TenantId, mut id: [u8; 16], version: u8) -> ThreadKey {
    id[6] = (id[6] & 0x0f) | (version << 4);
    ThreadKey { tenant, thread: ThreadId::from_bytes(id) }
}

fn is_log_of_work(uuid: Uuid) -> bool {
    matches!(uuid.as_bytes()[6] >> 4, JOB_LOG | SCHEDULE_LOG | RUN_LOG)
}

impl JobId {
    /// The name of its log.
    pub fn log(self, tenant: TenantId) -> ThreadKey {
        log_key(tenant, *self.as_bytes(), JOB_LOG)
    }

    /// The job that a schedule makes for a slot: the same whenever it is asked for. It is in the order of its time
    /// among the other ids, and has of the schedule what tells that one from all others.
    pub fn of_slot(schedule: ScheduleId, slot: crate::time::UnixMs) -> Self {
        let mut id = *schedule.as_bytes();
        id[..6].copy_from_slice(&slot.0.to_be_bytes()[2..]);
        Self::from_bytes(id)
    }
}

impl ScheduleId {
    /// The name of its log.
    pub fn log(self, tenant: TenantId) -> ThreadKey {
        log_key(tenant, *self.as_bytes(), SCHEDULE_LOG)
    }
}

impl RunId {
    /// The name of its log.
    pub fn log(self, tenant: TenantId) -> ThreadKey {
        log_key(tenant, *self.as_bytes(), RUN_LOG)
    }
}

impl ThreadId {
    /// The run whose log has this name.
    pub fn of_run(self) -> Option<RunId> {
        let mut id = *self.as_bytes();
        (id[6] >> 4 == RUN_LOG).then(|| {
            id[6] = (id[6] & 0x0f) | 0x70;
            RunId::from_bytes(id)
        })
    }
}

impl ThreadKey {
    /// Whether it names the log of a run.
    pub fn is_run(&self) -> bool {
        self.thread.as_bytes()[6] >> 4 == RUN_LOG
    }
}

/// A place in one thread's log: dense, from 1. Zero is the place before the first event.
pub type Seq = u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_own_text_and_from_no_other() {
        let id = ThreadId::new(Uuid::from_u128(0x0190_5d3c_7e57_7abc_8def_0123_4567_89ab));
        assert_eq!(id.to_string(), "thr_01905d3c-7e57-7abc-8def-0123456789ab");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("turn_01905d3c-7e57-7abc-8def-0123456789ab".parse::<ThreadId>().is_err());
        assert!("thr_01905D3C-7e57-7abc-8def-0123456789ab".parse::<ThreadId>().is_err());
        assert!("thr_01905d3c7e577abc8def0123456789ab".parse::<ThreadId>().is_err());
        assert!("thr_".parse::<ThreadId>().is_err());
    }

    #[test]
    fn the_log_of_a_job_is_named_by_no_text() {
        let uuid = Uuid::from_u128(0x0190_5d3c_7e57_7abc_8def_0123_4567_89ab);
        let (job, schedule, run) = (JobId::new(uuid), ScheduleId::new(uuid), RunId::new(uuid));
        let logs = [job.log(TenantId::DEFAULT), schedule.log(TenantId::DEFAULT), run.log(TenantId::DEFAULT)];
        assert_eq!(logs.map(|log| log.is_run()), [false, false, true]);
        let logs = logs.map(|log| log.thread);
        assert!(logs[0] != logs[1] && logs[1] != logs[2] && logs[0] != logs[2]);
        for log in logs {
            assert!(log.to_string().parse::<ThreadId>().is_err(), "{log}");
            assert!(JobId::from_bytes(*log.as_bytes()).to_string().parse::<JobId>().is_err(), "{log}");
        }
    }

    #[test]
    fn a_slot_has_one_job() {
        use crate::time::UnixMs;
        let [a, b] = [1, 2].map(|n| ScheduleId::new(Uuid::from_u128(0x0190_5d3c_7e57_7abc_8def_0123_4567_0000 + n)));
        let job = JobId::of_slot(a, UnixMs(1_795_000_000_000));
        assert_eq!(job, JobId::of_slot(a, UnixMs(1_795_000_000_000)));
        assert_ne!(job, JobId::of_slot(b, UnixMs(1_795_000_000_000)));
        assert!(job < JobId::of_slot(a, UnixMs(1_795_000_000_001)));
        assert_eq!(job.to_string().parse(), Ok(job));
    }

    #[test]
    fn a_tenant_reads_back_from_its_key_bytes() {
        let tenant: TenantId = "acme-7".parse().unwrap();
        assert_eq!(TenantId::from_bytes(*tenant.as_bytes()), Ok(tenant));
        assert_eq!(TenantId::DEFAULT.as_str(), "default");
        for bad in ["", "Acme", "a/b", "a b", &"x".repeat(33)] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
        let mut holed = *tenant.as_bytes();
        holed[10] = b'x';
        assert!(TenantId::from_bytes(holed).is_err());
    }
}
