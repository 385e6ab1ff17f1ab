//! How good retrieval is, measured on the entries themselves: each alternative question is left out
//! in turn and asked.
//!
//! The same trials show an operator what the bot makes of a knowledge base (`examples/evaluate.rs`)
//! and are what confidence is fitted on, so both speak of the real index.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashSet},
};

use super::{
    Error, Query,
    confidence::{Calibration, Features},
    index::Index,
};
use crate::domain::{AnswerId, Entry};

/// Ranks that count: MRR@10.
const RANKS: usize = 10;
/// Entries that are looked at; of a larger base every nth is.
const ENTRIES: usize = 5_000;
/// Questions of an entry that are left out in turn, at most.
const FOLDS: usize = 6;
/// Questions that are asked at most, spread over entries and folds.
const QUESTIONS: usize = 2_000;

/// One question, asked of a knowledge base that does not have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The question.
    pub question: String,
    /// The entry that should answer it.
    pub answer_id: AnswerId,
    /// The entry's language code.
    pub language_code: String,
    /// At which rank it came, from 1; `None` if not among the first ten.
    pub rank: Option<usize>,
    /// What the first hit looked like.
    pub(super) first: Option<Features>,
    /// What it looked like with the right entry gone, so that it was surely wrong.
    pub(super) first_without: Option<Features>,
}

/// How one language fared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Questions that were asked.
    pub questions: usize,
    /// Mean reciprocal rank, ranks beyond ten counting nothing.
    pub mrr: f64,
    /// Share of questions whose entry came first.
    pub recall_at_1: f64,
}

/// What a threshold makes of the trials: half of the questions have their entry, half do not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    /// Whether confidence is fitted on these trials; else it is the default.
    pub fitted: bool,
    /// Share of the questions with an entry that are answered, rightly or not.
    pub answered: f64,
    /// Share of all answers that are right.
    pub precision: f64,
    /// Share of the questions without an entry that are answered all the same.
    pub false_answers: f64,
}

/// Asks every left-out question. Entries with one question take part as bystanders. Blocks; takes
/// one index build per alternative.
pub fn trials<E: Borrow<Entry>>(entries: &[E]) -> Result<Vec<Trial>, Error> {
    let step = entries.len().div_ceil(ENTRIES).max(1);
    let entries: Vec<&Entry> = entries.iter().step_by(step).map(Borrow::borrow).collect();
    let askable =
        |fold: usize| entries.iter().filter(move |entry| entry.questions.len() > 1.max(fold));
    let folds = entries.iter().map(|entry| entry.questions.len()).max().unwrap_or(0).min(FOLDS);
    let questions: usize = (0..folds).map(|fold| askable(fold).count()).sum();
    let step = questions.div_ceil(QUESTIONS).max(1);
    let mut trials = Vec::with_capacity(questions / step);
    for fold in 0..folds {
        let remaining: Vec<Entry> = entries.iter().map(|entry| without(entry, fold)).collect();
        let index = Index::of_entries(remaining)?;
        for entry in askable(fold).skip(fold % step).step_by(step) {
            trials.push(ask(&index, entry, &entry.questions[fold])?);
        }
    }
    Ok(trials)
}

fn without(entry: &Entry, fold: usize) -> Entry {
    let mut entry = entry.clone();
    if entry.questions.len() > 1.max(fold) {
        entry.questions.remove(fold);
    }
    entry
}

fn ask(index: &Index, entry: &Entry, question: &str) -> Result<Trial, Error> {
    let query = Query { text: question, language: None, excluded: &[], most: RANKS };
    let matches = index.search(&query)?;
    let excluded = [entry.answer_id];
    let others = index.search(&Query { excluded: &excluded, most: 2, ..query })?;
    let rank = matches.iter().position(|found| found.entry.answer_id == entry.answer_id);
    Ok(Trial {
        question: question.to_owned(),
        answer_id: entry.answer_id,
        language_code: entry.language_code.clone(),
        rank: rank.map(|index| index + 1),
        first: Features::of(&matches, 0),
        first_without: Features::of(&others, 0),
    })
}

/// The quality by language code.
pub fn by_language(trials: &[Trial]) -> BTreeMap<&str, Quality> {
    let mut languages: BTreeMap<&str, Vec<&Trial>> = BTreeMap::new();
    for trial in trials {
        languages.entry(&trial.language_code).or_default().push(trial);
    }
    languages.into_iter().map(|(language, trials)| (language, quality(&trials))).collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts of questions")]
fn quality(trials: &[&Trial]) -> Quality {
    let reciprocal: f64 =
        trials.iter().filter_map(|trial| trial.rank).map(|rank| 1.0 / rank as f64).sum();
    let first = trials.iter().filter(|trial| trial.rank == Some(1)).count();
    let all = trials.len() as f64;
    Quality { questions: trials.len(), mrr: reciprocal / all, recall_at_1: first as f64 / all }
}

/// The confidence that the trials lead to.
pub(super) fn calibration(trials: &[Trial]) -> Calibration {
    let entries: HashSet<_> = trials.iter().map(|trial| trial.answer_id).collect();
    let with = trials.iter().filter_map(|trial| Some((trial.first?, trial.rank == Some(1))));
    let without = trials.iter().filter_map(|trial| Some((trial.first_without?, false)));
    let hits: Vec<_> = with.chain(without).collect();
    Calibration::fit(entries.len(), &hits)
}

/// Judges the trials by a threshold, with the confidence that they lead to.
#[expect(clippy::cast_precision_loss, reason = "counts of questions")]
pub fn judgement(trials: &[Trial], threshold: f64) -> Judgement {
    let calibration = calibration(trials);
    let answers = |features: Option<Features>| {
        features.is_some_and(|features| calibration.likelihood(features) >= threshold)
    };
    let answered: Vec<_> = trials.iter().filter(|trial| answers(trial.first)).collect();
    let right = answered.iter().filter(|trial| trial.rank == Some(1)).count();
    let wrong = trials.iter().filter(|trial| answers(trial.first_without)).count();
    let all = trials.len() as f64;
    Judgement {
        fitted: calibration.is_fitted(),
        answered: answered.len() as f64 / all,
        precision: right as f64 / (answered.len() + wrong) as f64,
        false_answers: wrong as f64 / all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: i32, questions: &[&str]) -> Entry {
        Entry {
            answer_id: AnswerId(id),
            questions: questions.iter().map(|question| (*question).to_owned()).collect(),
            answer: "answer".to_owned(),
            language_code: "en".to_owned(),
        }
    }

    #[test]
    fn each_alternative_is_asked_once_and_single_questions_never() {
        let entries = [
            entry(1, &["red apple", "red fruit", "red thing"]),
            entry(2, &["blue sky", "blue air"]),
            entry(3, &["green"]),
        ];
        let mut asked: Vec<_> =
            trials(&entries).expect("trials").into_iter().map(|trial| trial.question).collect();
        asked.sort_unstable();
        assert_eq!(asked, ["blue air", "blue sky", "red apple", "red fruit", "red thing"]);
    }

    #[test]
    fn the_question_that_is_asked_is_not_in_the_index() {
        // With its own question gone, the entry shares no word with what is asked.
        let entries = [entry(1, &["alpha", "beta"]), entry(2, &["gamma", "alpha gamma"])];
        let trials = trials(&entries).expect("trials");
        let alpha = trials.iter().find(|trial| trial.question == "alpha").expect("asked");
        assert_eq!(alpha.rank, None);
        assert!(alpha.first.is_some(), "another entry was found");
    }

    #[test]
    fn quality_is_the_mean_over_questions() {
        let trial = |rank| Trial {
            question: String::new(),
            answer_id: AnswerId(1),
            language_code: "ko".to_owned(),
            rank,
            first: None,
            first_without: None,
        };
        let trials = [trial(Some(1)), trial(Some(2)), trial(None), trial(Some(1))];
        let quality = by_language(&trials)["ko"];
        assert_eq!(quality.questions, 4);
        assert!((quality.mrr - 0.625).abs() < 1e-9);
        assert!((quality.recall_at_1 - 0.5).abs() < 1e-9);
    }
}
