//! Augmented: the model, grounded in what the knowledge base has on the question.
//!
//! Where the knowledge base has nothing, the model is not asked, unless `engine.ungrounded` says so:
//! an answer that nothing vouches for is what this engine is there to avoid. Where the model cannot be
//! had and nothing was said yet, the answer is that of the knowledge base, marked as such. One quick
//! try more is made before that; the turn would make two slow ones, and then have no answer at all.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{
    End, Engine, Error, Piece, Pieces, Question, Retrieval,
    generative::{Grounds, pieces},
    openai::{Ask, Client},
    prompt,
    retrieval::source,
};
use crate::{
    config,
    knowledge::{self, Hit, Knowledge, Query},
};

/// A failure that took longer is not tried again: whoever asks has waited enough.
const QUICK: Duration = Duration::from_secs(2);
/// Pause before the other try, where the server does not ask for another; a longer one is not waited.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Answers by a model from the knowledge base.
#[derive(Debug, Clone)]
pub struct Augmented {
    client: Client,
    knowledge: Knowledge,
    retrieval: Retrieval,
    min_confidence: f64,
    config: config::Engine,
}

impl Augmented {
    /// Answers by the model of `client` from the entries of `knowledge` whose confidence reaches
    /// `min_confidence`.
    pub fn new(
        client: Client,
        knowledge: Knowledge,
        min_confidence: f64,
        config: config::Engine,
    ) -> Self {
        let retrieval = Retrieval::new(knowledge.clone(), min_confidence);
        Self { client, knowledge, retrieval, min_confidence, config }
    }

    /// The entries to answer from. A question such as "and how do I mend it?" has its subject in the one
    /// before it, so that one is searched for with it if it finds nothing by itself.
    fn entries(&self, question: &Question) -> Result<Vec<Hit>, knowledge::Error> {
        let hits = self.search(&question.text, question)?;
        match question.history.last() {
            Some(last) if hits.is_empty() => {
                self.search(&format!("{} {}", last.question, question.text), question)
            }
            _ => Ok(hits),
        }
    }

    fn search(&self, text: &str, question: &Question) -> Result<Vec<Hit>, knowledge::Error> {
        let query = Query {
            text,
            language: question.language.as_deref(),
            excluded: &[],
            most: self.config.grounding_entries,
        };
        let mut hits = self.knowledge.search(&query)?;
        hits.retain(|hit| hit.confidence >= self.min_confidence);
        Ok(hits)
    }

    /// What the model is asked and what its answer rests on; `None`: it is not asked.
    fn prepared(&self, question: &Question) -> Result<Option<(Ask, Grounds)>, knowledge::Error> {
        let mut hits = self.entries(question)?;
        let window = self.client.context_tokens();
        let asked = if hits.is_empty() {
            if !self.config.ungrounded {
                return Ok(None);
            }
            question.text.clone()
        } else {
            let template = &self.config.grounding_template;
            let (asked, used) = prompt::grounded(template, &question.text, &hits, window);
            hits.truncate(used);
            asked
        };
        let messages = prompt::messages(&self.config.system_prompt, question, asked, window);
        let grounds = Grounds {
            confidence: hits.first().map_or(0.0, |hit| hit.confidence),
            sources: hits.iter().map(source).collect(),
        };
        Ok(Some((Ask { request: question.request, messages }, grounds)))
    }
}

impl Engine for Augmented {
    fn answer(&self, question: Question) -> Pieces {
        match self.prepared(&question) {
            Ok(Some((ask, grounds))) => {
                let run = Run { engine: self.clone(), question, ask, grounds, again: false };
                Box::pin(stream::once(run.start()).flatten())
            }
            Ok(None) => self.retrieval.answer(question),
            Err(error) => Box::pin(stream::iter([Err(Error::Knowledge(error))])),
        }
    }
}

/// An answer until its first piece.
struct Run {
    engine: Augmented,
    question: Question,
    ask: Ask,
    grounds: Grounds,
    /// Whether this is the other try.
    again: bool,
}

impl Run {
    /// The model's answer once it has begun, else that of the knowledge base.
    async fn start(mut self) -> Pieces {
        loop {
            let begun = Instant::now();
            let Self { engine, question, ask, grounds, .. } = &self;
            let mut pieces = pieces(&engine.client, ask.clone(), question, grounds.clone());
            let error = match pieces.next().await {
                Some(Err(error @ (Error::Unavailable { .. } | Error::Refused(_)))) => error,
                first => return Box::pin(stream::iter(first).chain(pieces)),
            };
            match pause(&error) {
                Some(pause) if !self.again && self.may_try(begun) => {
                    self.again = true;
                    self.engine.client.retried();
                    sleep(pause).await;
                }
                _ => return self.fall_back(&error),
            }
        }
    }

    fn may_try(&self, begun: Instant) -> bool {
        begun.elapsed() < QUICK && !self.engine.client.is_resting()
    }

    fn fall_back(self, error: &Error) -> Pieces {
        warn!(request = %self.question.request, %error, "the knowledge base answers in the model's place");
        let pieces = self.engine.retrieval.answer(self.question);
        Box::pin(pieces.map(|piece| match piece {
            Ok(Piece::End(end)) => Ok(Piece::End(End { degraded: true, ..end })),
            other => other,
        }))
    }
}

/// How long to wait before the other try; `None`: there is no point in one.
fn pause(error: &Error) -> Option<Duration> {
    match error {
        Error::Unavailable { retry_after, .. } => {
            Some(retry_after.unwrap_or(PAUSE)).filter(|pause| *pause <= LONGEST_PAUSE)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use uuid::Uuid;

    use super::*;
    use crate::{
        config::{Config, Sources},
        domain::RequestId,
        engine::{Exchange, openai::Role},
        knowledge::Base,
    };

    fn engine(more: &[&str]) -> Augmented {
        let model = ["upstream.base_url=http://127.0.0.1:1", "upstream.model=tiny"];
        let overrides = model.iter().chain(more).map(|pair| (*pair).to_owned()).collect();
        let config = Config::load(&Sources { overrides, ..Sources::default() }).expect("settings");
        let upstream = config.upstream.expect("a model");
        let client = Client::new(&upstream, &mut Registry::default()).expect("a client");
        let entries = Base::Sample.load().expect("the sample");
        let knowledge = Knowledge::of_entries(&entries).expect("an index");
        Augmented::new(client, knowledge, 0.5, config.engine)
    }

    fn question(text: &str, before: &[&str]) -> Question {
        let exchange = |question: &&str| Exchange {
            question: (*question).to_owned(),
            answer: "...".to_owned(),
        };
        Question {
            request: RequestId(Uuid::new_v4()),
            text: text.to_owned(),
            language: None,
            history: before.iter().map(exchange).collect(),
        }
    }

    const TOPIC: &str = "Why does my gRPC server fail with too many open files?";

    #[test]
    fn a_question_that_needs_the_one_before_it_finds_its_entries() {
        let engine = engine(&[]);
        let alone = engine.prepared(&question(TOPIC, &[])).expect("a search").expect("entries");
        let (ask, grounds) = engine
            .prepared(&question("And then?", &[TOPIC]))
            .expect("a search")
            .expect("entries by the question before");
        assert_eq!(grounds.sources[0].answer_id, alone.1.sources[0].answer_id);
        let roles: Vec<Role> = ask.messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User]);
        assert!(ask.messages[3].content.ends_with("Question: And then?"));
        assert!(engine.prepared(&question("And then?", &[])).expect("a search").is_none());
    }

    #[test]
    fn entries_that_do_not_reach_the_threshold_are_not_told() {
        let engine = engine(&["engine.ungrounded=true", "engine.grounding_entries=20"]);
        let (_, grounds) = engine.prepared(&question(TOPIC, &[])).expect("a search").expect("some");
        assert!((1..20).contains(&grounds.sources.len()), "{}", grounds.sources.len());
        let pizza = question("What is the best pizza in Naples?", &[]);
        let (ask, grounds) =
            engine.prepared(&pizza).expect("a search").expect("asked all the same");
        assert!(grounds.sources.is_empty() && grounds.confidence <= 0.0);
        assert_eq!(ask.messages[1].content, pizza.text);
    }

    #[test]
    fn only_what_can_pass_soon_is_tried_again() {
        let unavailable = |retry_after| Error::Unavailable { why: String::new(), retry_after };
        assert_eq!(pause(&unavailable(None)), Some(PAUSE));
        assert_eq!(pause(&unavailable(Some(LONGEST_PAUSE))), Some(LONGEST_PAUSE));
        assert_eq!(pause(&unavailable(Some(LONGEST_PAUSE * 2))), None);
        assert_eq!(pause(&Error::Refused(String::new())), None);
    }
}
