//! The implementations of the port [`Model`](raddle_domain::ports::Model).

pub mod scripted;
pub mod sse;
