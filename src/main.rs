//! The `chatbot` binary. Everything is in the library; see `chatbot::cli` for the commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    chatbot::cli::run()
}
