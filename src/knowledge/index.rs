//! The search index: tantivy in memory, BM25 over questions and answers.

use std::{
    cmp::Reverse,
    sync::{Mutex, PoisonError},
};

use tantivy::{
    Index as Tantivy, IndexReader, IndexWriter, ReloadPolicy, Searcher, TantivyDocument, Term,
    collector::TopDocs,
    query::{BooleanQuery, ConstScoreQuery, Query as TantivyQuery, TermQuery},
    schema::{
        Field, IndexRecordOption, NumericOptions, STORED, STRING, Schema, TextFieldIndexing,
        TextOptions, Value as _,
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

/// One searchable state of the knowledge base.
pub(super) struct Index {
    fields: Fields,
    analyzer: TextAnalyzer,
    reader: IndexReader,
    writer: Mutex<IndexWriter>,
}

#[derive(Debug, Clone, Copy)]
struct Fields {
    answer_id: Field,
    language: Field,
    /// The questions and the answer: one text, since telling them apart ranked no better (measured)
    /// and costs twice the terms.
    text: Field,
    /// The entry itself, as JSON. As text, which tantivy reads at once, and not as bytes, which it reads one by
    /// one: that was a third of a search in a small base.
    entry: Field,
}

/// An entry that was found, and how well it matches.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Match {
    pub(super) entry: Entry,
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
        let fields = Fields {
            answer_id: schema.add_i64_field("answer_id", NumericOptions::default().set_indexed()),
            language: schema.add_text_field("language", STRING),
            text: schema.add_text_field("text", text),
            entry: schema.add_text_field("entry", STORED),
        };
        let index = Tantivy::create_in_ram(schema.build());
        index.tokenizers().register(ANALYZER, analyzer());
        let writer = index.writer_with_num_threads(1, WRITER_BYTES)?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        Ok(Self { fields, analyzer: analyzer(), reader, writer: Mutex::new(writer) })
    }

    /// An index of `entries`.
    pub(super) fn of_entries(entries: &[Entry]) -> tantivy::Result<Self> {
        let index = Self::new()?;
        index.write(|writer| entries.iter().try_for_each(|entry| index.add(writer, entry)))?;
        Ok(index)
    }

    /// Applies `changes` in order and makes them visible, all at once. Blocks.
    pub(super) fn apply(&self, changes: &[Change]) -> tantivy::Result<()> {
        self.write(|writer| {
            changes.iter().try_for_each(|change| {
                writer.delete_term(self.id_term(change.answer_id()));
                match change {
                    Change::Upsert(entry) => self.add(writer, entry),
                    Change::Delete(_) => Ok(()),
                }
            })
        })
    }

    fn write(
        &self,
        write: impl FnOnce(&IndexWriter) -> tantivy::Result<()>,
    ) -> tantivy::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write(&writer) {
            writer.rollback()?;
            return Err(error);
        }
        writer.commit()?;
        self.reader.reload()
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
        document.add_text(self.fields.entry, serde_json::to_string(entry)?);
        writer.add_document(document)?;
        Ok(())
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> u64 {
        self.reader.searcher().num_docs()
    }

    /// Every entry, in no order.
    pub(super) fn entries(&self) -> tantivy::Result<Vec<Entry>> {
        let searcher = self.reader.searcher();
        let mut entries = Vec::new();
        for segment in searcher.segment_readers() {
            let store = segment.get_store_reader(1)?;
            for document in store.iter::<TantivyDocument>(segment.alive_bitset()) {
                entries.push(self.stored(&document?)?);
            }
        }
        Ok(entries)
    }

    fn stored(&self, document: &TantivyDocument) -> tantivy::Result<Entry> {
        let json = document.get_first(self.fields.entry).and_then(|value| value.as_str());
        Ok(serde_json::from_str(json.unwrap_or_default())?)
    }

    fn id_term(&self, id: AnswerId) -> Term {
        Term::from_field_i64(self.fields.answer_id, id.0.into())
    }

    /// The entries that share a term with the query, best first.
    pub(super) fn search(&self, query: &Query<'_>) -> tantivy::Result<Vec<Match>> {
        let searcher = self.reader.searcher();
        let texts = self.terms(query.text);
        let terms = self.weighted_terms(&searcher, &texts)?;
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
        for (score, address) in searcher.search(&*scored, &top)? {
            let entry = self.stored(&searcher.doc(address)?)?;
            if matches.len() == query.most {
                break;
            }
            if query.excluded.contains(&entry.answer_id) {
                continue;
            }
            let verbatim = matches.is_empty()
                && entry.questions.iter().any(|question| self.terms(question) == texts);
            matches.push(Match { entry, score, coverage: (score / plain).min(1.0), verbatim });
        }
        Ok(matches)
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
        Index::of_entries(&[
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
        assert_eq!(matches[0].entry, entry(1, "Why does the connection drop?", "en"));
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
            .apply(&[
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
        assert_eq!(index.entries().expect("entries").len(), 4);
    }

    #[test]
    fn a_huge_query_is_searched_by_its_rarest_terms() {
        let text = (0..2_000).fold("deadline".to_owned(), |text, n| text + " w" + &n.to_string());
        let index = index();
        let terms = index.terms(&text);
        assert_eq!(terms.len(), 2_001);
        let terms = index.weighted_terms(&index.reader.searcher(), &terms).expect("terms");
        assert_eq!(terms.len(), TERMS);
    }
}
