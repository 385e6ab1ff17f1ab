//! HTTP/2 as far as a load needs it: requests as bytes, and frames as they come.
//!
//! A library as the client would cost more than the servers that it measures.

/// The client's preface, its settings, and room for answers on the connection as a whole.
pub(crate) fn greeting() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE: no call has to wait for room.
    let window = [&[0, 4][..], &WINDOW.to_be_bytes()].concat();
    frame(&mut bytes, SETTINGS, 0, 0, &window);
    window_update(&mut bytes, WINDOW);
    bytes
}

/// Bytes that a server may send before it hears more: half of what HTTP/2 allows.
pub(crate) const WINDOW: u32 = 1 << 30;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Appends a frame.
pub(crate) fn frame(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    to.extend([length[1], length[2], length[3], kind, flags]);
    to.extend(stream.to_be_bytes());
    to.extend(payload);
}

/// Appends more room for the connection.
pub(crate) fn window_update(to: &mut Vec<u8>, more: u32) {
    frame(to, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Head {
    pub(crate) length: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    pub(crate) const BYTES: usize = 9;

    pub(crate) fn read(head: [u8; Self::BYTES]) -> Self {
        let number = |bytes| u32::from_be_bytes(bytes);
        Self {
            length: number([0, head[0], head[1], head[2]]),
            kind: head[3],
            flags: head[4],
            stream: number([head[5] & 0x7f, head[6], head[7], head[8]]),
        }
    }
}

/// The header blocks of the calls of one method (HPACK, RFC 7541).
#[derive(Debug)]
pub(crate) struct Headers {
    first: Vec<u8>,
    later: Vec<u8>,
}

impl Headers {
    /// For calls of `path`, such as `/package.Service/Method`, with a bearer token.
    pub(crate) fn new(path: &str, token: &str) -> Self {
        let authorization = format!("Bearer {token}");
        // Names by their number in the static table, or spelt out.
        let fields: [(u8, &str, &str); 6] = [
            (4, "", path),
            (1, "", "localhost"),
            (31, "", "application/grpc"),
            (0, "te", "trailers"),
            (58, "", "wire"),
            (23, "", &authorization),
        ];
        // :method POST, :scheme http
        let mut first = vec![0x83, 0x86];
        for (number, name, value) in fields {
            // A literal that the decoder remembers.
            first.push(0x40 | number);
            if number == 0 {
                text(&mut first, name);
            }
            text(&mut first, value);
        }
        // The newest entry of the table has number 62. The oldest comes first: names that begin with a
        // colon have to.
        let remembered = u8::try_from(fields.len()).expect("few");
        let numbers = (62..62 + remembered).rev();
        let later = [0x83, 0x86].into_iter().chain(numbers.map(|number| 0x80 | number));
        Self { first, later: later.collect() }
    }

    /// Appends a call of a connection: its head and its only message.
    pub(crate) fn call(&self, to: &mut Vec<u8>, stream: u32, message: &[u8]) {
        let block = if stream == 1 { &self.first } else { &self.later };
        frame(to, HEADERS, END_HEADERS, stream, block);
        let length = u32::try_from(message.len()).expect("a short message");
        let whole = u32::try_from(message.len() + 5).expect("a short message").to_be_bytes();
        to.extend([whole[1], whole[2], whole[3], DATA, END_STREAM]);
        to.extend(stream.to_be_bytes());
        // Not compressed.
        to.push(0);
        to.extend(length.to_be_bytes());
        to.extend(message);
    }
}

fn text(to: &mut Vec<u8>, text: &str) {
    // Lengths of 127 and more would take a second byte.
    to.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("short"));
    to.extend(text.as_bytes());
}
