//! What every store promises about turns: appends, their end, cancels, leases and those who take over.

use futures_util::{FutureExt as _, future::join_all};

use super::*;
use crate::domain::EngineKind;

/// All of them at once: most of the time is spent on waiting for leases.
pub(super) async fn holds(replicas: &Replicas) {
    join_all([
        appends_are_logged_once_and_in_order(replicas).boxed(),
        a_turn_ends_once(replicas).boxed(),
        a_cancel_stops_everything_but_the_end(replicas).boxed(),
        an_append_that_was_stored_before_the_cancel_is_repeated(replicas).boxed(),
        only_a_turn_can_be_cancelled(replicas).boxed(),
        a_lease_protects_its_owner(replicas).boxed(),
        a_reaped_owner_is_fenced(replicas).boxed(),
        of_many_reaps_one_succeeds(replicas).boxed(),
        a_reap_tells_what_the_turn_was(replicas).boxed(),
        an_owner_that_nobody_reaped_goes_on(replicas).boxed(),
        a_turn_whose_answer_is_there_is_over_in_one_step(replicas).boxed(),
    ])
    .await;
}

async fn a_turn_whose_answer_is_there_is_over_in_one_step(
    Replicas { here, there, lease, .. }: &Replicas,
) {
    let (key, begin) = (fresh(), says(request(), "hello"));
    let answer = [delta("a "), delta("b"), completed("a b")];
    let begins =
        (0..20).map(|n| if n % 2 == 0 { here } else { there }.begin_with(&key, &begin, &answer));
    let (mut new, mut places) = (Vec::new(), Vec::new());
    for begun in join_all(begins).await {
        match begun.expect("a begin") {
            Begun::New { owner, start, logged } => {
                places.push((start, Some(logged.last().expect("an end").position.sequence)));
                new.push((owner, logged));
            }
            Begun::Known { start, end } => places.push((start, end)),
            busy @ Begun::Busy { .. } => panic!("{busy:?}"),
        }
    }
    assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    let [(owner, logged)] = &new[..] else { panic!("not one is new: {new:?}") };
    // What is told is what every reader sees.
    assert_eq!(*logged, log(&**there, &key).await);
    let message = EventBody::Posted(begin.message.clone());
    assert!(logged.iter().map(|event| &event.body).eq([message].iter().chain(&answer)));
    assert_eq!(active(&**there, &key).await, None);

    // Nobody takes it over, and nobody writes to it, however long it is.
    tokio::time::sleep(*lease * 2).await;
    assert_eq!(there.reap(&key).await.expect("a reap"), None);
    let late = here.append(owner, 4, &[delta("late")]).await.expect("an append");
    assert_eq!(late, Appended::Fenced);
    here.cancel(&key, owner.turn).await.expect("a cancel");
    assert_eq!(log(&**here, &key).await, *logged);
    // A request with another payload is another one, and the next turn follows.
    let message = Message { text: "?".into(), ..(*begin.message).clone() };
    let other = Begin { message: message.into(), ..begin };
    let reused = here.begin_with(&key, &other, &answer).await;
    assert!(matches!(reused, Err(Error::Reused)), "{reused:?}");
    let (next, start) = new_turn(&**there, &key, &says(request(), "and?")).await;
    assert_eq!(Some(start), logged.last().map(|end| Sequence(end.position.sequence.0 + 1)));
    let busy = here.begin_with(&key, &says(request(), "me"), &answer).await.expect("a begin");
    assert_eq!(busy, Begun::Busy { turn: next.turn, orphaned: false });
    stored(&**here, &next, 1, &[completed("hi")]).await;
}

async fn appends_are_logged_once_and_in_order(Replicas { here, there, .. }: &Replicas) {
    let (key, begin) = (fresh(), says(request(), "hello"));
    let (owner, start) = new_turn(&**here, &key, &begin).await;
    let renewed = stored(&**here, &owner, 1, &[]).await;
    assert_eq!(renewed, start, "the turn's newest event is its message");
    let first = stored(&**here, &owner, 1, &[delta("a"), delta("b")]).await;
    let second = stored(&**here, &owner, 3, &[delta("c")]).await;
    assert!(start < first && first < second);
    // A repetition is known, at any replica; so is an older one.
    assert_eq!(stored(&**there, &owner, 3, &[delta("c")]).await, second);
    stored(&**here, &owner, 1, &[delta("a"), delta("b")]).await;
    assert_eq!(stored(&**there, &owner, 4, &[]).await, second);
    // A gap means that the store has lost something.
    let gap = here.append(&owner, 5, &[delta("e")]).await.expect("an append");
    assert_eq!(gap, Appended::Fenced);
    for epoch in [owner.epoch - 1, owner.epoch + 1] {
        let stranger = Owner { epoch, ..owner.clone() };
        let fenced = here.append(&stranger, 4, &[delta("d")]).await.expect("an append");
        assert_eq!(fenced, Appended::Fenced);
    }
    let stranger = Owner { turn: request(), ..owner.clone() };
    let fenced = here.append(&stranger, 4, &[delta("d")]).await.expect("an append");
    assert_eq!(fenced, Appended::Fenced);

    let log = log(&**there, &key).await;
    let (message, rest) = (EventBody::Posted(begin.message), ["a", "b", "c"].map(delta));
    let expected: Vec<_> = [message].into_iter().chain(rest).collect();
    assert_eq!(log.iter().map(|event| event.body.clone()).collect::<Vec<_>>(), expected);
    assert!(log.iter().all(|event| event.turn == Some(owner.turn)));
    assert!(log.is_sorted_by(|a, b| a.position.sequence < b.position.sequence));
}

async fn a_turn_ends_once(Replicas { here, there, .. }: &Replicas) {
    let key = fresh();
    let (owner, _) = new_turn(&**here, &key, &says(request(), "hello")).await;
    stored(&**here, &owner, 1, &[delta("hi")]).await;
    let end = [delta("!"), completed("hi!")];
    let last = stored(&**here, &owner, 2, &end).await;
    assert_eq!(active(&**there, &key).await, None);
    // Its outcome may have been lost on the way: it can be repeated until the next turn begins.
    assert_eq!(stored(&**there, &owner, 2, &end).await, last);
    there.post(&key, &says(request(), "thanks")).await.expect("a post");
    assert_eq!(stored(&**here, &owner, 2, &end).await, last);
    for (number, events) in [(4, &[delta("?")][..]), (4, &[completed("again")])] {
        let late = here.append(&owner, number, events).await.expect("an append");
        assert_eq!(late, Appended::Fenced);
    }
    assert_eq!(here.reap(&key).await.expect("a reap"), None);
    new_turn(&**there, &key, &says(request(), "more")).await;
    let late = here.append(&owner, 2, &end).await.expect("an append");
    assert_eq!(late, Appended::Fenced);
    let ends = log(&**here, &key).await.into_iter().filter(|event| event.body.is_terminal());
    assert_eq!(ends.map(|event| event.position.sequence).collect::<Vec<_>>(), [last]);
}

async fn a_cancel_stops_everything_but_the_end(Replicas { here, there, lease, .. }: &Replicas) {
    let key = fresh();
    let (owner, start) = new_turn(&**here, &key, &says(request(), "hello")).await;
    let first = stored(&**here, &owner, 1, &[delta("hi")]).await;
    for _ in 0..2 {
        there.cancel(&key, owner.turn).await.expect("a cancel");
    }
    for events in [&[delta("no")][..], &[]] {
        let cancelled = here.append(&owner, 2, events).await.expect("an append");
        assert_eq!(cancelled, Appended::Cancelled);
    }
    assert_eq!(log(&**here, &key).await.len(), 2);
    // The refusal renews the lease all the same.
    lease_over(&**there, &key, *lease).await;
    let cancelled = here.append(&owner, 2, &[]).await.expect("an append");
    assert_eq!(cancelled, Appended::Cancelled);
    assert_eq!(there.reap(&key).await.expect("a reap"), None);
    let last = stored(&**here, &owner, 2, &[completed("hi")]).await;
    assert!(start < first && first < last);
    assert_eq!(log(&**there, &key).await.len(), 3);
}

/// It was stored, whatever came after it; "nothing was stored" would be a lie, and the owner's next
/// number wrong.
async fn an_append_that_was_stored_before_the_cancel_is_repeated(
    Replicas { here, there, .. }: &Replicas,
) {
    let key = fresh();
    let (owner, _) = new_turn(&**here, &key, &says(request(), "hello")).await;
    let last = stored(&**here, &owner, 1, &[delta("hi")]).await;
    there.cancel(&key, owner.turn).await.expect("a cancel");
    assert_eq!(stored(&**here, &owner, 1, &[delta("hi")]).await, last);
    stored(&**here, &owner, 2, &[completed("hi")]).await;
    assert_eq!(log(&**here, &key).await.len(), 3);
}

async fn only_a_turn_can_be_cancelled(Replicas { here, there, .. }: &Replicas) {
    let key = fresh();
    let (owner, _) = new_turn(&**here, &key, &says(request(), "hello")).await;
    let post = says(request(), "by the way");
    here.post(&key, &post).await.expect("a post");
    for unknown in [request(), post.message.request] {
        let refused = there.cancel(&key, unknown).await;
        assert!(matches!(refused, Err(Error::NotFound)), "{refused:?}");
    }
    stored(&**here, &owner, 1, &[completed("hi")]).await;
    there.cancel(&key, owner.turn).await.expect("it is over, and stays so");
    // The cancel of a turn that is over is not one of the next.
    let (next, _) = new_turn(&**here, &key, &says(request(), "more")).await;
    there.cancel(&key, owner.turn).await.expect("it is over, and stays so");
    stored(&**here, &next, 1, &[delta("x")]).await;
    assert_eq!(bodies(&**there, &key).await.len(), 5);
}

async fn a_lease_protects_its_owner(Replicas { here, there, lease, .. }: &Replicas) {
    let key = fresh();
    let (owner, start) = new_turn(&**here, &key, &says(request(), "hello")).await;
    assert_eq!(there.reap(&key).await.expect("a reap"), None);
    let renewals = async {
        for _ in 0..10 {
            tokio::time::sleep(*lease / 4).await;
            assert_eq!(stored(&**here, &owner, 1, &[]).await, start);
            assert_eq!(there.reap(&key).await.expect("a reap"), None);
        }
    };
    timeout(*lease * 10 + SOON, renewals).await.expect("renewals");
}

async fn a_reaped_owner_is_fenced(Replicas { here, there, lease, .. }: &Replicas) {
    let key = fresh();
    let (frozen, _) = new_turn(&**here, &key, &says(request(), "hello")).await;
    lease_over(&**there, &key, *lease).await;
    let busy = there.begin(&key, &says(request(), "me")).await.expect("a begin");
    assert_eq!(busy, Begun::Busy { turn: frozen.turn, orphaned: true });
    let taken = there.reap(&key).await.expect("a reap").expect("an orphan");
    assert_eq!((taken.owner.turn, &taken.owner.key), (frozen.turn, &key));
    assert!(taken.owner.epoch > frozen.epoch);
    let busy = here.begin(&key, &says(request(), "me")).await.expect("a begin");
    assert_eq!(busy, Begun::Busy { turn: frozen.turn, orphaned: false });
    // It thaws, and can do nothing: neither go on nor end the turn.
    for events in [&[][..], &[delta("late")], &[completed("late")]] {
        let fenced = here.append(&frozen, 1, events).await.expect("an append");
        assert_eq!(fenced, Appended::Fenced);
    }
    stored(&**there, &taken.owner, 1, &[delta("hi"), completed("hi")]).await;
    let fenced = here.append(&frozen, 1, &[completed("late")]).await.expect("an append");
    assert_eq!(fenced, Appended::Fenced);
    assert_eq!(bodies(&**here, &key).await[1..], [delta("hi"), completed("hi")]);
}

async fn of_many_reaps_one_succeeds(Replicas { here, there, lease, .. }: &Replicas) {
    let key = fresh();
    new_turn(&**here, &key, &says(request(), "hello")).await;
    lease_over(&**there, &key, *lease).await;
    let reaps = (0..20).map(|n| if n % 2 == 0 { here } else { there }.reap(&key));
    let taken: Vec<_> =
        join_all(reaps).await.into_iter().filter_map(|reap| reap.expect("a reap")).collect();
    assert_eq!(taken.len(), 1, "{taken:?}");
    stored(&**here, &taken[0].owner, 1, &[completed("hi")]).await;
}

async fn a_reap_tells_what_the_turn_was(Replicas { here, there, lease, .. }: &Replicas) {
    let key = fresh();
    let (engine, language) = (Some(EngineKind::Augmented), Some("ko-KR".to_owned()));
    let trace = Some(TurnTrace::example());
    let options = TurnOptions { engine, language, trace: trace.clone() };
    let begin = Begin { options: options.clone(), ..says(request(), "hello") };
    let (first, start) = new_turn(&**here, &key, &begin).await;
    let found = there.find(&key, first.turn).await.expect("a look");
    assert_eq!(found, Some(Found { start, trace }));
    // The same request in another trace is the same.
    let again = Begin { options: TurnOptions { trace: None, ..options.clone() }, ..begin };
    let known = there.begin(&key, &again).await.expect("a begin");
    assert_eq!(known, Begun::Known { start, end: None });
    let taken = reaped(&**there, &key, *lease).await;
    let (attempt, since, visible, cancelled) = (2, None, false, false);
    let owner = taken.owner.clone();
    let options_of_it = options.clone();
    let expected =
        Reaped { owner, start, attempt, since, visible, cancelled, options: options_of_it };
    assert_eq!(taken, expected);
    assert_eq!(taken.owner.turn, first.turn);

    // The new owner counts from 1.
    stored(&**there, &taken.owner, 1, &[delta("half an ")]).await;
    here.cancel(&key, first.turn).await.expect("a cancel");
    let second = reaped(&**here, &key, *lease).await;
    let owner = second.owner.clone();
    assert!(owner.epoch > taken.owner.epoch);
    let since = second.since.expect("the time of the first reap");
    assert!(since.elapsed().unwrap_or_default() < SOON);
    let (attempt, visible, cancelled) = (3, true, true);
    let expected =
        Reaped { owner, start, attempt, since: Some(since), visible, cancelled, options };
    assert_eq!(second, expected);
    let cancelled = here.append(&second.owner, 1, &[delta("x")]).await.expect("an append");
    assert_eq!(cancelled, Appended::Cancelled);
    stored(&**here, &second.owner, 1, &[interrupted("half an ")]).await;
    assert_eq!(active(&**there, &key).await, None);

    // What is told of the next turn is its own.
    new_turn(&**here, &key, &says(request(), "and?")).await;
    let next = reaped(&**there, &key, *lease).await;
    assert_eq!((next.attempt, next.since, next.options.trace), (2, None, None));
    stored(&**there, &next.owner, 1, &[completed("hi")]).await;
}

async fn an_owner_that_nobody_reaped_goes_on(Replicas { here, there, lease, .. }: &Replicas) {
    let key = fresh();
    let (owner, _) = new_turn(&**here, &key, &says(request(), "hello")).await;
    lease_over(&**there, &key, *lease).await;
    stored(&**here, &owner, 1, &[delta("hi")]).await;
    assert!(!active(&**there, &key).await.expect("a turn").orphaned);
    assert_eq!(there.reap(&key).await.expect("a reap"), None);
    lease_over(&**there, &key, *lease).await;
    stored(&**here, &owner, 2, &[completed("hi")]).await;
}
