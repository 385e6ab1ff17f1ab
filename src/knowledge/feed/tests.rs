//! What a fed knowledge base promises: it is the base and the log, whatever happens.

use std::path::Path;

use super::{super::Query, *};
use crate::{
    config::{Config, Sources},
    domain::AnswerId,
    health::Health,
    store::Embedded,
};

fn store() -> Arc<dyn KnowledgeLog> {
    let mut registry = Registry::default();
    let dependency = Health::new(&mut registry).dependency("store");
    let overrides = vec!["store.url=memory:".to_owned()];
    let config = Config::load(&Sources { overrides, ..Sources::default() }).expect("settings");
    Arc::new(Embedded::open(&config.store, false, dependency, &mut registry).expect("a store"))
}

fn entry(id: i32, question: &str) -> Entry {
    Entry {
        answer_id: AnswerId(id),
        questions: vec![question.to_owned()],
        answer: format!("answer {id}"),
        language_code: "en".to_owned(),
    }
}

fn base(folder: &Path, entries: &[Entry]) -> Base {
    let lines = entries.iter().map(|entry| serde_json::to_string(entry).expect("JSON") + "\n");
    let path = folder.join("faq.jsonl");
    std::fs::write(&path, lines.collect::<String>()).expect("a file");
    Base::File(path)
}

fn found(knowledge: &Knowledge, text: &str) -> Vec<i32> {
    let query = Query { text, language: None, excluded: &[], most: 10 };
    let hits = knowledge.search(&query).expect("a search");
    hits.into_iter().map(|hit| hit.entry.answer_id.0).collect()
}

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_log_goes_over_the_base_at_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = base(folder.path(), &[entry(1, "apple"), entry(2, "pear")]);
    let store = store();
    let changes = vec![
        Change::Upsert(entry(1, "orange")),
        Change::Delete(AnswerId(2)),
        Change::Upsert(entry(3, "plum")),
    ];
    store.append_knowledge(changes).await.expect("an append");
    let (knowledge, _, _) =
        Feed::open(base, store, &mut Registry::default()).await.expect("a feed");
    assert_eq!(found(&knowledge, "apple pear"), [0; 0]);
    assert_eq!(found(&knowledge, "orange"), [1]);
    assert_eq!(found(&knowledge, "plum"), [3]);
    knowledge.wait_for(Revision(3), Duration::ZERO).await.expect("caught up");
}

#[tokio::test]
async fn what_is_appended_is_found_once_its_revision_is_reached() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = base(folder.path(), &[entry(1, "apple")]);
    let store = store();
    let (knowledge, feed, _reloader) =
        Feed::open(base, Arc::clone(&store), &mut Registry::default()).await.expect("a feed");
    let closing = CancellationToken::new();
    let test = async {
        for id in 2..20 {
            let revision = store
                .append_knowledge(vec![Change::Upsert(entry(id, &format!("fruit{id}")))])
                .await
                .expect("an append");
            knowledge.wait_for(revision, LIMIT).await.expect("reached");
            assert_eq!(found(&knowledge, &format!("fruit{id}")), [id]);
        }
        closing.cancel();
    };
    tokio::join!(feed.run(closing.clone()), test);
}

#[tokio::test]
async fn another_base_keeps_what_was_taught_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = base(folder.path(), &[entry(1, "apple"), entry(2, "pear")]);
    let store = store();
    store.append_knowledge(vec![Change::Upsert(entry(1, "orange"))]).await.expect("an append");
    let (knowledge, feed, reloader) =
        Feed::open(first, store, &mut Registry::default()).await.expect("a feed");
    let closing = CancellationToken::new();
    let test = async {
        let second = base(folder.path(), &[entry(1, "apple"), entry(7, "cherry")]);
        assert_eq!(reloader.reload(second.clone()).await.expect("alive").expect("good"), 2);
        assert_eq!(found(&knowledge, "cherry"), [7]);
        assert_eq!(found(&knowledge, "orange"), [1]);
        assert_eq!(found(&knowledge, "pear apple"), [0; 0]);

        std::fs::write(folder.path().join("faq.jsonl"), "{").expect("a file");
        let error = reloader.reload(second).await.expect("alive").expect_err("bad");
        assert!(error.to_string().contains("line 1"), "{error}");
        assert_eq!(found(&knowledge, "cherry"), [7]);
        closing.cancel();
    };
    tokio::join!(feed.run(closing.clone()), test);
}

#[tokio::test]
async fn waiting_for_a_revision_that_does_not_come_ends() {
    let (knowledge, _, _) =
        Feed::open(Base::Sample, store(), &mut Registry::default()).await.expect("a feed");
    let error = knowledge.wait_for(Revision(1), Duration::from_millis(10)).await;
    assert!(matches!(error, Err(Error::Behind(Revision(1)))));
}
