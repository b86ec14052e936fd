//! An agent of its own process, written on the SDK that its protocol's makers publish, and the keys that configure it.
//!
//! The SDK is installed once for all tests, from whichever registry `npm` knows.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// Of `@agentclientprotocol/sdk`.
const SDK: &str = "2.4.0";

/// Writes a configuration with an agent `helper`, which works in the workspaces of its threads; its path.
pub fn configure(dir: &Path) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/agent.mjs");
    let config =
        format!("[model.acp.helper]\ncommand = {:?}\nargs = [{:?}]\nenv.ACP_SDK = {:?}\n", node(), script, sdk());
    let path = dir.join("raddle.toml");
    std::fs::write(&path, config).unwrap();
    path
}

fn node() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("node")).find(|program| program.is_file());
    found.expect("node is installed")
}

/// The SDK's entry, installed by the first who asks.
fn sdk() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("acp-sdk-{SDK}"));
    let entry = dir.join("node_modules/@agentclientprotocol/sdk/dist/v1/stable/acp.js");
    std::fs::create_dir_all(&dir).unwrap();
    let lock = File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    if !entry.is_file() {
        let package = format!("@agentclientprotocol/sdk@{SDK}");
        let npm = Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--prefix"])
            .args([dir.as_os_str(), package.as_ref()])
            .output()
            .expect("npm is installed");
        assert!(npm.status.success(), "{}", String::from_utf8_lossy(&npm.stderr));
    }
    assert!(entry.is_file(), "the SDK has no {}", entry.display());
    entry
}
