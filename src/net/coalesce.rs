//! Writes that wait a moment, so that answers which are ready together leave together.
//!
//! A call that ends wakes its connection, and the runtime runs the connection next: it would write one
//! answer, with fifteen others about to be ready behind it. Two thirds of all responses were a write of
//! their own, and the kernel took two fifths of the time (measured, stock server). So bytes are
//! gathered here, and a flush lets the tasks that are ready run first: it is put off by at most two
//! turns of the scheduler, which wait for nothing else, so that a call that is alone loses
//! microseconds.
//!
//! It stands over TLS: what is gathered becomes one record, and not only one write.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered at most; with as many, nothing is put off. Part of what a connection can cost.
pub(super) const GATHERED: usize = 32 * 1024;
/// Turns of the scheduler by which a flush is put off.
const TURNS: u8 = 2;
/// Room that is made at first: most answers are small, and most gatherings few.
const FIRST: usize = 2 * 1024;

/// Counts what connections write; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Writes {
    /// Writes to the stream below.
    pub(super) written: Counter,
    /// Flushes that had something to write, and the turns that they were put off by.
    pub(super) flushed: Counter,
    pub(super) put_off: Counter,
}

/// A stream whose flushes are put off.
#[derive(Debug)]
pub(super) struct Coalesce<S> {
    stream: S,
    /// Without memory of its own when it is empty: idle connections are many.
    gathered: Vec<u8>,
    /// Turns by which the flush that is under way was put off.
    turns: u8,
    writes: Writes,
}

impl<S: AsyncWrite + Unpin> Coalesce<S> {
    pub(super) fn new(stream: S, writes: Writes) -> Self {
        Self { stream, gathered: Vec::new(), turns: 0, writes }
    }

    /// Writes all that is gathered.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let taken = Pin::new(&mut self.stream).poll_write(context, &self.gathered);
            let taken = ready!(self.written(taken))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if taken == self.gathered.len() {
                self.gathered = Vec::new();
            } else {
                self.gathered.drain(..taken);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn written(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(outcome, Poll::Ready(Ok(_))) {
            self.writes.written.inc();
        }
        outcome
    }

    /// Makes room for something, and says how much there is.
    fn room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= GATHERED {
            ready!(self.drain(context))?;
        }
        Poll::Ready(Ok(GATHERED - self.gathered.len()))
    }

    fn gather(&mut self, bytes: &[u8]) {
        let (length, capacity) = (self.gathered.len(), self.gathered.capacity());
        if length + bytes.len() > capacity {
            // Faster than a vector does, since it is mostly a little or a lot; never beyond what may be
            // gathered.
            let grown = (4 * capacity).clamp(FIRST, GATHERED).max(length + bytes.len());
            self.gathered.reserve_exact(grown - length);
        }
        self.gathered.extend_from_slice(bytes);
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesce<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let room = ready!(this.room(context))?;
        // Copying what goes out at once anyway would be for nothing.
        if this.gathered.is_empty() && bytes.len() >= room {
            let taken = Pin::new(&mut this.stream).poll_write(context, bytes);
            return this.written(taken);
        }
        let taken = bytes.len().min(room);
        this.gather(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    // Vectored writes are left at their default, which is to have none: with them, h2 hands over each frame of
    // 256 bytes by itself, with a flush before the next one, which would be put off; without, it gathers frames
    // of up to 1 KiB before.

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.gathered.is_empty() {
            if this.turns < TURNS && this.gathered.len() < GATHERED {
                this.turns += 1;
                this.writes.put_off.inc();
                // A task that wakes itself runs again behind all that are ready.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(this.drain(context))?;
            this.writes.flushed.inc();
        }
        this.turns = 0;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.drain(context))?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalesce<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Wake, Waker},
    };

    use super::*;

    /// What a stream does with the next write: take so many bytes, fail, or have no room.
    enum Step {
        Take(usize),
        Fail,
        Full,
    }

    /// A stream that follows a script, and takes everything after it.
    #[derive(Default)]
    struct Scripted {
        script: VecDeque<Step>,
        written: Vec<u8>,
        writes: usize,
        flushes: usize,
        shut_down: bool,
    }

    impl AsyncWrite for Scripted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let most = match self.script.pop_front() {
                None => bytes.len(),
                Some(Step::Take(most)) => bytes.len().min(most),
                Some(Step::Fail) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Some(Step::Full) => return Poll::Pending,
            };
            self.written.extend(&bytes[..most]);
            self.writes += 1;
            Poll::Ready(Ok(most))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut_down = true;
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A stream, and the task that uses it.
    struct Task {
        stream: Coalesce<Scripted>,
        wakes: Arc<Wakes>,
    }

    impl Task {
        fn new(script: impl IntoIterator<Item = Step>) -> Self {
            let stream = Scripted { script: script.into_iter().collect(), ..Scripted::default() };
            let stream = Coalesce::new(stream, Writes::default());
            Self { stream, wakes: Arc::default() }
        }

        fn with<T>(
            &mut self,
            act: impl FnOnce(Pin<&mut Coalesce<Scripted>>, &mut Context<'_>) -> T,
        ) -> T {
            let waker = Waker::from(Arc::clone(&self.wakes));
            act(Pin::new(&mut self.stream), &mut Context::from_waker(&waker))
        }

        fn write(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.with(|stream, context| stream.poll_write(context, bytes))
        }

        fn flush(&mut self) -> Poll<io::Result<()>> {
            self.with(AsyncWrite::poll_flush)
        }

        /// Flushes as a runtime would: again after each wake-up. The number of turns that it took.
        fn flush_woken(&mut self) -> usize {
            for turn in 1..10 {
                let before = self.wakes.0.load(Ordering::Relaxed);
                match self.flush() {
                    Poll::Ready(flushed) => {
                        flushed.expect("flushed");
                        return turn;
                    }
                    Poll::Pending => {
                        assert_eq!(self.wakes.0.load(Ordering::Relaxed), before + 1, "it sleeps");
                    }
                }
            }
            panic!("it is put off for ever");
        }
    }

    fn taken(outcome: Poll<io::Result<usize>>) -> usize {
        match outcome {
            Poll::Ready(taken) => taken.expect("written"),
            Poll::Pending => panic!("there is room"),
        }
    }

    #[test]
    fn what_comes_within_two_turns_leaves_in_one_write_and_in_order() {
        let mut task = Task::new([]);
        assert_eq!(taken(task.write(b"one")), 3);
        assert!(task.flush().is_pending());
        assert_eq!(taken(task.write(b"two")), 3);
        assert!(task.flush().is_pending());
        assert_eq!(taken(task.write(b"three")), 5);
        assert!(task.flush().is_ready());
        assert_eq!(task.stream.stream.written, b"onetwothree");
        assert_eq!((task.stream.stream.writes, task.stream.stream.flushes), (1, 1));
        assert_eq!(task.stream.writes.written.get(), 1);
        assert_eq!(task.stream.writes.flushed.get(), 1);
    }

    #[test]
    fn a_flush_wakes_its_task_and_ends_in_the_third_turn() {
        let mut task = Task::new([]);
        for _ in 0..3 {
            taken(task.write(b"x"));
            assert_eq!(task.flush_woken(), 3);
        }
        assert_eq!(task.stream.stream.written, b"xxx");
        // With nothing to write there is nothing to put off.
        assert_eq!(task.flush_woken(), 1);
    }

    #[test]
    fn a_stream_without_room_is_waited_for_and_not_asked_for_turns_again() {
        let mut task = Task::new([Step::Take(2), Step::Full, Step::Full]);
        taken(task.write(b"abcd"));
        assert!(task.flush().is_pending() && task.flush().is_pending());
        let wakes = task.wakes.0.load(Ordering::Relaxed);
        // It is the stream's part to wake now.
        assert!(task.flush().is_pending() && task.flush().is_pending());
        assert_eq!(task.wakes.0.load(Ordering::Relaxed), wakes);
        assert!(task.flush().is_ready());
        assert_eq!(task.stream.stream.written, b"abcd");
    }

    #[test]
    fn no_more_is_gathered_than_may_be_and_then_nothing_is_put_off() {
        let mut task = Task::new([Step::Full, Step::Full]);
        let part = [7; GATHERED / 4 + 1];
        for _ in 0..3 {
            assert_eq!(taken(task.write(&part)), part.len());
            assert!(task.stream.gathered.capacity() <= GATHERED);
        }
        assert_eq!(taken(task.write(&part)), GATHERED - 3 * part.len());
        assert!(task.write(&part).is_pending(), "there is no room");
        assert_eq!(task.stream.gathered.capacity(), GATHERED);
        assert!(task.flush().is_pending());
        assert_eq!(task.wakes.0.load(Ordering::Relaxed), 0);
        assert!(task.flush().is_ready());
        assert_eq!(task.stream.stream.written, vec![7; GATHERED]);
    }

    #[test]
    fn as_much_as_may_be_gathered_goes_through_without_a_copy() {
        let mut task = Task::new([Step::Take(5)]);
        assert_eq!(taken(task.write(&vec![1; GATHERED])), 5);
        assert_eq!(task.stream.stream.written, [1; 5]);
        assert_eq!(task.stream.gathered.capacity(), 0);
    }

    #[test]
    fn an_empty_buffer_has_no_memory() {
        let mut task = Task::new([]);
        taken(task.write(&vec![0; 20_000]));
        assert_eq!(task.flush_woken(), 3);
        assert_eq!(task.stream.gathered.capacity(), 0);
    }

    #[test]
    fn a_broken_stream_is_told_by_the_flush() {
        let mut task = Task::new([Step::Fail]);
        taken(task.write(b"lost"));
        assert!(task.flush().is_pending() && task.flush().is_pending());
        let Poll::Ready(Err(error)) = task.flush() else { panic!("the error is lost") };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_stream_that_takes_nothing_is_broken() {
        let mut task = Task::new([Step::Take(0)]);
        taken(task.write(b"lost"));
        let shut = task.with(AsyncWrite::poll_shutdown);
        let Poll::Ready(Err(error)) = shut else { panic!("it would be asked for ever") };
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn a_shutdown_writes_what_is_left_before_it_closes() {
        let mut task = Task::new([Step::Take(3), Step::Full]);
        taken(task.write(b"goodbye"));
        assert!(task.with(AsyncWrite::poll_shutdown).is_pending());
        assert!(!task.stream.stream.shut_down);
        assert!(task.with(AsyncWrite::poll_shutdown).is_ready());
        assert!(task.stream.stream.shut_down);
        assert_eq!(task.stream.stream.written, b"goodbye");
    }
}
