//! `RankAnswers`: what matches, best first.

use super::{Chatbot, Error, convert, proto};
use crate::{
    domain::AnswerId,
    error::Violation,
    knowledge::{Hit, Query},
};

/// Answers where the caller does not say how many.
const DEFAULT_ANSWERS: usize = 10;
/// Answers at most.
const MOST_ANSWERS: usize = 100;
/// Exclusions at most.
const MOST_EXCLUDED: usize = 1000;

impl Chatbot {
    pub(super) fn rank(&self, request: &proto::RankAnswersRequest) -> Result<Vec<Hit>, Error> {
        let mut check = convert::Check::default();
        check.query("query", &request.query, self.limits.query_bytes);
        let most = match usize::try_from(request.max_answers) {
            Ok(0) => DEFAULT_ANSWERS,
            Ok(most) if most <= MOST_ANSWERS => most,
            _ => {
                let what = format!("must be 0 to {MOST_ANSWERS}, is {}", request.max_answers);
                check.found(Violation::new("max_answers", what));
                0
            }
        };
        if request.excluded_answer_ids.len() > MOST_EXCLUDED {
            let count = request.excluded_answer_ids.len();
            let what = format!("must be at most {MOST_EXCLUDED}, are {count}");
            check.found(Violation::new("excluded_answer_ids", what));
        }
        let language = check.language("language_code", &request.language_code);
        check.finish()?;
        let excluded: Vec<_> = request.excluded_answer_ids.iter().copied().map(AnswerId).collect();
        let query = Query {
            text: &request.query,
            language: language.as_deref(),
            excluded: &excluded,
            // Confidence depends on how far the first is ahead of the second.
            most: most.max(2),
        };
        let mut hits = self.knowledge.search(&query)?;
        hits.truncate(most);
        Ok(hits)
    }
}
