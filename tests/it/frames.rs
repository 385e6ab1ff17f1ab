//! A peer that speaks HTTP/2 frame by frame, so that it can be rude: it blocks, it waits with
//! deadlines, and it keeps everything it was sent, with the time.
//!
//! Left alone it is polite: SETTINGS and PINGs are acknowledged when they are read.

mod codec;
mod record;

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use chatbot::pb::health::v1::HealthCheckRequest;
use socket2::{Domain, Socket, Type};

pub(crate) use self::{
    codec::*,
    record::{End, Goaway, Line, Seen},
};

pub(crate) const CHECK: &str = "/grpc.health.v1.Health/Check";
pub(crate) const WATCH: &str = "/grpc.health.v1.Health/Watch";
pub(crate) const ASK: &str = "/chatbot.v1.Chatbot/Ask";
pub(crate) const RANK: &str = "/chatbot.v1.Chatbot/RankAnswers";
pub(crate) const TEACH: &str = "/chatbot.v1.Chatbot/Teach";

/// A TCP connection from a source address of choice, which the loopback network has 2^24 of.
pub(crate) fn dial(source: Ipv4Addr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    // A full backlog drops the SYN, and the kernel tries again a second later.
    socket.connect_timeout(&address.into(), Duration::from_secs(3))?;
    Ok(socket.into())
}

pub(crate) struct Peer {
    stream: TcpStream,
    /// When it began to connect: not after the server has accepted it.
    pub(crate) since: Instant,
    /// Everything that was sent, but for acknowledgements of PINGs and SETTINGS, which are counted.
    pub(crate) seen: Vec<Seen>,
    pub(crate) pongs: usize,
    pub(crate) settings_acks: usize,
    pub(crate) acks_pings: bool,
    /// Whether it has said hello; before that it must not answer anything.
    greeted: bool,
    line: Line,
    buffer: Vec<u8>,
    headers: fluke_hpack::Decoder<'static>,
    next_stream: u32,
    /// What may still be sent, by stream; 0 is the connection.
    windows: HashMap<u32, i64>,
    initial_window: i64,
}

impl Peer {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::connect_from(Ipv4Addr::LOCALHOST, address)
    }

    pub(crate) fn connect_from(source: Ipv4Addr, address: SocketAddr) -> Self {
        Self::try_from(source, address).expect("a connection")
    }

    /// A connection, unless it is reset before it is there.
    pub(crate) fn try_from(source: Ipv4Addr, address: SocketAddr) -> io::Result<Self> {
        let since = Instant::now();
        let stream = dial(source, address)?;
        stream.set_nodelay(true)?;
        // A server that does not read must not hang a test.
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self {
            stream,
            since,
            seen: Vec::new(),
            pongs: 0,
            settings_acks: 0,
            acks_pings: true,
            greeted: false,
            line: Line::Open,
            buffer: Vec::new(),
            headers: fluke_hpack::Decoder::new(),
            next_stream: 1,
            windows: HashMap::from([(0, 65_535)]),
            initial_window: 65_535,
        })
    }

    /// Writes bytes as they are; whether the connection took them.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// How long a write may take from now on.
    pub(crate) fn write_within(&mut self, time: Duration) {
        self.stream.set_write_timeout(Some(time)).expect("an option");
    }

    pub(crate) fn send(&mut self, frames: &[Frame]) -> bool {
        let mut bytes = Vec::new();
        for frame in frames {
            frame.encode(&mut bytes);
        }
        self.write(&bytes)
    }

    /// Says the preface and `settings`, and waits for the server's SETTINGS; whether they came.
    pub(crate) fn handshake(&mut self, settings: &[(u16, u32)], within: Duration) -> bool {
        let mut bytes = PREFACE.to_vec();
        Frame::settings(settings).encode(&mut bytes);
        self.write(&bytes);
        self.greeted = true;
        let said = |seen: &Seen| seen.frame.kind == SETTINGS;
        self.wait_for(within, said).is_some()
    }

    /// A connection that has shaken hands.
    pub(crate) fn polite(address: SocketAddr) -> Self {
        Self::polite_from(Ipv4Addr::LOCALHOST, address)
    }

    pub(crate) fn polite_from(source: Ipv4Addr, address: SocketAddr) -> Self {
        let mut peer = Self::connect_from(source, address);
        assert!(peer.handshake(&[], Duration::from_secs(5)), "the server's SETTINGS: {peer:?}");
        peer
    }

    /// The frames that begin a call, and its stream.
    pub(crate) fn call(&mut self, path: &str, more: &[(&str, &str)]) -> (u32, Vec<Frame>) {
        let stream = self.next_stream;
        self.next_stream += 2;
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "chatbot.test"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ];
        let block = block(fields.into_iter().chain(more.iter().copied()));
        (stream, Frame::headers(stream, &block, false))
    }

    /// Begins a call; its body stays open.
    pub(crate) fn open(&mut self, path: &str, more: &[(&str, &str)]) -> u32 {
        let (stream, frames) = self.call(path, more);
        self.send(&frames);
        stream
    }

    /// Sends a call whose body is `message`.
    pub(crate) fn request(&mut self, path: &str, message: &impl prost::Message) -> u32 {
        let stream = self.open(path, &[]);
        self.finish_body(stream, message);
        stream
    }

    /// Sends the last message of a call's body.
    pub(crate) fn finish_body(&mut self, stream: u32, message: &impl prost::Message) {
        self.send(&[Frame::new(DATA, END_STREAM, stream, grpc(message))]);
    }

    /// Opens a Watch of a health service and waits for its first message.
    pub(crate) fn watch(&mut self, service: &str) -> u32 {
        let stream = self.request(WATCH, &HealthCheckRequest { service: service.to_owned() });
        let said = move |seen: &Seen| seen.frame.kind == DATA && seen.frame.stream == stream;
        assert!(self.wait_for(Duration::from_secs(5), said).is_some(), "a status: {self:?}");
        stream
    }

    /// Asks for the server's health and waits for the end of the call.
    pub(crate) fn check(&mut self, within: Duration) -> End {
        let stream = self.request(CHECK, &HealthCheckRequest::default());
        self.wait_end_of(stream, within)
    }

    /// Sends part of a body as far as the windows let it; how much was sent.
    pub(crate) fn send_data(&mut self, stream: u32, mut bytes: &[u8], within: Duration) -> usize {
        let deadline = Instant::now() + within;
        let all = bytes.len();
        while !bytes.is_empty() && self.line == Line::Open {
            let initial = self.initial_window;
            let window = (*self.windows.entry(stream).or_insert(initial)).min(self.windows[&0]);
            let length = usize::try_from(window).unwrap_or(0).min(bytes.len()).min(FRAME_BYTES);
            if length == 0 {
                if !self.read(deadline) {
                    break;
                }
                continue;
            }
            let (now, later) = bytes.split_at(length);
            if !self.send(&[Frame::new(DATA, 0, stream, now)]) {
                break;
            }
            for id in [0, stream] {
                *self.windows.get_mut(&id).expect("a window") -=
                    i64::try_from(length).expect("a small number");
            }
            bytes = later;
        }
        all - bytes.len()
    }

    /// Reads until a frame is there that is `wanted`, or has been before.
    pub(crate) fn wait_for(
        &mut self,
        within: Duration,
        wanted: impl Fn(&Seen) -> bool,
    ) -> Option<&Seen> {
        let deadline = Instant::now() + within;
        let mut looked = 0;
        loop {
            if let Some(found) = self.seen[looked..].iter().position(&wanted) {
                return self.seen.get(looked + found);
            }
            looked = self.seen.len();
            if !self.read(deadline) && self.seen.len() == looked {
                return None;
            }
        }
    }

    /// Waits for the first GOAWAY.
    pub(crate) fn wait_goaway(&mut self, within: Duration) -> Option<Goaway> {
        self.wait_for(within, |seen| seen.frame.kind == GOAWAY)?;
        self.goaways().first().cloned()
    }

    /// Waits for the end of a call.
    pub(crate) fn wait_end_of(&mut self, stream: u32, within: Duration) -> End {
        let deadline = Instant::now() + within;
        loop {
            let end = self.end_of(stream);
            if end != End::Open {
                return end;
            }
            if self.line != Line::Open {
                return End::Lost(self.line);
            }
            if !self.read(deadline) && self.line == Line::Open && self.end_of(stream) == End::Open {
                return End::Open;
            }
        }
    }

    /// Acknowledges the PINGs that were let pass.
    pub(crate) fn ack_pings(&mut self) {
        let pings = self.seen.iter().filter(|seen| seen.frame.kind == PING);
        let acks: Vec<_> = pings.map(|seen| Frame { flags: ACK, ..seen.frame.clone() }).collect();
        self.send(&acks);
        self.acks_pings = true;
    }

    /// Reads until the connection has ended or time is over.
    pub(crate) fn wait_end(&mut self, within: Duration) -> Line {
        let deadline = Instant::now() + within;
        while self.read(deadline) {}
        self.line
    }

    /// Reads what comes next; whether anything did before the deadline.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if self.line != Line::Open || left.is_zero() {
            return false;
        }
        self.stream.set_read_timeout(Some(left)).expect("an option");
        let mut bytes = [0; 16_384];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.line = Line::Fin,
            Ok(length) => self.take(&bytes[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return false;
            }
            Err(_) => self.line = Line::Rst,
        }
        self.line == Line::Open
    }

    fn take(&mut self, bytes: &[u8]) {
        let at = Instant::now();
        self.buffer.extend(bytes);
        while let Some(frame) = Frame::decode(&mut self.buffer) {
            let mut headers = Vec::new();
            match frame.kind {
                PING if frame.has(ACK) => {
                    self.pongs += 1;
                    continue;
                }
                SETTINGS if frame.has(ACK) => {
                    self.settings_acks += 1;
                    continue;
                }
                PING if self.greeted && self.acks_pings => {
                    self.send(&[Frame { flags: ACK, ..frame.clone() }]);
                }
                SETTINGS => {
                    let initial = frame.setting(INITIAL_WINDOW_SIZE).map(i64::from);
                    self.initial_window = initial.unwrap_or(self.initial_window);
                    if self.greeted {
                        self.send(&[Frame::new(SETTINGS, ACK, 0, [])]);
                    }
                }
                WINDOW_UPDATE => {
                    let initial = self.initial_window;
                    let window = self.windows.entry(frame.stream).or_insert(initial);
                    *window += i64::from(frame.number(0));
                }
                HEADERS => {
                    assert!(frame.has(END_HEADERS), "the server's headers are short");
                    let fields = self.headers.decode(&frame.payload).expect("a header block");
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    headers =
                        fields.into_iter().map(|(name, value)| (text(name), text(value))).collect();
                }
                _ => {}
            }
            self.seen.push(Seen { at, frame, headers });
        }
    }
}
