//! Until when a certificate is valid, read from its DER.
//!
//! A certificate that ends takes every client with it, and nobody looks at it until then, so it is
//! exported. Verifying is done elsewhere, by webpki, which does not tell these dates; this is the walk to
//! the fifth field of RFC 5280's `TBSCertificate` and nothing else.

use std::time::{SystemTime, UNIX_EPOCH};

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The explicit tag of the optional version.
const VERSION: u8 = 0xa0;

/// Two moments in seconds of Unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: u64,
    pub(super) until: u64,
}

impl Validity {
    /// The validity of a certificate in DER; `None` if it is none, or begins before 1970.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let (certificate, _) = take(certificate, SEQUENCE)?;
        let (mut rest, _) = take(certificate, SEQUENCE)?;
        if *rest.first()? == VERSION {
            rest = skip(rest)?;
        }
        // Serial number, signature algorithm, issuer.
        for _ in 0..3 {
            rest = skip(rest)?;
        }
        let (validity, _) = take(rest, SEQUENCE)?;
        let (from, rest) = time(validity)?;
        let (until, _) = time(rest)?;
        Some(Self { from, until })
    }
}

/// The first element: its tag, its content, and what comes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        // So many bytes of length follow. DER knows no length that is told later.
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.is_empty() || bytes.len() > 4 {
            return None;
        }
        (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn take(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(der)?;
    (found == tag).then_some((content, rest))
}

fn skip(der: &[u8]) -> Option<&[u8]> {
    element(der).map(|(_, _, rest)| rest)
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, the only forms that RFC 5280 allows.
fn time(der: &[u8]) -> Option<(u64, &[u8])> {
    let (tag, text, rest) = element(der)?;
    let text = str::from_utf8(text).ok()?;
    let text = match tag {
        // Two digits mean 1950 to 2049.
        UTC_TIME => format!("{}{text}", if text < "50" { "20" } else { "19" }),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    if text.len() != "YYYYMMDDHHMMSSZ".len() || !text.is_ascii() {
        return None;
    }
    let (date, clock) = text.split_at(8);
    let stamp = format!(
        "{}-{}-{}T{}:{}:{}",
        &date[..4],
        &date[4..6],
        &date[6..],
        &clock[..2],
        &clock[2..4],
        &clock[4..]
    );
    let moment: SystemTime = humantime::parse_rfc3339(&stamp).ok()?;
    Some((moment.duration_since(UNIX_EPOCH).ok()?.as_secs(), rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: (i32, u8, u8), until: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(until.0, until.1, until.2);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn both_forms_of_a_date_are_read() {
        // From 2050 on it is the long form.
        let found = Validity::of(&certificate((1999, 12, 31), (2050, 1, 1)));
        assert_eq!(found, Some(Validity { from: 946_598_400, until: 2_524_608_000 }));
        let found = Validity::of(&certificate((2024, 2, 29), (2049, 12, 31)));
        assert_eq!(found, Some(Validity { from: 1_709_164_800, until: 2_524_521_600 }));
    }

    #[test]
    fn what_is_no_certificate_has_no_dates_wherever_it_breaks_off() {
        let whole = certificate((2024, 1, 1), (2025, 1, 1));
        for length in 0..whole.len() {
            assert_eq!(Validity::of(&whole[..length]), None, "{length} bytes");
        }
        for first in 0..=u8::MAX {
            assert_eq!(Validity::of(&[SEQUENCE, first, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
        }
    }
}
