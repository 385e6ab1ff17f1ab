//! Generative: the model alone, with the conversation so far.

use futures_util::{StreamExt as _, future, stream};

use super::{
    End, Engine, Error, Piece, Pieces, Question,
    openai::{Ask, Client, Part},
    prompt,
    retrieval::unknown,
};
use crate::domain::Source;

/// Answers by a model.
#[derive(Debug, Clone)]
pub struct Generative {
    client: Client,
    system_prompt: String,
}

impl Generative {
    /// Answers by the model of `client`, which is told to be what `system_prompt` says.
    pub fn new(client: Client, system_prompt: String) -> Self {
        Self { client, system_prompt }
    }
}

impl Engine for Generative {
    fn answer(&self, question: Question) -> Pieces {
        let window = self.client.context_tokens();
        let asked = question.text.clone();
        let messages = prompt::messages(&self.system_prompt, &question, asked, window);
        let ask = Ask { request: question.request, messages };
        // Nothing vouches for it.
        pieces(&self.client, ask, &question, Grounds { confidence: 0.0, sources: Vec::new() })
    }
}

/// What a model's answer rests on.
#[derive(Debug, Clone)]
pub(super) struct Grounds {
    pub(super) confidence: f64,
    pub(super) sources: Vec<Source>,
}

/// The model's answer as an engine gives it. A model that ends without a word does not know.
pub(super) fn pieces(client: &Client, ask: Ask, question: &Question, grounds: Grounds) -> Pieces {
    let silent = unknown(question);
    let pieces = client.ask(ask).scan(false, move |said, part| {
        let pieces: Vec<Result<Piece, Error>> = match part {
            Ok(Part::Text(text)) => {
                *said |= !text.trim().is_empty();
                vec![Ok(Piece::Text(text))]
            }
            Ok(Part::End { finish, usage }) => {
                let Grounds { confidence, sources } = grounds.clone();
                let answered = *said;
                let end = Piece::End(End {
                    answered,
                    confidence,
                    sources,
                    usage,
                    finish,
                    degraded: false,
                });
                let sentence = (!answered).then(|| Piece::Text(silent.to_owned()));
                sentence.into_iter().chain([end]).map(Ok).collect()
            }
            Err(error) => vec![Err(error)],
        };
        future::ready(Some(stream::iter(pieces)))
    });
    Box::pin(pieces.flatten())
}
