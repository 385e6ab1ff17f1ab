//! Retrieval: the best entry's answer, word for word, or an honest "I do not know".

use futures_util::stream;

use super::{End, Engine, Error, Piece, Pieces, Question};
use crate::{
    domain::{FinishReason, Source},
    knowledge::{self, Hit, Knowledge, Query},
};

/// Bytes of a source's title: an answer and all its sources have to fit into one message.
const TITLE_BYTES: usize = 256;
/// Near misses that are told where there is no answer.
const NEAR_MISSES: usize = 3;

/// Answers from the knowledge base.
#[derive(Debug, Clone)]
pub struct Retrieval {
    knowledge: Knowledge,
    min_confidence: f64,
}

impl Retrieval {
    /// Answers from `knowledge` where confidence reaches `min_confidence`.
    pub fn new(knowledge: Knowledge, min_confidence: f64) -> Self {
        Self { knowledge, min_confidence }
    }

    fn best(&self, question: &Question) -> Result<(String, End), knowledge::Error> {
        let query = Query {
            text: &question.text,
            language: question.language.as_deref(),
            excluded: &[],
            most: NEAR_MISSES,
        };
        let mut hits = self.knowledge.search(&query)?;
        let confidence = hits.first().map_or(0.0, |hit| hit.confidence);
        let answered = !hits.is_empty() && confidence >= self.min_confidence;
        let text = if answered {
            hits.truncate(1);
            hits[0].entry.answer.clone()
        } else {
            unknown(question).to_owned()
        };
        let sources = hits.iter().map(source).collect();
        let (usage, finish) = (None, FinishReason::Stop);
        Ok((text, End { answered, confidence, sources, usage, finish, degraded: false }))
    }
}

impl Engine for Retrieval {
    fn answer(&self, question: Question) -> Pieces {
        let pieces = match self.best(&question) {
            // By words, as a model would: what is shown at once is decided where turns are run.
            Ok((text, end)) => text
                .split_inclusive(char::is_whitespace)
                .map(|word| Ok(Piece::Text(word.to_owned())))
                .chain([Ok(Piece::End(end))])
                .collect(),
            Err(error) => vec![Err(Error::Knowledge(error))],
        };
        Box::pin(stream::iter(pieces))
    }

    fn at_once(&self, question: &Question) -> Option<Result<(String, End), Error>> {
        Some(self.best(question).map_err(Error::Knowledge))
    }
}

pub(super) fn source(hit: &Hit) -> Source {
    let title = hit.entry.questions.first().map_or("", String::as_str);
    let title = title[..title.floor_char_boundary(TITLE_BYTES)].to_owned();
    Source { answer_id: hit.entry.answer_id, score: hit.score, title }
}

/// "I do not know", in the caller's language, else in that of the question's script.
pub(super) fn unknown(question: &Question) -> &'static str {
    let hangul = |text: &str| {
        text.chars()
            .any(|character| matches!(character, '\u{1100}'..='\u{11FF}' | '\u{AC00}'..='\u{D7A3}'))
    };
    let korean = match &question.language {
        Some(language) => language == "ko",
        None => hangul(&question.text),
    };
    if korean {
        "그 질문에 대한 답은 아직 모릅니다. 다르게 물어봐 주시겠어요?"
    } else {
        "I do not know the answer to that. Could you ask in another way?"
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};
    use uuid::Uuid;

    use super::*;
    use crate::{domain::RequestId, knowledge::Base};

    struct Answer {
        text: String,
        end: End,
    }

    fn engine(min_confidence: f64) -> Retrieval {
        let entries = Base::Sample.load().expect("the sample");
        Retrieval::new(Knowledge::of_entries(&entries).expect("an index"), min_confidence)
    }

    fn ask(engine: &Retrieval, text: &str, language: Option<&str>) -> Answer {
        let question = Question {
            request: RequestId(Uuid::new_v4()),
            text: text.to_owned(),
            language: language.map(str::to_owned),
            history: Vec::new(),
        };
        let pieces = engine.answer(question).collect::<Vec<_>>().now_or_never();
        let mut text = String::new();
        for piece in pieces.expect("all of it is ready") {
            match piece.expect("a search") {
                Piece::Text(more) => text.push_str(&more),
                Piece::End(end) => return Answer { text, end },
            }
        }
        panic!("no end");
    }

    #[test]
    fn it_knows_what_it_knows_and_says_so_otherwise() {
        let engine = engine(0.5);
        for known in [
            "Why does my gRPC server fail with too many open files?",
            "gRPC 서버에서 too many open files 에러가 나요",
        ] {
            let answer = ask(&engine, known, None);
            assert!(answer.end.answered, "{known}: {:?}", answer.end);
            assert_eq!(answer.end.sources.len(), 1);
            let entries = Base::Sample.load().expect("the sample");
            let id = answer.end.sources[0].answer_id;
            let entry = entries.iter().find(|entry| entry.answer_id == id).expect("the entry");
            assert_eq!(answer.text, entry.answer);
        }
        for unknown in [
            "What is the best pizza in Naples?",
            "내일 서울 날씨 어때?",
            "asdfgh",
            "How do I bake bread?",
            "김치찌개 맛있게 끓이는 법 알려줘",
            "Who won the world cup in 2002?",
        ] {
            let answer = ask(&engine, unknown, None);
            assert!(!answer.end.answered, "{unknown}: {:?}", answer.end);
        }
    }

    #[test]
    fn one_entry_is_a_knowledge_base_too() {
        let entry = crate::domain::Entry {
            answer_id: crate::domain::AnswerId(1),
            questions: vec!["Where is the red bicycle?".to_owned()],
            answer: "In the cellar.".to_owned(),
            language_code: "en".to_owned(),
        };
        let engine = Retrieval::new(Knowledge::of_entries(&[entry]).expect("an index"), 0.5);
        for asked in ["Where is the red bicycle?", "red bicycle", "where's my red bicycle"] {
            assert!(ask(&engine, asked, None).end.answered, "{asked}");
        }
        for unknown in ["Where is the blue car?", "빨간 자전거 어디 있어?", "bicycle race results"]
        {
            assert!(!ask(&engine, unknown, None).end.answered, "{unknown}");
        }
    }

    #[test]
    fn not_knowing_is_said_in_the_callers_language() {
        let engine = engine(1.1);
        assert!(ask(&engine, "내일 날씨 어때?", None).text.contains("모릅니다"));
        assert!(ask(&engine, "weather?", Some("ko")).text.contains("모릅니다"));
        assert!(ask(&engine, "내일 날씨 어때?", Some("en")).text.contains("do not know"));
        assert!(ask(&engine, "weather?", None).text.contains("do not know"));
    }

    #[test]
    fn the_threshold_decides() {
        let question = "too many open files";
        assert!(ask(&engine(0.0), question, None).end.answered);
        let refused = ask(&engine(1.1), question, None);
        assert!(!refused.end.answered);
        assert!(!refused.end.sources.is_empty(), "near misses are told");
    }
}
