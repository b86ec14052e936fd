//! One connection: HTTP/1 or HTTP/2 as the client speaks, its clocks, its end.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    ops::DerefMut,
    pin::{Pin, pin},
    sync::atomic::Ordering::Relaxed,
    task::Poll,
    time::Duration,
};

use axum::Router;
use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{
    Figures, Limits,
    pulse::{Cut, Pulse, Reply, Watched},
};

/// A head of a request up to here is taken; over HTTP/1 its length is looked at when a piece of it was read, so one is
/// refused for certain only that is twice as long.
const HEAD_BYTES: usize = 32 * 1024;
/// The most fields of a head.
const HEAD_FIELDS: usize = 100;
/// Requests at once on one connection, over HTTP/2.
const STREAMS: u32 = 128;
/// How often an HTTP/2 connection is asked whether anybody is there, and how long an answer may take.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));
/// An alarm that never rings.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// What a client of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long one that has sent a part of it is left alone.
const LOOK: Duration = Duration::from_millis(5);

fn http1() -> http1::Builder {
    let mut http1 = http1::Builder::new();
    // The head's time is ours to keep: the library's clock would run between requests too.
    http1.timer(TokioTimer::new()).header_read_timeout(None).max_headers(HEAD_FIELDS).max_buf_size(HEAD_BYTES);
    http1
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2.timer(TokioTimer::new()).keep_alive_interval(PING.0).keep_alive_timeout(PING.1);
    http2.max_concurrent_streams(STREAMS).max_header_list_size(HEAD_BYTES as u32);
    http2
}

/// Whether the client speaks HTTP/2. What it has sent is looked at and left where it is: a head of which the beginning was
/// read before takes a second buffer, twice as large, for as long as the connection lives.
async fn speaks_http2(socket: &TcpStream, pulse: &Pulse) -> io::Result<bool> {
    let mut begun = [0; PREFACE.len()];
    loop {
        let some = socket.peek(&mut begun).await?;
        if some == 0 || begun[..some] != PREFACE[..some] {
            return Ok(false);
        }
        if some == PREFACE.len() {
            return Ok(true);
        }
        pulse.heard();
        sleep(LOOK).await;
    }
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
    let speaks = tokio::select! {
        speaks = timed(&pulse, speaks_http2(&stream, &pulse)) => speaks,
        // Nothing is under way.
        () = stop.cancelled() => return,
    };
    let service = service_fn(|request: Request<Incoming>| {
        let begun = pulse.begin(request.version());
        let answered = router.clone().call(request);
        async move {
            let answer = answered.await.unwrap_or_else(|never: Infallible| match never {});
            Ok::<_, Infallible>(answer.map(|body| Reply::new(body, begun)))
        }
    });
    let watched = TokioIo::new(Watched { socket: stream, pulse: pulse.clone() });
    let ended = match speaks {
        Ok(Ok(false)) => {
            let connection = http1().serve_connection(watched, service);
            talk(&pulse, pin!(connection), http1::Connection::graceful_shutdown, &stop).await
        }
        Ok(Ok(true)) => {
            // Beside the other, which most speak, it would be the larger part of every connection.
            let connection = Box::pin(http2().serve_connection(watched, service));
            talk(&pulse, connection, http2::Connection::graceful_shutdown, &stop).await
        }
        Ok(Err(err)) => return tracing::debug!(error = %err, "a connection ended"),
        Err(cut) => Err(cut),
    };
    let cut = match ended {
        Ok(Ok(())) => return,
        Ok(Err(err)) => return tracing::debug!(error = %err, "a connection ended"),
        Err(cut) => cut,
    };
    let counter = match cut {
        Cut::Header => &figures.cut_header,
        Cut::Idle => &figures.cut_idle,
        Cut::Stall => &figures.cut_stall,
    };
    counter.fetch_add(1, Relaxed);
    tracing::debug!(why = ?cut, "a connection was ended");
}

/// Polls a connection until it ends, and tells it once that it is to.
async fn talk<C: Future>(
    pulse: &Pulse,
    mut connection: Pin<impl DerefMut<Target = C>>,
    end: impl Fn(Pin<&mut C>),
    stop: &CancellationToken,
) -> Result<C::Output, Cut> {
    let mut stopped = pin!(stop.cancelled());
    let mut stopping = false;
    let talking = poll_fn(|cx| {
        if !stopping && stopped.as_mut().poll(cx).is_ready() {
            stopping = true;
            end(connection.as_mut());
        }
        connection.as_mut().poll(cx)
    });
    timed(pulse, talking).await
}

/// Polls `work` until it is over, or until a clock of the connection says that this is.
async fn timed<F: Future>(pulse: &Pulse, work: F) -> Result<F::Output, Cut> {
    let mut work = pin!(work);
    // The alarm is moved when it must ring earlier; ringing too early costs a look, moving it with every request more.
    let mut armed = Instant::now() + NEVER;
    let mut alarm = pin!(sleep_until(armed));
    poll_fn(|cx| {
        if let Poll::Ready(over) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(over));
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
                return Poll::Ready(Err(cut));
            }
            armed = due;
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    })
    .await
}
