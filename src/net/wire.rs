//! The bytes of one connection: a wrapper that sees whether the peer speaks, and whether it says
//! anything.
//!
//! hyper tells nothing about a handshake that does not come, and answers floods of frames that ask
//! for nothing (PRIORITY, `WINDOW_UPDATE`, unknown types: up to nine million a second on one core,
//! measured) for ever. Both show in the number of bytes.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

/// The client's preface and the head of its first frame, which has to be SETTINGS (RFC 9113, 3.4). The
/// first three bytes of the head are the length of what follows.
const PREFACE: usize = 24;
const HEAD: usize = PREFACE + 9;
/// Bytes that a peer may send without a call: settings, pings, window updates of calls that have
/// ended. More is no conversation.
const IDLE_TALK: u64 = 4 * 1024 * 1024;

/// What is known about the bytes.
#[derive(Debug, Default)]
pub(super) struct Heard {
    greeted: AtomicBool,
    /// Bytes since the last sign of a call.
    idle_talk: AtomicU64,
    spoken: Notify,
}

impl Heard {
    /// Ends when the peer has begun to speak HTTP/2: preface and SETTINGS are there.
    pub(super) async fn spoken(&self) {
        while !self.greeted.load(Ordering::Acquire) {
            self.spoken.notified().await;
        }
    }

    fn greeted(&self) {
        self.greeted.store(true, Ordering::Release);
        // One waiter at most, which may not be waiting yet.
        self.spoken.notify_one();
    }

    /// A call began, or its data came.
    pub(super) fn sensible(&self) {
        self.idle_talk.store(0, Ordering::Relaxed);
    }

    /// Counts, and says whether to go on.
    fn hear(&self, bytes: u64) -> bool {
        self.idle_talk.fetch_add(bytes, Ordering::Relaxed) + bytes <= IDLE_TALK
    }
}

/// How far the peer's greeting has come.
#[derive(Debug)]
struct Greeting {
    head: [u8; HEAD],
    heard: usize,
}

impl Greeting {
    /// Takes the next bytes; true once preface and SETTINGS are there.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let open = HEAD.saturating_sub(self.heard);
        let head = bytes.len().min(open);
        self.head[self.heard.min(HEAD)..][..head].copy_from_slice(&bytes[..head]);
        self.heard += bytes.len();
        // HTTP/1.1, where it is spoken, has a deadline of its own for the rest of its head.
        let settings = if self.head.starts_with(b"PRI ") {
            let [high, middle, low] =
                [0, 1, 2].map(|index| usize::from(self.head[PREFACE + index]));
            high << 16 | middle << 8 | low
        } else {
            0
        };
        self.heard >= HEAD + settings
    }
}

pin_project_lite::pin_project! {
    /// The stream, with what was heard on it.
    #[derive(Debug)]
    pub(super) struct Wire<S> {
        #[pin]
        stream: S,
        heard: Arc<Heard>,
        // `None` once it is over.
        greeting: Option<Greeting>,
    }
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, heard: Arc<Heard>) -> Self {
        Self { stream, heard, greeting: Some(Greeting { head: [0; HEAD], heard: 0 }) }
    }
}

impl<S: AsyncRead> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buffer.filled().len();
        let read = this.stream.poll_read(context, buffer);
        let bytes = buffer.filled().len() - before;
        if let Some(greeting) = this.greeting
            && greeting.take(&buffer.filled()[before..])
        {
            *this.greeting = None;
            this.heard.greeted();
        }
        if bytes > 0 && !this.heard.hear(bytes as u64) {
            // An error has to come without bytes.
            buffer.set_filled(before);
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer sends frames that ask for nothing",
            )));
        }
        read
    }
}

impl<S: AsyncWrite> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_peer_has_spoken_once_preface_and_settings_are_there() {
        let heard = Arc::new(Heard::default());
        let (mut peer, stream) = tokio::io::duplex(64);
        let mut wire = Wire::new(stream, Arc::clone(&heard));
        let mut spoken = Box::pin(heard.spoken());
        let mut greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // SETTINGS of one setting: six bytes of payload.
        greeting.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]);
        let (last, rest) = greeting.split_last().expect("bytes");
        for part in rest.chunks(7) {
            peer.write_all(part).await.expect("written");
            wire.read_exact(&mut [0; 7][..part.len()]).await.expect("read");
            assert!(futures_util::poll!(spoken.as_mut()).is_pending());
        }
        peer.write_all(&[*last]).await.expect("written");
        wire.read_exact(&mut [0]).await.expect("read");
        spoken.await;
    }

    #[tokio::test]
    async fn a_peer_that_only_talks_is_cut_and_one_that_calls_is_not() {
        let heard = Arc::new(Heard::default());
        let flood = || vec![0; 1024 * 1024];
        let read = async |wire: &mut Wire<&[u8]>| {
            let mut sink = Vec::new();
            wire.read_to_end(&mut sink).await
        };
        for _ in 0..8 {
            let data = flood();
            read(&mut Wire::new(&data[..], Arc::clone(&heard))).await.expect("it calls");
            heard.sensible();
        }
        let mut cut = false;
        for _ in 0..8 {
            let data = flood();
            cut |= read(&mut Wire::new(&data[..], Arc::clone(&heard))).await.is_err();
        }
        assert!(cut);
    }
}
