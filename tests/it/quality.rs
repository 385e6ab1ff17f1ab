//! Retrieval on the sample knowledge base is as good as promised, in both languages.

use std::io::Write as _;

use chatbot::knowledge::{
    Base,
    evaluation::{by_language, judgement, trials},
};

#[test]
fn left_out_questions_find_their_entries_in_korean_and_english() {
    let entries = Base::Sample.load().expect("the sample");
    let trials = trials(&entries).expect("trials");
    let languages = by_language(&trials);
    assert_eq!(languages.keys().copied().collect::<Vec<_>>(), ["en", "ko"]);
    for (language, quality) in languages {
        let line = format!(
            "sample, {language}: MRR@10 {:.3}, recall@1 {:.3} over {} questions\n",
            quality.mrr, quality.recall_at_1, quality.questions
        );
        // Past the test runner's capture: the figures are to be seen.
        let _ = std::io::stderr().write_all(line.as_bytes());
        assert!(quality.questions >= 100, "{language}");
        assert!(quality.mrr >= 0.85, "{language}: {quality:?}");
    }
    let judged = judgement(&trials, 0.5);
    assert!(judged.fitted);
    assert!(judged.precision >= 0.75, "{judged:?}");
    assert!(judged.false_answers <= 0.2, "{judged:?}");
}
