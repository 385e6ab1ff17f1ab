//! `chatbot serve`: the service.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use tracing::error;

use super::load;
use crate::{
    app::{self, App, Files, Reload},
    config::{Config, Setting, Sources},
    lifecycle::Lifecycle,
    telemetry::{LogFilter, Telemetry},
};

/// Time for blocking work that is still running when everything else has ended.
const LAST: Duration = Duration::from_secs(1);

#[derive(Debug, Default, Args)]
pub(super) struct Options {
    /// Keep a damaged store file under another name and begin a new one
    #[arg(long)]
    set_aside_damaged_store: bool,
}

pub(super) fn run(sources: Sources, options: &Options) -> ExitCode {
    let (config, settings) = match load(&sources) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    match serve(sources, config, settings, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// The cause is in the log where there is one; standard error has it in any case.
#[expect(clippy::print_stderr, reason = "the log may be what failed")]
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("chatbot: {error:#}");
    ExitCode::FAILURE
}

fn serve(
    sources: Sources,
    config: Config,
    settings: Vec<Setting>,
    options: &Options,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let telemetry = {
        let _context = runtime.enter();
        Telemetry::set_up(&config.telemetry)?
    };
    let options = app::Options {
        set_aside_damaged_store: options.set_aside_damaged_store,
        ..app::Options::default()
    };
    let filter = telemetry.log_filter();
    let outcome = runtime.block_on(live(sources, config, settings, filter, options));
    if let Err(error) = &outcome {
        error!("{error:#}");
    }
    // Last of all, on this thread, while the runtime still drives the exporter's connection.
    telemetry.flush();
    runtime.shutdown_timeout(LAST);
    outcome
}

async fn live(
    sources: Sources,
    config: Config,
    settings: Vec<Setting>,
    log_filter: LogFilter,
    options: app::Options,
) -> anyhow::Result<()> {
    let life = Lifecycle::new();
    life.handle_signals()?;
    let files = Files::look(&sources, &config);
    let app = tokio::select! {
        app = Box::pin(App::bind(config.clone(), life.clone(), options)) => app?,
        // A stop during a long start: nobody is served yet.
        () = life.stopping() => return ended(&life),
    };
    let (knowledge, tls, credentials) = (app.reloader(), app.tls(), app.authenticator());
    let model_key = app.model_key();
    let reload = Reload {
        sources,
        config,
        settings,
        log_filter,
        knowledge,
        tls,
        credentials,
        model_key,
        files,
    };
    life.spawn_support("reload", reload.run(life.closing().clone()));
    app.run().await;
    ended(&life)
}

fn ended(life: &Lifecycle) -> anyhow::Result<()> {
    match life.crash() {
        Some(task) => Err(anyhow::anyhow!("task {task} died, see the log")),
        None => Ok(()),
    }
}
