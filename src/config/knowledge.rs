//! `knowledge`: what the bot knows, and when it says that it does not.

use std::path::PathBuf;

use super::settings::Settings;

/// The knowledge base.
#[derive(Debug, Clone, PartialEq)]
pub struct Knowledge {
    /// A JSONL file, read again when it changes; `None` is the built-in sample.
    pub path: Option<PathBuf>,
    /// Below this confidence, 0 to 1, the bot says that it does not know.
    pub min_confidence: f64,
}

impl Knowledge {
    pub(super) fn check(settings: &mut Settings) -> Self {
        let path = settings.take("knowledge.path", String::new());
        let min_confidence = settings.take("knowledge.min_confidence", 0.5);
        if !(0.0..=1.0).contains(&min_confidence) {
            settings.problem("knowledge.min_confidence", "must be between 0 and 1");
        }
        Self { path: (!path.is_empty()).then(|| PathBuf::from(path)), min_confidence }
    }
}
