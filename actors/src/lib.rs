//! Who waits for whom in raddle.
pub mod handle;
pub mod batch;
pub mod store;
