//! Compiles `proto/` with protox (pure Rust), so that a fresh machine needs no `protoc`.
//!
//! Two descriptor sets are written for reflection, one a package, because reflection answers with
//! whole files and the health protocol is not ours to bundle with the chatbot's. And the contract is
//! compiled once more without what is ours, for `examples/bare.rs`.

use std::path::PathBuf;

use prost::Message as _;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    println!("cargo::rerun-if-changed=proto");
    compile("chatbot/v1/chatbot.proto", "chatbot_descriptor.bin")?;
    compile("grpc/health/v1/health.proto", "health_descriptor.bin")
}

fn compile(file: &str, descriptor: &str) -> Result<(), Error> {
    let descriptors = protox::Compiler::new(["proto"])?
        .include_source_info(true)
        .include_imports(true)
        .open_file(file)?
        .file_descriptor_set();
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join(descriptor), descriptors.encode_to_vec())?;
    // A client without the server's parts has no use for traits to serve the contract with.
    let server = std::env::var_os("CARGO_FEATURE_SERVER").is_some();
    if server {
        // For the bare server that ours is measured against: as anybody has it from tonic.
        let stock = out.join("stock");
        std::fs::create_dir_all(&stock)?;
        tonic_prost_build::configure()
            .build_client(false)
            .out_dir(stock)
            .compile_fds(descriptors.clone())?;
    }
    tonic_prost_build::configure()
        .build_server(server)
        .codec_path("crate::pb::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
