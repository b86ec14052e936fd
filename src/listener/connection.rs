//! One connection: HTTP/1 or HTTP/2 as the client speaks, its clocks, its end.

use std::{
    convert::Infallible, future::poll_fn, pin::pin, sync::atomic::Ordering::Relaxed, task::Poll, time::Duration,
};

use axum::Router;
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{
    Figures, Limits,
    pulse::{Cut, Pulse, Reply, Watched},
};

/// The largest head of a request.
const HEAD_BYTES: usize = 64 * 1024;
/// The most fields of a head.
const HEAD_FIELDS: usize = 100;
/// Requests at once on one connection, over HTTP/2.
const STREAMS: u32 = 128;
/// How often an HTTP/2 connection is asked whether anybody is there, and how long an answer may take.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));
/// An alarm that never rings.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn protocol() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let mut http1 = builder.http1();
    // The head's time is ours to keep: the library's clock would run between requests too.
    http1.timer(TokioTimer::new()).header_read_timeout(None).max_headers(HEAD_FIELDS).max_buf_size(HEAD_BYTES);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new()).keep_alive_interval(PING.0).keep_alive_timeout(PING.1);
    http2.max_concurrent_streams(STREAMS).max_header_list_size(HEAD_BYTES as u32);
    builder
}

/// Serves the connection until it ends, is ended for its silence, or, after `stop`, has no request under way.
pub(super) async fn serve(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    figures: &Figures,
    stop: CancellationToken,
) {
    // Small frames must not wait for each other.
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(error = %err, "TCP_NODELAY");
    }
    let pulse = Pulse::new(limits);
    let service = service_fn(|request: Request<Incoming>| {
        let begun = pulse.begin(request.version());
        let answered = router.clone().call(request);
        async move {
            let answer = answered.await.unwrap_or_else(|never: Infallible| match never {});
            Ok::<_, Infallible>(answer.map(|body| Reply::new(body, begun)))
        }
    });
    let protocol = protocol();
    let watched = TokioIo::new(Watched { socket: stream, pulse: pulse.clone() });
    let mut connection = pin!(protocol.serve_connection(watched, service));
    let mut stopped = pin!(stop.cancelled());
    let mut stopping = false;
    // The alarm is moved when it must ring earlier; ringing too early costs a look, moving it with every request more.
    let mut armed = Instant::now() + NEVER;
    let mut alarm = pin!(sleep_until(armed));
    let cut = poll_fn(|cx| {
        if !stopping && stopped.as_mut().poll(cx).is_ready() {
            stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            if let Err(err) = ended {
                tracing::debug!(error = %err, "a connection ended");
            }
            return Poll::Ready(None);
        }
        while let Some((due, cut)) = pulse.due() {
            if due < armed {
                armed = due;
                alarm.as_mut().reset(due);
            }
            if alarm.as_mut().poll(cx).is_pending() {
                break;
            }
            if due <= Instant::now() {
                return Poll::Ready(Some(cut));
            }
            armed = due;
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    });
    let Some(cut) = cut.await else { return };
    let counter = match cut {
        Cut::Header => &figures.cut_header,
        Cut::Idle => &figures.cut_idle,
        Cut::Stall => &figures.cut_stall,
    };
    counter.fetch_add(1, Relaxed);
    tracing::debug!(why = ?cut, "a connection was ended");
}
