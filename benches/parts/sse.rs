//! What a model's server streams, taken apart into events.

use chatbot::engine::openai::sse::Decoder;
use divan::{
    Bencher,
    counter::{BytesCount, ItemsCount},
};

const EVENTS: usize = 1_000;

/// As the network may cut a stream: an event at a time, as they come live; in the middle of lines; and in
/// whole buffers, where the reader is behind.
#[divan::bench(args = [event(0).len(), 100, 16 * 1024])]
fn decode(bencher: Bencher<'_, '_>, bytes_a_read: usize) {
    let stream: Vec<u8> = (0..EVENTS).flat_map(event).collect();
    bencher.counter(ItemsCount::new(EVENTS)).counter(BytesCount::new(stream.len())).bench(|| {
        let mut decoder = Decoder::default();
        let mut events = 0;
        for mut read in stream.chunks(bytes_a_read) {
            while let Some(event) = decoder.next(&mut read).expect("small events") {
                divan::black_box(event);
                events += 1;
            }
        }
        assert_eq!(events, EVENTS);
    });
}

/// A token, with the fields that vLLM sends; each as long as the others.
fn event(number: usize) -> Vec<u8> {
    let event = format!(
        "data: {{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\
         \"chat.completion.chunk\",\"created\":1700000000,\"model\":\"a-model\",\"choices\":[{{\
         \"index\":0,\"delta\":{{\"content\":\" {number:04}\"}},\"logprobs\":null,\
         \"finish_reason\":null}}],\"usage\":null}}\n\n"
    );
    event.into_bytes()
}
