//! Clients that are not ours.

use std::process::{Command, Stdio};

use crate::support::{Process, binary, skip};

#[test]
fn grpcio_gets_its_answers() {
    let python = std::env::var("CHATBOT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let there = Command::new(&python)
        .args(["-c", "import grpc, grpc_tools"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !there {
        return skip("python3 with grpcio", "pip install grpcio grpcio-tools");
    }
    let mut command = binary();
    for setting in [
        "server.address=127.0.0.1:0",
        "ops.address=127.0.0.1:0",
        "store.url=memory:",
        "server.drain_delay=0s",
    ] {
        command.args(["--set", setting]);
    }
    let mut process = Process::start(&mut command);
    let ops = process.wait_for_address(&["ops port is open"]).to_string();
    let server = process.wait_for_address(&["serving"]).to_string();
    let output = Command::new(python)
        .args(["tests/python/ask.py", "proto", &server, &ops])
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
