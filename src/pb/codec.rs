//! Messages as bytes: prost's, in buffers of the size of our messages.
//!
//! tonic's own codec begins each call with two buffers of 8 KiB. Nearly all of our messages have some
//! hundred bytes, and an answer waits in its buffer until it is written with its neighbours': of a hundred
//! calls at a time they were a megabyte, for which neither the allocator's caches nor the processor's are
//! made.

use std::marker::PhantomData;

use prost::{Message, bytes::BufMut as _};
use tonic::{
    Status,
    codec::{BufferSettings, EncodeBuf},
};
use tonic_prost::ProstDecoder;

/// Bytes that a buffer begins with, both ways.
const FIRST: usize = 512;
/// Bytes that it is given room for at least where a message does not fit: more may follow.
const NEXT: usize = 2 * 1024;
/// Bytes that are handed on without a further message, as tonic has it.
const ENOUGH: usize = 32 * 1024;

fn settings() -> BufferSettings {
    BufferSettings::new(FIRST, ENOUGH)
}

/// A codec for messages `T` out and `U` in.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Encoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        Encoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(settings())
    }
}

/// Writes messages.
#[derive(Debug)]
pub struct Encoder<T>(PhantomData<T>);

impl<T: Message> tonic::codec::Encoder for Encoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // At once: field by field a buffer doubles, and a long answer is copied for the number that follows it.
        let length = message.encoded_len();
        if buffer.chunk_mut().len() < length {
            buffer.reserve(length.max(NEXT));
        }
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}
