//! Who waits for whom in raddle.
//!
//! ```text
//!   Runtime (any tokio program)                                 one OS thread runs the actix System
//!     │  command, admitted under bounds                           ├─ store arbiter:  StoreActor
//!     ├──────────────▶ Host ──append──▶ StoreActor                ├─ bus arbiter:    Supervisor, EventBusActor, Timers, Jobs
//!     │ miss: load      │   ▲              │ committed            ├─ N arbiters:     Hosts, one for each loaded thread
//!     ├──▶ Supervisor   │   └── crew       ▼                      └─ a tokio runtime for engines and reads
//!     └──▶ reads: short MVCC views   EventBusActor ──▶ Subscriptions
//! ```
//!
//! That is how a server has it; a [`simulation`] has the same actors and tasks on one thread (`stage` says where things run).
//!
//! Actors only write. Every read is made from the store, whose last commit holds whatever was acknowledged.
//!
//! Absent on purpose: HTTP, and the name of any model provider.

mod admin;
mod admission;
pub mod batch;
mod budgets;
mod bus;
mod clock;
mod config;
pub mod derived;
mod disk;
mod engine;
mod fair;
mod fork;
mod handle;
mod hooks;
mod host;
mod jobs;
mod outbox;
mod places;
mod policy;
mod quotas;
mod reads;
mod receipts;
pub mod redrive;
mod registry;
mod retell;
mod routing;
mod run;
mod runs;
pub mod simulation;
mod stage;
pub mod store;
mod subscription;
mod supervisor;
mod system;
mod tape;
mod tenants;
mod thread;
mod timers;
mod times;
mod tool;
mod usage;
mod verbs;
mod whole;

pub use self::{
    admin::{AuditPage, MAX_KEYS},
    clock::{SystemClock, UuidIds},
    config::{Config, Ports, StartError},
    fair::GateFigures,
    fork::ForkAt,
    handle::{Call, Done, Error, Runtime, Started, WeakRuntime},
    hooks::{Hook, HookFigures, HookStatus, TWICE},
    host::World,
    jobs::{JobFigures, JobQuery},
    policy::Wondered,
    quotas::QuotaStatus,
    reads::{Archived, Events, ItemPlace, ItemQuery, Page, Snapshot, ThreadPage, ThreadQuery},
    receipts::Idempotency,
    registry::Health,
    retell::Again,
    routing::{MAX_RULE_BYTES, MAX_RULES, RoutingRule, RulesError},
    runs::{
        Board, Exported, LedgerEntry, LedgerPage, Replayed, RollbackAsked, RollbackEnded, RollbackEntry, RollbackWhat,
        RunPage, RunQuery, RunWhole, TaskQuery, WorkEnd,
    },
    subscription::{Next, Subscription, TenantCursor, TenantNext, TenantPage, TenantSubscription},
    tape::{Ear, RecordError, Recording, Tape, Whose},
    tenants::HeldKey,
    times::{BOUNDS, Distribution, EngineFigures, Figures},
    usage::{GroupBy, UsageKey, UsageQuery, UsageReport},
    verbs::RecordQuery,
    whole::{Imported, Pieces},
};
