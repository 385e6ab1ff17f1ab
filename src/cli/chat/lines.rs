//! Lines from standard input: edited and remembered in a terminal, plain where there is none.
//!
//! Reading blocks, so it is done on a thread of its own, one line each time one is asked for: what is
//! typed ahead stays with the terminal.

use tokio::sync::mpsc;

/// What was read.
#[derive(Debug)]
pub(super) enum Line {
    Text(String),
    /// The input's end; in a terminal also Ctrl-C on the prompt.
    End,
}

/// The reader.
#[derive(Debug)]
pub(super) struct Lines {
    is_terminal: bool,
    asks: std::sync::mpsc::SyncSender<()>,
    read: mpsc::Receiver<Line>,
    /// A line was asked for and has not come: `next` may be dropped and called again.
    asked: bool,
}

impl Lines {
    pub(super) fn new(is_terminal: bool) -> Self {
        let (asks, asked) = std::sync::mpsc::sync_channel(1);
        let (sender, received) = mpsc::channel(1);
        let read = move || {
            let mut reader = Reader::new(is_terminal);
            while asked.recv().is_ok() {
                if sender.blocking_send(reader.read()).is_err() {
                    return;
                }
            }
        };
        std::thread::spawn(read);
        Self { is_terminal, asks, read: received, asked: false }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(super) async fn next(&mut self) -> Line {
        if !self.asked && self.asks.try_send(()).is_err() {
            return Line::End;
        }
        self.asked = true;
        let line = self.read.recv().await.unwrap_or(Line::End);
        self.asked = false;
        line
    }
}

enum Reader {
    Terminal(Box<rustyline::Editor<(), rustyline::history::MemHistory>>),
    Plain,
}

impl Reader {
    fn new(is_terminal: bool) -> Self {
        if !is_terminal {
            return Self::Plain;
        }
        let history = rustyline::history::MemHistory::new();
        match rustyline::Editor::with_history(rustyline::Config::default(), history) {
            Ok(editor) => Self::Terminal(Box::new(editor)),
            Err(_) => Self::Plain,
        }
    }

    fn read(&mut self) -> Line {
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // A line that is not remembered is no loss.
                    let _ = editor.add_history_entry(&line);
                    Line::Text(line)
                }
                Err(_) => Line::End,
            },
            Self::Plain => {
                let mut line = String::new();
                match std::io::stdin().read_line(&mut line) {
                    Ok(0) | Err(_) => Line::End,
                    Ok(_) => Line::Text(line.trim_end_matches(['\r', '\n']).to_owned()),
                }
            }
        }
    }
}
