//! `engine`: how answers are made.

use super::settings::Settings;

/// How answers are made.
#[derive(Debug, Clone, PartialEq)]
pub struct Engine {
    /// What answers a request that does not choose.
    pub default: DefaultEngine,
}

/// The engines of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultEngine {
    /// The best entry of the knowledge base.
    Retrieval,
}

impl Engine {
    pub(super) fn check(settings: &mut Settings) -> Self {
        let default = settings.take("engine.default", "retrieval".to_owned());
        if default != "retrieval" {
            settings.problem(
                "engine.default",
                format!("must be \"retrieval\", the only engine of this version, is {default:?}"),
            );
        }
        Self { default: DefaultEngine::Retrieval }
    }
}
