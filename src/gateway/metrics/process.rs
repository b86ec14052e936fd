//! The process itself, under the names that every exporter uses; and the room on its disk. Read when somebody looks.
//!
//! What the machine does not tell is left out: memory and files are told by Linux.

use std::path::PathBuf;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use raddle_actors::SystemClock;
use raddle_domain::ports::Clock;

/// See the module's text.
#[derive(Debug)]
pub struct Process {
    /// Milliseconds since 1970, about when the process began.
    since: u64,
}

impl Process {
    pub fn new() -> Self {
        Self { since: SystemClock.now().0 }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let since = ConstGauge::new(self.since as f64 / 1e3);
        let help = "When the server was started, in seconds since 1970";
        since.encode(encoder.encode_descriptor("process_start_time_seconds", help, None, since.metric_type())?)?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Memory that is not swapped out", resident()),
            ("process_open_fds", "Files and sockets that are open", open_files()),
            ("process_max_fds", "The most of them that may be open", max_files()),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

fn resident() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn open_files() -> Option<u64> {
    // The one that lists them is one of them.
    Some((std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

fn max_files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// Room on the disk that the store is on.
#[derive(Debug)]
pub struct Disk(pub PathBuf);

impl Collector for Disk {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Ok(disk) = rustix::fs::statvfs(&self.0) else { return Ok(()) };
        for (name, help, blocks) in [
            ("disk_free_bytes", "Room on the disk of the data directory, for this user", disk.f_bavail),
            ("disk_size_bytes", "Size of the disk of the data directory", disk.f_blocks),
        ] {
            let bytes = blocks.saturating_mul(disk.f_frsize);
            let gauge = ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_how_the_process_is() {
        assert!(resident().unwrap() > 1 << 20);
        let before = open_files().unwrap();
        let held: Vec<_> = (0..64).map(|_| std::fs::File::open("/proc/self/statm").unwrap()).collect();
        // Other tests open and close files meanwhile.
        assert!(open_files().unwrap() > before.saturating_sub(32), "{before}");
        assert!(max_files().is_none_or(|most| most >= open_files().unwrap()));
        drop(held);
    }
}
