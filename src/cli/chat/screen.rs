//! What the user sees of an answer: each character once, whatever happened on its way.
//!
//! Standard output has the answers and nothing else. Notes go to standard error, dim where that is a
//! terminal; they never stand on a line with text where both are the same terminal.

use std::io::{IsTerminal as _, Write as _};

/// The two outputs.
#[derive(Debug)]
pub(super) struct Screen {
    answer: Answer,
    /// Both outputs are terminals, most likely the same one.
    shared: bool,
    /// What stands around a note: the codes for dim and plain, or nothing.
    around: (&'static str, &'static str),
    /// The answer's last line is not finished.
    text_open: bool,
    /// The last note waits for its end.
    note_open: bool,
}

/// The text of one answer, as far as it is known and shown.
#[derive(Debug, Default)]
struct Answer {
    shown: String,
    /// What was heard since the answer began again; `None` if it did not.
    heard_again: Option<String>,
}

impl Answer {
    fn add(&mut self, text: &str) -> String {
        let Some(again) = &mut self.heard_again else {
            self.shown.push_str(text);
            return text.to_owned();
        };
        again.push_str(text);
        let again = std::mem::take(again);
        if self.shown.starts_with(&again) {
            self.heard_again = Some(again);
            return String::new();
        }
        // Past what was shown, or another text.
        self.heard_again = None;
        self.whole(&again)
    }

    fn restart(&mut self) {
        self.heard_again = Some(String::new());
    }

    /// What is missing of `text`, which is all of it; or, where something else was shown, all of it on a
    /// line of its own.
    fn whole(&mut self, text: &str) -> String {
        let missing = match text.strip_prefix(&self.shown) {
            Some(rest) => rest.to_owned(),
            None => format!("\n{text}"),
        };
        text.clone_into(&mut self.shown);
        missing
    }
}

impl Screen {
    pub(super) fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let dim = is_terminal && std::env::var_os("NO_COLOR").is_none();
        Self {
            answer: Answer::default(),
            shared: is_terminal && std::io::stdout().is_terminal(),
            around: if dim { ("\u{1b}[2m", "\u{1b}[0m") } else { ("", "") },
            text_open: false,
            note_open: false,
        }
    }

    pub(super) fn begin(&mut self) {
        self.answer = Answer::default();
    }

    /// The next piece.
    pub(super) fn add(&mut self, text: &str) {
        let text = self.answer.add(text);
        self.show(&text);
    }

    /// The text comes again from its beginning.
    pub(super) fn restart(&mut self) {
        self.answer.restart();
    }

    /// All of it.
    pub(super) fn whole(&mut self, text: &str) {
        let text = self.answer.whole(text);
        self.show(&text);
    }

    pub(super) fn end(&mut self) {
        if self.text_open {
            self.show("\n");
        }
    }

    /// Something about the answer.
    #[expect(clippy::print_stderr, reason = "this is where it belongs")]
    pub(super) fn note(&mut self, text: &str) {
        self.begin_note(text);
        self.note_open = false;
        eprintln!();
    }

    /// Something that is going on; [`Screen::done`] ends its line.
    #[expect(clippy::print_stderr, reason = "this is where it belongs")]
    pub(super) fn begin_note(&mut self, text: &str) {
        // The text goes on below the note: moving the cursor back would lose its place where the terminal
        // scrolls.
        let below_text = self.shared && std::mem::take(&mut self.text_open);
        if self.note_open || below_text {
            eprintln!();
        }
        eprint!("{}", self.dimmed(text));
        self.note_open = true;
    }

    /// How it ended.
    #[expect(clippy::print_stderr, reason = "this is where it belongs")]
    pub(super) fn done(&mut self, text: &str) {
        if std::mem::take(&mut self.note_open) {
            eprintln!("{}", self.dimmed(&format!(" {text}")));
        } else {
            self.note(text);
        }
    }

    fn dimmed(&self, text: &str) -> String {
        let (dim, plain) = self.around;
        format!("{dim}{text}{plain}")
    }

    /// A reader that went away ends the next question, not this one.
    #[expect(clippy::print_stderr, reason = "a note's line is ended")]
    fn show(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if std::mem::take(&mut self.note_open) {
            eprintln!();
        }
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        self.text_open = !text.ends_with('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a sequence of calls shows.
    #[test]
    fn an_answer_that_begins_again_is_shown_once() {
        let mut answer = Answer::default();
        let mut shown = answer.add("one ") + &answer.add("two ");
        answer.restart();
        for piece in ["one ", "two ", "three"] {
            shown += &answer.add(piece);
        }
        shown += &answer.whole("one two three.");
        assert_eq!(shown, "one two three.");
    }

    #[test]
    fn another_answer_is_shown_whole_on_a_line_of_its_own() {
        let mut answer = Answer::default();
        let mut shown = answer.add("one ");
        answer.restart();
        shown += &answer.add("other ");
        shown += &answer.add("text");
        shown += &answer.whole("other text");
        assert_eq!(shown, "one \nother text");
    }

    #[test]
    fn pieces_that_were_missed_are_told_by_the_whole() {
        let mut answer = Answer::default();
        assert_eq!(answer.whole("all"), "all");
        assert_eq!(answer.whole("all"), "");
    }
}
