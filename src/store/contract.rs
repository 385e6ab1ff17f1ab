//! What every store promises, as tests that take any store.

use super::KnowledgeLog;
use crate::domain::{AnswerId, Change, Entry, Revision};

pub(super) fn upsert(id: i32, answer: &str) -> Change {
    Change::Upsert(Entry {
        answer_id: AnswerId(id),
        questions: vec![format!("question {id}?")],
        answer: answer.to_owned(),
        language_code: String::new(),
    })
}

async fn all(store: &dyn KnowledgeLog) -> Vec<(Revision, Change)> {
    store.read_knowledge(Revision(0), usize::MAX).await.expect("a read")
}

/// Runs every promise; the store has to be new.
pub(super) async fn holds(store: &dyn KnowledgeLog) {
    an_append_is_read_back_with_its_revision(store).await;
    only_the_last_change_of_an_entry_stays(store).await;
    a_read_goes_on_after_a_revision_and_keeps_to_its_limit(store).await;
    many_appends_at_once_get_revisions_of_their_own(store).await;
    an_empty_append_changes_nothing(store).await;
}

async fn an_append_is_read_back_with_its_revision(store: &dyn KnowledgeLog) {
    assert_eq!(*store.knowledge_revision().borrow(), Revision(0));
    let changes = vec![upsert(1, "one"), upsert(2, "둘"), Change::Delete(AnswerId(9))];
    let revision = store.append_knowledge(changes.clone()).await.expect("an append");
    assert_eq!(revision, Revision(3));
    assert_eq!(*store.knowledge_revision().borrow(), Revision(3));
    let expected: Vec<_> = (1..=3).map(Revision).zip(changes).collect();
    assert_eq!(all(store).await, expected);
}

async fn only_the_last_change_of_an_entry_stays(store: &dyn KnowledgeLog) {
    let changes = vec![upsert(1, "uno"), Change::Delete(AnswerId(1)), upsert(1, "eins")];
    assert_eq!(store.append_knowledge(changes).await.expect("an append"), Revision(6));
    let expected = vec![
        (Revision(2), upsert(2, "둘")),
        (Revision(3), Change::Delete(AnswerId(9))),
        (Revision(6), upsert(1, "eins")),
    ];
    assert_eq!(all(store).await, expected);
}

async fn a_read_goes_on_after_a_revision_and_keeps_to_its_limit(store: &dyn KnowledgeLog) {
    let first = store.read_knowledge(Revision(0), 2).await.expect("a read");
    let rest = store.read_knowledge(first[1].0, 2).await.expect("a read");
    let both: Vec<_> = first.into_iter().chain(rest).collect();
    assert_eq!(both, all(store).await);
    assert_eq!(store.read_knowledge(Revision(6), 10).await.expect("a read"), []);
    assert_eq!(store.read_knowledge(Revision(u64::MAX), 10).await.expect("a read"), []);
}

async fn many_appends_at_once_get_revisions_of_their_own(store: &dyn KnowledgeLog) {
    let appends = (100..200).map(|id| store.append_knowledge(vec![upsert(id, "many")]));
    let outcomes = futures_util::future::join_all(appends).await;
    let mut revisions: Vec<_> =
        outcomes.into_iter().map(|outcome| outcome.expect("an append")).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (7..107).map(Revision).collect::<Vec<_>>());
}

async fn an_empty_append_changes_nothing(store: &dyn KnowledgeLog) {
    assert_eq!(store.append_knowledge(Vec::new()).await.expect("an append"), Revision(106));
}
