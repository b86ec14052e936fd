//! What a connection is waiting for, and until when it may: the clocks that end it.
//!
//! A connection has one of three excuses to be open: a request is under way, the head of one is arriving, or the last
//! one ended a moment ago. Beside them runs the clock of what is written and not taken: of the socket, and over HTTP/2,
//! where a client can hold back a single reply, of each reply.

use std::{
    collections::BTreeSet,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Version;
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::Limits;

/// The most of a reply that is handed to an HTTP/2 connection at once, which keeps what it cannot send.
const PIECE: usize = 16 * 1024;

/// Why a connection was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Header,
    Idle,
    Stall,
}

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Pulse {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Requests that are not answered to the end.
    under_way: usize,
    /// When the last of them ended.
    quiet: Instant,
    /// When the head that is arriving began to.
    heard: Option<Instant>,
    /// Since when the socket takes nothing.
    stalled: Option<Instant>,
    /// Replies of which a part was given and no further one asked for, each with since when. Of HTTP/2 only, whose
    /// talk between requests is no head of one.
    held: BTreeSet<(Instant, u64)>,
    http2: bool,
    replies: u64,
}

impl Pulse {
    /// Of a connection that was just opened.
    pub fn new(limits: Limits) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            under_way: 0,
            quiet: now,
            heard: None,
            stalled: None,
            held: BTreeSet::new(),
            http2: false,
            replies: 0,
        };
        Arc::new(Self { limits, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the connection is to be ended, if nothing happens until then, and why.
    pub fn due(&self) -> Option<(Instant, Cut)> {
        let Limits { header, idle, stall, .. } = self.limits;
        let state = self.state();
        let after = |since: Option<Instant>, patience: Duration, cut| since.map(|since| (since + patience, cut));
        let stalled = after(state.stalled, stall, Cut::Stall);
        let held = after(state.held.first().map(|held| held.0), stall, Cut::Stall);
        let silent = match (state.under_way, state.heard) {
            (0, Some(heard)) => Some((heard + header, Cut::Header)),
            (0, None) => Some((state.quiet + idle, Cut::Idle)),
            _ => None,
        };
        [stalled, held, silent].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// The head of a request has arrived.
    pub fn begin(self: &Arc<Self>, version: Version) -> Begun {
        let mut state = self.state();
        state.under_way += 1;
        state.heard = None;
        state.http2 = version == Version::HTTP_2;
        Begun(self.clone())
    }

    /// Something of a head has come.
    pub fn heard(&self) {
        let mut state = self.state();
        if state.under_way == 0 && state.heard.is_none() && !state.http2 {
            state.heard = Some(Instant::now());
        }
    }

    fn wrote(&self, progress: bool) {
        let mut state = self.state();
        match progress {
            true => state.stalled = None,
            false => drop(state.stalled.get_or_insert_with(Instant::now)),
        }
    }
}

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub(super) struct Begun(Arc<Pulse>);

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way -= 1;
        if state.under_way == 0 {
            state.quiet = Instant::now();
        }
    }
}

/// The body of a reply, which notes whether anybody wants more of it.
#[derive(Debug)]
pub(super) struct Reply {
    body: Body,
    /// What of the last part was not handed on yet.
    rest: Bytes,
    /// Over HTTP/2: its number, and since when it waits to be asked for more.
    held: Option<(u64, Option<Instant>)>,
    begun: Begun,
}

impl Reply {
    pub fn new(body: Body, begun: Begun) -> Self {
        let mut state = begun.0.state();
        let held = state.http2.then(|| {
            state.replies += 1;
            (state.replies, None)
        });
        drop(state);
        let mut reply = Self { body, rest: Bytes::new(), held, begun };
        reply.wait(true);
        reply
    }

    /// Notes that the reply waits for its reader, or does not.
    fn wait(&mut self, waits: bool) {
        let Some((number, held)) = &mut self.held else { return };
        let mut state = self.begun.0.state();
        if let Some(since) = held.take() {
            state.held.remove(&(since, *number));
        }
        if waits {
            let now = Instant::now();
            *held = Some(now);
            state.held.insert((now, *number));
        }
    }

    fn piece(&mut self) -> Bytes {
        let most = self.rest.len().min(PIECE);
        self.rest.split_to(most)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.wait(false);
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.wait(false);
        let mut frame = None;
        if self.rest.is_empty() {
            let next = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match (next, &self.held) {
                (Some(Ok(next)), Some(_)) => match next.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => frame = Some(Ok(other)),
                },
                (next, None) => return Poll::Ready(next),
                (end, _) => return Poll::Ready(end),
            }
        }
        let frame = frame.unwrap_or_else(|| Ok(Frame::data(self.piece())));
        self.wait(true);
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(body.lower().saturating_add(rest));
        hint
    }
}

/// A connection's socket, which notes what comes and what does not go.
#[derive(Debug)]
pub(super) struct Watched<S> {
    pub socket: S,
    pub pulse: Arc<Pulse>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        if read.is_ready() && buffer.filled().len() > before {
            self.pulse.heard();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    fn noted<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.pulse.wrote(written.is_ready());
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bytes);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket has nothing to flush, and says so: that is no progress.
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::advance,
    };

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn pulse() -> Arc<Pulse> {
        let (header, idle, stall) = (10 * S, 75 * S, 30 * S);
        Pulse::new(Limits { connections: 1, connections_per_address: 1, header, idle, stall })
    }

    /// When it is cut from now on, and why.
    fn due(pulse: &Pulse) -> Option<(Duration, Cut)> {
        pulse.due().map(|(at, cut)| (at - Instant::now(), cut))
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_however_it_drips() {
        let pulse = pulse();
        let (mut client, socket) = duplex(64);
        let mut watched = Watched { socket, pulse: pulse.clone() };
        assert_eq!(due(&pulse), Some((75 * S, Cut::Idle)));
        for _ in 0..3 {
            advance(S).await;
            client.write_all(b"x").await.unwrap();
            watched.read_u8().await.unwrap();
        }
        assert_eq!(due(&pulse), Some((8 * S, Cut::Header)));
        drop(pulse.begin(Version::HTTP_11));
        assert_eq!(due(&pulse), Some((75 * S, Cut::Idle)));
        advance(S).await;
        client.write_all(b"x").await.unwrap();
        watched.read_u8().await.unwrap();
        assert_eq!(due(&pulse), Some((10 * S, Cut::Header)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_under_way_keeps_its_connection() {
        let pulse = pulse();
        let (one, two) = (pulse.begin(Version::HTTP_11), pulse.begin(Version::HTTP_11));
        drop(one);
        assert_eq!(due(&pulse), None);
        advance(S).await;
        drop(two);
        assert_eq!(due(&pulse), Some((75 * S, Cut::Idle)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_http2_says_between_requests_is_no_head() {
        let pulse = pulse();
        drop(pulse.begin(Version::HTTP_2));
        pulse.heard();
        assert_eq!(due(&pulse), Some((75 * S, Cut::Idle)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_takes_a_byte_starts_its_clock_anew() {
        let pulse = pulse();
        let (mut client, socket) = duplex(4);
        let mut watched = Watched { socket, pulse: pulse.clone() };
        let _begun = pulse.begin(Version::HTTP_11);
        watched.write_all(b"four").await.unwrap();
        assert_eq!(due(&pulse), None);
        let mut pending = Box::pin(watched.write_all(b"more"));
        assert!(futures_util::poll!(&mut pending).is_pending());
        advance(20 * S).await;
        assert!(futures_util::poll!(&mut pending).is_pending());
        assert_eq!(due(&pulse), Some((10 * S, Cut::Stall)));
        client.read_u8().await.unwrap();
        assert!(futures_util::poll!(&mut pending).is_pending());
        assert_eq!(due(&pulse), Some((30 * S, Cut::Stall)));
    }

    async fn next(reply: &mut Reply) -> Option<usize> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *reply).poll_frame(cx)).await?;
        Some(frame.unwrap().into_data().unwrap().len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_over_http2_of_which_nobody_wants_more_runs_out_of_time() {
        let pulse = pulse();
        let body = Body::from(vec![0; PIECE + 1]);
        let mut reply = Reply::new(body, pulse.begin(Version::HTTP_2));
        assert_eq!(reply.size_hint().exact(), Some(PIECE as u64 + 1));
        assert_eq!(due(&pulse), Some((30 * S, Cut::Stall)));
        advance(S).await;
        assert_eq!(next(&mut reply).await, Some(PIECE));
        assert_eq!((reply.size_hint().exact(), reply.is_end_stream()), (Some(1), false));
        advance(S).await;
        assert_eq!(due(&pulse), Some((29 * S, Cut::Stall)));
        assert_eq!((next(&mut reply).await, next(&mut reply).await), (Some(1), None));
        assert_eq!(due(&pulse), None);
        drop(reply);
        assert_eq!(due(&pulse), Some((75 * S, Cut::Idle)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_that_has_nothing_to_say_yet_does_not_wait_for_its_reader() {
        let pulse = pulse();
        let body = Body::from_stream(futures_util::stream::pending::<Result<Bytes, io::Error>>());
        let mut reply = Reply::new(body, pulse.begin(Version::HTTP_2));
        assert!(futures_util::poll!(Box::pin(next(&mut reply))).is_pending());
        assert_eq!(due(&pulse), None);
    }
}
