//! Servers to be a client of: the MCP project's own `server-everything`, and one that is hostile.
//!
//! `RADDLE_TEST_MCP` names the directory that npm has installed the former into. Where nobody has, it is installed
//! once, next to what cargo builds for tests.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

/// What is installed; `.ci/run` reads it here.
const PACKAGE: &str = "@modelcontextprotocol/server-everything@2026.8.31";

/// The program that runs both.
pub fn node() -> String {
    let path = std::env::var_os("PATH").expect("a PATH");
    let found = std::env::split_paths(&path).map(|dir| dir.join("node")).find(|node| node.is_file());
    found.expect("these tests need node and npm").display().to_string()
}

/// The script of `server-everything`.
pub fn everything() -> String {
    let installed = |dir: &Path| dir.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    let dir = match std::env::var_os("RADDLE_TEST_MCP") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mcp-servers");
            std::fs::create_dir_all(&dir).unwrap();
            // Test binaries run side by side.
            let lock = File::create(dir.join("lock")).unwrap();
            lock.lock().unwrap();
            let done = dir.join("installed");
            if std::fs::read_to_string(&done).ok().as_deref() != Some(PACKAGE) {
                let mut npm = Command::new("npm");
                npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&dir).arg(PACKAGE);
                let status = npm.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("npm can be run");
                assert!(status.success(), "npm cannot install {PACKAGE}");
                std::fs::write(done, PACKAGE).unwrap();
            }
            dir
        }
    };
    let script = installed(&dir);
    assert!(script.is_file(), "{} is not there", script.display());
    script.display().to_string()
}

/// `server-everything` over stdio.
pub fn everything_server() -> Value {
    json!({"command": node(), "args": [everything(), "stdio"]})
}

/// The server that does this wrong.
pub fn hostile_server(mode: &str) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/hostile_mcp.mjs");
    json!({"command": node(), "args": [script, mode]})
}

/// `server-everything` over HTTP. Dropping it kills it.
pub struct HttpServer {
    process: Child,
    pub port: u16,
}

impl HttpServer {
    /// On a port that nobody has; it answers some time later.
    pub fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self::on(port)
    }

    pub fn on(port: u16) -> Self {
        let mut node = Command::new(node());
        node.args([&everything(), "streamableHttp"]).env("PORT", port.to_string());
        let quiet = node.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { process: quiet.spawn().unwrap(), port }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }

    /// Kills it; gives its port.
    pub fn kill(mut self) -> u16 {
        self.end();
        self.port
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// The processes whose parent this is.
pub fn children(parent: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| stat(*id).is_some_and(|(_, of)| of == parent)).collect()
}

/// Whether a process is there, and has not ended.
pub fn is_alive(process: u32) -> bool {
    stat(process).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// State and parent.
fn stat(process: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

pub fn kill(process: u32) {
    let sent = Command::new("kill").args(["-9", &process.to_string()]).status().unwrap();
    assert!(sent.success());
}
