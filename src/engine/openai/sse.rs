//! Server-sent events, as far as a stream of completions has them: the data of each event.
//!
//! Bytes come as the network cuts them, in the middle of a line or of a character; nothing is decoded
//! before its line is whole. What is kept is bounded: a server that sends one endless line costs
//! [`EVENT_BYTES`] and is given up, where the usual decoders grow until the process is killed.

/// Most bytes of an event.
pub const EVENT_BYTES: usize = 256 * 1024;

/// An event is larger than [`EVENT_BYTES`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event has more than {EVENT_BYTES} bytes")]
pub struct TooLarge;

/// Takes a stream of events apart.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The line that has not ended.
    line: Vec<u8>,
    /// The data of the event that has not ended.
    data: Vec<u8>,
    /// Whether the event has data, which may be empty.
    any: bool,
    /// The last byte was a carriage return: a line feed behind it belongs to it.
    returned: bool,
    /// Whether there was a line before.
    begun: bool,
}

impl Decoder {
    /// Takes bytes off the front of `bytes` up to the end of an event, and gives its data; `None` if
    /// they end before it does.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Vec<u8>>, TooLarge> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.returned) && bytes.first() == Some(&b'\n') {
                *bytes = &bytes[1..];
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.keep(bytes)?;
                *bytes = &[];
                break;
            };
            self.keep(&bytes[..end])?;
            self.returned = bytes[end] == b'\r';
            *bytes = &bytes[end + 1..];
            if let Some(event) = self.line_ended() {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// The data of an event that the end of the stream has cut: many servers leave out the empty line
    /// behind the last one. Half a message is no message to whoever reads it.
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        if !self.line.is_empty() {
            self.line_ended();
        }
        self.event()
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), TooLarge> {
        if self.line.len() + self.data.len() + part.len() > EVENT_BYTES {
            return Err(TooLarge);
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn line_ended(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        let first = !std::mem::replace(&mut self.begun, true);
        let line = match line.strip_prefix("\u{FEFF}".as_bytes()) {
            Some(rest) if first => rest,
            _ => &line[..],
        };
        if line.is_empty() {
            return self.event();
        }
        // Comments, names, ids and pauses are of no use here.
        let value = if line == b"data" { Some(&b""[..]) } else { line.strip_prefix(b"data:") };
        if let Some(value) = value {
            if std::mem::replace(&mut self.any, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
        None
    }

    fn event(&mut self) -> Option<Vec<u8>> {
        let data = std::mem::take(&mut self.data);
        std::mem::take(&mut self.any).then_some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(pieces: &[&[u8]]) -> Vec<String> {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        for mut piece in pieces.iter().copied() {
            while let Some(event) = decoder.next(&mut piece).expect("small events") {
                events.push(event);
            }
        }
        events.extend(decoder.rest());
        events.into_iter().map(|event| String::from_utf8(event).expect("UTF-8")).collect()
    }

    const STREAM: &str = "\u{FEFF}: a comment\n\ndata: one\r\n\r\nevent: x\nid: 7\ndata:둘\r\n\
        data\ndata:  three\n\n\n\ndata: four\r\rretry: 5\n\ndata: 다섯";

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let whole = ["one", "둘\n\n three", "four", "다섯"];
        let bytes = STREAM.as_bytes();
        assert_eq!(decoded(&[bytes]), whole);
        assert_eq!(decoded(&bytes.chunks(1).collect::<Vec<_>>()), whole);
        for cut in 0..bytes.len() {
            assert_eq!(decoded(&[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
            assert_eq!(decoded(&[&bytes[..cut], b"", &bytes[cut..]]), whole, "twice at {cut}");
        }
    }

    #[test]
    fn an_endless_line_or_event_is_given_up() {
        let line = vec![b'x'; 1024];
        let mut decoder = Decoder::default();
        let given_up = (0..300).find(|_| decoder.next(&mut &line[..]).is_err());
        assert_eq!(given_up, Some(EVENT_BYTES / 1024));

        let mut decoder = Decoder::default();
        let line = [b"data: ", &line[..], b"\n"].concat();
        let given_up = (0..300).find(|_| decoder.next(&mut &line[..]).is_err());
        assert!(given_up.is_some());
    }

    #[test]
    fn what_is_no_event_is_none() {
        assert_eq!(decoded(&[b"<html>\n<body>no</body>\n\n{\"error\": 1}\n\n"]), [""; 0]);
        assert_eq!(decoded(&[b""]), [""; 0]);
    }
}
