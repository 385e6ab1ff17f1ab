//! `Teach`: changes of the knowledge base, kept before they are acknowledged.

use std::time::Duration;

use tonic::{Status, Streaming};

use super::{Chatbot, convert, proto, status};
use crate::domain::{Change, Revision};

/// Changes that are written at once, and their bytes. Several writes let a long stream start to be
/// kept before it ends, and bound its memory.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 256 * 1024;
/// Bytes of a reason that are told; a hundred of them have to fit into one message.
const REASON_BYTES: usize = 1024;
/// Refused changes that are told.
const REJECTIONS: usize = 100;
/// Time for this replica's index to catch up, so that the caller's next question finds the answer.
const CATCH_UP: Duration = Duration::from_secs(10);

impl Chatbot {
    pub(super) async fn learn(
        &self,
        mut stream: Streaming<proto::TeachRequest>,
    ) -> Result<proto::TeachResponse, Status> {
        let mut summary = proto::TeachResponse::default();
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut revision = *self.store.knowledge_revision().borrow();
        let mut index = 0;
        while let Some(request) = stream.message().await.map_err(status::of_peer)? {
            match convert::change(request) {
                Ok(change) => {
                    bytes += change.bytes();
                    batch.push(change);
                }
                Err(mut reason) => {
                    reason.truncate(reason.floor_char_boundary(REASON_BYTES));
                    summary.rejected_count += 1;
                    if summary.rejections.len() < REJECTIONS {
                        summary.rejections.push(proto::Rejection { index, reason });
                    }
                }
            }
            index += 1;
            if batch.len() == BATCH || bytes >= BATCH_BYTES {
                bytes = 0;
                revision = self.keep(&mut batch, &mut summary).await?;
            }
        }
        if !batch.is_empty() {
            revision = self.keep(&mut batch, &mut summary).await?;
        }
        self.knowledge.wait_for(revision, CATCH_UP).await.map_err(super::Error::from)?;
        summary.knowledge_revision = i64::try_from(revision.0).unwrap_or(i64::MAX);
        Ok(summary)
    }

    async fn keep(
        &self,
        batch: &mut Vec<Change>,
        summary: &mut proto::TeachResponse,
    ) -> Result<Revision, super::Error> {
        for change in batch.iter() {
            match change {
                Change::Upsert(_) => summary.upserted_count += 1,
                Change::Delete(_) => summary.deleted_count += 1,
            }
        }
        Ok(self.store.append_knowledge(std::mem::take(batch)).await?)
    }
}
