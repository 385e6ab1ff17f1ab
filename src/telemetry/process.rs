//! What the process uses, read from `/proc` at each scrape.
//!
//! The node's own exporters tell this by container. That is no help where there are none, as on one
//! machine, and they do not know when the program itself began.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

/// Ticks of a second in `/proc`: Linux has told 100 to every program on every architecture in use here.
const TICKS: f64 = 100.0;

/// Exports what the process uses, and now as its start.
pub fn register(registry: &mut Registry) {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    registry.register_collector(Box::new(Process { started: started.as_secs_f64() }));
}

#[derive(Debug)]
struct Process {
    started: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let began = ConstGauge::new(self.started);
        let (help, unit) = ("Unix time at which the process began", Some(&Unit::Seconds));
        let name = "process_start_timestamp";
        began.encode(encoder.encode_descriptor(name, help, unit, began.metric_type())?)?;
        // Where there is no /proc there is nothing to tell, and no reason to tell zeros.
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        if let Some(seconds) = processor_seconds(&stat) {
            let used = ConstCounter::new(seconds);
            let (help, unit) = ("Processor time that was used", Some(&Unit::Seconds));
            used.encode(encoder.encode_descriptor(
                "process_cpu",
                help,
                unit,
                used.metric_type(),
            )?)?;
        }
        let lines = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(kibibytes) = field(&lines, "VmRSS") {
            let resident = ConstGauge::new(kibibytes * 1024);
            let (help, unit) = ("Memory that is resident", Some(&Unit::Bytes));
            let (name, kind) = ("process_resident_memory", resident.metric_type());
            resident.encode(encoder.encode_descriptor(name, help, unit, kind)?)?;
        }
        if let Some(count) = field(&lines, "Threads") {
            let threads = ConstGauge::new(count);
            let (name, kind) = ("process_threads", threads.metric_type());
            threads.encode(encoder.encode_descriptor(name, "Threads", None, kind)?)?;
        }
        Ok(())
    }
}

/// Time in user and in system mode.
fn processor_seconds(stat: &str) -> Option<f64> {
    // After the program's name, which may have spaces and brackets, comes field 3; these are 14 and 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (ticks.next()?.parse().ok()?, ticks.next()?.parse().ok()?);
    Some((user + system) / TICKS)
}

/// The number of a line such as `VmRSS:  1234 kB`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_moves_no_field() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20";
        assert_eq!(processor_seconds(stat), Some(3.0));
        assert_eq!(processor_seconds("7 (a) S 1 2"), None);
        assert_eq!(processor_seconds(""), None);
    }

    #[test]
    fn this_process_uses_something() {
        let status = fs::read_to_string("/proc/self/status").expect("/proc");
        assert!(field(&status, "VmRSS") > Some(100) && field(&status, "Threads") > Some(0));
        assert_eq!(field(&status, "Vm"), None);
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a String");
        for name in [
            "process_start_timestamp_seconds ",
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
            "process_threads ",
        ] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}: {text}");
        }
    }
}
