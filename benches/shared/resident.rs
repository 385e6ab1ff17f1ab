//! What a process has in memory.

use std::fs;

/// A line of the process's status such as `RssAnon` or `VmRSS`, in bytes.
pub(crate) fn resident(id: u32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("the process runs");
    let value = status.lines().find_map(|all| all.strip_prefix(line)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.trim().strip_suffix(" kB")).expect("a value");
    kib.parse::<u64>().expect("a number") * 1024
}
