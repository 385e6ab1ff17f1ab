//! How long keys are kept.

use super::*;

/// The milliseconds for which a conversation's keys are kept; below 0 where one is not there.
async fn kept(server: &Server) -> [i64; 3] {
    let mut left = [0; 3];
    for (name, left) in ["conv", "log", "deltas"].into_iter().zip(&mut left) {
        let Value::Array(keys) = server.ask(&["KEYS", &format!("*:{name}")]).await else {
            panic!("no keys")
        };
        let Some(key) = keys.first() else {
            *left = -2;
            continue;
        };
        let key: String = redis::from_redis_value_ref(key).expect("a name");
        let time = server.ask(&["PTTL", &key]).await;
        *left = redis::from_redis_value_ref(&time).expect("a number");
    }
    left
}

#[tokio::test]
async fn a_turn_that_goes_on_is_kept_by_its_first_events_its_renewals_and_its_end() {
    if !installed() {
        return;
    }
    let server = Server::start(&[]).await;
    let opened = open(&server.url(), &["store.retention=2h"]).await;
    let (store, key, hour) = (&opened.store, fresh(), 3_600_000);
    let owner = owner(store, &key).await;
    assert!(kept(&server).await[0] > hour);
    stored(store, &owner, 1, "a").await;
    assert!(kept(&server).await.iter().all(|left| *left > hour), "{:?}", kept(&server).await);

    for name in ["conv", "log", "deltas"] {
        let Value::Array(keys) = server.ask(&["KEYS", &format!("*:{name}")]).await else {
            panic!("no keys")
        };
        let name: String = redis::from_redis_value_ref(&keys[0]).expect("a name");
        server.ask(&["PEXPIRE", &name, "60000"]).await;
    }
    stored(store, &owner, 2, "b").await;
    store.append(&owner, 3, &[]).await.expect("a renewal");
    assert!(kept(&server).await.iter().all(|left| *left > hour), "{:?}", kept(&server).await);

    // Deltas are kept for readers that come late.
    store.append(&owner, 3, &[failed()]).await.expect("an end");
    let [conv, log, deltas] = kept(&server).await;
    assert!(conv > hour && log > hour && deltas > 0 && deltas <= 600_000, "{deltas}");
    let next = super::owner(store, &key).await;
    stored(store, &next, 1, "c").await;
    assert!(kept(&server).await.iter().all(|left| *left > hour), "{:?}", kept(&server).await);
}
