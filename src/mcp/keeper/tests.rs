use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use raddle_domain::{
    ports::{Clock, Output},
    time::UnixMs,
};
use rmcp::model::CallToolResult;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;
use crate::mcp::{
    board::{Event, Status},
    config,
    link::{Boxed, Call, CallError},
};

/// What the fake server does at each start.
#[derive(Clone, Copy)]
enum Start {
    Refuses,
    Hangs,
    HangsAtTheList,
    /// Runs so long, then dies.
    Runs(Duration),
}

struct Fake {
    starts: Mutex<VecDeque<Start>>,
    /// When each start was.
    at: Mutex<Vec<Instant>>,
    lists: Arc<AtomicUsize>,
    changed: Arc<Notify>,
}

struct FakeLink {
    dies: Option<Instant>,
    hangs: bool,
    lists: Arc<AtomicUsize>,
    changed: Arc<Notify>,
}

impl Connect for Fake {
    fn connect(&self) -> Boxed<'_, Result<Arc<dyn Link>, String>> {
        self.at.lock().unwrap().push(Instant::now());
        let start = self.starts.lock().unwrap().pop_front();
        Box::pin(async move {
            let (dies, hangs) = match start {
                Some(Start::Refuses) => return Err("it ended with exit code 1".to_owned()),
                Some(Start::Hangs) => return std::future::pending().await,
                Some(Start::HangsAtTheList) => (None, true),
                Some(Start::Runs(span)) => (Some(Instant::now() + span), false),
                None => (None, false),
            };
            let (lists, changed) = (self.lists.clone(), self.changed.clone());
            Ok(Arc::new(FakeLink { dies, hangs, lists, changed }) as Arc<dyn Link>)
        })
    }
}

impl Link for FakeLink {
    fn list(&self) -> Boxed<'_, Result<Vec<Value>, String>> {
        Box::pin(async {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            let name = format!("t{}", self.lists.fetch_add(1, Ordering::SeqCst));
            Ok(vec![json!({"name": name, "inputSchema": {"type": "object"}})])
        })
    }
    fn call(&self, _: Call, _: Arc<dyn Output>) -> Boxed<'_, Result<CallToolResult, CallError>> {
        Box::pin(async { Err(CallError::Refused("a fake".to_owned())) })
    }
    fn changed(&self) -> Boxed<'_, ()> {
        Box::pin(self.changed.notified())
    }
    fn ended(&self) -> Boxed<'_, String> {
        Box::pin(async {
            match self.dies {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
            "it was killed".to_owned()
        })
    }
    fn close(&self) -> Boxed<'_, ()> {
        Box::pin(async {})
    }
}

struct Frozen;
impl Clock for Frozen {
    fn now(&self) -> UnixMs {
        UnixMs(0)
    }
}

struct World {
    fake: Arc<Fake>,
    board: Arc<Board>,
    server: Arc<Kept>,
    stop: CancellationToken,
    keeper: tokio::task::JoinHandle<()>,
}

const STARTUP: Duration = Duration::from_secs(30);

fn kept(starts: &[Start]) -> World {
    let server = config::read(r#"{"mcpServers": {"s": {"command": "x"}}}"#, &|_| None).unwrap().remove(0);
    let server = Arc::new(Kept::new(server, Duration::from_secs(1)));
    let board = Arc::new(Board::new(Arc::new(Frozen), [("s".to_owned(), "stdio", false)].into_iter()));
    let fake = Arc::new(Fake {
        starts: Mutex::new(starts.iter().copied().collect()),
        at: Mutex::default(),
        lists: Arc::default(),
        changed: Arc::default(),
    });
    let stop = CancellationToken::new();
    let keeper = Keeper {
        at: 0,
        server: server.clone(),
        connect: fake.clone(),
        startup_timeout: STARTUP,
        board: board.clone(),
        publish: Box::new(|_, _| {}),
        stop: stop.clone(),
    };
    World { fake, board, server, stop, keeper: tokio::spawn(keeper.keep()) }
}

impl World {
    /// Waits until the server is so.
    async fn until(&self, status: Status, restarts: u64) {
        let (_, mut later) = self.board.watch();
        loop {
            let server = self.board.read().0[0].clone();
            if (server.status, server.restarts) == (status, restarts) {
                return;
            }
            let _: Event = later.recv().await.unwrap();
        }
    }

    /// The pauses between starts, in milliseconds.
    fn pauses(&self) -> Vec<u128> {
        let at = self.fake.at.lock().unwrap();
        at.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_dies_at_once_is_started_with_growing_pauses_up_to_a_minute() {
    let world = kept(&[Start::Refuses; 10]);
    world.until(Status::Ready, 10).await;
    assert_eq!(world.pauses(), [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
}

#[tokio::test(start_paused = true)]
async fn the_pause_is_short_again_after_a_minute_of_health_and_not_before() {
    let brief = Start::Runs(Duration::from_secs(59));
    let long = Start::Runs(Duration::from_secs(60));
    let world = kept(&[Start::Refuses, Start::Refuses, brief, Start::Refuses, long, Start::Refuses]);
    world.until(Status::Ready, 6).await;
    assert_eq!(world.pauses(), [500, 1_000, 59_000 + 2_000, 4_000, 60_000 + 500, 1_000]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up_and_tried_again() {
    let world = kept(&[Start::Hangs, Start::HangsAtTheList]);
    world.until(Status::Failed, 0).await;
    let state = world.board.read().0[0].clone();
    assert_eq!(state.error.as_deref(), Some("it was not ready within 30000 ms"));
    assert_eq!(world.server.link().err(), state.error);
    world.until(Status::Ready, 2).await;
    assert_eq!(world.pauses(), [30_500, 31_000]);
    assert!(world.server.link().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_list_is_read_again_when_it_has_changed_and_not_more_often_than_it_may_be() {
    let world = kept(&[]);
    world.until(Status::Ready, 0).await;
    let began = Instant::now();
    let (_, mut later) = world.board.watch();
    for round in 1..=4 {
        // Said many times, it has changed once.
        (0..100).for_each(|_| world.fake.changed.notify_one());
        later.recv().await.unwrap();
        assert_eq!(world.board.read().0[0].tools[0].tool, format!("t{round}"));
    }
    assert_eq!(began.elapsed(), 3 * BETWEEN_LISTS);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_well_says_why_it_is_not_until_it_is_back_and_stops_when_it_is_told_to() {
    let world = kept(&[Start::Runs(Duration::from_secs(5))]);
    world.until(Status::Failed, 0).await;
    let state = world.board.read().0[0].clone();
    assert_eq!(state.error.as_deref(), Some("it was killed"));
    // What it listed is not forgotten.
    assert_eq!(state.tools.len(), 1);
    assert_eq!(world.server.link().err().as_deref(), Some("it was killed"));
    world.until(Status::Ready, 1).await;
    world.stop.cancel();
    world.keeper.await.unwrap();
    assert_eq!(world.server.link().err().as_deref(), Some("it was stopped"));
}
