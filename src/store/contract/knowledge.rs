//! What every store promises about knowledge.
//!
//! The knowledge log is one for all, so what others have taught is passed over: the ids here are
//! random.

use std::collections::BTreeSet;

use super::{Replicas, SOON, Store, Uuid, timeout};
use crate::domain::{AnswerId, Change, Entry, Revision};

pub(in crate::store) fn upsert(id: i32, answer: &str) -> Change {
    Change::Upsert(Entry {
        answer_id: AnswerId(id),
        questions: vec![format!("question {id}?")],
        answer: answer.to_owned(),
        language_code: String::new(),
    })
}

/// A thousand ids that nobody else has.
fn ids() -> std::ops::Range<i32> {
    let thousand = i32::from(Uuid::new_v4().as_fields().1) + 1;
    thousand * 1_000..(thousand + 1) * 1_000
}

/// The changes of `ids` after `after`.
async fn changes(
    store: &dyn Store,
    ids: &std::ops::Range<i32>,
    after: Revision,
) -> Vec<(Revision, Change)> {
    let mut all = store.read_knowledge(after, usize::MAX).await.expect("a read");
    all.retain(|(_, change)| ids.contains(&change.answer_id().0));
    all
}

pub(super) async fn holds(replicas: &Replicas) {
    let (here, there) = (&*replicas.here, &*replicas.there);
    if replicas.new {
        assert_eq!(*here.knowledge_revision().borrow(), Revision(0));
        assert_eq!(here.read_knowledge(Revision(0), 10).await.expect("a read"), []);
    }
    an_append_is_read_back_with_its_revision(here, there).await;
    only_the_last_change_of_an_entry_stays(here, there).await;
    a_read_goes_on_after_a_revision_and_keeps_to_its_limit(here, there).await;
    many_appends_at_once_get_revisions_of_their_own(here, there).await;
    an_empty_append_changes_nothing(here).await;
}

async fn an_append_is_read_back_with_its_revision(here: &dyn Store, there: &dyn Store) {
    let ids = ids();
    let [one, two, three] = [ids.start, ids.start + 1, ids.start + 2];
    let taught = vec![upsert(one, "one"), upsert(two, "둘"), Change::Delete(AnswerId(three))];
    let mut hints = [here.knowledge_revision(), there.knowledge_revision()];
    let revision = here.append_knowledge(taught.clone()).await.expect("an append");
    for store in [here, there] {
        let read = changes(store, &ids, Revision(0)).await;
        assert!(read.is_sorted_by(|a, b| a.0 < b.0), "{read:?}");
        assert_eq!(read.last().expect("changes").0, revision);
        assert_eq!(read.into_iter().map(|(_, change)| change).collect::<Vec<_>>(), taught);
    }
    for hint in &mut hints {
        let grown = hint.wait_for(|newest| *newest >= revision);
        timeout(SOON, grown).await.expect("a hint").expect("the store is open");
    }
}

async fn only_the_last_change_of_an_entry_stays(here: &dyn Store, there: &dyn Store) {
    let ids = ids();
    let [one, two] = [ids.start, ids.start + 1];
    let first = vec![upsert(one, "one"), upsert(two, "two")];
    let before = here.append_knowledge(first).await.expect("an append");
    let again = vec![upsert(one, "uno"), Change::Delete(AnswerId(one)), upsert(one, "eins")];
    let after = there.append_knowledge(again).await.expect("an append");
    assert_eq!(after.0, before.0 + 3);
    let expected = [(before, upsert(two, "two")), (after, upsert(one, "eins"))];
    for store in [here, there] {
        assert_eq!(changes(store, &ids, Revision(0)).await, expected);
    }
}

async fn a_read_goes_on_after_a_revision_and_keeps_to_its_limit(
    here: &dyn Store,
    there: &dyn Store,
) {
    let ids = ids();
    let taught = (0..5).map(|n| upsert(ids.start + n, "many")).collect();
    let last = here.append_knowledge(taught).await.expect("an append");
    let mut pages = Vec::new();
    let mut after = Revision(0);
    loop {
        let page = there.read_knowledge(after, 2).await.expect("a read");
        assert!(page.len() <= 2);
        let Some((newest, _)) = page.last() else { break };
        after = *newest;
        pages.extend(page);
    }
    assert!(after >= last);
    pages.retain(|(_, change)| ids.contains(&change.answer_id().0));
    assert_eq!(pages, changes(there, &ids, Revision(0)).await);
    assert_eq!(changes(there, &ids, last).await, []);
    assert_eq!(there.read_knowledge(Revision(u64::MAX), 10).await.expect("a read"), []);
}

async fn many_appends_at_once_get_revisions_of_their_own(here: &dyn Store, there: &dyn Store) {
    let ids = ids();
    let appends = (0..100).map(|n| {
        let store = if n % 2 == 0 { here } else { there };
        store.append_knowledge(vec![upsert(ids.start + n, "many")])
    });
    let outcomes = futures_util::future::join_all(appends).await;
    let revisions: BTreeSet<_> =
        outcomes.into_iter().map(|outcome| outcome.expect("an append")).collect();
    let read = changes(here, &ids, Revision(0)).await;
    assert_eq!(read.into_iter().map(|(revision, _)| revision).collect::<BTreeSet<_>>(), revisions);
    assert_eq!(revisions.len(), 100);
}

async fn an_empty_append_changes_nothing(here: &dyn Store) {
    let ids = ids();
    let before = here.append_knowledge(vec![upsert(ids.start, "x")]).await.expect("an append");
    let after = here.append_knowledge(Vec::new()).await.expect("an append");
    assert!(after >= before);
    assert_eq!(changes(here, &ids, before).await, []);
}
