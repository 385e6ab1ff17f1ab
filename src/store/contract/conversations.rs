//! What every store promises about conversations: requests, posts, reads and hints.

use futures_util::{FutureExt as _, future::join_all};

use super::*;
use crate::{
    domain::EngineKind,
    store::{Hint, PAGE_BYTES, WATCHED},
};

/// All of them at once: much of the time is spent on waiting.
pub(super) async fn holds(replicas: &Replicas) {
    join_all([
        of_equal_begins_exactly_one_is_new(replicas).boxed(),
        a_request_is_known_with_its_end(replicas).boxed(),
        a_known_request_with_another_payload_is_refused(replicas).boxed(),
        a_conversation_has_one_turn_at_a_time(replicas).boxed(),
        a_conversation_is_its_principals(replicas).boxed(),
        posts_are_logged_once(replicas).boxed(),
        positions_are_checked(replicas).boxed(),
        pages_are_the_whole(replicas).boxed(),
        no_page_is_huge(replicas).boxed(),
        history_is_what_was_said(replicas).boxed(),
        deltas_outlive_the_next_turn(replicas).boxed(),
        readers_are_seen(replicas).boxed(),
        hints_arrive(replicas).boxed(),
    ])
    .await;
}

async fn history_is_what_was_said(Replicas { here, there, .. }: &Replicas) {
    let key = fresh();
    for text in ["one", "two", "three"] {
        let (owner, _) = new_turn(&**here, &key, &says(request(), text)).await;
        stored(&**here, &owner, 1, &[delta("h"), delta("i"), completed(text)]).await;
    }
    let (_, start) = new_turn(&**here, &key, &says(request(), "four")).await;
    let mut said = log(&**here, &key).await;
    said.retain(|event| !matches!(event.body, EventBody::Delta(_)));
    said.pop();
    assert_eq!(said.len(), 6);
    for most in [0, 1, 3, 6, 100] {
        let history = there.history(&key, start, most).await.expect("a history");
        assert_eq!(history, said[6 - most.min(6)..]);
    }
    assert_eq!(there.history(&fresh(), start, 10).await.expect("nothing"), []);
}

async fn of_equal_begins_exactly_one_is_new(Replicas { here, there, .. }: &Replicas) {
    let (key, begin) = (fresh(), says(request(), "hello"));
    let begins = (0..60).map(|n| if n % 2 == 0 { here } else { there }.begin(&key, &begin));
    let (mut new, mut starts) = (0, Vec::new());
    for begun in join_all(begins).await {
        match begun.expect("a begin") {
            Begun::New { owner, start, .. } => {
                assert_eq!((&owner.key, owner.turn), (&key, begin.message.request));
                new += 1;
                starts.push(start);
            }
            Begun::Known { start, end: None } => starts.push(start),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((new, starts.len()), (1, 60));
    let log = log(&**there, &key).await;
    assert_eq!(log.len(), 1);
    assert_eq!(log[0].body, EventBody::Posted(begin.message.clone()));
    assert_eq!(log[0].turn, Some(begin.message.request));
    assert!(starts.iter().all(|start| *start == log[0].position.sequence));
    assert!(log[0].time.elapsed().unwrap_or_default() < SOON);
}

async fn a_request_is_known_with_its_end(Replicas { here, there, .. }: &Replicas) {
    let (key, begin) = (fresh(), says(request(), "hello"));
    let (owner, start) = new_turn(&**here, &key, &begin).await;
    let known = there.begin(&key, &begin).await.expect("a begin");
    assert_eq!(known, Begun::Known { start, end: None });
    let found = there.find(&key, begin.message.request).await.expect("a look");
    assert_eq!(found, Some(Found { start, trace: None }));
    assert_eq!(there.find(&key, request()).await.expect("a look"), None);
    assert_eq!(there.find(&fresh(), begin.message.request).await.expect("a look"), None);
    let end = stored(&**here, &owner, 1, &[delta("hi"), completed("hi")]).await;
    let (_, second) = new_turn(&**there, &key, &says(request(), "and?")).await;
    assert!(second > end && end > start);
    // Known also while another turn is active, and where the conversation has to exist.
    let existing = Begin { existing: true, ..begin };
    let known = here.begin(&key, &existing).await.expect("a begin");
    assert_eq!(known, Begun::Known { start, end: Some(end) });
}

async fn a_known_request_with_another_payload_is_refused(Replicas { here, there, .. }: &Replicas) {
    let (key, begin) = (fresh(), says(request(), "hello"));
    let (owner, _) = new_turn(&**here, &key, &begin).await;
    let mut others = [says(begin.message.request, "bye"), begin.clone(), begin.clone()];
    others[1].options.engine = Some(EngineKind::Generative);
    others[2].options.language = Some("ko".to_owned());
    for finished in [false, true] {
        for other in &others {
            let refused = there.begin(&key, other).await;
            assert!(matches!(refused, Err(Error::Reused)), "{refused:?}");
        }
        // The same text, but it wants no answer.
        let refused = there.post(&key, &begin).await;
        assert!(matches!(refused, Err(Error::Reused)), "{refused:?}");
        if !finished {
            stored(&**here, &owner, 1, &[completed("hi")]).await;
        }
    }
    let posted = says(request(), "by the way");
    here.post(&key, &posted).await.expect("a post");
    let refused = there.begin(&key, &posted).await;
    assert!(matches!(refused, Err(Error::Reused)), "{refused:?}");
    let refused = there.post(&key, &says(posted.message.request, "bye")).await;
    assert!(matches!(refused, Err(Error::Reused)), "{refused:?}");
    assert_eq!(log(&**here, &key).await.len(), 3);
}

async fn a_conversation_has_one_turn_at_a_time(Replicas { here, there, .. }: &Replicas) {
    let key = fresh();
    let begins: Vec<_> = (0..20).map(|n| says(request(), &format!("hello {n}"))).collect();
    let begins = begins.iter().map(|begin| there.begin(&key, begin));
    let mut owners = Vec::new();
    let mut busy = Vec::new();
    for begun in join_all(begins).await {
        match begun.expect("a begin") {
            Begun::New { owner, .. } => owners.push(owner),
            Begun::Busy { turn, orphaned: false } => busy.push(turn),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((owners.len(), busy.len()), (1, 19));
    assert!(busy.iter().all(|turn| *turn == owners[0].turn));
    let expected = Some(Active { turn: owners[0].turn, orphaned: false });
    assert_eq!(active(&**here, &key).await, expected);
    // Nothing of a refused one was kept: it may come again.
    assert_eq!(log(&**here, &key).await.len(), 1);
    stored(&**here, &owners[0], 1, &[completed("hi")]).await;
    assert_eq!(active(&**here, &key).await, None);
    let (next, _) = new_turn(&**here, &key, &says(request(), "more")).await;
    assert!(next.epoch > owners[0].epoch);
}

async fn a_conversation_is_its_principals(Replicas { here, there, .. }: &Replicas) {
    let key = fresh();
    let begin = Begin { existing: true, ..says(request(), "hello") };
    let missing = [
        here.begin(&key, &begin).await.map(|_| ()),
        here.post(&key, &begin).await.map(|_| ()),
        here.cancel(&key, request()).await,
        here.read(&key, After::Sequence(Sequence(0)), 10, true).await.map(|_| ()),
        here.read(&key, After::Position(Position::random(Sequence(1))), 10, true).await.map(|_| ()),
    ];
    assert!(missing.iter().all(|o| matches!(o, Err(Error::NotFound))), "{missing:?}");
    assert_eq!(here.reap(&key).await.expect("a reap"), None);
    let nobody = Owner { key: key.clone(), turn: request(), epoch: 1 };
    let fenced = here.append(&nobody, 1, &[delta("x")]).await.expect("an append");
    assert_eq!(fenced, Appended::Fenced);

    new_turn(&**here, &key, &says(request(), "hello")).await;
    let other = ConversationKey::new("mallory", key.id());
    let refused = there.begin(&other, &begin).await;
    assert!(matches!(refused, Err(Error::NotFound)), "{refused:?}");
    let refused = there.read(&other, After::Sequence(Sequence(0)), 10, false).await;
    assert!(matches!(refused, Err(Error::NotFound)), "{refused:?}");
}

async fn posts_are_logged_once(Replicas { here, there, .. }: &Replicas) {
    let (key, post) = (fresh(), says(request(), "by the way"));
    let posts = (0..20).map(|n| if n % 2 == 0 { here } else { there }.post(&key, &post));
    let places: Vec<_> =
        join_all(posts).await.into_iter().map(|place| place.expect("a post")).collect();
    let only = log(&**there, &key).await;
    assert_eq!(only.len(), 1);
    assert!(places.iter().all(|place| *place == only[0].position.sequence));
    assert_eq!((only[0].turn, &only[0].body), (None, &EventBody::Posted(post.message.clone())));
    assert_eq!(active(&**here, &key).await, None);

    // It neither waits for a turn nor disturbs it.
    let (owner, start) = new_turn(&**here, &key, &says(request(), "hello")).await;
    stored(&**here, &owner, 1, &[delta("a")]).await;
    let second = there.post(&key, &says(request(), "me too")).await.expect("a post");
    let last = stored(&**here, &owner, 2, &[delta("b"), completed("ab")]).await;
    assert!(places[0] < start && start < second && second < last);
    assert_eq!(there.post(&key, &post).await.expect("a post"), places[0]);
    assert_eq!(log(&**here, &key).await.len(), 6);
}

async fn positions_are_checked(Replicas { here, there, .. }: &Replicas) {
    let key = fresh();
    let (owner, _) = new_turn(&**here, &key, &says(request(), "hello")).await;
    stored(&**here, &owner, 1, &[delta("a"), delta("b")]).await;
    stored(&**here, &owner, 3, &[completed("ab")]).await;
    let log = log(&**here, &key).await;
    // Every event is a position, a delta and the last one too.
    for (at, event) in log.iter().enumerate() {
        let after = After::Position(event.position);
        let page = there.read(&key, after, 10, false).await.expect("a read");
        assert_eq!(page.events, log[at + 1..]);
        let after = After::Sequence(event.position.sequence);
        let page = there.read(&key, after, 10, false).await.expect("a read");
        assert_eq!(page.events, log[at + 1..]);
    }
    let last = log[3].position;
    let mut unknown = [last; 4];
    unknown[0].tag ^= 1;
    unknown[1].sequence.0 += 1;
    unknown[2].sequence.0 = 0;
    unknown[3].sequence.0 = u64::MAX;
    for position in unknown {
        let refused = there.read(&key, After::Position(position), 10, false).await;
        assert!(matches!(refused, Err(Error::PositionUnknown)), "{refused:?}");
    }
    let after = After::Sequence(Sequence(u64::MAX));
    assert_eq!(there.read(&key, after, 10, false).await.expect("a read").events, []);
}

async fn pages_are_the_whole(Replicas { here, there, .. }: &Replicas) {
    let key = fresh();
    for turn in 0..3 {
        let (owner, _) = new_turn(&**here, &key, &says(request(), &format!("{turn}"))).await;
        let deltas: Vec<_> = (0..5).map(|n| delta(&format!("{turn}.{n}"))).collect();
        stored(&**here, &owner, 1, &deltas).await;
        here.post(&key, &says(request(), "me too")).await.expect("a post");
        stored(&**here, &owner, 6, &[completed("done")]).await;
    }
    let whole = log(&**there, &key).await;
    for most in [1, 2, 7, 1_000] {
        let mut pages = Vec::new();
        let mut after = After::Sequence(Sequence(0));
        loop {
            let page = there.read(&key, after, most, false).await.expect("a read");
            assert_eq!(page.events.len(), most.min(whole.len() - pages.len()));
            pages.extend(page.events);
            assert_eq!(page.more, pages.len() < whole.len());
            if !page.more {
                break;
            }
            after = After::Position(pages[pages.len() - 1].position);
        }
        assert_eq!(pages, whole, "in pages of {most}");
    }
}

async fn no_page_is_huge(Replicas { here, there, .. }: &Replicas) {
    let key = fresh();
    let large = "x".repeat(60 * 1024);
    let (owner, _) = new_turn(&**here, &key, &says(request(), &large)).await;
    for number in 0..4 {
        // Small and large ones by turns, of either kind.
        let deltas: Vec<_> = (0..20).map(|n| delta(&format!("{number}.{n}"))).collect();
        stored(&**here, &owner, 1 + number * 21, &deltas).await;
        stored(&**here, &owner, 21 + number * 21, &[delta(&large)]).await;
        for text in [large.as_str(), "small"] {
            here.post(&key, &says(request(), text)).await.expect("a post");
        }
    }
    let huge = "y".repeat(PAGE_BYTES + 1);
    stored(&**here, &owner, 85, &[completed(&huge)]).await;
    let bytes = |events: &[Event]| {
        let of = |event: &Event| serde_json::to_string(&event.body).expect("JSON").len();
        events.iter().map(of).sum::<usize>()
    };

    let (mut whole, mut sizes) = (Vec::<Event>::new(), Vec::new());
    loop {
        let after = whole
            .last()
            .map_or(After::Sequence(Sequence(0)), |last| After::Position(last.position));
        let page = there.read(&key, after, ALL, false).await.expect("a read");
        assert!(page.events.len() == 1 || bytes(&page.events) <= PAGE_BYTES);
        sizes.push(page.events.len());
        whole.extend(page.events);
        if !page.more {
            break;
        }
    }
    let places: Vec<_> = whole.iter().map(|event| event.position.sequence.0).collect();
    assert_eq!(places, (1..=1 + 4 * 23 + 1).collect::<Vec<_>>(), "in pages of {sizes:?}");
    // Nine large ones, four to a page, and the huge one by itself.
    assert_eq!((sizes.len(), sizes.last()), (4, Some(&1)));

    whole.retain(|event| !matches!(event.body, EventBody::Delta(_)));
    let (end, start) = (whole[9].position.sequence, whole[0].position.sequence);
    let said = there.history(&key, end, 100).await.expect("a history");
    assert_eq!(said, whole[1..9], "four large ones");
    assert_eq!(there.history(&key, end, 3).await.expect("a history"), whole[6..9]);
    let last = there.history(&key, Sequence(end.0 + 1), 100).await.expect("a history");
    assert_eq!(last, whole[9..], "one that is larger than a page");
    assert_eq!(there.history(&key, start, 100).await.expect("a history"), []);
}

/// Deltas are kept until the next turn but one begins; everything else stays.
async fn deltas_outlive_the_next_turn(Replicas { here, there, .. }: &Replicas) {
    let key = fresh();
    let mut seen = None;
    for turn in 0..4 {
        let text = format!("turn {turn}");
        let (owner, _) = new_turn(&**here, &key, &says(request(), &text)).await;
        if let Some(first) = seen {
            let page = there.read(&key, After::Position(first), 10, false).await;
            let page = page.expect("the position is one of the last turn");
            assert_eq!(page.events[0].body, delta("second"));
        }
        let first = stored(&**here, &owner, 1, &[delta("first")]).await;
        stored(&**here, &owner, 2, &[delta("second"), completed(&text)]).await;
        let log = log(&**there, &key).await;
        seen = log.iter().map(|event| event.position).find(|at| at.sequence == first);
        assert!(seen.is_some());
    }
    let bodies = bodies(&**there, &key).await;
    assert_eq!(bodies.iter().filter(|body| matches!(body, EventBody::Posted(_))).count(), 4);
    assert_eq!(bodies.iter().filter(|body| body.is_terminal()).count(), 4);
}

async fn readers_are_seen(Replicas { here, there, .. }: &Replicas) {
    async fn watched(store: &dyn Store, owner: &Owner) -> bool {
        match store.append(owner, 1, &[]).await.expect("a renewal") {
            Appended::Stored { watched, .. } => watched,
            other => panic!("{other:?}"),
        }
    }
    let key = fresh();
    let (owner, _) = new_turn(&**here, &key, &says(request(), "hello")).await;
    assert!(!watched(&**here, &owner).await);
    let start = After::Sequence(Sequence(0));
    there.read(&key, start, 10, false).await.expect("a read");
    assert!(!watched(&**here, &owner).await);
    there.read(&key, start, 10, true).await.expect("a read");
    assert!(watched(&**here, &owner).await);
    let over = async {
        while watched(&**here, &owner).await {
            tokio::time::sleep(WATCHED / 20).await;
        }
    };
    timeout(WATCHED + SOON, over).await.expect("nobody reads any more");
}

async fn hints_arrive(Replicas { here, there, .. }: &Replicas) {
    let key = fresh();
    let mut hints = [here.hint(&key), there.hint(&key)];
    // A subscription may take a moment; until then hints are lost.
    let subscribed = async {
        for hint in &mut hints {
            loop {
                here.post(&key, &says(request(), "anybody?")).await.expect("a post");
                if timeout(SOON / 50, hint.changed()).await.is_ok() {
                    break;
                }
            }
        }
    };
    timeout(SOON, subscribed).await.expect("subscriptions");
    quiet(&mut hints).await;
    there.post(&key, &says(request(), "hello?")).await.expect("a post");
    woken(&mut hints).await;
    let (owner, _) = new_turn(&**there, &key, &says(request(), "hello")).await;
    woken(&mut hints).await;
    let watching = there.read(&key, After::Sequence(Sequence(0)), 10, true).await;
    watching.expect("the conversation");
    stored(&**here, &owner, 1, &[delta("hi")]).await;
    woken(&mut hints).await;
    for hint in &mut hints {
        // A subscription may have missed one, so it counts as one.
        while hint.cancelled().now_or_never().is_some() {}
    }
    there.cancel(&key, owner.turn).await.expect("a cancel");
    woken(&mut hints).await;
    for hint in &mut hints {
        timeout(SOON, hint.cancelled()).await.expect("it is told from growth");
    }
    stored(&**there, &owner, 2, &[completed("hi")]).await;
    woken(&mut hints).await;
}

async fn woken(hints: &mut [Hint; 2]) {
    for hint in hints.iter_mut() {
        timeout(SOON, hint.changed()).await.expect("a hint");
    }
    quiet(hints).await;
}

/// Takes the hints that are still on their way.
async fn quiet(hints: &mut [Hint; 2]) {
    for hint in hints {
        while timeout(SOON / 100, hint.changed()).await.is_ok() {}
    }
}
