//! The load: connections that call and call again, from one thread that waits for all of them at once.
//!
//! It knows of an answer how many messages it has and that it ends with a header frame; what is in
//! them, a client of the library looks at before anything is measured.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};

use super::frames::{
    ACK, DATA, END_STREAM, GOAWAY, HEADERS, Head, Headers, PING, RST_STREAM, SETTINGS, WINDOW,
    frame, greeting, window_update,
};

/// Time for what is on its way when a burst is over.
const LAST: Duration = Duration::from_secs(10);
/// Bytes that are read at once.
const READ: usize = 256 * 1024;

/// What a call says.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) headers: Headers,
    pub(crate) message: Vec<u8>,
    /// Where in the message twelve hexadecimal digits are replaced by the number of the call.
    pub(crate) number_at: Option<usize>,
    /// Messages of an answer; `None`: at least one.
    pub(crate) messages: Option<u32>,
}

/// How often it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Each call is followed by another, until the time is over.
    Closed(Duration),
    /// So many calls in all.
    Count(u64),
    /// Every call once, evenly spread over this time.
    Once(Duration),
}

/// What came of it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Outcome {
    /// Calls and messages inside the time.
    pub(crate) calls: u64,
    pub(crate) messages: u64,
    /// Those, and what ended after it.
    pub(crate) all_calls: u64,
    pub(crate) all_messages: u64,
    pub(crate) errors: u64,
    pub(crate) elapsed: Duration,
    /// From each call to its end.
    pub(crate) latencies: Vec<Duration>,
}

/// Connections, and the calls on them.
pub(crate) struct Load<'a> {
    request: &'a Request,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
    outcome: Outcome,
    /// Calls so far; their numbers must not come again at any server.
    number: &'a mut u64,
}

struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    blocked: bool,
    head: [u8; Head::BYTES],
    have: usize,
    /// The frame that is being read, and what is missing of it.
    frame: Head,
    left: u32,
    /// The payload of frames that are answered.
    control: Vec<u8>,
    calls: Vec<Call>,
    next: u32,
    unacknowledged: u32,
}

struct Call {
    stream: u32,
    start: Instant,
    messages: u32,
    prefix: [u8; 5],
    have: u8,
    /// What is missing of the message.
    left: u32,
}

impl<'a> Load<'a> {
    /// Connects, and makes one call on each connection.
    pub(crate) fn connect(
        address: SocketAddr,
        connections: usize,
        request: &'a Request,
        warm: bool,
        number: &'a mut u64,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let connections = (0..connections)
            .map(|index| {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                let data = epoll::EventData::new_u64(index as u64);
                epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
                Ok(Connection::new(stream))
            })
            .collect::<io::Result<Vec<_>>>()?;
        let mut load = Self {
            request,
            epoll,
            connections,
            events: Vec::with_capacity(256),
            buffer: vec![0; READ],
            outcome: Outcome::default(),
            number,
        };
        for index in 0..load.connections.len() {
            if warm {
                load.call(index, Instant::now());
            }
            load.flush(index)?;
        }
        load.finish(Instant::now() + LAST)?;
        if load.outcome.errors > 0 {
            return Err(io::Error::other(format!("first calls failed: {:?}", load.outcome)));
        }
        load.outcome = Outcome::default();
        Ok(load)
    }

    /// Calls with `each` calls at a time on each connection. `in_time` is called when the time is over,
    /// and `at_last` when what was on its way has come too, with the connections still open.
    pub(crate) fn run<T>(
        mut self,
        each: usize,
        pace: Pace,
        in_time: impl FnOnce(),
        at_last: impl FnOnce() -> T,
    ) -> io::Result<(Outcome, T)> {
        let start = Instant::now();
        match pace {
            Pace::Closed(limit) => {
                for index in 0..self.connections.len() {
                    for _ in 0..each {
                        self.call(index, start);
                    }
                    self.flush(index)?;
                }
                let end = start + limit;
                while Instant::now() < end {
                    self.turn(end, true)?;
                }
            }
            Pace::Count(count) => {
                for n in 0..count.min((self.connections.len() * each) as u64) {
                    let index = usize::try_from(n).expect("few") % self.connections.len();
                    self.call(index, start);
                }
                for index in 0..self.connections.len() {
                    self.flush(index)?;
                }
                // Each that ends is followed by another, until all have begun.
                while self.begun() < count {
                    self.turn(start + LAST * 60, true)?;
                }
                self.finish(Instant::now() + LAST * 6)?;
            }
            Pace::Once(spread) => {
                let all = u32::try_from(self.connections.len() * each).expect("few");
                for n in 0..all {
                    let due = start + spread * n / all;
                    while Instant::now() < due {
                        self.turn(due, false)?;
                    }
                    let index = n as usize % self.connections.len();
                    self.call(index, Instant::now());
                    self.flush(index)?;
                }
                self.finish(Instant::now() + LAST)?;
            }
        }
        self.outcome.elapsed = start.elapsed();
        self.outcome.calls = self.outcome.all_calls;
        self.outcome.messages = self.outcome.all_messages;
        in_time();
        self.finish(Instant::now() + LAST)?;
        Ok((self.outcome, at_last()))
    }

    fn begun(&self) -> u64 {
        let under_way: usize = self.connections.iter().map(|c| c.calls.len()).sum();
        self.outcome.all_calls + under_way as u64
    }

    /// Waits for the calls that are on their way.
    fn finish(&mut self, until: Instant) -> io::Result<()> {
        while self.connections.iter().any(|connection| !connection.calls.is_empty()) {
            if Instant::now() >= until {
                let left: usize = self.connections.iter().map(|c| c.calls.len()).sum();
                self.outcome.errors += left as u64;
                return Ok(());
            }
            self.turn(until, false)?;
        }
        Ok(())
    }

    /// Waits for something, `until` at most, and takes it.
    fn turn(&mut self, until: Instant, again: bool) -> io::Result<()> {
        let wait = until.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        for n in 0..self.events.len() {
            let index = usize::try_from({ self.events[n].data }.u64()).expect("an index");
            self.read(index, now, again)?;
            self.flush(index)?;
        }
        Ok(())
    }

    fn read(&mut self, index: usize, now: Instant, again: bool) -> io::Result<()> {
        let connection = &mut self.connections[index];
        let read = match connection.stream.read(&mut self.buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let expected = self.request.messages;
        let ended = connection.take(&self.buffer[..read], now, expected, &mut self.outcome)?;
        if again {
            for _ in 0..ended {
                self.call(index, now);
            }
        }
        Ok(())
    }

    fn call(&mut self, index: usize, now: Instant) {
        let connection = &mut self.connections[index];
        let stream = connection.next;
        connection.next += 2;
        let Request { headers, message, number_at, .. } = self.request;
        headers.call(&mut connection.out, stream, message);
        if let Some(at) = number_at {
            let at = connection.out.len() - message.len() + at;
            let mut number = *self.number;
            *self.number += 1;
            for digit in connection.out[at..at + 12].iter_mut().rev() {
                *digit = b"0123456789abcdef"[(number & 0xf) as usize];
                number >>= 4;
            }
        }
        let prefix = [0; 5];
        connection.calls.push(Call { stream, start: now, messages: 0, prefix, have: 0, left: 0 });
    }

    fn flush(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        let blocked = connection.flush()?;
        if blocked != connection.blocked {
            connection.blocked = blocked;
            let mut wanted = epoll::EventFlags::IN;
            wanted.set(epoll::EventFlags::OUT, blocked);
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, &connection.stream, data, wanted)?;
        }
        Ok(())
    }
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            out: greeting(),
            blocked: false,
            head: [0; Head::BYTES],
            have: 0,
            frame: Head::default(),
            left: 0,
            control: Vec::new(),
            calls: Vec::new(),
            next: 1,
            unacknowledged: 0,
        }
    }

    /// Writes what there is to write; true if there is no room for all of it.
    fn flush(&mut self) -> io::Result<bool> {
        let mut written = 0;
        let blocked = loop {
            if written == self.out.len() {
                break false;
            }
            match self.stream.write(&self.out[written..]) {
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                Err(error) => return Err(error),
            }
        };
        self.out.drain(..written);
        Ok(blocked)
    }

    /// Takes bytes; returns how many calls have ended.
    fn take(
        &mut self,
        mut bytes: &[u8],
        now: Instant,
        expected: Option<u32>,
        outcome: &mut Outcome,
    ) -> io::Result<usize> {
        let mut ended = 0;
        while !bytes.is_empty() {
            if self.have < Head::BYTES {
                let more = bytes.len().min(Head::BYTES - self.have);
                self.head[self.have..self.have + more].copy_from_slice(&bytes[..more]);
                self.have += more;
                bytes = &bytes[more..];
                if self.have < Head::BYTES {
                    break;
                }
                self.frame = Head::read(self.head);
                self.left = self.frame.length;
                self.control.clear();
            }
            let here = bytes.len().min(self.left as usize);
            let (payload, rest) = bytes.split_at(here);
            bytes = rest;
            self.left -= u32::try_from(here).expect("a part of a frame");
            match self.frame.kind {
                DATA => self.data(payload, outcome),
                GOAWAY | PING | SETTINGS => self.control.extend(payload),
                _ => {}
            }
            if self.left == 0 {
                self.have = 0;
                ended += usize::from(self.framed(now, expected, outcome)?);
            }
        }
        Ok(ended)
    }

    fn data(&mut self, mut payload: &[u8], outcome: &mut Outcome) {
        self.unacknowledged += u32::try_from(payload.len()).expect("a part of a frame");
        let stream = self.frame.stream;
        let Some(call) = self.calls.iter_mut().find(|call| call.stream == stream) else { return };
        while !payload.is_empty() {
            if call.left > 0 {
                let here = payload.len().min(call.left as usize);
                payload = &payload[here..];
                call.left -= u32::try_from(here).expect("a part of a frame");
                continue;
            }
            call.prefix[usize::from(call.have)] = payload[0];
            call.have += 1;
            payload = &payload[1..];
            if call.have == 5 {
                let [_, length @ ..] = call.prefix;
                call.left = u32::from_be_bytes(length);
                call.have = 0;
                call.messages += 1;
                outcome.all_messages += 1;
            }
        }
    }

    /// A frame is whole; true if it ends a call.
    fn framed(
        &mut self,
        now: Instant,
        expected: Option<u32>,
        outcome: &mut Outcome,
    ) -> io::Result<bool> {
        let Head { kind, flags, stream, .. } = self.frame;
        match kind {
            PING if flags & ACK == 0 => frame(&mut self.out, PING, ACK, 0, &self.control),
            SETTINGS if flags & ACK == 0 => frame(&mut self.out, SETTINGS, ACK, 0, &[]),
            GOAWAY => {
                let why = self.control.get(4..).unwrap_or_default().escape_ascii();
                return Err(io::Error::other(format!("the server goes away: {why}")));
            }
            RST_STREAM => return Ok(self.end(stream, true, now, expected, outcome)),
            DATA | HEADERS if flags & END_STREAM != 0 => {
                return Ok(self.end(stream, kind == DATA, now, expected, outcome));
            }
            _ => {}
        }
        if self.unacknowledged > WINDOW / 2 {
            window_update(&mut self.out, self.unacknowledged);
            self.unacknowledged = 0;
        }
        Ok(false)
    }

    fn end(
        &mut self,
        stream: u32,
        broken: bool,
        now: Instant,
        expected: Option<u32>,
        outcome: &mut Outcome,
    ) -> bool {
        let Some(at) = self.calls.iter().position(|call| call.stream == stream) else {
            return false;
        };
        let call = self.calls.swap_remove(at);
        let whole = expected.map_or(call.messages > 0, |expected| call.messages == expected);
        if broken || !whole || call.left > 0 {
            outcome.errors += 1;
        }
        outcome.all_calls += 1;
        outcome.latencies.push(now.saturating_duration_since(call.start));
        true
    }
}
