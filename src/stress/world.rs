//! What all clients share: the server as it is now, the tally, the journal, and the one way to ask.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Plan, Scenario, StressError,
    journal::Journal,
    tally::{DONE, Tally, UNREACHABLE},
    watch::Watchers,
};
use crate::client::{Client, ClientError, Refusal};

/// How long whoever lost an answer waits before asking again, unless there is another server sooner.
const PAUSE: Duration = Duration::from_millis(200);
/// How long somebody does nothing who is told that there is too much. It is less than the server asks for: this is to
/// be too much.
const BREATH: Duration = Duration::from_millis(50);
/// How long nobody may have been answered, until it is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// How long nobody may have been answered, until it is asked whether there is still somebody. As long may an answer take.
const QUIET: Duration = Duration::from_secs(5);
/// How often somebody asks who is not answered.
const TRIES: u32 = 200;

/// Somebody who asks.
#[derive(Debug, Default)]
pub struct Who {
    /// The tenant.
    pub name: String,
    /// The key, where it is another than that of the world's client.
    pub key: Option<String>,
}

/// A server, and how many there were before it.
#[derive(Clone)]
pub struct Served {
    pub number: usize,
    client: Client,
}

/// How a request ended, as far as whoever made it knows.
pub enum Answer<T> {
    Done(T),
    /// It was not done.
    Refused(Box<Refusal>),
    /// Nobody can say.
    Unknown,
}

/// What is the same for everybody.
pub struct World {
    pub plan: Plan,
    pub tally: Tally,
    pub journal: Journal,
    /// The load is over.
    pub stop: CancellationToken,
    pub watchers: Watchers,
    /// Where a server of our own lives.
    pub home: Option<PathBuf>,
    served: watch::Sender<Served>,
    /// When somebody was last answered, whatever it was.
    heard: Mutex<Instant>,
    moments: AtomicU64,
    numbers: AtomicU32,
}

impl World {
    pub(super) fn new(plan: Plan, client: Client, home: Option<PathBuf>) -> Self {
        Self {
            plan,
            tally: Tally::new(),
            journal: Journal::default(),
            stop: CancellationToken::new(),
            watchers: Watchers::default(),
            home,
            served: watch::Sender::new(Served { number: 0, client }),
            heard: Mutex::new(Instant::now()),
            moments: AtomicU64::new(0),
            numbers: AtomicU32::new(0),
        }
    }

    /// A moment after all that were handed out.
    pub fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::SeqCst)
    }

    /// A number that nobody else has: of a prompt, a task, a fact.
    pub fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub fn served(&self) -> Served {
        self.served.borrow().clone()
    }

    /// There is another server.
    pub fn moves(&self, client: Client) {
        self.served.send_modify(|served| *served = Served { number: served.number + 1, client });
    }

    /// How long nobody has been answered.
    fn unheard(&self) -> Duration {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn hear<T>(&self, answer: &Result<T, ClientError>) {
        if matches!(answer, Ok(_) | Err(ClientError::Refused(_))) {
            *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// Waits until the server answers nobody any more. That nobody asks, as while it is judged, does not count.
    pub(super) async fn silence(&self) {
        while self.unheard() < SILENCE {
            tokio::time::sleep(QUIET).await;
            if self.unheard() >= QUIET
                && let Ok(answer) = tokio::time::timeout(QUIET, self.served().client.ready()).await
            {
                self.hear(&answer);
            }
        }
    }

    /// Waits for a server after this one.
    pub async fn after(&self, number: usize) {
        let mut served = self.served.subscribe();
        // The sender lives as long as the world.
        drop(served.wait_for(|served| served.number > number).await);
    }

    /// Makes a request, and makes it again under the same key until it is answered; unless whoever asks gives up at
    /// the first answer that is lost.
    pub async fn ask<T, F>(
        &self,
        who: &Who,
        operation: &'static str,
        gives_up: bool,
        request: impl Fn(Client) -> F,
    ) -> Answer<T>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let key = Uuid::now_v7().to_string();
        for _ in 0..TRIES {
            let served = self.served();
            let client = served.client_of(who).once(&*key);
            let began = Instant::now();
            let answer = request(client).await;
            let took = began.elapsed();
            self.hear(&answer);
            let gone = match answer {
                Ok(done) => {
                    self.tally.note(operation, DONE, None, took);
                    return Answer::Done(done);
                }
                Err(ClientError::Refused(refusal)) => {
                    self.tally.note(operation, &refusal.code, Some(refusal.status), took);
                    if refusal.code == "busy" {
                        tokio::time::sleep(BREATH).await;
                    }
                    match is_certain(&refusal) {
                        true => return Answer::Refused(Box::new(refusal)),
                        // The same request is under way: it has an answer soon.
                        false => refusal.code != "in-flight",
                    }
                }
                Err(ClientError::Unreachable { .. } | ClientError::Failed(_)) => {
                    self.tally.note(operation, UNREACHABLE, None, took);
                    true
                }
            };
            if gone && gives_up {
                break;
            }
            drop(tokio::time::timeout(PAUSE, self.after(served.number)).await);
        }
        Answer::Unknown
    }

    /// Makes a request of which nobody counts how long it takes, until it is answered.
    pub async fn read<T, F>(&self, who: &Who, request: impl Fn(Client) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            let served = self.served();
            let answer = request(served.client_of(who)).await;
            self.hear(&answer);
            match answer {
                Ok(done) => return Ok(done),
                Err(ClientError::Refused(refusal)) if refusal.status < 500 && refusal.status != 429 => {
                    return Err(ClientError::Refused(refusal));
                }
                Err(err) if tries >= TRIES => return Err(err),
                Err(_) => drop(tokio::time::timeout(PAUSE, self.after(served.number)).await),
            }
        }
    }

    /// Tenants with a key each.
    pub(super) async fn tenants(&self) -> Result<Vec<Arc<Who>>, StressError> {
        let operator = Who::default();
        let mut all = Vec::new();
        let run = Uuid::now_v7().simple().to_string();
        for number in 0..Scenario::Tenants.tenants(self.plan.threads) {
            let name = format!("stress-{number}-{}", &run[run.len() - 12..]);
            let new = fields(json!({ "id": name }));
            self.read(&operator, |client| {
                let new = &new;
                async move { client.create_tenant(new).await }
            })
            .await?;
            let scopes = fields(json!({ "scopes": ["read", "write", "approve"] }));
            let (of, scopes) = (&*name, &scopes);
            let key =
                self.read(&operator, |client| async move { client.create_key(of, scopes).await }).await?.key.clone();
            all.push(Arc::new(Who { name, key: Some(key) }));
        }
        Ok(all)
    }
}

impl Served {
    pub fn client_of(&self, who: &Who) -> Client {
        match &who.key {
            Some(key) => self.client.keyed(Some(key.clone())),
            None => self.client.clone(),
        }
    }
}

/// Whether a refusal says that nothing was done. That the store is not available does not: it may be stored all the same.
fn is_certain(refusal: &Refusal) -> bool {
    match refusal.code.as_str() {
        "in-flight" => false,
        "busy" | "draining" => true,
        _ => refusal.status < 500,
    }
}

pub fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::Target;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_nobody_hears_any_more_is_given_up() {
        let target = Target::Given { url: "http://127.0.0.1:1".to_owned(), key: None };
        let client = Client::new("http://127.0.0.1:1", None).unwrap();
        let plan = Plan {
            scenario: Scenario::Chat,
            target,
            threads: 1,
            clients: 1,
            duration: Duration::from_secs(1),
            seed: 1,
            kills: 0,
            disk_latency: Duration::ZERO,
            disk_faults: 0,
            slow_subscribers: 0,
        };
        let world = World::new(plan, client, None);
        let began = Instant::now();
        world.silence().await;
        assert!(began.elapsed() >= SILENCE);
    }
}
