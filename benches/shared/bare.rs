//! The bare tonic server that ours is compared with.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Builds `examples/bare.rs` with the profile and the allocator that it would have without us.
pub(crate) fn bare() -> Command {
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--quiet", "--profile", "bare", "--example", "bare", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a bench about its package would have build scripts run again that look at it
    // (ring's does), and half of the dependencies after them.
    for (variable, _) in std::env::vars_os() {
        let told =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if variable.to_str().is_some_and(told) {
            build.env_remove(variable);
        }
    }
    assert!(build.status().expect("cargo runs").success(), "bare could not be built");
    Command::new(target().join("bare/examples/bare"))
}

/// The folder of what is built.
pub(crate) fn target() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_chatbot"));
    program.ancestors().nth(2).expect("a folder").to_owned()
}
