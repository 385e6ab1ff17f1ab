//! The base of the knowledge base: revision 0, from a JSONL file or the built-in sample.

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
};

use crate::domain::Entry;

/// The sample that is compiled in: questions and answers on running gRPC services.
const SAMPLE: &str = include_str!("../../knowledge/grpc-operations.jsonl");

/// Bad lines that are told at most.
const TOLD: usize = 20;

/// Where the base comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// The sample that is compiled in.
    Sample,
    /// One entry a line, as JSON.
    File(PathBuf),
}

/// The base cannot be taken; what was taken before stays.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The file cannot be read.
    #[error("cannot read the knowledge file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Lines of the file are bad.
    #[error("{path} has bad lines:{lines}")]
    Lines {
        /// The file.
        path: PathBuf,
        /// What is wrong, by line.
        lines: BadLines,
    },
}

/// What is wrong with a file, line by line.
#[derive(Debug, Default)]
pub struct BadLines(Vec<(usize, String)>);

impl fmt::Display for BadLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, what) in self.0.iter().take(TOLD) {
            write!(f, "\n  line {number}: {what}")?;
        }
        match self.0.len().saturating_sub(TOLD) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

impl Base {
    /// The base of a configured path.
    pub fn of_path(path: Option<&Path>) -> Self {
        path.map_or(Self::Sample, |path| Self::File(path.to_owned()))
    }

    /// Reads and checks every entry. Blocks.
    pub fn load(&self) -> Result<Vec<Entry>, BaseError> {
        match self {
            Self::Sample => parse("the built-in sample".as_ref(), SAMPLE),
            Self::File(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| BaseError::Read { path: path.clone(), source })?;
                parse(path, &text)
            }
        }
    }
}

fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, BaseError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut lines = HashMap::new();
    let mut bad = BadLines::default();
    // Editors on Windows put a byte order mark in front.
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let entry: Entry = match serde_json::from_str(line) {
            Ok(entry) => entry,
            Err(error) => {
                bad.0.push((number, error.to_string()));
                continue;
            }
        };
        bad.0.extend(entry.violations().into_iter().map(|wrong| (number, wrong.to_string())));
        if let Some(first) = lines.insert(entry.answer_id, number) {
            let what = format!("answer_id {} stands in line {first} already", entry.answer_id);
            bad.0.push((number, what));
        }
        entries.push(entry);
    }
    if bad.0.is_empty() {
        Ok(entries)
    } else {
        Err(BaseError::Lines { path: path.to_owned(), lines: bad })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_has_sixty_entries_with_alternatives_in_two_languages() {
        let entries = Base::Sample.load().expect("the sample is good");
        assert!(entries.len() >= 60, "{}", entries.len());
        for language in ["en", "ko"] {
            let of_language = entries.iter().filter(|entry| entry.language_code == language);
            assert!(of_language.count() >= 30, "{language}");
        }
        assert!(entries.iter().all(|entry| entry.questions.len() >= 3));
    }

    #[test]
    fn every_bad_line_is_told_by_its_number() {
        let text = concat!(
            "\u{FEFF}{\"answer_id\":1,\"questions\":[\"a\"],\"answer\":\"b\"}\r\n",
            "\n",
            "not json\n",
            "{\"answer_id\":1,\"questions\":[\"a\"],\"answer\":\"b\"}\n",
            "{\"answer_id\":2,\"questions\":[],\"answer\":\"\"}\n",
            "{\"answer_id\":3,\"questions\":[\"a\"],\"answer\":\"b\",\"colour\":1}\n",
        );
        let error = parse("x.jsonl".as_ref(), text).expect_err("bad lines").to_string();
        let expected = [
            "x.jsonl has bad lines:",
            "  line 3: expected",
            "  line 4: answer_id 1 stands in line 1 already",
            "  line 5: questions: must be 1 to 100 questions, are 0",
            "  line 5: answer: must not be empty",
            "  line 6: unknown field `colour`",
        ];
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), expected.len(), "{error}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.starts_with(expected), "{line} should start with {expected}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let base = Base::File(PathBuf::from("/nonexistent/faq.jsonl"));
        assert!(base.load().expect_err("missing").to_string().contains("/nonexistent/faq.jsonl"));
    }
}
