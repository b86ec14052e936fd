//! The runtime inside a program of your own: no server, no network, one conversation.
//!
//! `cargo run --example embed`

use std::{sync::Arc, time::Duration};

use raddle::{
    models::{Registry, RegistryConfig},
    workspace::Workspaces,
};
use raddle_actors::{Call, Config, Ports, Runtime};
use raddle_domain::{
    command::{NewThread, StartTurn},
    id::{TenantId, ThreadKey},
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let workspaces = Arc::new(Workspaces::open(&dir.path().join("workspaces"))?);
    let models = Registry::new(RegistryConfig::default(), &workspaces)?;
    let choice = raddle_domain::ports::Models::resolve(&models, None, None)?;
    let runtime = Runtime::start(Config::new(dir.path().join("data")), Ports::with_models(Arc::new(models))).await?;

    let thread = runtime.create_thread(TenantId::DEFAULT, NewThread::with(choice), Call::default()).await?.value;
    let key = ThreadKey { tenant: TenantId::DEFAULT, thread: thread.id };
    let mut events = runtime.subscribe(key, thread.seq).await?;
    let start = StartTurn { prompt: "Hello from inside".into(), ..StartTurn::default() };
    runtime.start_turn(key, start, Call::default()).await?;

    // What happens, as the same JSON that the HTTP stream sends.
    let mut ended = false;
    while !ended {
        let next = events.next().await?;
        for (_, event) in next.events() {
            println!("{}", String::from_utf8_lossy(&event.json));
            ended |= event.name == "turn.completed";
        }
        ended |= next.is_last();
    }
    runtime.shutdown(Duration::from_secs(1)).await;
    Ok(())
}
