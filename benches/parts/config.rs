//! Settings: read from where they come from, merged and checked.

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
};

use chatbot::config::{Config, Environment, Sources};
use divan::Bencher;
use tempfile::TempDir;

/// Where the settings are, besides the defaults.
#[derive(Clone, Copy)]
enum Layer {
    Defaults,
    Toml,
    Yaml,
    Environment,
    Flags,
    /// Each of them at once.
    All,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Defaults => "defaults",
            Self::Toml => "TOML",
            Self::Yaml => "YAML",
            Self::Environment => "environment",
            Self::Flags => "flags",
            Self::All => "all",
        })
    }
}

const LAYERS: [Layer; 6] =
    [Layer::Defaults, Layer::Toml, Layer::Yaml, Layer::Environment, Layer::Flags, Layer::All];

/// A deployment with many replicas and a model, as far as no other file has to be there.
const SETTINGS: [(&str, &str, &str); 12] = [
    ("server", "address", "0.0.0.0:8980"),
    ("server", "drain_delay", "5s"),
    ("ops", "address", "0.0.0.0:8981"),
    ("store", "url", "redis://redis.chat.svc:6379/0"),
    ("store", "retention", "14d"),
    ("store", "detach_grace", "2m"),
    ("engine", "default", "augmented"),
    ("engine", "max_generations", "64"),
    ("upstream", "base_url", "http://model.chat.svc:8000/v1"),
    ("upstream", "model", "a-model"),
    ("limits", "turns_per_second", "5"),
    ("telemetry", "otlp_endpoint", "http://collector.observability.svc:4317"),
];

#[divan::bench(args = LAYERS)]
fn load(bencher: Bencher<'_, '_>, layer: Layer) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sources = sources(layer, &folder);
    bencher.bench(|| Config::load(&sources).expect("good settings"));
}

fn sources(layer: Layer, folder: &TempDir) -> Sources {
    // What the machine's owner has set must not change what is measured, so only ours are in it.
    let environment: Environment = SETTINGS
        .iter()
        .map(|(section, key, value)| {
            let name = format!("CHATBOT__{section}__{key}").to_uppercase();
            (name, (*value).to_owned())
        })
        .collect();
    let overrides =
        SETTINGS.iter().map(|(section, key, value)| format!("{section}.{key}={value}")).collect();
    let none = Sources::default();
    match layer {
        Layer::Defaults => none,
        Layer::Toml => Sources { file: Some(file(folder, "toml", "[", "]", " = ")), ..none },
        Layer::Yaml => Sources { file: Some(file(folder, "yaml", "", ":", ": ")), ..none },
        Layer::Environment => Sources { environment, ..none },
        Layer::Flags => Sources { overrides, ..none },
        Layer::All => {
            let file = Some(file(folder, "toml", "[", "]", " = "));
            Sources { file, environment, overrides }
        }
    }
}

/// The settings in a file: a line for each section, and one for each key below it.
fn file(folder: &TempDir, extension: &str, before: &str, after: &str, is: &str) -> PathBuf {
    let mut text = String::new();
    let mut last = "";
    for (section, key, value) in SETTINGS {
        if section != last {
            writeln!(text, "{before}{section}{after}").expect("a String");
            last = section;
        }
        let number = value.parse::<u32>().is_ok();
        let value = if number { value.to_owned() } else { format!("\"{value}\"") };
        writeln!(text, "  {key}{is}{value}").expect("a String");
    }
    let path = folder.path().join(format!("settings.{extension}"));
    std::fs::write(&path, text).expect("a file");
    path
}
