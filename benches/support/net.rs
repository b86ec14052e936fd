//! The gateway on a port of its own, and a client that costs next to nothing: requests are bytes made beforehand,
//! of an answer only the status and the length are looked at.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use raddle::{
    gateway::{GatewayConfig, router},
    listener,
};
use raddle_actors::Runtime;
use raddle_domain::id::{Seq, ThreadKey};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Serves the runtime for as long as the task runs, as the binary does.
pub async fn serve(runtime: Runtime) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let limits = listener::Limits {
        connections: 4096,
        connections_per_address: 4096,
        header: Duration::from_secs(10),
        idle: Duration::from_secs(60),
        stall: Duration::from_secs(60),
    };
    let router = router(runtime, GatewayConfig::default());
    (addr, tokio::spawn(listener::serve(listener, router, limits, Arc::default(), CancellationToken::new())))
}

/// A request that starts a turn.
pub fn start(key: ThreadKey) -> Vec<u8> {
    let body = r#"{"prompt":"what is the weather like?","delivery":"reject"}"#;
    let (thread, length) = (key.thread, body.len());
    format!(
        "POST /v1/threads/{thread}/turns HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into()
}

/// A request for a thread's events as a stream. Of HTTP/1.0, so that the answer comes as it is, without chunks.
pub fn follow(key: ThreadKey) -> Vec<u8> {
    let thread = key.thread;
    format!("GET /v1/threads/{thread}/events HTTP/1.0\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n").into()
}

/// Events, and the bytes of a stream that begins with them.
pub async fn extent(runtime: &Runtime, key: ThreadKey) -> (Seq, usize) {
    let (mut after, mut bytes) = (0, "retry: 1000\n\n".len());
    loop {
        let page = runtime.events(key, after, 2_000).await.expect("it is there");
        for chunk in &page.chunks {
            for (seq, event) in (chunk.first..).zip(&chunk.events) {
                bytes += format!("id: {seq}\nevent: {}\ndata: \n\n", event.name).len() + event.json.len();
                after = seq;
            }
        }
        if after == page.head {
            return (after, bytes);
        }
    }
}

/// A connection that is kept.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, buffer: Vec::new() }
    }

    /// Sends a request, reads the whole answer, returns its status.
    pub async fn send(&mut self, request: &[u8]) -> u16 {
        self.stream.write_all(request).await.expect("a server");
        self.buffer.clear();
        loop {
            if let Some(status) = complete(&self.buffer) {
                return status;
            }
            assert!(self.stream.read_buf(&mut self.buffer).await.expect("a server") > 0, "the server hung up");
        }
    }

    /// Sends a request whose answer does not end, and counts the bytes that come behind its head.
    pub async fn count(mut self, request: &[u8], bytes: &AtomicU64) {
        self.stream.write_all(request).await.expect("a server");
        let mut piece = vec![0; 64 * 1024];
        while head(&self.buffer).is_none() {
            assert!(self.stream.read_buf(&mut self.buffer).await.expect("a server") > 0, "the server hung up");
        }
        bytes.fetch_add((self.buffer.len() - head(&self.buffer).expect("it is there")) as u64, Relaxed);
        loop {
            let some = self.stream.read(&mut piece).await.expect("a server");
            assert!(some > 0, "the server hung up");
            bytes.fetch_add(some as u64, Relaxed);
        }
    }

    /// Sends a request whose answer does not end, and reads so many bytes of it, or a little more.
    pub async fn read(&mut self, request: &[u8], bytes: usize) -> usize {
        self.stream.write_all(request).await.expect("a server");
        let mut piece = vec![0; 256 * 1024];
        let mut read = 0;
        while read < bytes {
            let some = self.stream.read(&mut piece).await.expect("a server");
            assert!(some > 0, "the server hung up after {read} of {bytes} bytes");
            read += some;
        }
        read
    }
}

/// Where the head of an answer ends.
fn head(answer: &[u8]) -> Option<usize> {
    Some(answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4)
}

/// The status of an answer that is all there.
pub fn complete(answer: &[u8]) -> Option<u16> {
    let end = head(answer)?;
    let head = std::str::from_utf8(&answer[..end]).expect("a head is text");
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.and_then(|length| length.parse().ok()).expect("an answer says its length");
    (answer.len() >= end + length).then(|| head[9..12].parse().expect("a status"))
}

/// Runs clients on a thread of their own, as other processes would.
pub async fn elsewhere<T: Send + 'static>(clients: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        drop(done.send(runtime.block_on(clients())));
    });
    result.await.expect("the clients end")
}
