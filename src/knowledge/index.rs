//! The search index: tantivy in memory, BM25 over questions and answers.
//!
//! The entries themselves are kept beside it and shared with whoever finds them. tantivy's own store would
//! read, cut and copy an entry for every hit, a quarter of a search; and a call that waits for its
//! reader would hold copies of all that it found, which is megabytes.

use std::{
    cmp::Reverse,
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use tantivy::{
    DocAddress, Index as Tantivy, IndexReader, IndexWriter, ReloadPolicy, Searcher, SegmentReader,
    TantivyDocument, Term,
    collector::TopDocs,
    index::SegmentId,
    query::{BooleanQuery, ConstScoreQuery, Query as TantivyQuery, TermQuery},
    schema::{
        Field, IndexRecordOption, NumericOptions, STRING, Schema, TextFieldIndexing, TextOptions,
    },
    tokenizer::TextAnalyzer,
};

use super::{Query, analyzer::analyzer};
use crate::domain::{AnswerId, Change, Entry, primary_language};

const ANALYZER: &str = "script_aware";

/// Memory that collects new entries before they become a segment, taken only as far as it is needed.
/// Each segment costs every search some time, so a large base should become few of them.
const WRITER_BYTES: usize = 100_000_000;

/// Terms of a query that are searched for at most: the rarest, which decide anyway. An 8 KiB query
/// would else cost as much as a hundred normal ones.
const TERMS: usize = 64;

/// A term that more entries have is common: its long list is what makes a search slow.
const COMMON: u64 = 5_000;

/// Common terms are not searched for once rarer ones hold this share of the query's weight. On 100,000
/// entries that halves the slowest percentile; where no term is common nothing changes.
const ENOUGH: f32 = 0.9;

/// What an entry is identified by in tantivy.
const ANSWER_ID: &str = "answer_id";

/// One searchable state of the knowledge base.
pub(super) struct Index {
    fields: Fields,
    analyzer: TextAnalyzer,
    /// What a search sees: replaced as a whole, so a batch of changes becomes visible at once.
    visible: RwLock<Arc<Visible>>,
    writer: Mutex<Writer>,
}

#[derive(Debug, Clone, Copy)]
struct Fields {
    answer_id: Field,
    language: Field,
    /// The questions and the answer: one text, since telling them apart ranked no better (measured)
    /// and costs twice the terms.
    text: Field,
}

struct Writer {
    tantivy: IndexWriter,
    reader: IndexReader,
    /// All entries, as they are after the last change.
    entries: HashMap<AnswerId, Arc<Known>>,
}

struct Visible {
    searcher: Searcher,
    /// For each segment of the searcher the entries of its documents.
    segments: Vec<Documents>,
}

/// A segment never changes but for documents that are deleted, so what stands here for one that is not
/// stays right as long as the segment lives.
#[derive(Clone)]
struct Documents {
    segment: SegmentId,
    /// How many there were. The entries of those that are deleted later stay in memory with the rest.
    alive: u32,
    entries: Arc<[Option<Arc<Known>>]>,
}

/// An entry, with what searches have learnt of it.
struct Known {
    entry: Arc<Entry>,
    /// A hash of the terms of each question, from when the entry first was a best match: a start
    /// needs none, and most entries never are.
    questions: OnceLock<Box<[u64]>>,
}

/// An entry that was found, and how well it matches.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Match {
    pub(super) entry: Arc<Entry>,
    /// Raw BM25.
    pub(super) score: f32,
    /// The share of what a plain match scores: an entry of average length that has every term of the
    /// query in a question, once. 0 to 1.
    pub(super) coverage: f32,
    /// Whether the query has exactly the terms of one of the entry's questions. Only looked at for
    /// the best match.
    pub(super) verbatim: bool,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("entries", &self.len()).finish_non_exhaustive()
    }
}

impl Visible {
    /// What `searcher` sees. Tables of segments that `before` had are kept, unless a quarter of their
    /// documents is gone.
    fn of(
        searcher: Searcher,
        entries: &HashMap<AnswerId, Arc<Known>>,
        before: &[Documents],
    ) -> tantivy::Result<Self> {
        let segments = searcher
            .segment_readers()
            .iter()
            .map(|reader| {
                let (segment, alive) = (reader.segment_id(), reader.num_docs());
                match before.iter().find(|known| known.segment == segment) {
                    Some(known) if alive >= known.alive / 4 * 3 => Ok(known.clone()),
                    _ => Ok(Documents { segment, alive, entries: documents(reader, entries)? }),
                }
            })
            .collect::<tantivy::Result<_>>()?;
        Ok(Self { searcher, segments })
    }

    /// The entry of a document that a search has found.
    fn entry(&self, found: DocAddress) -> Option<&Arc<Known>> {
        let segment = self.segments.get(found.segment_ord as usize)?;
        segment.entries.get(found.doc_id as usize)?.as_ref()
    }
}

/// The entries of a segment's documents, none for those that are deleted.
fn documents(
    segment: &SegmentReader,
    entries: &HashMap<AnswerId, Arc<Known>>,
) -> tantivy::Result<Arc<[Option<Arc<Known>>]>> {
    let ids = segment.fast_fields().i64(ANSWER_ID)?;
    let entry = |document| {
        if segment.is_deleted(document) {
            return None;
        }
        let id = i32::try_from(ids.first(document)?).ok()?;
        entries.get(&AnswerId(id)).cloned()
    };
    Ok((0..segment.max_doc()).map(entry).collect())
}

impl Index {
    /// An empty index.
    pub(super) fn new() -> tantivy::Result<Self> {
        let text = TextOptions::default().set_indexing_options(
            TextFieldIndexing::default()
                .set_tokenizer(ANALYZER)
                // Phrases are never searched for; without positions the index is half the size.
                .set_index_option(IndexRecordOption::WithFreqs),
        );
        let mut schema = Schema::builder();
        let id = NumericOptions::default().set_indexed().set_fast();
        let fields = Fields {
            answer_id: schema.add_i64_field(ANSWER_ID, id),
            language: schema.add_text_field("language", STRING),
            text: schema.add_text_field("text", text),
        };
        let index = Tantivy::create_in_ram(schema.build());
        index.tokenizers().register(ANALYZER, analyzer());
        let tantivy = index.writer_with_num_threads(1, WRITER_BYTES)?;
        let reader: IndexReader =
            index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let entries = HashMap::new();
        let visible = Visible::of(reader.searcher(), &entries, &[])?;
        Ok(Self {
            fields,
            analyzer: analyzer(),
            visible: RwLock::new(Arc::new(visible)),
            writer: Mutex::new(Writer { tantivy, reader, entries }),
        })
    }

    /// An index of `entries`, of which none has the id of another.
    pub(super) fn of_entries(entries: Vec<Entry>) -> tantivy::Result<Self> {
        let index = Self::new()?;
        index.write(entries.into_iter().map(Change::Upsert).collect(), false)?;
        Ok(index)
    }

    /// Applies `changes` in order and makes them visible, all at once. Blocks.
    pub(super) fn apply(&self, changes: Vec<Change>) -> tantivy::Result<()> {
        self.write(changes, true)
    }

    /// Writes `changes`, over entries of the same ids if there may be any. After an error they can be
    /// written again.
    fn write(&self, changes: Vec<Change>, replace: bool) -> tantivy::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Writer { tantivy, reader, entries } = &mut *writer;
        let written = changes.iter().try_for_each(|change| {
            if replace {
                tantivy.delete_term(self.id_term(change.answer_id()));
            }
            match change {
                Change::Upsert(entry) => self.add(tantivy, entry),
                Change::Delete(_) => Ok(()),
            }
        });
        if let Err(error) = written.and_then(|()| tantivy.commit()) {
            tantivy.rollback()?;
            return Err(error);
        }
        for change in changes {
            match change {
                Change::Upsert(entry) => entries.insert(entry.answer_id, Arc::new(entry.into())),
                Change::Delete(id) => entries.remove(&id),
            };
        }
        reader.reload()?;
        let visible = Visible::of(reader.searcher(), entries, &self.visible().segments)?;
        let before = {
            let mut now = self.visible.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *now, Arc::new(visible))
        };
        // It may be the last to hold a large segment, and no search should wait for the end of that.
        drop(before);
        Ok(())
    }

    fn add(&self, writer: &IndexWriter, entry: &Entry) -> tantivy::Result<()> {
        let mut document = TantivyDocument::new();
        document.add_i64(self.fields.answer_id, entry.answer_id.0.into());
        // A malformed tag cannot come here; it would be found in every language.
        let language = primary_language(&entry.language_code).ok().flatten().unwrap_or_default();
        document.add_text(self.fields.language, language);
        for question in &entry.questions {
            document.add_text(self.fields.text, question);
        }
        document.add_text(self.fields.text, &entry.answer);
        writer.add_document(document)?;
        Ok(())
    }

    fn visible(&self) -> Arc<Visible> {
        Arc::clone(&self.visible.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> u64 {
        self.visible().searcher.num_docs()
    }

    /// Every entry, by id.
    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries: Vec<_> =
            writer.entries.values().map(|known| Arc::clone(&known.entry)).collect();
        entries.sort_unstable_by_key(|entry| entry.answer_id);
        entries
    }

    fn id_term(&self, id: AnswerId) -> Term {
        Term::from_field_i64(self.fields.answer_id, id.0.into())
    }

    /// The entries that share a term with the query, best first.
    pub(super) fn search(&self, query: &Query<'_>) -> tantivy::Result<Vec<Match>> {
        let visible = self.visible();
        let texts = self.terms(query.text);
        let terms = self.weighted_terms(&visible.searcher, &texts)?;
        if terms.is_empty() || query.most == 0 {
            return Ok(Vec::new());
        }
        let plain: f32 = terms.iter().map(|term| term.plain).sum();
        let scored = terms.into_iter().filter(|term| term.searched).map(|term| {
            let query = TermQuery::new(term.term, IndexRecordOption::WithFreqs);
            Box::new(query) as Box<dyn TantivyQuery>
        });
        let mut scored: Box<dyn TantivyQuery> = Box::new(BooleanQuery::union(scored.collect()));
        // A union alone skips what cannot reach the top; with a filter beside it every match is
        // scored. So exclusions are left out afterwards, of a top that is longer by their number.
        if let Some(language) = query.language {
            let of = |language| exact(Term::from_field_text(self.fields.language, language));
            let any = BooleanQuery::union(vec![of(language), of("")]);
            let any = Box::new(ConstScoreQuery::new(Box::new(any), 0.0));
            scored = Box::new(BooleanQuery::intersection(vec![scored, any]));
        }
        let top = TopDocs::with_limit(query.most + query.excluded.len()).order_by_score();
        let mut matches = Vec::new();
        for (score, found) in visible.searcher.search(&*scored, &top)? {
            let Some(known) = visible.entry(found) else { continue };
            if query.excluded.contains(&known.entry.answer_id) {
                continue;
            }
            let verbatim = matches.is_empty() && self.asks(known, &texts);
            let entry = Arc::clone(&known.entry);
            matches.push(Match { entry, score, coverage: (score / plain).min(1.0), verbatim });
            if matches.len() == query.most {
                break;
            }
        }
        Ok(matches)
    }

    /// Whether a question of the entry has exactly these terms.
    fn asks(&self, known: &Known, terms: &[String]) -> bool {
        let questions = known.questions.get_or_init(|| {
            let questions = known.entry.questions.iter();
            questions.map(|question| hash(&self.terms(question))).collect()
        });
        questions.contains(&hash(terms))
    }

    /// The distinct terms of a text, sorted.
    fn terms(&self, text: &str) -> Vec<String> {
        let mut terms = Vec::new();
        let mut analyzer = self.analyzer.clone();
        analyzer.token_stream(text).process(&mut |token| terms.push(token.text.clone()));
        terms.sort_unstable();
        terms.dedup();
        terms
    }

    /// The terms with what they weigh, the rarest first.
    fn weighted_terms(
        &self,
        searcher: &Searcher,
        terms: &[String],
    ) -> tantivy::Result<Vec<WeightedTerm>> {
        let all = searcher.num_docs();
        let mut weighted = Vec::with_capacity(terms.len());
        for text in terms {
            let term = Term::from_field_text(self.fields.text, text);
            let having = searcher.doc_freq(&term)?;
            let plain = idf(having, all);
            weighted.push(WeightedTerm { term, having, searched: having > 0, plain });
        }
        // Terms that nothing has stay in: they are what tells a foreign question.
        weighted.sort_by_key(|term| Reverse(ordered(term.plain)));
        weighted.truncate(TERMS);
        let enough = ENOUGH * weighted.iter().map(|term| term.plain).sum::<f32>();
        let mut rarer = 0.0;
        for term in &mut weighted {
            term.searched &= term.having <= COMMON || rarer < enough;
            rarer += term.plain;
        }
        Ok(weighted)
    }
}

struct WeightedTerm {
    term: Term,
    /// How many entries have it.
    having: u64,
    /// Whether it is worth searching for.
    searched: bool,
    /// What it adds to the score of a plain match: BM25 is the inverse document frequency there.
    plain: f32,
}

impl From<Entry> for Known {
    fn from(entry: Entry) -> Self {
        Self { entry: Arc::new(entry), questions: OnceLock::new() }
    }
}

/// One number for a list of terms.
fn hash(terms: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    terms.hash(&mut hasher);
    hasher.finish()
}

fn exact(term: Term) -> Box<dyn TantivyQuery> {
    Box::new(TermQuery::new(term, IndexRecordOption::Basic))
}

/// BM25's inverse document frequency, as tantivy computes it. Deleted entries count in tantivy until
/// their segment is merged, so `having` may exceed `all` here.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of entries, far below 2^24 of accuracy lost"
)]
fn idf(having: u64, all: u64) -> f32 {
    let lacking = all.saturating_sub(having) as f32;
    ((lacking + 0.5) / (having as f32 + 0.5)).ln_1p()
}

/// A key that sorts like the (non-negative) number.
fn ordered(number: f32) -> u32 {
    number.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: i32, question: &str, language: &str) -> Entry {
        Entry {
            answer_id: AnswerId(id),
            questions: vec![question.to_owned()],
            answer: format!("answer {id}"),
            language_code: language.to_owned(),
        }
    }

    fn index() -> Index {
        Index::of_entries(vec![
            entry(1, "Why does the connection drop?", "en"),
            entry(2, "연결이 왜 끊기나요?", "ko-KR"),
            entry(3, "What is a deadline?", "en"),
            entry(4, "connection pool", ""),
        ])
        .expect("an index")
    }

    fn found(index: &Index, query: &Query<'_>) -> Vec<i32> {
        let matches = index.search(query).expect("a search");
        matches.into_iter().map(|found| found.entry.answer_id.0).collect()
    }

    fn query(text: &str) -> Query<'_> {
        Query { text, language: None, excluded: &[], most: 10 }
    }

    #[test]
    fn the_best_match_comes_first_and_scores_fall() {
        let matches = index().search(&query("connection drops why")).expect("a search");
        assert_eq!(*matches[0].entry, entry(1, "Why does the connection drop?", "en"));
        assert!(matches.is_sorted_by(|a, b| a.score >= b.score));
        assert!(matches.iter().all(|found| found.coverage > 0.0 && found.coverage <= 1.0));
    }

    #[test]
    fn a_question_without_a_known_term_finds_nothing() {
        assert_eq!(found(&index(), &query("weather")), [0; 0]);
        assert_eq!(found(&index(), &query("?!")), [0; 0]);
        assert_eq!(found(&Index::new().expect("an index"), &query("connection")), [0; 0]);
    }

    #[test]
    fn a_language_keeps_its_own_entries_and_those_without_one() {
        let of =
            |language| Query { language: Some(language), ..query("connection 연결이 deadline") };
        assert_eq!(found(&index(), &of("ko")), [2, 4]);
        let mut english = found(&index(), &of("en"));
        english.sort_unstable();
        assert_eq!(english, [1, 3, 4]);
    }

    #[test]
    fn the_filter_does_not_change_scores() {
        let index = index();
        let all = index.search(&query("deadline")).expect("a search");
        let filtered = index.search(&Query { language: Some("en"), ..query("deadline") });
        assert_eq!(filtered.expect("a search"), all);
    }

    #[test]
    fn excluded_entries_are_left_out_and_the_limit_is_kept() {
        let excluded = [AnswerId(1)];
        let without = Query { excluded: &excluded, ..query("connection drop") };
        assert_eq!(found(&index(), &without), [4]);
        assert_eq!(found(&index(), &Query { most: 1, ..query("connection drop") }), [1]);
    }

    #[test]
    fn changes_are_visible_at_once_and_replace_by_id() {
        let index = index();
        index
            .apply(vec![
                Change::Upsert(entry(1, "GOAWAY", "en")),
                Change::Delete(AnswerId(3)),
                Change::Delete(AnswerId(99)),
                Change::Upsert(entry(5, "twice", "en")),
                Change::Upsert(entry(5, "thrice", "en")),
            ])
            .expect("applied");
        assert_eq!(index.len(), 4);
        assert_eq!(found(&index, &query("goaway")), [1]);
        assert_eq!(found(&index, &query("drop")), [0; 0]);
        assert_eq!(found(&index, &query("deadline")), [0; 0]);
        assert_eq!(found(&index, &query("twice")), [0; 0]);
        assert_eq!(found(&index, &query("thrice")), [5]);
        assert_eq!(index.entries().len(), 4);
    }

    /// Documents move between segments when these are merged.
    #[test]
    fn what_is_found_is_the_newest_through_merges() {
        let index =
            Index::of_entries((1..=20).map(|id| entry(id, &format!("w{id}"), "")).collect())
                .expect("an index");
        for round in 1..=100 {
            let id = round * 7 % 20 + 1;
            let question = format!("w{id} round{round}");
            let change = match round % 5 {
                0 => Change::Delete(AnswerId(id)),
                _ => Change::Upsert(entry(id, &question, "")),
            };
            index.apply(vec![change.clone()]).expect("applied");
            let matches = index.search(&query(&question)).expect("a search");
            let found = matches.iter().find(|found| found.entry.answer_id == AnswerId(id));
            match change {
                Change::Upsert(entry) => assert_eq!(*found.expect("the entry").entry, entry),
                Change::Delete(_) => assert_eq!(found, None),
            }
            // By itself tantivy merges when there are eight, in a thread of its own.
            if round % 5 == 0 {
                let segments: Vec<_> =
                    index.visible().segments.iter().map(|documents| documents.segment).collect();
                assert!(segments.len() > 1);
                index
                    .writer
                    .lock()
                    .expect("a lock")
                    .tantivy
                    .merge(&segments)
                    .wait()
                    .expect("merged");
                index.apply(Vec::new()).expect("seen");
                assert_eq!(index.visible().segments.len(), 1);
            }
        }
        for entry in index.entries() {
            let matches = index.search(&query(&entry.questions[0])).expect("a search");
            assert_eq!((&matches[0].entry, matches[0].verbatim), (&entry, true));
        }
    }

    #[test]
    fn entries_that_are_gone_are_not_kept() {
        let index =
            Index::of_entries((1..=20).map(|id| entry(id, &format!("w{id}"), "")).collect())
                .expect("an index");
        let gone = index.entries();
        index.apply((1..=10).map(|id| Change::Delete(AnswerId(id))).collect()).expect("applied");
        let held = |entry: &Arc<Entry>| Arc::strong_count(entry) > 1;
        assert_eq!(gone.iter().filter(|entry| held(entry)).count(), 10);
    }

    #[test]
    fn a_question_is_verbatim_in_any_order_and_only_while_the_entry_has_it() {
        let index = index();
        let verbatim = |text| index.search(&query(text)).expect("a search")[0].verbatim;
        assert!(verbatim("deadline: what is a?"));
        assert!(verbatim("What is a deadline?"));
        assert!(!verbatim("deadline propagation"));
        index
            .apply(vec![Change::Upsert(entry(3, "propagation of a deadline", "en"))])
            .expect("applied");
        assert!(verbatim("deadline propagation"));
        assert!(!verbatim("deadline: what is a?"));
    }

    #[test]
    fn a_huge_query_is_searched_by_its_rarest_terms() {
        let text = (0..2_000).fold("deadline".to_owned(), |text, n| text + " w" + &n.to_string());
        let index = index();
        let terms = index.terms(&text);
        assert_eq!(terms.len(), 2_001);
        let terms = index.weighted_terms(&index.visible().searcher, &terms).expect("terms");
        assert_eq!(terms.len(), TERMS);
    }
}
