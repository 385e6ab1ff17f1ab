//! What was measured, as a table: medians and quartiles over the rounds, each round against the bare
//! server of the same round.

use std::fmt;

use super::{locked, servers::Server};

/// What one burst at one server gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Calls or messages in a second.
    pub(crate) rate: f64,
    /// Microseconds of the processor for each.
    pub(crate) cpu: f64,
    /// Writes for each, where they can be counted.
    pub(crate) writes: Option<f64>,
    /// The median from a call to its end, in microseconds.
    pub(crate) latency: f64,
    pub(crate) errors: u64,
}

/// One load at all servers, the bare one first.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    unit: &'static str,
    pub(crate) rows: Vec<(&'static str, Vec<Sample>)>,
}

impl Table {
    pub(crate) fn new(name: &'static str, messages: bool, servers: &[Server]) -> Self {
        let unit = if messages { "message" } else { "call" };
        let rows = servers.iter().map(|server| (server.name, Vec::new())).collect();
        Self { name, unit, rows }
    }

    pub(crate) fn add(&mut self, server: usize, sample: Sample) {
        self.rows[server].1.push(sample);
    }

    /// Quartiles of a figure of a server against that of the bare one, round by round.
    pub(crate) fn ratio(&self, server: usize, of: impl Fn(&Sample) -> f64) -> [f64; 3] {
        let pairs = self.rows[server].1.iter().zip(&self.rows[0].1);
        quartiles(pairs.map(|(sample, bare)| of(sample) / of(bare)))
    }
}

/// The quartiles of some numbers.
fn quartiles(numbers: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| {
        numbers.get((numbers.len().saturating_sub(1)) * quarter / 4).copied().unwrap_or(f64::NAN)
    })
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, unit, rows } = self;
        writeln!(f, "\n{name}, by the {unit}")?;
        writeln!(
            f,
            "{:<12} {:>7} {:>14} {:>7} {:>14} {:>9} {:>8} {:>8} {:>10} {:>7}",
            "server",
            "rate",
            "[quartiles]",
            "CPU",
            "[quartiles]",
            "us CPU",
            "writes",
            "p50 us",
            "/s",
            "errors"
        )?;
        for (index, (server, samples)) in rows.iter().enumerate() {
            let [low, rate, high] = self.ratio(index, |sample| sample.rate);
            let [least, cpu, most] = self.ratio(index, |sample| sample.cpu);
            let median = |of: fn(&Sample) -> f64| quartiles(samples.iter().map(of))[1];
            let writes = median(|sample| sample.writes.unwrap_or(f64::NAN));
            let errors: u64 = samples.iter().map(|sample| sample.errors).sum();
            writeln!(
                f,
                "{server:<12} {rate:>7.2} {:>14} {cpu:>7.2} {:>14} {:>9.2} {:>8} {:>8.0} {:>10.0} {errors:>7}",
                format!("[{low:.2}-{high:.2}]"),
                format!("[{least:.2}-{most:.2}]"),
                median(|sample| sample.cpu),
                if writes.is_nan() { "-".to_owned() } else { format!("{writes:.3}") },
                median(|sample| sample.latency),
                median(|sample| sample.rate),
            )?;
        }
        Ok(())
    }
}

/// The machine, and the versions of what is measured, as locked.
pub(crate) fn versions(servers: &[Server]) -> String {
    let mut versions = locked::versions();
    let go = servers.iter().find(|server| server.name == "grpc-go");
    versions.extend(go.map(|server| server.version.clone()));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    versions.push(format!("Linux {}", kernel.trim()));
    versions.join(", ")
}
