//! Pages in memory, for a store without a file.
//!
//! The database doubles its space when it is full. redb's own backend is one vector, which is copied then: at
//! 128 MiB every turn waits for that, and memory that nothing is in yet is used. Here space comes in pieces,
//! each made when something is written there.

use std::{
    fmt, io,
    ops::Range,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use redb::StorageBackend;

/// Bytes of a piece: small beside any store that is worth a thought, large beside a page.
const PIECE: usize = 256 * 1024;

/// Bytes that go with the process.
#[derive(Default)]
pub(super) struct Memory(RwLock<Pieces>);

#[derive(Default)]
struct Pieces {
    bytes: usize,
    /// As many as hold `bytes`; of those where nothing was written all bytes are 0.
    pieces: Vec<Option<Box<[u8]>>>,
}

impl Memory {
    // Whether they are poisoned means nothing: nothing panics while it holds them.
    fn read_lock(&self) -> RwLockReadGuard<'_, Pieces> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Pieces> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pieces {
    /// The pieces that `bytes` from `offset` lie in: which, where in it, and where of those bytes.
    fn parts(
        &self,
        offset: u64,
        bytes: usize,
    ) -> io::Result<impl Iterator<Item = (usize, Range<usize>, Range<usize>)> + use<>> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(bytes)?));
        let Some(range) = range.filter(|range| range.end <= self.bytes) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let mut at = range.start;
        Ok(std::iter::from_fn(move || {
            let within = at % PIECE;
            let count = (range.end - at).min(PIECE - within);
            let part =
                (at / PIECE, within..within + count, at - range.start..at - range.start + count);
            at += count;
            (count > 0).then_some(part)
        }))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("bytes", &self.read_lock().bytes).finish_non_exhaustive()
    }
}

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.read_lock().bytes as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let pieces = self.read_lock();
        for (piece, within, of_out) in pieces.parts(offset, out.len())? {
            match &pieces.pieces[piece] {
                Some(piece) => out[of_out].copy_from_slice(&piece[within]),
                None => out[of_out].fill(0),
            }
        }
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut pieces = self.write_lock();
        pieces.pieces.resize_with(bytes.div_ceil(PIECE), || None);
        // What is cut off and comes again later has to be 0.
        if bytes < pieces.bytes
            && let Some(Some(last)) = pieces.pieces.get_mut(bytes / PIECE)
        {
            last[bytes % PIECE..].fill(0);
        }
        pieces.bytes = bytes;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut pieces = self.write_lock();
        for (piece, within, of_data) in pieces.parts(offset, data.len())? {
            let piece = pieces.pieces[piece].get_or_insert_with(|| vec![0; PIECE].into());
            piece[within].copy_from_slice(&data[of_data]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(memory: &Memory, offset: usize, bytes: usize) -> Vec<u8> {
        let mut out = vec![7; bytes];
        memory.read(offset as u64, &mut out).expect("bytes");
        out
    }

    #[test]
    fn what_is_written_over_pieces_is_read_and_the_rest_is_zero() {
        let memory = Memory::default();
        memory.set_len(3 * PIECE as u64).expect("space");
        let data: Vec<u8> = (1..=200).collect();
        memory.write(PIECE as u64 - 100, &data).expect("written");
        assert_eq!(read(&memory, PIECE - 100, 200), data);
        assert_eq!(read(&memory, PIECE - 101, 2), [0, 1]);
        assert_eq!(read(&memory, PIECE + 99, 2), [200, 0]);
        assert_eq!(read(&memory, 2 * PIECE, PIECE), vec![0; PIECE]);
        assert!(memory.read_lock().pieces[2].is_none(), "nothing was written there");
    }

    #[test]
    fn what_was_cut_off_comes_back_as_zero() {
        let memory = Memory::default();
        memory.set_len(2 * PIECE as u64).expect("space");
        memory.write(0, &vec![1; 2 * PIECE]).expect("written");
        memory.set_len(10).expect("less space");
        assert_eq!(memory.len().expect("a length"), 10);
        memory.set_len(2 * PIECE as u64).expect("more space");
        assert_eq!(read(&memory, 0, 20), [[1; 10], [0; 10]].concat());
        assert_eq!(read(&memory, PIECE, PIECE), vec![0; PIECE]);
    }

    #[test]
    fn what_lies_beyond_the_end_is_an_error() {
        let memory = Memory::default();
        memory.set_len(10).expect("space");
        assert!(memory.read(5, &mut [0; 6]).is_err());
        assert!(memory.write(11, &[]).is_err());
        assert!(memory.write(u64::MAX, &[0; 2]).is_err());
        memory.read(10, &mut []).expect("nothing");
        memory.write(5, &[1; 5]).expect("to the end");
    }
}
