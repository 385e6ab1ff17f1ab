//! The commands for people and scripts that call a server: `chat`, `ask` and `health`, with TLS and
//! tokens, in pipes and in a terminal.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use crate::{
    proxy::Proxy,
    scripted::stepped,
    support::{Process, binary, folder, serve, skip, start_scripted},
    tls::{self, Authority},
};

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

fn chat(address: SocketAddr) -> Command {
    let mut command = binary();
    command.args(["chat", "--addr", &address.to_string()]);
    command
}

/// A running command that is fed and read by the test; killed when dropped.
struct Talk {
    child: Child,
    read: Vec<u8>,
    /// How much of it was waited for already.
    heard: usize,
}

impl Talk {
    fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: child.spawn().expect("the binary starts"), read: Vec::new(), heard: 0 }
    }

    fn say(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        stdin.write_all(text.as_bytes()).expect("it listens");
        stdin.flush().expect("it listens");
    }

    /// Reads standard output until it has `text`, after what was waited for before.
    fn wait_for(&mut self, text: &str) {
        let mut buffer = [0; 1_000];
        loop {
            let new = &self.read[self.heard..];
            let found = new.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                self.heard += at + text.len();
                return;
            }
            let read = self.child.stdout.as_mut().expect("piped").read(&mut buffer);
            let read = read.expect("bytes");
            assert!(read > 0, "no {text:?} in {:?}", String::from_utf8_lossy(&self.read));
            self.read.extend_from_slice(&buffer[..read]);
        }
    }

    fn interrupt(&self) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", "INT", &id]).status().expect("kill runs");
        assert!(status.success());
    }

    /// Its exit code, all of its standard output, and its standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        drop(self.child.stdin.take());
        let mut stderr = String::new();
        let mut stdout = self.child.stdout.take().expect("piped");
        let mut read = std::mem::take(&mut self.read);
        stdout.read_to_end(&mut read).expect("bytes");
        let mut pipe = self.child.stderr.take().expect("piped");
        pipe.read_to_string(&mut stderr).expect("text");
        let code = self.child.wait().expect("a child").code();
        (code, String::from_utf8(read).expect("UTF-8"), stderr)
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn chat_once_has_the_exit_codes_of_ask() {
    let folder = folder();
    let mut process = Process::start(&mut serve(&folder, &[]));
    let server = process.wait_for_address(&["serving"]);
    let once = |question: &str| run(chat(server).args(["--once", question]));
    let answer = "Raise the limit and close your channels.\n".to_owned();
    assert_eq!(once("too many open files"), (Some(0), answer, String::new()));
    let (code, text, notes) = once("pizza");
    assert_eq!((code, notes.as_str()), (Some(4), ""));
    assert!(text.starts_with("I do not know"), "{text}");
    assert_eq!(once("").0, Some(3));
    let mut nobody = binary();
    nobody.args(["chat", "--addr", "127.0.0.1:1", "--patience", "0s", "--once", "?"]);
    assert_eq!(run(&mut nobody).0, Some(2));
    assert_eq!(run(binary().args(["chat", "--addr", "no address", "--once", "?"])).0, Some(64));
    // The first of several that is there.
    let address = server.to_string();
    let mut several = binary();
    several.args(["chat", "--addr", "127.0.0.1:1", "--addr", &address, "--once", "EMFILE error"]);
    assert_eq!(run(&mut several).0, Some(0));
}

#[test]
fn a_piped_chat_is_answers_and_nothing_else() {
    let folder = folder();
    let mut process = Process::start(&mut serve(&folder, &[]));
    let server = process.wait_for_address(&["serving"]);
    let mut talk = Talk::start(&mut chat(server));
    talk.say("too many open files\n\n연결이 왜 자꾸 끊기나요?\n");
    let (code, text, notes) = talk.end();
    let answers =
        "Raise the limit and close your channels.\n서버가 연결의 나이를 제한하기 때문입니다.\n";
    assert_eq!((code, text.as_str(), notes.as_str()), (Some(0), answers, ""));
}

// Two threads, here and below: the test waits for the command while its server answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_that_is_cut_goes_on_without_losing_a_character() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let proxy = Proxy::to(app.addresses.server).await;
    let mut command = chat(proxy.address);
    let mut talk = Talk::start(command.args(["--engine", "generative", "--once", "?"]));
    let played = questions.next().await;
    let mut expected = String::new();
    for number in 0..10 {
        let piece = format!("{number}번째 piece, ");
        played.say(&piece).await;
        expected += &piece;
        tokio::task::block_in_place(|| talk.wait_for(&piece));
        proxy.turn_to(app.addresses.server);
    }
    played.end().await;
    let (code, text, notes) = tokio::task::block_in_place(|| talk.end());
    assert_eq!((code, text), (Some(0), expected + "\n"));
    assert!(notes.contains("connection lost") && notes.contains("resumed"), "{notes}");
    assert!(!notes.contains('\u{1b}'), "no colours in a pipe: {notes:?}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_stops_the_answer_and_a_second_one_leaves() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut command = chat(app.addresses.server);
    let mut talk = Talk::start(command.args(["--engine", "generative", "--once", "?"]));
    let played = questions.next().await;
    played.say("so far").await;
    tokio::task::block_in_place(|| talk.wait_for("so far"));
    talk.interrupt();
    played.dropped().await;
    let (code, text, notes) = tokio::task::block_in_place(|| talk.end());
    assert_eq!((code, text.as_str()), (Some(130), "so far\n"));
    assert!(notes.contains("stopped"), "{notes}");

    // A server that does not hear of it.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let talk = Talk::start(chat(silent.local_addr().expect("an address")).args(["--once", "?"]));
    let (_held, _) = silent.accept().await.expect("it connects");
    talk.interrupt();
    tokio::time::sleep(Duration::from_millis(300)).await;
    talk.interrupt();
    let (code, _, _) = tokio::task::block_in_place(|| talk.end());
    assert_eq!(code, Some(130));
    app.stop().await;
}

fn soak(address: &str, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.args(["soak", "--addr", address, "--duration", "2s"]).args(arguments);
    command
}

#[test]
fn a_soak_over_connections_that_die_is_whole() {
    let folder = folder();
    let mut process = Process::start(&mut serve(&folder, &["server.max_age=300ms"]));
    let server = process.wait_for_address(&["serving"]).to_string();
    let (code, text, _) = run(soak(&server, &["--rate", "50"]).args(["--connections", "2"]));
    assert_eq!(code, Some(0), "{text}");
    let last = text.lines().last().expect("a summary");
    assert!(last.contains(" whole, 0 failed, 0 wrong; "), "{last}");
    let begun = last.split_whitespace().nth(2).and_then(|begun| begun.parse().ok());
    assert!(begun.is_some_and(|begun: u32| begun > 50), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soak_tells_what_has_failed() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let address = app.addresses.server.to_string();
    let mut playing = tokio::task::JoinSet::new();
    playing.spawn(async move {
        let mut first = true;
        loop {
            let played = questions.next().await;
            if std::mem::take(&mut first) {
                played.say("so far").await;
                played.fail(chatbot::engine::Error::Truncated("cut".to_owned())).await;
            } else {
                played.end().await;
            }
        }
    });
    let mut command = soak(&address, &["--rate", "5", "--engine", "generative"]);
    let (code, text, _) = tokio::task::block_in_place(|| run(&mut command));
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("1 x failed: UPSTREAM_TRUNCATED"), "{text}");
    assert!(text.contains(" 1 failed, 0 wrong"), "{text}");
    drop(playing);
    app.stop().await;
    let (code, text, _) = run(&mut soak(&address, &[]));
    assert_eq!(code, Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "told once: {text}");
}

#[test]
fn a_chat_in_a_terminal_has_a_prompt_and_a_history() {
    let script = Command::new("script").arg("--version").stdout(Stdio::null()).status();
    if script.is_err() {
        skip("script", "install Debian's util-linux and bsdutils");
        return;
    }
    let folder = folder();
    let mut process = Process::start(&mut serve(&folder, &[]));
    let server = process.wait_for_address(&["serving"]);
    let command = format!("{} chat --addr {server}", env!("CARGO_BIN_EXE_chatbot"));
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
    terminal.env("TERM", "xterm").env_remove("NO_COLOR");
    let mut talk = Talk::start(&mut terminal);
    talk.wait_for("> ");
    talk.say("too many open files\r");
    talk.wait_for("close your channels.");
    // Up, and once more the same; then the end of input. What is typed before the prompt is the terminal's.
    talk.wait_for("> ");
    talk.say("\u{1b}[A\r");
    talk.wait_for("close your channels.");
    talk.wait_for("> ");
    talk.say("\u{4}");
    talk.wait_for("to go on: chatbot chat --conversation ");
    assert_eq!(talk.end().0, Some(0));
}

/// A server with TLS and a token, and the arguments that let in.
fn guarded(folder: &tempfile::TempDir) -> (Process, [String; 6]) {
    let authority = Authority::new();
    let path = |name: &str| folder.path().join(name);
    authority.write_server(folder.path());
    std::fs::write(path("ca.crt"), authority.pem()).expect("a file");
    std::fs::write(path("token"), "hunter-one\n").expect("a file");
    // `printf %s hunter-one | sha256sum`
    let hash = "c7819ee560ff7169f348782b7d7be0bc0360f98bb81bbc51e70cbb2d3c2fcf0c";
    std::fs::write(path("tokens"), format!("sha256:{hash} quokka chat\n")).expect("a file");
    let mut settings = tls::settings(folder.path()).to_vec();
    settings.push(format!("auth.tokens_file={}", path("tokens").display()));
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let process = Process::start(&mut serve(folder, &settings));
    let file = |name: &str| path(name).display().to_string();
    let arguments = [
        "--tls-ca".to_owned(),
        file("ca.crt"),
        "--tls-server-name".to_owned(),
        "chatbot.test".to_owned(),
        "--token-file".to_owned(),
        file("token"),
    ];
    (process, arguments)
}

#[test]
fn all_commands_speak_tls_and_show_a_token() {
    let folder = folder();
    let (mut process, arguments) = guarded(&folder);
    let server = process.wait_for_address(&["serving"]).to_string();
    let with = |words: &[&str]| {
        let mut command = binary();
        command.args(words).args(["--addr", &server]);
        command
    };
    for words in [
        &["ask", "too many open files"][..],
        &["chat", "--once", "too many open files"],
        &["health", "--service", "chatbot.v1.Chatbot"],
    ] {
        let (code, stdout, stderr) = run(with(words).args(&arguments));
        assert_eq!(code, Some(0), "{words:?}: {stdout}{stderr}");
        // By a variable too; without any token; without TLS.
        let token = with(words).args(&arguments[..4]).env("CHATBOT_TOKEN", "hunter-one").status();
        assert!(token.expect("it runs").success());
        let (code, stdout, stderr) = run(with(words).args(&arguments[..4]));
        let told = stdout + &stderr;
        assert_eq!(code, Some(3), "{told}");
        assert!(told.contains("a credential is required"), "{told}");
    }
    // Plaintext to a TLS port: the connection stands before anybody notices.
    assert!([Some(2), Some(3)].contains(&run(&mut with(&["health"])).0));
    assert_eq!(run(with(&["health"]).args(["--token-file", "/nowhere"])).0, Some(64));
}

#[test]
fn health_watches_until_it_is_told_to_end() {
    let folder = folder();
    let mut process = Process::start(&mut serve(&folder, &["server.drain_delay=1h"]));
    let ops = process.wait_for_address(&["ops port is open"]).to_string();
    process.wait_for(&["serving"]);
    let watch = || {
        let mut talk = Talk::start(binary().args(["health", "--watch", "--addr", &ops]));
        talk.wait_for("SERVING\n");
        talk
    };
    let (healthy, mut changing) = (watch(), watch());
    healthy.interrupt();
    assert_eq!(healthy.end().0, Some(0));
    process.signal("TERM");
    changing.wait_for("NOT_SERVING\n");
    process.signal("TERM");
    changing.wait_for("UNREACHABLE\n");
    changing.interrupt();
    let (code, lines, _) = changing.end();
    assert_eq!((code, lines.as_str()), (Some(4), "SERVING\nNOT_SERVING\nUNREACHABLE\n"));

    let nobody = ["health", "--watch", "--addr", "127.0.0.1:1", "--connect-timeout", "1s"];
    assert_eq!(run(binary().args(nobody).args(["--rpc-timeout", "1s"])).0, Some(2));
}
