//! Traces, told again where not everything is given: to a server whose own models and tools answer, or to other rules about
//! calls. Where everything is given, [`raddle_actors::redrive`] tells them.

pub mod policy;
pub mod verbs;
