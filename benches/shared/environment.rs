//! The environment of what is measured.

use std::process::Command;

/// Takes the service's own variables away: what the machine's owner has set must not change what is
/// measured.
pub(crate) fn undisturbed(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        let ours = |name: &str| name.starts_with("CHATBOT") || name.starts_with("OTEL_");
        if variable.to_str().is_some_and(ours) {
            command.env_remove(variable);
        }
    }
}
