//! `web`: browsers, by gRPC-Web.

use super::settings::Settings;

/// Which pages may call the main port by gRPC-Web.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Web {
    /// Origins such as `https://chat.example.com`; none: gRPC-Web and HTTP/1.1 are off.
    pub allowed_origins: Vec<String>,
}

impl Web {
    pub(super) fn check(settings: &mut Settings) -> Self {
        const KEY: &str = "web.allowed_origins";
        let list = settings.take(KEY, String::new());
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        let allowed_origins: Vec<String> = items.map(ToOwned::to_owned).collect();
        for origin in &allowed_origins {
            let good = origin.parse::<http::Uri>().is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.authority().is_some()
                    && origin.matches('/').count() == 2
            });
            if !good {
                let what = "must be origins such as \"https://chat.example.com\", without a path";
                settings.problem(KEY, format!("{what}, is {origin:?}"));
            }
        }
        Self { allowed_origins }
    }
}
