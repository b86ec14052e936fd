//! The binary: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use raddle::cli::{Cli, Failure};

/// Many small allocations from many threads are what a server of events does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(tokio) => tokio.block_on(cli.run()),
        Err(err) => Err(Failure::Failed(format!("cannot start: {err}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(sentence) = failure.sentence() {
                eprintln!("raddle: {sentence}");
            }
            ExitCode::from(failure.code())
        }
    }
}
