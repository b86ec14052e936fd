//! The door: takes connections, serves a router on them, and bounds what a connection may hold and for how long.
//!
//! What a client can keep by doing nothing is bounded in number (connections, of all and of one address), in size
//! (heads, streams) and in time: a head that does not arrive, a connection on which nothing happens, a reply that
//! nobody reads. Each ends the connection, and is counted by its reason. Bodies of requests are bounded where they are
//! read, in the gateway.
//!
//! Heads that are too large or have too many fields are answered by the HTTP library: 431 with an empty body. What it
//! does against floods of resets and of settings over HTTP/2 stays as it comes.
//!
//! Absent on purpose: TLS and upgrades to other protocols.

mod connection;
mod guests;
mod pulse;

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::Router;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::guests::{Full, Guests};
use crate::gateway;

/// How long accepting rests when the system has nothing left to accept with, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Connections that were refused and are held until their client has read why.
const GOODBYES: usize = 64;
/// How long each is held.
const GOODBYE: Duration = Duration::from_secs(1);

/// What clients may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// The same of one address; of a network of 64 bits with IPv6. The machine itself is excepted: a proxy on it
    /// speaks for everybody.
    pub connections_per_address: usize,
    /// How long the head of a request may take, from its first byte.
    pub header: Duration,
    /// How long a connection may be without a request, the first one included.
    pub idle: Duration,
    /// How long a reply may wait for its reader without a byte being taken.
    pub stall: Duration,
}

/// What became of connections since the start.
#[derive(Debug, Default)]
pub struct Figures {
    pub open: AtomicU64,
    pub refused: AtomicU64,
    pub cut_header: AtomicU64,
    pub cut_idle: AtomicU64,
    pub cut_stall: AtomicU64,
    pub accept_errors: AtomicU64,
}

/// Serves `router` on `listener` until `stop`, then until the last connection has ended: requests under way are
/// answered, and no further ones are taken. Whoever calls bounds how long that may last.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    figures: Arc<Figures>,
    stop: CancellationToken,
) {
    // Made once: a router that is served as it is gets built anew for each connection.
    let router = router.with_state::<()>(());
    let guests = Guests::new(limits.connections, limits.connections_per_address);
    let goodbyes = Arc::new(Semaphore::new(GOODBYES));
    let connections = TaskTracker::new();
    let mut pause = PAUSES.0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(err) if is_the_clients(err.kind()) => continue,
            Err(err) => {
                // Nothing to accept with: descriptors or memory. The client waits in the backlog meanwhile.
                if pause == PAUSES.0 {
                    tracing::error!(error = %err, "cannot accept connections");
                }
                figures.accept_errors.fetch_add(1, Relaxed);
                tokio::select! {
                    () = sleep(pause) => pause = PAUSES.1.min(pause * 2),
                    () = stop.cancelled() => break,
                }
                continue;
            }
        };
        pause = PAUSES.0;
        match guests.enter(peer.ip()) {
            Ok(guest) => {
                figures.open.fetch_add(1, Relaxed);
                let (router, figures, stop) = (router.clone(), figures.clone(), stop.clone());
                connections.spawn(async move {
                    connection::serve(stream, router, limits, &figures, stop).await;
                    figures.open.fetch_sub(1, Relaxed);
                    drop(guest);
                });
            }
            Err(full) => {
                figures.refused.fetch_add(1, Relaxed);
                refuse(stream, peer, full, &goodbyes);
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Whether it was the one connection that failed, not the accepting.
const fn is_the_clients(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
}

/// Says why, if that can be said without waiting, and lets go.
fn refuse(mut stream: TcpStream, peer: SocketAddr, full: Full, goodbyes: &Arc<Semaphore>) {
    tracing::debug!(%peer, ?full, "a connection was refused");
    let what = match full {
        Full::Server => "the list of connections",
        Full::Address => "the list of connections of this address",
    };
    // A close with something unread takes back what was written: so a few are held until their client has read it.
    let Ok(place) = goodbyes.clone().try_acquire_owned() else { return };
    let answer = gateway::busy_answer(what);
    tokio::spawn(async move {
        let goodbye = async {
            if matches!(stream.try_write(&answer), Ok(written) if written == answer.len())
                && stream.shutdown().await.is_ok()
            {
                let mut unread = [0; 1024];
                while stream.readable().await.is_ok() {
                    match stream.try_read(&mut unread) {
                        Ok(0) => break,
                        Ok(_) => {}
                        Err(err) if err.kind() == ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                }
            }
        };
        drop(timeout(GOODBYE, goodbye).await);
        drop(place);
    });
}
