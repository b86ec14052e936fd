//! raddle: a durable, multi-tenant runtime for AI-agent threads.
//!
//! This package is what speaks and what is wired: the HTTP gateway, the command line, the configuration. The
//! rules are in `raddle-domain`, the runtime in `raddle-actors`. A host that embeds the server needs
//! [`gateway::router`] and a [`raddle_actors::Runtime`].

pub mod app;
pub mod auth;
pub mod cli;
pub mod client;
pub mod config;
pub mod egress;
pub mod erase;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod gateway;
pub mod hooks;
mod instant;
pub mod jobs;
pub mod listener;
pub mod log;
pub mod mcp;
pub mod models;
#[cfg_attr(not(feature = "otel"), path = "otel/off.rs")]
pub mod otel;
pub mod policy;
pub mod prices;
pub mod record;
pub mod replay;
pub mod sandbox;
pub mod sse;
pub mod stress;
pub mod tools;
pub mod webhook;
pub mod workspace;
