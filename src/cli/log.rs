//! `chatbot log`: what is in the store?
//!
//! A file that nobody can look into is one that nobody trusts with their conversations.

use std::{
    io::{self, BufWriter, ErrorKind, Write},
    process::ExitCode,
};

use anyhow::bail;
use clap::{Args, Subcommand};
use uuid::Uuid;

use super::load;
use crate::{
    config::{Sources, StoreUrl},
    domain::ConversationId,
    store::{self, Selection},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what the file of store.url holds, one JSON object a line; no server may have it open
    Dump(Dump),
}

#[derive(Debug, Args)]
struct Dump {
    /// The changes of the knowledge base (without any option: everything)
    #[arg(long)]
    knowledge: bool,

    /// The conversations
    #[arg(long)]
    conversations: bool,

    /// Only the conversation of this id
    #[arg(long, value_name = "ID")]
    conversation: Option<Uuid>,
}

impl Dump {
    fn selection(&self) -> Selection {
        let conversation = self.conversation.map(ConversationId);
        let conversations = self.conversations || conversation.is_some();
        let everything = !self.knowledge && !conversations;
        Selection {
            knowledge: self.knowledge || everything,
            conversations: conversations || everything,
            conversation,
        }
    }
}

#[expect(clippy::print_stderr, reason = "standard output is for the objects")]
pub(super) fn run(sources: &Sources, options: Options) -> ExitCode {
    let (config, _) = match load(sources) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let Command::Dump(options) = options.command;
    let out = BufWriter::new(io::stdout().lock());
    match dump(&config.store.url, options.selection(), out) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough, as `head` has.
        Err(error) if is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chatbot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dump(url: &StoreUrl, selection: Selection, mut out: impl Write) -> anyhow::Result<()> {
    let path = match url {
        StoreUrl::File(path) => path,
        StoreUrl::Memory => {
            bail!("store.url is memory: there is nothing to dump, it ends with its server")
        }
        StoreUrl::Redis(_) => {
            bail!(
                "store.url is a server: look with redis-cli, its keys begin with store.key_prefix"
            )
        }
    };
    store::dump(path, selection, |object| -> anyhow::Result<()> {
        writeln!(out, "{object}")?;
        Ok(())
    })?;
    out.flush()?;
    Ok(())
}

fn is_closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use prometheus_client::registry::Registry;
    use serde_json::Value;

    use super::*;
    use crate::{
        config,
        domain::{AnswerId, Change, ConversationKey, Message, RequestId},
        health::Health,
        store::{Begin, ConversationLog as _, Embedded, KnowledgeLog as _, TurnOptions},
    };

    fn open(url: &StoreUrl) -> Embedded {
        let (lease, retention) = (Duration::from_secs(5), Duration::from_hours(1));
        let config =
            config::Store { url: url.clone(), retention, lease, detach_grace: Duration::ZERO };
        let dependency = Health::new(&mut Registry::default()).dependency("store");
        Embedded::open(&config, false, dependency, &mut Registry::default()).expect("a store")
    }

    fn dumped(url: &StoreUrl, options: &Dump) -> Vec<(String, Value)> {
        let mut bytes = Vec::new();
        dump(url, options.selection(), &mut bytes).expect("a dump");
        let objects = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        objects
            .map(|object| {
                let object = object.expect("JSON");
                (object["type"].as_str().expect("a type").to_owned(), object)
            })
            .collect()
    }

    fn types(objects: &[(String, Value)]) -> Vec<&str> {
        objects.iter().map(|(of, _)| of.as_str()).collect()
    }

    #[tokio::test]
    async fn a_dump_shows_everything_and_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("chatbot.redb");
        let url = StoreUrl::File(path.clone());
        let store = open(&url);
        store.append_knowledge(vec![Change::Delete(AnswerId(7))]).await.expect("an append");
        let ids = [Uuid::new_v4(), Uuid::new_v4()];
        for id in ids {
            let request = RequestId(Uuid::new_v4());
            let message = Message { participant: "a".into(), text: "안녕".into(), request };
            let begin =
                Begin { message: message.into(), options: TurnOptions::default(), existing: false };
            let key = ConversationKey::new("alice", ConversationId(id));
            store.begin(&key, &begin).await.expect("a begin");
        }
        let all = Dump { knowledge: false, conversations: false, conversation: None };
        let error = dump(&url, all.selection(), Vec::new()).expect_err("it is open").to_string();
        assert!(error.contains("another process has it open"), "{error}");
        drop(store);

        let before = fs::read(&path).expect("the file");
        let objects = dumped(&url, &all);
        let conversation = ["conversation", "turn", "event"];
        assert_eq!(types(&objects), [&["knowledge"][..], &conversation, &conversation].concat());
        assert_eq!(objects[0].1["revision"], 1);
        let one = dumped(&url, &Dump { conversation: Some(ids[1]), ..all });
        assert_eq!(types(&one), conversation);
        assert!(one.iter().all(|(_, object)| {
            object["id"] == ids[1].to_string() || object["conversation"] == ids[1].to_string()
        }));
        assert_eq!(one[2].1["event"]["posted"]["text"], "안녕");
        assert_eq!(fs::read(&path).expect("the file"), before);
    }

    #[test]
    fn what_is_no_file_is_said() {
        let all = Selection { knowledge: true, conversations: true, conversation: None };
        let error = dump(&StoreUrl::Memory, all, Vec::new()).expect_err("no file");
        assert!(error.to_string().contains("nothing to dump"), "{error}");
        let missing = StoreUrl::File("/nowhere/chatbot.redb".into());
        let error = dump(&missing, all, Vec::new()).expect_err("no file").to_string();
        assert!(error.contains("cannot open the store /nowhere/chatbot.redb"), "{error}");
    }
}
