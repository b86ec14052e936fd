//! The rules of raddle, in reading order: names, time, the records, tenants, budgets, the words of the log, the thread
//! machine, what a model sees, jobs and schedules, boards that many agents share, what the rules need from the world, and
//! who is next, how much of it at once, how often, and who is let in when there are too many.
//!
//! Absent on purpose: clocks, randomness, I/O, async runtimes. Time and fresh ids are arguments.

pub mod id;
pub mod time;

pub mod record;

pub mod price;

pub mod tenant;

pub mod budget;

pub mod event;

pub mod command;

pub mod thread;

pub mod sound;
pub mod trace;

pub mod linear;

pub mod history;
pub mod hook;

pub mod pack;

pub mod closed;

pub mod job;
pub mod run;
pub mod schedule;

pub mod brevity;
pub mod fair;
pub mod rate;

pub mod policy;
pub mod ports;

pub mod admission;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "planted")]
pub mod planted;
