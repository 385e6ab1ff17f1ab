//! The scripts, and the names of what they work on.
//!
//! Each state change is one script, which the server runs as one atomic step. All keys of a
//! conversation share a hash tag, so that a cluster keeps them together.

use std::{fmt::Write as _, sync::LazyLock};

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use crate::domain::{ConversationDigest, RequestId};

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Begin,
    Append,
    Post,
    Cancel,
    Reap,
    Read,
    Find,
    History,
    Teach,
    Learn,
}

impl Operation {
    /// Each, in order.
    pub(super) const ALL: [Self; 10] = [
        Self::Begin,
        Self::Append,
        Self::Post,
        Self::Cancel,
        Self::Reap,
        Self::Read,
        Self::Find,
        Self::History,
        Self::Teach,
        Self::Learn,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Append => "append",
            Self::Post => "post",
            Self::Cancel => "cancel",
            Self::Reap => "reap",
            Self::Read => "read",
            Self::Find => "find",
            Self::History => "history",
            Self::Teach => "teach",
            Self::Learn => "learn",
        }
    }

    pub(super) fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Find | Self::History | Self::Learn)
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Begin => include_str!("begin.lua"),
            Self::Append => include_str!("append.lua"),
            Self::Post => include_str!("post.lua"),
            Self::Cancel => include_str!("cancel.lua"),
            Self::Reap => include_str!("reap.lua"),
            Self::Read => include_str!("read.lua"),
            Self::Find => include_str!("find.lua"),
            Self::History => include_str!("history.lua"),
            Self::Teach => include_str!("teach.lua"),
            Self::Learn => include_str!("learn.lua"),
        }
    }

    /// What the server calls the script by.
    pub(super) fn sha(self) -> &'static str {
        static SHAS: LazyLock<[String; Operation::ALL.len()]> = LazyLock::new(|| {
            Operation::ALL.map(|operation| {
                let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, operation.text().as_bytes());
                digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
                    let _ = write!(hex, "{byte:02x}");
                    hex
                })
            })
        });
        &SHAS[self as usize]
    }
}

/// The names of a conversation's keys, or of the knowledge log's.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// `prefix:{tag}:`
    base: String,
    pub(super) slot: u16,
}

impl Keys {
    pub(super) fn of_conversation(prefix: &str, conversation: ConversationDigest) -> Self {
        Self::of_tag(prefix, &conversation.to_string())
    }

    pub(super) fn of_knowledge(prefix: &str) -> Self {
        Self::of_tag(prefix, "knowledge")
    }

    fn of_tag(prefix: &str, tag: &str) -> Self {
        Self { base: format!("{prefix}:{{{tag}}}:"), slot: slot(tag.as_bytes()) }
    }

    pub(super) fn named(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }

    pub(super) fn request(&self, request: RequestId) -> String {
        format!("{}req:{request}", self.base)
    }

    /// The channel on which its wake-ups come.
    pub(super) fn channel(&self) -> String {
        self.named("hint")
    }
}

/// What a channel's wake-ups are about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Conversation(ConversationDigest),
    Knowledge,
}

impl Subject {
    pub(super) fn of_channel(prefix: &str, channel: &str) -> Option<Self> {
        let tag = channel.strip_prefix(prefix)?.strip_prefix(":{")?.strip_suffix("}:hint")?;
        if tag == "knowledge" {
            return Some(Self::Knowledge);
        }
        let digest = (tag.len() == 32).then(|| u128::from_str_radix(tag, 16).ok())??;
        Some(Self::Conversation(ConversationDigest(digest.to_be_bytes())))
    }
}

/// The cluster's slot of a hash tag: CRC-16 (XMODEM) modulo 16384.
fn slot(tag: &[u8]) -> u16 {
    let crc = tag.iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % 16384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_slots_are_the_clusters() {
        // As CLUSTER KEYSLOT of redis 7 has it.
        assert_eq!(slot(b"123456789"), 0x31c3);
        let digest = ConversationDigest([7; 16]);
        let keys = Keys::of_conversation("bot", digest);
        assert_eq!(keys.named("conv"), format!("bot:{{{digest}}}:conv"));
        assert_eq!(
            Subject::of_channel("bot", &keys.channel()),
            Some(Subject::Conversation(digest))
        );
        let knowledge = Keys::of_knowledge("bot").channel();
        assert_eq!(Subject::of_channel("bot", &knowledge), Some(Subject::Knowledge));
        for other in ["", "bot", "cat:{knowledge}:hint", "bot:{ff}:hint"] {
            assert_eq!(Subject::of_channel("bot", other), None);
        }
    }

    #[test]
    fn operations_are_in_order() {
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, index);
            assert_eq!(operation.sha().len(), 40);
        }
    }
}
