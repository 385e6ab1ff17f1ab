//! `engine`: how answers are made.

use std::time::Duration;

use super::settings::Settings;

/// How answers are made.
#[derive(Debug, Clone, PartialEq)]
pub struct Engine {
    /// What answers a request that does not choose.
    pub default: DefaultEngine,
    /// How long a turn may take at most.
    pub max_turn_time: Duration,
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
        let max_turn_time = settings.take("engine.max_turn_time", Duration::from_mins(2));
        if max_turn_time.is_zero() {
            settings.problem("engine.max_turn_time", "must be longer than nothing");
        }
        Self { default: DefaultEngine::Retrieval, max_turn_time }
    }
}
