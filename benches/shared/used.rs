//! What a process has used of the processors.

use std::{collections::HashMap, ffi::OsString, fs, time::Duration};

/// What the threads of a process had used of the processors, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Used(HashMap<OsString, u64>);

impl Used {
    /// Of the process with this id.
    pub(crate) fn of(id: u32) -> Self {
        let mut used = HashMap::new();
        // A thread that ends while they are looked at is none of those that work.
        for task in fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten() {
            let spent = fs::read_to_string(task.path().join("schedstat")).ok();
            let spent = spent.and_then(|text| text.split(' ').next()?.parse().ok());
            used.insert(task.file_name(), spent.unwrap_or_default());
        }
        Self(used)
    }

    /// What they have used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Duration {
        let used = |(thread, spent): (&OsString, &u64)| {
            spent.saturating_sub(before.0.get(thread).copied().unwrap_or_default())
        };
        Duration::from_nanos(self.0.iter().map(used).sum())
    }
}
