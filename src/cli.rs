//! The commands of the binary: one file each.

mod ask;
mod chat;
mod client;
mod config;
mod health;
mod log;
mod serve;
mod soak;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Environment, Problems, Setting, Sources};

/// Exit code for a configuration or command line that cannot be used: `EX_USAGE` of `sysexits.h`.
const EXIT_USAGE: u8 = 64;

/// A gRPC chatbot service for Kubernetes.
///
/// Settings come from defaults, a file, the environment (`CHATBOT__SECTION__KEY`) and --set, later
/// ones winning. `chatbot config dump` shows them all.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = false)]
struct Cli {
    #[command(flatten)]
    sources: SourceArgs,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct SourceArgs {
    /// A TOML or YAML file with settings
    #[arg(long, global = true, env = "CHATBOT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// One setting, such as --set server.address=127.0.0.1:8980
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM (the default)
    Serve(serve::Options),
    /// Ask a server whether it is healthy; made for probes
    Health(health::Options),
    /// Ask a server one question
    Ask(ask::Options),
    /// Talk with a server
    Chat(chat::Options),
    /// Ask a server many questions for some time, and check that nothing is lost
    Soak(soak::Options),
    /// Check or show the settings
    Config(config::Options),
    /// Look into the store
    Log(log::Options),
}

impl SourceArgs {
    fn sources(self) -> Sources {
        Sources {
            // An empty variable is none.
            file: self.config.filter(|path| !path.as_os_str().is_empty()),
            environment: Environment::of_the_process(),
            overrides: self.set,
        }
    }
}

/// Runs the command line of the process; returns its exit code.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // Nothing can be done about a terminal that is gone.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let sources = cli.sources.sources();
    match cli.command.unwrap_or(Command::Serve(serve::Options::default())) {
        Command::Serve(options) => serve::run(sources, &options),
        Command::Health(options) => health::run(&sources, options),
        Command::Ask(options) => ask::run(&sources, options),
        Command::Chat(options) => chat::run(&sources, options),
        Command::Soak(options) => soak::run(&sources, options),
        Command::Config(options) => config::run(&sources, &options),
        Command::Log(options) => log::run(&sources, options),
    }
}

/// Reads the settings, or tells everything that is wrong with them.
fn load(sources: &Sources) -> Result<(Config, Vec<Setting>), ExitCode> {
    Config::load_with_settings(sources).map_err(|problems| complain(&problems))
}

#[expect(clippy::print_stderr, reason = "there is no log yet")]
fn complain(problems: &Problems) -> ExitCode {
    eprintln!("{problems}");
    ExitCode::from(EXIT_USAGE)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_defined() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_is_serve() {
        let cli = Cli::try_parse_from(["chatbot"]).expect("no command is fine");
        assert!(cli.command.is_none());
    }
}
