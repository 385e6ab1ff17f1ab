//! Engines that follow a script, served as `ENGINE_GENERATIVE`.
//!
//! [`Stepped`] is played by the test, piece by piece, through channels. [`Paced`] plays what the
//! question says, for replicas in processes of their own.

use std::{fs::OpenOptions, io::Write as _, path::PathBuf, time::Duration};

use chatbot::{
    domain::{FinishReason, RequestId},
    engine::{End, Engine, Error, Piece, Pieces, Question},
};
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::LONG;

/// Said by the test, the engine panics.
pub(crate) const PANIC: &str = "panic!";

/// Hands every question to the test.
#[derive(Debug)]
pub(crate) struct Stepped {
    questions: mpsc::Sender<Played>,
    /// Pieces that may wait to be taken.
    room: usize,
}

/// A question that waits for the test's pieces.
#[derive(Debug)]
pub(crate) struct Played {
    pub(crate) question: Question,
    pieces: mpsc::Sender<Result<Piece, Error>>,
}

/// The questions of one or more servers, as they come.
#[derive(Debug)]
pub(crate) struct Questions(mpsc::Receiver<Played>);

/// An engine, and the questions that it will be asked.
pub(crate) fn stepped() -> (Stepped, Questions) {
    stepped_with_room(1_000)
}

/// The same, with room for so many pieces.
pub(crate) fn stepped_with_room(room: usize) -> (Stepped, Questions) {
    let (sender, questions) = mpsc::channel(1_000);
    (Stepped { questions: sender, room }, Questions(questions))
}

impl Stepped {
    /// The same script on another replica.
    pub(crate) fn again(&self) -> Self {
        Self { questions: self.questions.clone(), room: self.room }
    }
}

impl Engine for Stepped {
    fn answer(&self, question: Question) -> Pieces {
        let (pieces, receiver) = mpsc::channel(self.room);
        self.questions.try_send(Played { question, pieces }).expect("room for a question");
        Box::pin(ReceiverStream::new(receiver).inspect(|piece| {
            assert!(!matches!(piece, Ok(Piece::Text(text)) if text == PANIC), "as the test says");
        }))
    }
}

impl Questions {
    pub(crate) async fn next(&mut self) -> Played {
        let next = tokio::time::timeout(LONG, self.0.recv()).await;
        next.expect("a question in time").expect("an engine")
    }

    /// Whether there is one that nobody has taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(crate) fn end() -> Piece {
    Piece::End(End {
        answered: true,
        confidence: 1.0,
        sources: Vec::new(),
        usage: None,
        finish: FinishReason::Stop,
        degraded: false,
    })
}

impl Played {
    pub(crate) async fn say(&self, text: &str) {
        self.pieces.send(Ok(Piece::Text(text.to_owned()))).await.expect("it is listened to");
    }

    pub(crate) async fn end(self) {
        self.pieces.send(Ok(end())).await.expect("it is listened to");
    }

    pub(crate) async fn fail(self, error: Error) {
        self.pieces.send(Err(error)).await.expect("it is listened to");
    }

    /// Waits until the server has dropped the answer.
    pub(crate) async fn dropped(&self) {
        tokio::time::timeout(LONG, self.pieces.closed()).await.expect("dropped in time");
    }
}

/// What the question asks of [`Paced`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Script {
    /// What tells this answer from others.
    pub(crate) seed: u64,
    /// How many pieces.
    pub(crate) pieces: usize,
    /// Bytes of a piece, about.
    pub(crate) bytes: usize,
    /// Milliseconds before each piece.
    pub(crate) every: u64,
    /// Where the first run of a request stops for ever; later ones do not.
    pub(crate) hangs_at: Option<usize>,
}

impl Script {
    pub(crate) fn question(&self) -> String {
        serde_json::to_string(self).expect("a script")
    }

    fn piece(&self, index: usize) -> String {
        let word = format!("{}-{index} 가나다 ", self.seed);
        word.repeat(self.bytes.div_ceil(word.len()).max(1))
    }

    /// The whole answer.
    pub(crate) fn text(&self) -> String {
        (0..self.pieces).map(|index| self.piece(index)).collect()
    }
}

/// Plays the script that is its question, and notes each request that it starts to answer.
#[derive(Debug)]
pub(crate) struct Paced {
    pub(crate) notes: PathBuf,
}

impl Paced {
    /// How often the request was started, this time included.
    fn note(&self, request: RequestId) -> usize {
        let mut notes = OpenOptions::new().create(true).append(true).open(&self.notes);
        let notes = notes.as_mut().expect("a file for notes");
        notes.write_all(format!("{request}\n").as_bytes()).expect("a note");
        self::notes(&self.notes)[&request.to_string()]
    }
}

/// How often each request was started to be answered.
pub(crate) fn notes(path: &std::path::Path) -> std::collections::HashMap<String, usize> {
    let mut counts = std::collections::HashMap::new();
    for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    counts
}

impl Engine for Paced {
    fn answer(&self, question: Question) -> Pieces {
        let run = self.note(question.request);
        let script: Script = serde_json::from_str(&question.text).expect("a script");
        let pieces = stream::iter(0..script.pieces).then(move |index| {
            let piece = Ok(Piece::Text(script.piece(index)));
            async move {
                if run == 1 && script.hangs_at == Some(index) {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(Duration::from_millis(script.every)).await;
                piece
            }
        });
        Box::pin(pieces.chain(stream::iter([Ok(end())])))
    }
}
