//! What a server says about itself, and whether that will do.
//!
//! All of it is in INFO: `CONFIG` and `ROLE` are forbidden on many hosted servers.

use crate::config::Topology;

/// The oldest version: scripts replicate their effects, and keep their clock while they run.
const OLDEST: u32 = 7;

/// The parts of INFO that matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// As in `7.0.15`.
    pub(super) version: String,
    /// Valkey says what Redis it is like in the other one.
    valkey: Option<String>,
    pub(super) cluster: bool,
    pub(super) primary: bool,
    pub(super) loading: bool,
    /// Replicas that are connected and in step.
    pub(super) replicas: u32,
    /// 0: no limit of its own.
    max_memory: u64,
    policy: String,
}

impl Facts {
    pub(super) fn of_info(info: &str) -> Self {
        let mut facts = Self::default();
        for line in info.lines() {
            let Some((name, value)) = line.trim_end().split_once(':') else { continue };
            match name {
                "redis_version" => value.clone_into(&mut facts.version),
                "valkey_version" => facts.valkey = Some(value.to_owned()),
                "redis_mode" => facts.cluster = value == "cluster",
                "cluster_enabled" => facts.cluster |= value == "1",
                "role" => facts.primary = value == "master",
                "loading" => facts.loading = value == "1",
                "maxmemory" => facts.max_memory = value.parse().unwrap_or_default(),
                "maxmemory_policy" => value.clone_into(&mut facts.policy),
                // slave0:ip=10.0.0.7,port=6379,state=online,offset=84,lag=0
                _ if name.starts_with("slave") && value.contains("state=online") => {
                    facts.replicas += 1;
                }
                _ => {}
            }
        }
        facts
    }

    /// Why the server cannot be the store, whatever one waits for.
    pub(super) fn refusal(&self, topology: &Topology) -> Option<String> {
        let major: u32 =
            self.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if self.valkey.is_none() && major < OLDEST {
            return Some(format!(
                "its version is {}; it has to be Redis {OLDEST}.0 or newer, or Valkey",
                if self.version.is_empty() { "unknown" } else { &self.version }
            ));
        }
        match (self.cluster, topology) {
            (true, Topology::Single | Topology::Sentinel { .. }) => {
                return Some(
                    "it is a node of a cluster; begin store.url with redis+cluster".into(),
                );
            }
            (false, Topology::Cluster) => {
                return Some("it is not a node of a cluster; begin store.url with redis:".into());
            }
            _ => {}
        }
        if self.max_memory > 0 && self.evicts() {
            return Some(format!(
                "its maxmemory-policy is {}, so that it would drop conversations when memory is \
                 short; set maxmemory-policy to noeviction",
                self.policy
            ));
        }
        None
    }

    /// A policy that does no harm as long as there is no limit.
    pub(super) fn warning(&self) -> Option<String> {
        (self.max_memory == 0 && self.evicts()).then(|| {
            format!(
                "maxmemory-policy is {}: as soon as maxmemory is set, conversations would be dropped; \
                 set it to noeviction",
                self.policy
            )
        })
    }

    fn evicts(&self) -> bool {
        // Hosted servers may leave it out; then there is nothing to hold against them.
        !self.policy.is_empty() && self.policy != "noeviction"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(lines: &[&str]) -> Facts {
        Facts::of_info(&lines.join("\r\n"))
    }

    #[test]
    fn what_cannot_be_the_store_is_said_clearly() {
        let good = facts(&["redis_version:7.0.15", "role:master", "maxmemory_policy:noeviction"]);
        assert_eq!(good.refusal(&Topology::Single), None);
        let cases: [(&[&str], Topology, &str); 5] = [
            (&["redis_version:6.2.14"], Topology::Single, "its version is 6.2.14; it has to be"),
            (&["# Server"], Topology::Single, "its version is unknown"),
            (&["redis_version:7.2.4", "redis_mode:cluster"], Topology::Single, "it is a node of"),
            (&["redis_version:7.2.4"], Topology::Cluster, "it is not a node of a cluster"),
            (
                &["redis_version:7.2.4", "maxmemory:1000", "maxmemory_policy:allkeys-lru"],
                Topology::Single,
                "its maxmemory-policy is allkeys-lru",
            ),
        ];
        for (lines, topology, expected) in cases {
            let why = facts(lines).refusal(&topology).expect(expected);
            assert!(why.starts_with(expected), "{why}");
        }
    }

    #[test]
    fn valkey_and_replicas_are_recognised() {
        let valkey = facts(&[
            "redis_version:6.9.9",
            "valkey_version:8.1.0",
            "role:master",
            "maxmemory:0",
            "maxmemory_policy:volatile-ttl",
            "slave0:ip=10.0.0.7,port=6379,state=online,offset=84,lag=0",
            "slave1:ip=10.0.0.8,port=6379,state=wait_bgsave,offset=0,lag=0",
        ]);
        assert_eq!(valkey.refusal(&Topology::Single), None);
        assert!(valkey.warning().is_some_and(|why| why.contains("volatile-ttl")));
        assert_eq!((valkey.replicas, valkey.primary), (1, true));
    }
}
