//! A generator of load that costs next to nothing: one thread, connections that are kept, requests made beforehand.
//!
//! In an open loop requests are due when the rate says so, whatever became of those before; one for which no connection
//! is free waits, and its time runs from when it was due. So a server that is slow cannot slow down what it is asked.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::event::{Timespec, epoll};

/// How requests come.
#[derive(Clone, Copy)]
pub enum Pace {
    /// So many at once, each after the answer to the one before.
    Closed(usize),
    /// So many in a second.
    Open(f64),
}

/// What became of a request. Times are since the begin of the run.
#[derive(Clone, Copy)]
pub struct Answered {
    pub due: Duration,
    pub took: Duration,
    pub status: u16,
}

pub struct Generator {
    epoll: OwnedFd,
    connections: Vec<Connection>,
    free: Vec<usize>,
}

struct Connection {
    stream: TcpStream,
    due: Instant,
    answer: Vec<u8>,
}

impl Generator {
    pub fn new(addr: SocketAddr, connections: usize) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
        let connections: Vec<_> = (0..connections)
            .map(|at| {
                let stream = TcpStream::connect(addr).expect("it listens");
                stream.set_nodelay(true).expect("a socket");
                stream.set_nonblocking(true).expect("a socket");
                let data = epoll::EventData::new_u64(at as u64);
                epoll::add(&epoll, stream.as_fd(), data, epoll::EventFlags::IN).expect("it is watched");
                Connection { stream, due: Instant::now(), answer: Vec::with_capacity(4096) }
            })
            .collect();
        let free = (0..connections.len()).collect();
        Self { epoll, connections, free }
    }

    /// Sends requests, in their order and over again, for so long; returns when the last one is answered.
    /// `tick` is called about once in a millisecond.
    pub fn run(
        &mut self,
        requests: &[Vec<u8>],
        next: &mut usize,
        pace: Pace,
        time: Duration,
        mut tick: impl FnMut(Duration),
    ) -> Vec<Answered> {
        let begun = Instant::now();
        let (mut answered, mut due, mut waiting) = (Vec::new(), 0_u64, VecDeque::new());
        let mut events = Vec::with_capacity(1024);
        let mut under_way = 0;
        loop {
            let now = Instant::now();
            let over = now - begun >= time;
            match pace {
                Pace::Closed(width) if !over => {
                    for _ in under_way..width {
                        waiting.push_back(now);
                    }
                }
                Pace::Open(rate) if !over => {
                    while let at = begun + Duration::from_secs_f64(due as f64 / rate)
                        && at <= now
                    {
                        waiting.push_back(at);
                        due += 1;
                    }
                }
                _ => {}
            }
            while !waiting.is_empty()
                && let Some(at) = self.free.pop()
            {
                let connection = &mut self.connections[at];
                connection.due = waiting.pop_front().expect("somebody waits");
                connection.answer.clear();
                let request = &requests[*next % requests.len()];
                *next += 1;
                let written = connection.stream.write(request).expect("a server");
                assert_eq!(written, request.len(), "a request fits into a socket");
                under_way += 1;
            }
            if over && under_way == 0 && waiting.is_empty() {
                return answered;
            }
            tick(now - begun);
            let timeout = Timespec { tv_sec: 0, tv_nsec: 500_000 };
            events.clear();
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)).expect("events");
            for event in &events {
                let at = event.data.u64() as usize;
                let connection = &mut self.connections[at];
                if let Some(status) = connection.answer() {
                    let took = connection.due.elapsed();
                    answered.push(Answered { due: connection.due - begun, took, status });
                    self.free.push(at);
                    under_way -= 1;
                }
            }
        }
    }
}

impl Connection {
    /// The status, once the answer is all there.
    fn answer(&mut self) -> Option<u16> {
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => panic!("the server hung up"),
                Ok(read) => self.answer.extend_from_slice(&piece[..read]),
                Err(why) if why.kind() == ErrorKind::WouldBlock => return None,
                Err(why) => panic!("{why}"),
            }
            if let Some(status) = super::net::complete(&self.answer) {
                return Some(status);
            }
        }
    }
}

/// Which of the times a share of them is no longer than, in milliseconds.
pub fn share(times: impl IntoIterator<Item = Duration>, share: f64) -> f64 {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort();
    let at = (times.len().max(1) - 1) as f64 * share;
    times.get(at as usize).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}
