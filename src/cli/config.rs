//! `raddle config`: what `serve` would be configured with, and whether it could start like that.
//!
//! Nothing is started, made or written: what is looked at is the configuration, the files it names, and whether the
//! directories could be used.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Failure, plain, say, say_json};
use crate::{
    app,
    config::{Config, Setting},
};

/// What a configuration is made of. Flags win over the environment, which wins over the file.
#[derive(Debug, Args)]
pub struct Given {
    /// Where to listen; port 0 picks one [default: 127.0.0.1:7878] [env: RADDLE_LISTEN=]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where everything is kept [default: ./raddle-data] [env: RADDLE_DATA_DIR=]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// The configuration file
    #[arg(long, env = "RADDLE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Given {
    /// The configuration, and where each key of it came from.
    pub fn read(&self) -> Result<(Config, Vec<Setting>), Failure> {
        let file = self.config.as_ref().map(|path| {
            std::fs::read_to_string(path)
                .map_err(|err| Failure::Usage(format!("cannot read {}: {err}", path.display())))
        });
        let listen = self.listen.clone().map(|listen| ("listen", listen));
        let data_dir = self.data_dir.clone().map(|dir| ("data_dir", dir));
        // A variable that is not text cannot be one of ours.
        let env =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let (config, settings) = Config::explain(file.transpose()?.as_deref(), env, listen.into_iter().chain(data_dir))
            .map_err(|err| Failure::Usage(err.to_string()))?;
        Ok((Config { file: self.config.clone(), ..config }, settings))
    }
}

#[derive(Debug, Args)]
pub struct ConfigCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print every key with the value in force, as a file; secrets are `(set)`
    Show {
        /// Say where each value came from
        #[arg(long)]
        origin: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        given: Given,
    },
    /// Check the configuration with the files and directories that it names; exits with 1 if something is found
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        given: Given,
    },
}

/// Something that `serve` would stumble over.
#[derive(Debug, Serialize)]
struct Found {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    why: String,
}

impl ConfigCommand {
    pub fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Show { origin, json, given } => show(&given.read()?.1, origin, json),
            Verb::Check { json, given } => check(&given, json),
        }
    }
}

fn show(settings: &[Setting], origin: bool, json: bool) -> Result<(), Failure> {
    if json {
        return say_json(&settings);
    }
    settings.iter().try_for_each(|setting| {
        let line = setting.to_string();
        match origin {
            // Behind the line it is a comment: this is a file, too.
            true => say(&format!("{line:<48} # {}", setting.source)),
            false => say(&line),
        }
    })
}

fn check(given: &Given, json: bool) -> Result<(), Failure> {
    let found = match given.read() {
        Ok((config, settings)) => app::check(&config).into_iter().map(|finding| located(finding, &settings)).collect(),
        // Of keys the first that makes no sense is told; its sentence names it, and where it is.
        Err(Failure::Usage(why)) => vec![Found { key: None, origin: None, why }],
        Err(failure) => return Err(failure),
    };
    if json {
        say_json(&found)?;
    } else if found.is_empty() {
        say("the configuration can be used")?;
    } else {
        found.iter().try_for_each(|Found { key, origin, why }| {
            let of = match (key, origin) {
                (Some(key), Some(origin)) => format!("`{key}` ({origin}): "),
                (Some(key), None) => format!("`{key}`: "),
                (None, _) => String::new(),
            };
            say(&plain(&crate::log::redacted(&format!("{of}{why}"))))
        })?;
    }
    if found.is_empty() { Ok(()) } else { Err(Failure::Told) }
}

fn located(finding: app::Finding, settings: &[Setting]) -> Found {
    let setting = settings.iter().find(|setting| setting.key == finding.key);
    let origin = setting.map(|setting| setting.source.to_string());
    Found { key: Some(finding.key), origin, why: crate::log::redacted(&finding.why).into_owned() }
}
