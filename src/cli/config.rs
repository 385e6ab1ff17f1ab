//! `chatbot config`: are the settings good, and which are they?

use std::{fmt::Write as _, process::ExitCode};

use clap::{Args, Subcommand};

use super::load;
use crate::config::{Setting, Sources};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell everything that is wrong with the settings; exit code 64 if anything is
    Check,
    /// Show every setting as TOML, with where it came from
    Dump,
}

#[expect(clippy::print_stdout, reason = "this is its output")]
pub(super) fn run(sources: &Sources, options: &Options) -> ExitCode {
    let (_, settings) = match load(sources) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    match options.command {
        Command::Check => println!("the configuration is good"),
        Command::Dump => print!("{}", toml(&settings)),
    }
    ExitCode::SUCCESS
}

/// The settings as a TOML file, each with its origin as a comment.
fn toml(settings: &[Setting]) -> String {
    // Writing to a String cannot fail.
    let mut text = String::new();
    let mut section = "";
    for Setting { key, toml, origin } in settings {
        let (its_section, name) = key.split_once('.').unwrap_or(("", key));
        if its_section != section {
            let blank = if section.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{blank}[{its_section}]");
            section = its_section;
        }
        let _ = writeln!(text, "{:<40} # {origin}", format!("{name} = {toml}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dump_is_a_file_that_says_the_same() {
        let (config, settings) =
            crate::config::Config::load_with_settings(&Sources::default()).expect("defaults");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dump.toml");
        std::fs::write(&path, toml(&settings)).expect("a file");
        let sources = Sources { file: Some(path), ..Sources::default() };
        assert_eq!(crate::config::Config::load(&sources).expect("the dump is good"), config);
    }
}
