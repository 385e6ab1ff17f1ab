//! The answer of a turn, as it grows.

use std::sync::Arc;

/// As many bytes are an event of their own.
pub(super) const CHUNK: usize = 256;

/// The text so far. What is in events is shared with them: in one piece it would be copied whenever it has
/// doubled, to memory that nobody has used yet.
#[derive(Debug, Default)]
pub(super) struct Text {
    cut: Vec<Arc<str>>,
    /// Bytes of those.
    cut_bytes: usize,
    /// What is too short for an event as long as more may come.
    rest: String,
}

impl Text {
    /// Bytes of all of it.
    pub(super) fn len(&self) -> usize {
        self.cut_bytes + self.rest.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether some of it is in no event.
    pub(super) fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Adds to it; true if there is enough for an event of its own.
    pub(super) fn push(&mut self, more: &str) -> bool {
        self.rest.push_str(more);
        self.rest.len() >= CHUNK
    }

    /// What is in no event yet, for one.
    pub(super) fn cut_off(&mut self) -> Arc<str> {
        let piece: Arc<str> = self.rest.as_str().into();
        self.rest.clear();
        // A model may say a lot at once.
        self.rest.shrink_to(2 * CHUNK);
        self.cut_bytes += piece.len();
        self.cut.push(Arc::clone(&piece));
        piece
    }

    /// All of it.
    pub(super) fn whole(&self) -> String {
        let mut whole = String::with_capacity(self.len());
        whole.extend(self.cut.iter().map(|piece| &**piece));
        whole.push_str(&self.rest);
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_text_however_it_is_cut() {
        let mut text = Text::default();
        assert!(text.is_empty() && !text.has_rest());
        assert!(!text.push("안녕"));
        assert!(text.push(&"!".repeat(CHUNK)));
        let first = text.cut_off();
        assert_eq!(first.len(), text.len());
        assert!(!text.has_rest() && !text.push(" Bye."));
        assert!(text.has_rest());
        assert_eq!(text.whole(), format!("안녕{} Bye.", "!".repeat(CHUNK)));
        assert_eq!(text.len(), text.whole().len());
    }
}
