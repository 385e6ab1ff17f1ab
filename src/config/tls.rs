//! `tls`: the certificate of the main port, and whose certificates it takes.

use std::path::PathBuf;

use super::settings::Settings;

/// TLS on the main port. The files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate chain, PEM, the server's own first.
    pub cert_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
    /// Certificate authorities, PEM. With them every client has to show a certificate.
    pub client_ca_file: Option<PathBuf>,
}

impl Tls {
    /// Every file.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert_file, &self.key_file].into_iter().chain(&self.client_ca_file)
    }

    /// `None` where no certificate is named: plaintext.
    pub(super) fn check(settings: &mut Settings) -> Option<Self> {
        let mut path = |key| {
            let path = settings.take(key, String::new());
            (!path.is_empty()).then(|| PathBuf::from(path))
        };
        let files = (path("tls.cert_file"), path("tls.key_file"));
        let client_ca_file = path("tls.client_ca_file");
        match files {
            (Some(cert_file), Some(key_file)) => {
                return Some(Self { cert_file, key_file, client_ca_file });
            }
            (None, None) => {}
            (Some(_), None) => settings.problem("tls.key_file", "must be set with tls.cert_file"),
            (None, Some(_)) => settings.problem("tls.cert_file", "must be set with tls.key_file"),
        }
        if client_ca_file.is_some() {
            settings.problem("tls.client_ca_file", "takes tls.cert_file and tls.key_file with it");
        }
        None
    }
}
