//! Who waits for whom in raddle.
pub mod batch;
pub mod handle;
