//! Opaque bearer tokens, known by their hashes.
//!
//! One credential a line: `sha256:HEX NAME SCOPE[,SCOPE]`; empty lines and lines that begin with
//! `#` are skipped. `printf %s "$TOKEN" | sha256sum` makes the hash. A plain hash is enough for
//! what has the entropy of a key, and only that belongs here: it is no place for passwords. A name
//! may stand on several lines, so that a token can be replaced while the old one still counts.

use std::{collections::HashMap, fmt};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::{Principal, Scopes};

const ALGORITHM: &str = "sha256:";
const FORM: &str = "must be sha256:HASH NAME SCOPES, such as the output of \
                    printf %s \"$TOKEN\" | sha256sum after sha256:, then ops and chat,teach";

/// The SHA-256 of a token. It is never shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Hash([u8; SHA256_OUTPUT_LEN]);

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(..)")
    }
}

impl Hash {
    fn of(token: &str) -> Self {
        let mut hash = [0; SHA256_OUTPUT_LEN];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        Self(hash)
    }

    fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(ALGORITHM)?.as_bytes();
        if hex.len() != 2 * SHA256_OUTPUT_LEN {
            return None;
        }
        let mut hash = [0; SHA256_OUTPUT_LEN];
        for (byte, digits) in hash.iter_mut().zip(hex.chunks_exact(2)) {
            for digit in digits {
                let value = char::from(*digit).to_digit(16)?;
                *byte = *byte << 4 | u8::try_from(value).ok()?;
            }
        }
        Some(Self(hash))
    }
}

/// The tokens of a file.
#[derive(Debug)]
pub(super) struct Tokens(Vec<(Hash, Principal)>);

impl Tokens {
    /// Reads a file's text. The error tells every bad line by its number and repeats nothing of it,
    /// because what is in the wrong place may be a token.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut tokens = Vec::new();
        let mut lines = HashMap::new();
        let mut problems = Vec::new();
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match entry(line) {
                Ok((hash, principal)) => {
                    if let Some(first) = lines.insert(hash, number) {
                        problems.push(format!(
                            "line {number}: the hash stands in line {first} already"
                        ));
                    }
                    tokens.push((hash, principal));
                }
                Err(what) => problems.push(format!("line {number}: {what}")),
            }
        }
        if problems.is_empty() { Ok(Self(tokens)) } else { Err(problems) }
    }

    /// Whose token it is. Every entry is looked at to the end, so that the time it takes tells
    /// nothing about any of them.
    pub(super) fn principal(&self, token: &str) -> Option<&Principal> {
        let presented = Hash::of(token);
        let mut found = u64::MAX;
        for (index, (hash, _)) in (0..).zip(&self.0) {
            found.conditional_assign(&index, hash.0.ct_eq(&presented.0));
        }
        let (_, principal) = self.0.get(usize::try_from(found).ok()?)?;
        Some(principal)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn entry(line: &str) -> Result<(Hash, Principal), String> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let [hash, name, scopes] = columns[..] else { return Err(FORM.to_owned()) };
    let hash = Hash::parse(hash)
        .ok_or("the hash must be sha256: and 64 hexadecimal digits, never the token itself")?;
    if hash == Hash::of("") {
        return Err("is the hash of nothing: the token was empty when it was made".to_owned());
    }
    let scopes = Scopes::parse_list(scopes)?;
    if scopes == Scopes::default() {
        return Err("must have a scope".to_owned());
    }
    let principal = Principal::new(name, scopes).ok_or("the name is too long or not printable")?;
    Ok((hash, principal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Scope;

    /// A line for `token`.
    fn line(token: &str, rest: &str) -> String {
        let hash = Hash::of(token).0;
        let hex = hash.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        format!("sha256:{hex} {rest}\n")
    }

    #[test]
    fn a_token_is_found_by_its_hash_wherever_it_stands() {
        // `printf %s secret | sha256sum`
        let known = "sha256:2BB80D537B1DA3E38BD30361AA855686BDE0EACD7162FEF6A25FE97BF527A25B";
        let text = format!(
            "\u{FEFF}# made by hand\r\n\n{}{known}\tbob  teach,chat \r\n{}",
            line("first", "alice chat"),
            line("last", "alice teach")
        );
        let tokens = Tokens::parse(&text).expect("good lines");
        assert_eq!(tokens.len(), 3);
        let named = |token: &str| {
            let principal = tokens.principal(token)?;
            Some((&*principal.name, principal.scopes.to_string()))
        };
        assert_eq!(named("first"), Some(("alice", "chat".to_owned())));
        assert_eq!(named("secret"), Some(("bob", "chat,teach".to_owned())));
        assert_eq!(named("last"), Some(("alice", "teach".to_owned())));
        for stranger in ["", "Secret", "secret ", known] {
            assert_eq!(named(stranger), None, "{stranger}");
        }
        assert!(Tokens::parse("").expect("no lines").principal("").is_none());
    }

    #[test]
    fn every_bad_line_is_told_by_number_and_nothing_of_it_is_repeated() {
        let text = [
            line("one", "alice chat"),
            "hunter2 alice chat\n".to_owned(),
            "sha256:hunter2 alice chat\n".to_owned(),
            line("two", "alice hunter2"),
            line("three", "alice"),
            line("four", "alice chat teach"),
            line("five", "alice ,"),
            line("", "alice chat"),
            line("one", "bob chat"),
            line("six", "al\u{7}ice chat"),
        ]
        .concat();
        let problems = Tokens::parse(&text).expect_err("bad lines");
        let expected = [
            "line 2: the hash must be sha256: and 64",
            "line 3: the hash must be sha256: and 64",
            "line 4: must be scopes of \"chat,teach\"",
            "line 5: must be sha256:HASH NAME SCOPES",
            "line 6: must be sha256:HASH NAME SCOPES",
            "line 7: must have a scope",
            "line 8: is the hash of nothing",
            "line 9: the hash stands in line 1 already",
            "line 10: the name is too long or not printable",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.starts_with(expected), "{problem} should start with {expected}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        for word in text.split_whitespace().filter(|word| word.len() > 60) {
            assert!(!problems.concat().contains(word));
        }
    }

    #[test]
    fn hashes_are_not_shown() {
        let tokens = Tokens::parse(&line("one", "alice chat")).expect("a good line");
        let shown = format!("{tokens:?}");
        assert!(shown.contains("Hash(..)") && shown.contains("alice"), "{shown}");
        assert!(tokens.principal("one").is_some_and(|it| it.scopes.contains(Scope::Chat)));
    }
}
