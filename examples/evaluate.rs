//! How well retrieval does on a knowledge base: each alternative question is left out in turn and
//! asked, and the rank of its entry counts.
//!
//! ```text
//! cargo run --release --example evaluate [-- FILE.jsonl]
//! ```
//!
//! Without a file, the built-in sample. Prints MRR@10 and recall@1 by language, the questions that
//! went wrong, and how often the default threshold would have been right about knowing.

#![expect(clippy::print_stdout, reason = "this is its output")]

use std::path::Path;

use chatbot::knowledge::{
    Base,
    evaluation::{by_language, judgement, trials},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1);
    let entries = Base::of_path(file.as_deref().map(Path::new)).load()?;
    let trials = trials(&entries)?;
    println!("{} entries, {} questions left out in turn", entries.len(), trials.len());
    println!("{:<10} {:>9} {:>8} {:>10}", "language", "questions", "MRR@10", "recall@1");
    for (language, quality) in by_language(&trials) {
        println!(
            "{language:<10} {:>9} {:>8.3} {:>10.3}",
            quality.questions, quality.mrr, quality.recall_at_1
        );
    }
    let judged = judgement(&trials, 0.5);
    println!(
        "confidence (threshold 0.5, {}): answers {:.1} % of what it has, of its answers {:.1} % are \
         right; of what it has not it answers {:.1} %",
        if judged.fitted { "fitted" } else { "default" },
        100.0 * judged.answered,
        100.0 * judged.precision,
        100.0 * judged.false_answers,
    );
    for trial in trials.iter().filter(|trial| trial.rank != Some(1)) {
        let rank = trial.rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string());
        println!("  {} rank {rank:>2}  {}", trial.answer_id, trial.question);
    }
    Ok(())
}
