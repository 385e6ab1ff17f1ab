//! Frames of HTTP/2 (RFC 9113) as bytes, and header blocks (RFC 7541) of the plainest kind.

/// What a client says first.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most bytes of a frame's payload, unless a peer allows more.
pub(crate) const FRAME_BYTES: usize = 16_384;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;

pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;

pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    pub(crate) fn settings(values: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (id, value) in values {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        Self::new(SETTINGS, 0, 0, payload)
    }

    pub(crate) fn reset(stream: u32, code: u32) -> Self {
        Self::new(RST_STREAM, 0, stream, code.to_be_bytes())
    }

    pub(crate) fn window(stream: u32, more: u32) -> Self {
        Self::new(WINDOW_UPDATE, 0, stream, more.to_be_bytes())
    }

    pub(crate) fn ping(text: [u8; 8]) -> Self {
        Self::new(PING, 0, 0, text)
    }

    /// A HEADERS frame and as many CONTINUATION frames as its block needs.
    pub(crate) fn headers(stream: u32, block: &[u8], end_stream: bool) -> Vec<Self> {
        let last = block.len().div_ceil(FRAME_BYTES).max(1) - 1;
        let flags = |index| if index == last { END_HEADERS } else { 0 };
        block
            .chunks(FRAME_BYTES)
            .enumerate()
            .map(|(index, part)| match index {
                0 => {
                    let end = if end_stream { END_STREAM } else { 0 };
                    Self::new(HEADERS, flags(0) | end, stream, part)
                }
                _ => Self::new(CONTINUATION, flags(index), stream, part),
            })
            .collect()
    }

    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        let length = u32::try_from(self.payload.len()).expect("a frame's length");
        into.extend(&length.to_be_bytes()[1..]);
        into.extend([self.kind, self.flags]);
        into.extend(self.stream.to_be_bytes());
        into.extend(&self.payload);
    }

    /// Takes the first frame off `bytes`, if all of it is there.
    pub(crate) fn decode(bytes: &mut Vec<u8>) -> Option<Self> {
        let head = bytes.first_chunk::<9>()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        let (kind, flags) = (head[3], head[4]);
        let payload = bytes.get(9..9 + length)?.to_vec();
        bytes.drain(..9 + length);
        Some(Self { kind, flags, stream, payload })
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The number that begins at byte `at` of the payload.
    pub(crate) fn number(&self, at: usize) -> u32 {
        let bytes = self.payload.get(at..at + 4).expect("a number");
        u32::from_be_bytes(bytes.try_into().expect("four bytes"))
    }

    /// The values of a SETTINGS frame.
    pub(crate) fn setting(&self, id: u16) -> Option<u32> {
        self.payload
            .chunks_exact(6)
            .find(|entry| entry[..2] == id.to_be_bytes())
            .map(|entry| u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]))
    }
}

/// A header block of literals that neither side has to remember.
pub(crate) fn block<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(name, &mut block);
        text(value, &mut block);
    }
    block
}

/// A string as RFC 7541 has it in 5.2, without Huffman's code.
fn text(text: &str, into: &mut Vec<u8>) {
    const PREFIX: usize = 0x7f;
    let mut length = text.len();
    if length < PREFIX {
        into.push(u8::try_from(length).expect("seven bits"));
    } else {
        into.push(0x7f);
        length -= PREFIX;
        while length >= 0x80 {
            into.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
            length >>= 7;
        }
        into.push(u8::try_from(length).expect("seven bits"));
    }
    into.extend(text.as_bytes());
}

/// A message as gRPC frames it.
pub(crate) fn grpc(message: &impl prost::Message) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.encoded_len()).expect("a length").to_be_bytes());
    bytes.extend(message.encode_to_vec());
    bytes
}
