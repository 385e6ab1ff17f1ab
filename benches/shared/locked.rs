//! The versions of what is measured.

/// Those of the crates that make up a connection, as locked.
pub(crate) fn versions() -> Vec<String> {
    let mut lines = include_str!("../../Cargo.lock").lines();
    let mut versions = Vec::new();
    while let Some(line) = lines.next() {
        let name = line.strip_prefix("name = ").map(|name| name.trim_matches('"'));
        let wanted = ["h2", "hyper", "rustls", "tikv-jemallocator", "tokio", "tonic"];
        if let Some(name) = name.filter(|name| wanted.contains(name)) {
            let version = lines.next().and_then(|line| line.strip_prefix("version = "));
            versions.push(format!("{name} {}", version.unwrap_or("?").trim_matches('"')));
        }
    }
    versions
}
