//! What can be said of a configuration without starting anything: the inputs, and whether directories can be used.
//! Nothing is made, and nothing written.

use std::{
    net::SocketAddr,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{Access, access};

use super::inputs::{Finding, Inputs};
use crate::{
    config::{AgentConfig, Config, HookConfig, SinkConfig},
    log,
};

/// Everything that a server would stumble over with this configuration, as things are now.
pub fn check(config: &Config) -> Vec<Finding> {
    let mut found: Vec<_> =
        log::filter(&config.log).err().map(|why| Finding::new("log.level", why)).into_iter().collect();
    found.extend(Inputs::read(config).err().unwrap_or_default());
    let demo = config.tools.demo_dir.as_deref();
    let directories = [("data_dir", &*config.data_dir), ("workspaces.root", &*config.workspaces_root)];
    for (key, dir) in directories.into_iter().chain(demo.map(|dir| ("tools.demo_dir", dir))) {
        found.extend(unusable(dir).map(|why| Finding::new(key, why)));
    }
    let holds = holds_data(&config.workspaces_root, &config.data_dir);
    found.extend(holds.map(|why| Finding::new("workspaces.root", why)));
    let is_data = demo.and_then(|dir| is_data(dir, &config.data_dir));
    found.extend(is_data.map(|why| Finding::new("tools.demo_dir", why)));
    found.extend(open_to_all(config));
    found.extend(config.hooks.iter().filter_map(hook));
    found.extend(config.model.agents.iter().filter_map(agent));
    found
}

/// Why the root of the workspaces cannot be there: a thread would have the server's own files in its hand.
pub(super) fn holds_data(root: &Path, data: &Path) -> Option<String> {
    let why = || format!("{} holds the data directory: name one in it, or beside it", root.display());
    real(data).starts_with(real(root)).then(why)
}

/// A model that may remove files must not be let at the ones that we live on.
pub(super) fn is_data(dir: &Path, data: &Path) -> Option<String> {
    (real(dir) == real(data)).then(|| format!("{} is the data directory", dir.display()))
}

/// Where a path leads once it is made: what there is of it without links, and the rest as it is.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    let Some((above, real)) = found else { return path };
    let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
    rest.components().fold(real, |mut real, component| {
        match component {
            Component::ParentDir => drop(real.pop()),
            component => real.push(component),
        }
        real
    })
}

/// Whether others could reach a server that asks nobody for a key. Keys in a store have a pepper beside them.
fn open_to_all(config: &Config) -> Option<Finding> {
    let auth = &config.auth;
    let asks = auth.admin_key.is_some() || auth.jwt.is_some() || auth.pepper_file.exists();
    let listens = [("listen", Some(config.listen)), ("admin.listen", config.admin_listen)];
    let open = listens.into_iter().find_map(|(key, at)| Some((key, at.filter(|at| !at.ip().is_loopback())?)));
    open.filter(|_| !asks).map(|(key, at)| Finding::new(key, open_without_keys(at)))
}

/// What is said of an address that others can reach, where nobody needs a key.
pub(super) fn open_without_keys(at: SocketAddr) -> String {
    format!(
        "others can reach {at}, and nobody needs a key: set `auth.admin_key` (and make keys with it), or listen on \
         loopback, such as 127.0.0.1:{}",
        at.port()
    )
}

/// Why a directory can neither be used nor made.
fn unusable(dir: &Path) -> Option<String> {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let there = dir.ancestors().find(|above| above.symlink_metadata().is_ok())?;
    let said = |why: &str| match there == dir {
        true => format!("{} {why}", dir.display()),
        false => format!("{} cannot be made: {} {why}", dir.display(), there.display()),
    };
    if !there.is_dir() {
        return Some(said("is not a directory"));
    }
    access(there, Access::WRITE_OK | Access::EXEC_OK).err().map(|why| said(&format!("cannot be written to: {why}")))
}

/// Whether a file can be opened is found out by opening it, which would make it; its directory has to be there.
fn hook(hook: &HookConfig) -> Option<Finding> {
    let (SinkConfig::Jsonl { path, .. } | SinkConfig::Unix { path }) = &hook.sink else { return None };
    let above = std::path::absolute(path).ok()?.parent()?.to_owned();
    let key = format!("hooks.{}.path", hook.name);
    match above.is_dir() {
        true if matches!(hook.sink, SinkConfig::Jsonl { .. }) => unusable(&above).map(|why| Finding::new(key, why)),
        true => None,
        false => Some(Finding::new(key, format!("{} is not a directory", above.display()))),
    }
}

/// A program is found the way it will be found when it is run.
fn agent(agent: &AgentConfig) -> Option<Finding> {
    let runs = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    let found = match agent.command.components().count() {
        1 => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|dir| runs(&dir.join(&agent.command))),
        _ => runs(&agent.command),
    };
    let why = || format!("{} is no program that can be run", agent.command.display());
    (!found).then(|| Finding::new(format!("model.acp.{}.command", agent.name), why()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        check(&Config::read(Some(text), [], []).unwrap()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_can_be_made_is_fine_and_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        assert_eq!(found(&format!("data_dir = {data:?}")), Vec::<String>::new());
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn a_place_that_others_can_reach_is_named_where_nobody_needs_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let data = format!("data_dir = {:?}\nlisten = \"0.0.0.0:1\"\n", dir.path());
        assert!(found(&data)[0].starts_with("`listen`: others can reach 0.0.0.0:1"));
        assert_eq!(found(&format!("{data}auth.admin_key = \"k\"")), Vec::<String>::new());
        std::fs::write(dir.path().join("pepper"), [0; 32]).unwrap();
        assert_eq!(found(&data), Vec::<String>::new());
    }

    #[test]
    fn directories_that_cannot_be_used_are_named_with_their_keys() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let [below, beside, gone] = ["file/data", "beside", "gone/x"].map(|name| dir.path().join(name));
        let said = found(&format!("data_dir = {below:?}\nworkspaces.root = {beside:?}\nlog.level = \"=\""));
        assert!(said[0].starts_with("`log.level`"), "{said:?}");
        assert_eq!(
            said[1],
            format!("`data_dir`: {} cannot be made: {} is not a directory", below.display(), file.display())
        );
        assert_eq!(said.len(), 2, "{said:?}");
        let above = format!("data_dir = {:?}\nworkspaces.root = {:?}", dir.path().join("w/data"), dir.path().join("w"));
        assert!(found(&above)[0].contains("holds the data directory"), "{:?}", found(&above));
        let hooks = format!(
            "data_dir = {beside:?}\nmodel.acp.x.command = {file:?}\n[hooks.a]\nkind = \"jsonl\"\npath = {gone:?}"
        );
        let said = found(&hooks);
        assert!(said[0].starts_with("`hooks.a.path`: ") && said[1].starts_with("`model.acp.x.command`: "), "{said:?}");
    }
}
