//! Raw settings: the merged layers, with the origin of every value.
//!
//! A section takes each of its keys exactly once, by name and with a default; what nobody took in
//! the end is an unknown key. `config` (the crate) merges the layers and reads TOML and YAML; it
//! stops at its first error, so checking is done here, key by key.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::SocketAddr,
    time::Duration,
};

use bytesize::ByteSize;
use config::{Config as Layers, File, FileFormat, Map, Value, ValueKind};

use super::Sources;

const ENVIRONMENT_PREFIX: &str = "CHATBOT__";

/// The environment variables that the configuration may look at.
#[derive(Debug, Clone, Default)]
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// The process's own environment. Variables that are not UTF-8 are left out.
    pub fn of_the_process() -> Self {
        std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// The value of a variable; an empty one counts as unset, as OpenTelemetry has it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, `section.key`; or the file, where it cannot be read.
    pub at: String,
    /// What is wrong and what would be right.
    pub what: String,
    /// Where the value came from; empty where there is none.
    pub origin: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)?;
        if !self.origin.is_empty() {
            write!(f, " (from {})", self.origin)?;
        }
        Ok(())
    }
}

/// One setting as it stands, for `config dump`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `section.key`.
    pub key: String,
    /// The value as TOML.
    pub toml: String,
    /// Where it came from.
    pub origin: String,
}

/// A type that a setting can have.
pub(super) trait FromSetting: Sized {
    /// Reads the value; the error says what would be right.
    fn parse(value: &Value) -> Result<Self, String>;
    /// The value as TOML.
    fn toml(&self) -> String;
}

/// The merged layers while they are being checked.
#[derive(Debug)]
pub(super) struct Settings {
    /// What was set, by `section.key`.
    set: BTreeMap<String, Value>,
    taken: BTreeSet<&'static str>,
    listed: Vec<Setting>,
    problems: Vec<Problem>,
    environment: Environment,
}

impl Settings {
    pub(super) fn read(sources: &Sources) -> Self {
        let mut settings = Self {
            set: BTreeMap::new(),
            taken: BTreeSet::new(),
            listed: Vec::new(),
            problems: Vec::new(),
            environment: sources.environment.clone(),
        };
        settings.read_file(sources);
        for (variable, value) in &sources.environment.0 {
            if let Some(path) = variable.strip_prefix(ENVIRONMENT_PREFIX) {
                let key = path.to_ascii_lowercase().replacen("__", ".", 1);
                settings.set(key, value, variable);
            }
        }
        for pair in &sources.overrides {
            match pair.split_once('=') {
                Some((key, value)) => settings.set(key.trim().to_owned(), value, "--set"),
                None => settings.problems.push(Problem {
                    at: format!("--set {pair}"),
                    what: "must be section.key=value".to_owned(),
                    origin: String::new(),
                }),
            }
        }
        settings
    }

    fn set(&mut self, key: String, value: &str, origin: &str) {
        let value = Value::new(Some(&origin.to_owned()), ValueKind::String(value.to_owned()));
        self.set.insert(key, value);
    }

    fn read_file(&mut self, sources: &Sources) {
        let Some(path) = &sources.file else { return };
        let at = path.display().to_string();
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => FileFormat::Toml,
            Some("yaml" | "yml") => FileFormat::Yaml,
            _ => {
                let what = "must end in .toml, .yaml or .yml".to_owned();
                return self.problems.push(Problem { at, what, origin: String::new() });
            }
        };
        let read =
            std::fs::read_to_string(path).map_err(|error| error.to_string()).and_then(|text| {
                Layers::builder()
                    .add_source(File::from_str(&text, format))
                    .build()
                    .map_err(|error| error.to_string())
            });
        match read {
            Ok(layers) => self.flatten("", layers.cache, &at),
            Err(error) => {
                let what = format!("cannot be read: {}", error.replace('\n', " ").trim());
                self.problems.push(Problem { at, what, origin: String::new() });
            }
        }
    }

    /// Takes a table apart into `section.key` values that remember the file.
    fn flatten(&mut self, prefix: &str, value: Value, file: &String) {
        match value.kind {
            ValueKind::Table(table) => {
                let table: Map<String, Value> = table;
                for (key, value) in table {
                    let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                    self.flatten(&key, value, file);
                }
            }
            // An empty section, as YAML writes one: nothing is set.
            ValueKind::Nil => {}
            kind => {
                self.set.insert(prefix.to_owned(), Value::new(Some(file), kind));
            }
        }
    }

    /// The value of `key`, else `default`. A problem is noted and answered with the default, so that
    /// checking can go on.
    pub(super) fn take<T: FromSetting>(&mut self, key: &'static str, default: T) -> T {
        self.take_or(key, default, "default")
    }

    /// Like [`Settings::take`] for a default that itself comes from somewhere.
    pub(super) fn take_or<T: FromSetting>(
        &mut self,
        key: &'static str,
        default: T,
        default_origin: &str,
    ) -> T {
        self.taken.insert(key);
        let (value, origin) = match self.set.get(key) {
            None => (default, default_origin.to_owned()),
            Some(raw) => {
                let origin = raw.origin().unwrap_or_default().to_owned();
                match T::parse(raw) {
                    Ok(value) => (value, origin),
                    Err(what) => {
                        self.problems.push(Problem { at: key.to_owned(), what, origin });
                        return default;
                    }
                }
            }
        };
        self.listed.push(Setting { key: key.to_owned(), toml: value.toml(), origin });
        value
    }

    /// Notes that the value of `key` is wrong for a reason that its type does not tell.
    pub(super) fn problem(&mut self, key: &str, what: impl Into<String>) {
        let origin = self.set.get(key).and_then(Value::origin).unwrap_or("default").to_owned();
        self.problems.push(Problem { at: key.to_owned(), what: what.into(), origin });
    }

    /// The value of an environment variable that is not ours, such as `OTEL_SERVICE_NAME`.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name)
    }

    /// Notes that a variable that is not ours is wrong.
    pub(super) fn variable_problem(&mut self, name: &str, what: impl Into<String>) {
        let (at, what) = (name.to_owned(), what.into());
        self.problems.push(Problem { at, what, origin: "the environment".to_owned() });
    }

    /// What was listed, if nothing was wrong; unknown keys are.
    pub(super) fn finish(mut self) -> Result<Vec<Setting>, super::Problems> {
        for (key, value) in &self.set {
            if self.taken.contains(key.as_str()) {
                continue;
            }
            let nearest = self
                .taken
                .iter()
                .map(|known| (strsim::damerau_levenshtein(key, known), known))
                .min()
                .filter(|(distance, known)| *distance <= known.len() / 3)
                .map(|(_, known)| format!(", did you mean {known}?"));
            self.problems.push(Problem {
                at: key.clone(),
                what: format!("unknown key{}", nearest.unwrap_or_default()),
                origin: value.origin().unwrap_or_default().to_owned(),
            });
        }
        if self.problems.is_empty() { Ok(self.listed) } else { Err(super::Problems(self.problems)) }
    }
}

fn text(value: &Value) -> Result<String, String> {
    value.clone().into_string().map_err(|_| "must be a single value".to_owned())
}

/// `text` in quotes, with what TOML wants escaped.
pub(super) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

impl FromSetting for String {
    fn parse(value: &Value) -> Result<Self, String> {
        text(value)
    }
    fn toml(&self) -> String {
        quoted(self)
    }
}

impl FromSetting for bool {
    fn parse(value: &Value) -> Result<Self, String> {
        let text = text(value)?;
        text.parse().map_err(|_| format!("must be true or false, is {text:?}"))
    }
    fn toml(&self) -> String {
        self.to_string()
    }
}

impl FromSetting for f64 {
    fn parse(value: &Value) -> Result<Self, String> {
        let text = text(value)?;
        let number = text.parse().ok().filter(|number: &Self| number.is_finite());
        number.ok_or_else(|| format!("must be a number, is {text:?}"))
    }
    fn toml(&self) -> String {
        format!("{self:?}")
    }
}

/// Empty is none.
impl FromSetting for Option<f64> {
    fn parse(value: &Value) -> Result<Self, String> {
        if text(value)?.is_empty() { Ok(None) } else { f64::parse(value).map(Some) }
    }
    fn toml(&self) -> String {
        self.map_or_else(|| quoted(""), |number| number.toml())
    }
}

impl FromSetting for SocketAddr {
    fn parse(value: &Value) -> Result<Self, String> {
        let text = text(value)?;
        text.parse().map_err(|_| {
            format!("must be an address and a port such as \"[::]:8980\" or \"127.0.0.1:8980\", is {text:?}")
        })
    }
    fn toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl FromSetting for Duration {
    fn parse(value: &Value) -> Result<Self, String> {
        let text = text(value)?;
        humantime::parse_duration(&text).map_err(|_| {
            format!(
                "must be a duration with a unit such as \"500ms\", \"30s\" or \"5m\", is {text:?}"
            )
        })
    }
    fn toml(&self) -> String {
        quoted(&humantime::format_duration(*self).to_string())
    }
}

impl FromSetting for u32 {
    fn parse(value: &Value) -> Result<Self, String> {
        let text = text(value)?;
        text.parse().map_err(|_| format!("must be a whole number, is {text:?}"))
    }
    fn toml(&self) -> String {
        self.to_string()
    }
}

impl FromSetting for ByteSize {
    fn parse(value: &Value) -> Result<Self, String> {
        let text = text(value)?;
        text.parse().map_err(|_| format!("must be a size such as \"8KiB\", is {text:?}"))
    }
    fn toml(&self) -> String {
        quoted(&self.display().iec().to_string().replace(' ', ""))
    }
}
