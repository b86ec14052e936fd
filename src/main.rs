//! The binary: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use raddle::{
    cli::{Cli, Failure},
    log,
    sandbox::helper,
};

/// Many small allocations from many threads are what a server of events does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A process of a sandbox is one thread, and has nothing else open.
    if let Some(code) = helper::main() {
        return code;
    }
    let cli = Cli::parse();
    let mut runtime = match cli.is_small() {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    let done = match runtime.enable_all().build() {
        Ok(tokio) => {
            let done = tokio.block_on(cli.run());
            // Whatever is still blocked has had its deadline.
            tokio.shutdown_background();
            done
        }
        Err(err) => Err(Failure::Failed(format!("cannot start: {err}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(sentence) = failure.sentence() {
                eprintln!("raddle: {}", log::redacted(sentence));
            }
            ExitCode::from(failure.code())
        }
    }
}
