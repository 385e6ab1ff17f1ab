//! Conversations in the file: steps go to the writer, reads use a snapshot beside it.

use std::sync::Arc;

use redb::{Database, ReadableDatabase as _};

use super::{
    super::{
        Active, After, Appended, Begin, Begun, ConversationLog, Error, Found, Hint, Owner,
        PAGE_BYTES, Page, Reaped,
    },
    Embedded,
    file::down,
    journal::Journal,
    leases::Leases,
    records::{Conversation, Request},
    tables::{CONVERSATIONS, EVENTS, REQUESTS, decode, named},
    turns,
};
use crate::domain::{ConversationDigest, ConversationKey, Event, EventBody, RequestId, Sequence};

#[async_trait::async_trait]
impl ConversationLog for Embedded {
    async fn begin_with(
        &self,
        key: &ConversationKey,
        begin: &Begin,
        answer: &[EventBody],
    ) -> Result<Begun, Error> {
        let (leases, key, begin) = (Arc::clone(&self.leases), key.clone(), begin.clone());
        let answer = answer.to_vec();
        self.change(move |tables| turns::begin(tables, &leases, &key, &begin, &answer)).await
    }

    async fn append(
        &self,
        owner: &Owner,
        number: u64,
        events: &[EventBody],
    ) -> Result<Appended, Error> {
        let (leases, owner, events) = (Arc::clone(&self.leases), owner.clone(), events.to_vec());
        self.change(move |tables| turns::append(tables, &leases, &owner, number, &events)).await
    }

    async fn post(&self, key: &ConversationKey, begin: &Begin) -> Result<Sequence, Error> {
        let (key, begin) = (key.clone(), begin.clone());
        self.change(move |tables| turns::post(tables, &key, &begin)).await
    }

    async fn cancel(&self, key: &ConversationKey, turn: RequestId) -> Result<(), Error> {
        let digest = key.digest();
        self.change(move |tables| turns::cancel(tables, digest, turn)).await
    }

    async fn reap(&self, key: &ConversationKey) -> Result<Option<Reaped>, Error> {
        let (leases, key) = (Arc::clone(&self.leases), key.clone());
        self.change(move |tables| turns::reap(tables, &leases, &key)).await
    }

    async fn read(
        &self,
        key: &ConversationKey,
        after: After,
        most: usize,
        watching: bool,
    ) -> Result<Page, Error> {
        let (leases, digest) = (Arc::clone(&self.leases), key.digest());
        let file = Arc::clone(&self.file);
        self.look(move |database| {
            let page = read(database, &file.journal, &leases, digest, after, most)?;
            if watching && page.active.is_some() {
                leases.watch(digest);
            }
            Ok(page)
        })
        .await
    }

    async fn find(
        &self,
        key: &ConversationKey,
        request: RequestId,
    ) -> Result<Option<Found>, Error> {
        let digest = key.digest();
        self.look(move |database| {
            let transaction = database.begin_read().map_err(down)?;
            let requests = transaction.open_table(REQUESTS).map_err(down)?;
            let row = requests.get((&digest.0, request.0.as_bytes())).map_err(down)?;
            let Some(row) = row else { return Ok(None) };
            let known: Request = decode(row.value(), || named(&digest.0))?;
            let trace = known.options.and_then(|options| options.trace);
            Ok(Some(Found { start: known.start, trace }))
        })
        .await
    }

    async fn history(
        &self,
        key: &ConversationKey,
        before: Sequence,
        most: usize,
    ) -> Result<Vec<Event>, Error> {
        let digest = key.digest();
        self.look(move |database| history(database, digest, before, most)).await
    }

    fn hint(&self, key: &ConversationKey) -> Hint {
        self.hints.subscribe(key.digest())
    }
}

fn read(
    database: &Database,
    journal: &Journal,
    leases: &Leases,
    digest: ConversationDigest,
    after: After,
    most: usize,
) -> Result<Page, Error> {
    let sequence = match after {
        After::Sequence(sequence) => sequence,
        After::Position(position) => position.sequence,
    };
    // Before the snapshot, so that what is moved out of it meanwhile is in there.
    let held = journal.events(digest, sequence);
    let transaction = database.begin_read().map_err(down)?;
    let conversations = transaction.open_table(CONVERSATIONS).map_err(down)?;
    let events = transaction.open_table(EVENTS).map_err(down)?;
    let what = || named(&digest.0);
    let conversation = conversations.get(&digest.0).map_err(down)?.ok_or(Error::NotFound)?;
    let conversation: Conversation = decode(conversation.value(), what)?;
    let active = conversation
        .active()
        .map(|turn| Active { turn: turn.request, orphaned: leases.over(digest) });
    if let After::Position(position) = after {
        let row = events.get((&digest.0, sequence.0)).map_err(down)?;
        let event: Event = match (&row, held.first()) {
            (Some(row), _) => decode(row.value(), what)?,
            (None, Some((first, bytes))) if *first == sequence => decode(bytes, what)?,
            _ => return Err(Error::PositionUnknown),
        };
        if event.position != position {
            return Err(Error::PositionUnknown);
        }
    }
    // Nothing comes after the greatest number.
    let mut page = Page { events: Vec::new(), active, more: false };
    let Some(from) = sequence.0.checked_add(1) else { return Ok(page) };
    let mut size = 0;
    let mut take = |bytes: &[u8]| {
        size += bytes.len();
        page.more = page.events.len() == most || (!page.events.is_empty() && size > PAGE_BYTES);
        if !page.more {
            page.events.push(decode(bytes, what)?);
        }
        Ok::<_, Error>(page.more)
    };
    let mut last = sequence;
    for row in events.range((&digest.0, from)..=(&digest.0, u64::MAX)).map_err(down)? {
        let (key, bytes) = row.map_err(down)?;
        if take(bytes.value())? {
            return Ok(page);
        }
        last = Sequence(key.value().1);
    }
    for (sequence, bytes) in held {
        if sequence > last && take(&bytes)? {
            break;
        }
    }
    Ok(page)
}

fn history(
    database: &Database,
    digest: ConversationDigest,
    before: Sequence,
    most: usize,
) -> Result<Vec<Event>, Error> {
    let transaction = database.begin_read().map_err(down)?;
    let events = transaction.open_table(EVENTS).map_err(down)?;
    let mut found = Vec::new();
    let mut size = 0;
    for row in events.range((&digest.0, 0)..(&digest.0, before.0)).map_err(down)?.rev() {
        if found.len() == most {
            break;
        }
        let bytes = row.map_err(down)?.1;
        let event: Event = decode(bytes.value(), || named(&digest.0))?;
        if matches!(event.body, EventBody::Delta(_)) {
            continue;
        }
        size += bytes.value().len();
        if !found.is_empty() && size > PAGE_BYTES {
            break;
        }
        found.push(event);
    }
    found.reverse();
    Ok(found)
}
