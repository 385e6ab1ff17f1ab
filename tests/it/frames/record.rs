//! What a peer was sent, and what became of its calls by that.

use std::{fmt, time::Instant};

use super::{DATA, END_STREAM, Frame, GOAWAY, HEADERS, Peer, RST_STREAM};

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    Open,
    /// The server closed it in order.
    Fin,
    /// The server, or its kernel, reset it.
    Rst,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// With a gRPC status, in trailers or in the only headers.
    Status(i32, String),
    /// With this HTTP status and none of gRPC's.
    Http(String),
    /// With `RST_STREAM` and this code.
    Reset(u32),
    /// With the connection.
    Lost(Line),
    /// Not yet.
    Open,
}

impl End {
    pub(crate) fn code(&self) -> Option<i32> {
        match self {
            Self::Status(code, _) => Some(*code),
            _ => None,
        }
    }
}

/// A frame that the server sent.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) frame: Frame,
    /// Decoded, of a HEADERS frame.
    pub(super) headers: Vec<(String, String)>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let field = self.headers.iter().find(|(key, _)| key == name)?;
        Some(&field.1)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Goaway {
    pub(crate) at: Instant,
    pub(crate) last_stream: u32,
    pub(crate) code: u32,
}

impl Peer {
    /// Every GOAWAY so far.
    pub(crate) fn goaways(&self) -> Vec<Goaway> {
        let goaways = self.seen.iter().filter(|seen| seen.frame.kind == GOAWAY);
        let of = |seen: &Seen| Goaway {
            at: seen.at,
            last_stream: seen.frame.number(0) & 0x7fff_ffff,
            code: seen.frame.number(4),
        };
        goaways.map(of).collect()
    }

    /// How a call has ended, as far as frames tell.
    pub(crate) fn end_of(&self, stream: u32) -> End {
        let mut of_call = self.seen.iter().filter(|seen| seen.frame.stream == stream);
        let last = of_call.find_map(|seen| match seen.frame.kind {
            RST_STREAM => Some(End::Reset(seen.frame.number(0))),
            HEADERS if seen.frame.has(END_STREAM) => Some(match seen.header("grpc-status") {
                Some(code) => End::Status(
                    code.parse().expect("a code"),
                    seen.header("grpc-message").unwrap_or_default().to_owned(),
                ),
                None => End::Http(seen.header(":status").unwrap_or_default().to_owned()),
            }),
            DATA if seen.frame.has(END_STREAM) => Some(End::Http("200".to_owned())),
            _ => None,
        });
        last.unwrap_or(End::Open)
    }

    /// The messages that a call was answered with, as long as each is one frame.
    pub(crate) fn messages<M: prost::Message + Default>(&self, stream: u32) -> Vec<M> {
        let of_call = |seen: &&Seen| (seen.frame.kind, seen.frame.stream) == (DATA, stream);
        let payloads = self.seen.iter().filter(of_call).map(|seen| seen.frame.payload.as_slice());
        payloads
            .filter(|payload| !payload.is_empty())
            .map(|payload| M::decode(&payload[5..]).expect("a message"))
            .collect()
    }
}

/// What was said, one frame a line, for the message of a test that failed.
impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?} with {} PINGs answered after", self.line, self.pongs)?;
        for Seen { at, frame: Frame { kind, flags, stream, payload }, headers } in &self.seen {
            let after = at.duration_since(self.since).as_millis();
            let short = &payload[..payload.len().min(24)];
            writeln!(
                f,
                "{after:>6} ms: type {kind} flags {flags} stream {stream} of {} bytes {short:?} {headers:?}",
                payload.len(),
            )?;
        }
        Ok(())
    }
}
