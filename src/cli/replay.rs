//! `raddle replay`: a trace, told again to as many threads as wanted, and what came of it beside what was recorded.
//!
//! Exit codes: 0 equal, 1 different, 2 not a trace, 130 and 143 ended by a signal.

mod show;

use std::{
    fs::File,
    io::{self, BufReader},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use clap::Args;
use raddle_actors::redrive::{Progress, Redrive, RedriveError, Report, SLOWEST, Trace};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    Failure,
    progress::{self, Step},
    say_json,
};
use crate::{
    app::{self, App},
    client::Client,
    config::Config,
    gateway::{self, GatewayConfig},
    listener,
    replay::{
        policy::rejudge,
        verbs::{self, Manner},
    },
};

/// Tell a trace again, and compare what comes of it with what was recorded
///
/// Every recorded thread is told again to so many replicas at once, through the whole runtime, on a database of its own.
/// Exits with 0 if all of them became what was recorded, with 1 if not, and with 2 if the file is no trace.
#[derive(Debug, Args)]
pub struct Replay {
    /// What `raddle record` wrote; `-` is the standard input
    trace: PathBuf,
    /// Replicas of each recorded thread
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    threads: u32,
    /// Tenants that they are spread over
    #[arg(long, default_value_t = 1, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tenants: u32,
    /// By how much faster than it was recorded; `max` is as fast as it goes
    #[arg(long, default_value = "max", value_name = "X")]
    speed: Speed,
    /// Threads held in memory; the others are unloaded, and loaded again when they are told something
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    loaded: u32,
    /// Replicas that are told something at once
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// Replicas that are watched meanwhile, about; each watcher must see exactly what is stored
    #[arg(long, default_value_t = 64, value_name = "N")]
    watched: u32,
    /// Say only what callers said, and let this model answer: by a server of its own, or by --server. The recorded
    /// model's name is `recorded`
    #[arg(long, value_name = "NAME", conflicts_with_all = ["speed", "loaded", "watched"])]
    model: Option<String>,
    /// Say what callers said to this server, whose models and tools answer
    #[arg(long, value_name = "URL", conflicts_with_all = ["speed", "loaded", "watched", "tenants", "keep"])]
    server: Option<String>,
    /// The key to send to it
    #[arg(long, env = "RADDLE_KEY", hide_env_values = true, value_name = "KEY", requires = "server")]
    key: Option<String>,
    /// Of a server: how long nothing may happen before a thread is taken for what it will be
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    patience: u32,
    /// Only decide about the calls of models anew, under this policy of an installation
    #[arg(long, value_name = "FILE", conflicts_with_all = ["threads", "tenants", "speed", "model", "server"])]
    policy: Option<PathBuf>,
    /// The configuration with the tools that calls are judged for, or that answer, where it is no --server
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the database here; it must not be there yet
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Speed(Option<f64>);

impl FromStr for Speed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "max" => Ok(Self(None)),
            text => match text.parse::<f64>() {
                Ok(speed) if speed.is_finite() && speed >= SLOWEST => Ok(Self(Some(speed))),
                _ => Err("a number from 0.001 up, or `max`"),
            },
        }
    }
}

/// How often a directory is removed before it is left.
const REMOVALS: usize = 10;
/// A pause of this length is told before it begins.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the database is; gone with this, unless it is to be kept.
struct Place {
    dir: PathBuf,
    keep: bool,
}

impl Place {
    fn of(keep: Option<&Path>) -> Result<Self, Failure> {
        let dir = match keep {
            Some(dir) => dir.to_owned(),
            None => std::env::temp_dir().join(format!("raddle-replay-{}", uuid::Uuid::now_v7().simple())),
        };
        if dir.exists() {
            return Err(Failure::Usage(format!("{} is there already", dir.display())));
        }
        // For its owner alone: what people said to models stands in it.
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|why| Failure::Failed(format!("{}: {why}", dir.display())))?;
        Ok(Self { dir, keep: keep.is_some() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Something may still be made in it where the replay was ended.
        for _ in 0..REMOVALS {
            if std::fs::remove_dir_all(&self.dir).is_ok() || !self.dir.exists() {
                break;
            }
        }
    }
}

impl Replay {
    pub async fn run(self) -> Result<(), Failure> {
        if let Some(config) = &self.config {
            File::open(config).map_err(|why| Failure::Usage(format!("{}: {why}", config.display())))?;
        }
        let trace = read(&self.trace)?;
        if let Some(server) = &self.server {
            let client = Client::new(server, self.key.clone()).map_err(|err| Failure::Usage(err.to_string()))?;
            return self.said(&trace, &client).await;
        }
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let place = Place::of(self.keep.as_deref())?;
        let stop = CancellationToken::new();
        let mut here = std::pin::pin!(self.here(&trace, &place, &stop));
        let (name, code) = tokio::select! {
            done = &mut here => return done,
            _ = interrupt.recv() => ("SIGINT", 130),
            _ = terminate.recv() => ("SIGTERM", 143),
        };
        // What is stored there comes to rest first, else it would be made anew.
        stop.cancel();
        drop(here.await);
        eprintln!("raddle: {name} ended the replay before anything was found out");
        Err(Failure::Found(code))
    }

    /// On a database in `place`.
    async fn here(&self, trace: &Trace, place: &Place, stop: &CancellationToken) -> Result<(), Failure> {
        if let Some(policy) = &self.policy {
            return self.rejudged(trace, policy, &place.dir).await;
        }
        if self.model.is_some() {
            let server = Own::start(self.configured(&place.dir)?).await?;
            let said = tokio::select! {
                said = self.said(trace, &server.client) => said,
                () = stop.cancelled() => Err(Failure::Told),
            };
            server.stop().await;
            return said;
        }
        let redrive = Redrive {
            copies: self.threads,
            tenants: self.tenants,
            loaded_threads: self.loaded as usize,
            at_once: self.at_once as usize,
            speed: self.speed.0,
            watched: self.watched,
            stop: stop.clone(),
            ..Redrive::new(&place.dir)
        };
        if let Some(speed) = self.speed.0 {
            let pause = trace.longest_pause().div_f64(speed);
            if pause > LONG {
                eprintln!("at this speed the longest wait takes {} hours", pause.as_secs() / 3_600);
            }
        }
        let progress = Arc::<Progress>::default();
        let told = redrive.run(trace, progress.clone());
        let report = shown(&progress, told).await.map_err(|why| match why {
            RedriveError::Empty | RedriveError::Nothing => Failure::Usage(why.to_string()),
            why => Failure::Failed(why.to_string()),
        })?;
        self.found(trace, &report, "events")
    }

    /// `counted` is what counts as an event.
    fn found(&self, trace: &Trace, report: &Report, counted: &str) -> Result<(), Failure> {
        if self.json {
            say_json(report)?;
        } else {
            show::report(&self.trace, trace, report, counted)?;
        }
        if report.equal { Ok(()) } else { Err(Failure::Told) }
    }

    /// Says to a server what callers said.
    async fn said(&self, trace: &Trace, client: &Client) -> Result<(), Failure> {
        let model = self.model.clone().filter(|model| model != "recorded");
        let manner = Manner { model, patience: Duration::from_secs(self.patience.into()) };
        let progress = Progress::default();
        let said = verbs::run(trace, client, &manner, self.threads, self.at_once as usize, &progress);
        let (report, left_out) = shown(&progress, said).await?;
        if left_out > 0 {
            eprintln!(
                "{left_out} threads were there before the recording began: what callers said of them is not told"
            );
        }
        self.found(trace, &report, "events but deltas")
    }

    /// Decides about calls anew.
    async fn rejudged(&self, trace: &Trace, policy: &Path, dir: &Path) -> Result<(), Failure> {
        let about = |why: &dyn std::fmt::Display| Failure::Usage(format!("{}: {why}", policy.display()));
        let text = std::fs::read_to_string(policy).map_err(|why| about(&why))?;
        let policy = crate::policy::file::parse(&text).map_err(|why| about(&why))?;
        let tools = app::judges(&self.configured(dir)?, policy).await;
        let tools = tools.map_err(|why| Failure::Failed(format!("{why:#}")))?;
        let rejudged = rejudge(trace, &tools);
        if self.json {
            say_json(&rejudged)?;
        } else {
            show::rejudged(&rejudged)?;
        }
        if rejudged.is_the_same() { Ok(()) } else { Err(Failure::Told) }
    }

    /// The configuration of what runs here, in `dir`.
    fn configured(&self, dir: &Path) -> Result<Config, Failure> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|why| Failure::Usage(format!("{}: {why}", path.display())))
        };
        let text = self.config.as_ref().map(read).transpose()?;
        let own = [
            ("listen", "127.0.0.1:0".to_owned()),
            ("data_dir", dir.display().to_string()),
            ("workspaces.root", dir.join("workspaces").display().to_string()),
        ];
        let config = Config::read(text.as_deref(), [], own).map_err(|why| Failure::Usage(why.to_string()))?;
        Ok(Config { file: self.config.clone(), ..config })
    }
}

/// A server for this replay alone.
struct Own {
    app: App,
    client: Client,
    serves: JoinHandle<()>,
}

impl Own {
    async fn start(config: Config) -> Result<Self, Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure::Failed(why.to_string());
        let app = app::start(&config).await.map_err(|why| failed(&format!("{why:#}")))?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let gateway = GatewayConfig { limits: config.limits.thread, ..GatewayConfig::default() };
        let router = gateway::router(app.runtime.clone(), gateway);
        let (limits, figures) = (config.limits.listener, Arc::default());
        let serves = tokio::spawn(async move {
            listener::serve(listener, router, limits, figures, CancellationToken::new()).await;
        });
        let client = Client::new(&format!("http://{address}"), None)?.retrying(4);
        Ok(Self { app, client, serves })
    }

    async fn stop(self) {
        self.app.shutdown(Duration::ZERO).await;
        self.serves.abort();
    }
}

/// Reads a trace; one that is none is a wrong argument.
fn read(path: &Path) -> Result<Trace, Failure> {
    let about = |why: &dyn std::fmt::Display| Failure::Usage(format!("{}: {why}", path.display()));
    let trace = match path == Path::new("-") {
        true => Trace::read(io::stdin().lock()),
        false => Trace::read(BufReader::new(File::open(path).map_err(|why| about(&why))?)),
    };
    let trace = trace.map_err(|why| about(&why))?;
    if let Some(line) = trace.cut {
        eprintln!("raddle: the last line is cut off and was left out (line {line})");
    }
    if trace.threads.is_empty() {
        return Err(about(&RedriveError::Empty));
    }
    Ok(trace)
}

/// Shows how far it is.
async fn shown<T>(progress: &Progress, told: impl Future<Output = T>) -> T {
    let step = || {
        let Progress { lines, replicas, told, compared } = progress;
        let (does, at, of, what) = match compared.load(Relaxed) {
            0 => ("telling", told.load(Relaxed), lines.load(Relaxed), "lines"),
            compared => ("comparing", compared, replicas.load(Relaxed), "replicas"),
        };
        Step { at, of, says: format!("{does}: {at} of {of} {what}") }
    };
    tokio::select! {
        biased;
        done = told => done,
        () = progress::show(step) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_number_or_as_fast_as_it_goes() {
        assert_eq!("max".parse(), Ok(Speed(None)));
        assert_eq!("2.5".parse(), Ok(Speed(Some(2.5))));
        for bad in ["0", "0.0009", "-1", "nan", "inf", "fast", ""] {
            assert!(bad.parse::<Speed>().is_err(), "{bad}");
        }
    }
}
