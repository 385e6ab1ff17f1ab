//! Confidence: how likely a hit is the right answer.
//!
//! A BM25 score alone does not say: it grows with the query and the corpus. What does (measured) is
//! how much of the query the hit covers and how far it is ahead of the next one. A logistic model of
//! these is fitted on the operator's own entries, each question asked once with its entry there and
//! once with it gone, since a threshold from another corpus does not carry: precision fell from .95
//! to .56. With too few entries a conservative default stands in, and a metric says so.

use super::{Hit, index::Match};

/// Entries with alternative questions that a fit needs.
const ENTRIES: usize = 50;
const FEATURES: usize = 3;
/// Least confidence in an entry that has the question word for word. The trials cannot tell, since
/// the question that they ask is always left out, and a short question has a low score.
const VERBATIM: f64 = 0.95;
const ITERATIONS: usize = 500;
const RATE: f64 = 0.5;
/// Keeps weights finite where the trials can be told apart completely.
const RIDGE: f64 = 0.001;

/// What tells a right hit from a wrong one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Features {
    score: f64,
    coverage: f64,
    /// How far ahead of the next hit, relative to its own score; for hits behind the first, how far
    /// behind that, negative.
    margin: f64,
    /// The query is one of the entry's questions.
    verbatim: bool,
}

impl Features {
    /// The features of the hit at `index` of `matches`, which are sorted; `None` if there is none.
    pub(super) fn of(matches: &[Match], index: usize) -> Option<Self> {
        let hit = matches.get(index)?;
        let rival = if index == 0 { matches.get(1) } else { matches.first() };
        let rival = rival.map_or(0.0, |rival| rival.score);
        let margin = if hit.score > 0.0 { (hit.score - rival) / hit.score } else { 0.0 };
        Some(Self {
            score: hit.score.into(),
            coverage: hit.coverage.into(),
            margin: f64::from(margin).max(-1.0),
            verbatim: hit.verbatim,
        })
    }

    fn vector(self) -> [f64; FEATURES] {
        [self.score.ln_1p(), self.coverage, self.margin]
    }
}

/// The model: weights are never negative, so more of any feature never lowers confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Calibration {
    weights: [f64; FEATURES],
    bias: f64,
    fitted: bool,
}

impl Calibration {
    /// The model where there is too little to fit one on: an even chance takes half of a plain match's
    /// score and no rival near. Stricter than the fit on the sample.
    pub(super) const DEFAULT: Self = Self { weights: [0.0, 12.0, 3.0], bias: -8.5, fitted: false };

    /// The model that suits first hits which were right or not, or the default if they are of fewer
    /// than 50 of the operator's entries.
    pub(super) fn fit(entries: usize, hits: &[(Features, bool)]) -> Self {
        if entries < ENTRIES || hits.is_empty() {
            return Self::DEFAULT;
        }
        let samples: Vec<_> =
            hits.iter().map(|(features, right)| (features.vector(), *right)).collect();
        fit(&samples)
    }

    /// Whether it was fitted on the operator's own entries.
    pub(super) fn is_fitted(&self) -> bool {
        self.fitted
    }

    /// Turns matches into hits with confidence. Hits behind the first share what it leaves.
    pub(super) fn judge(&self, matches: Vec<Match>) -> Vec<Hit> {
        let likely =
            |index| Features::of(&matches, index).map_or(0.0, |features| self.likelihood(features));
        let first = likely(0);
        let confidences: Vec<f64> = (0..matches.len())
            .map(|index| if index == 0 { first } else { likely(index).min(first) * (1.0 - first) })
            .collect();
        matches
            .into_iter()
            .zip(confidences)
            .map(|(Match { entry, score, .. }, confidence)| Hit {
                entry,
                score: score.into(),
                confidence,
            })
            .collect()
    }

    /// How likely a hit with these features is right, 0 to 1.
    pub(super) fn likelihood(&self, features: Features) -> f64 {
        let likelihood = self.probability(&features.vector());
        if features.verbatim { likelihood.max(VERBATIM) } else { likelihood }
    }

    fn probability(&self, vector: &[f64; FEATURES]) -> f64 {
        let sum: f64 = self.weights.iter().zip(vector).map(|(weight, value)| weight * value).sum();
        1.0 / (1.0 + (-(sum + self.bias)).exp())
    }
}

/// Logistic regression by gradient descent on standardised features, weights kept non-negative. Three
/// numbers do not deserve a linear algebra crate.
#[expect(clippy::cast_precision_loss, reason = "counts of samples")]
fn fit(samples: &[([f64; FEATURES], bool)]) -> Calibration {
    let count = samples.len() as f64;
    let mut mean = [0.0; FEATURES];
    let mut deviation = [0.0; FEATURES];
    for feature in 0..FEATURES {
        mean[feature] = samples.iter().map(|(vector, _)| vector[feature]).sum::<f64>() / count;
        let square = |value: f64| (value - mean[feature]).powi(2);
        let variance =
            samples.iter().map(|(vector, _)| square(vector[feature])).sum::<f64>() / count;
        // A feature that never varies tells nothing; it gets weight 0 below whatever this is.
        deviation[feature] = variance.sqrt().max(1e-9);
    }
    let standard: Vec<([f64; FEATURES], f64)> = samples
        .iter()
        .map(|(vector, right)| {
            let value = |feature| (vector[feature] - mean[feature]) / deviation[feature];
            (std::array::from_fn(value), f64::from(u8::from(*right)))
        })
        .collect();
    let mut model = Calibration { weights: [0.0; FEATURES], bias: 0.0, fitted: true };
    for _ in 0..ITERATIONS {
        let mut slopes = [0.0; FEATURES];
        let mut bias_slope = 0.0;
        for (vector, right) in &standard {
            let error = model.probability(vector) - right;
            bias_slope += error;
            for (slope, value) in slopes.iter_mut().zip(vector) {
                *slope += error * value;
            }
        }
        model.bias -= RATE * bias_slope / count;
        for (weight, slope) in model.weights.iter_mut().zip(slopes) {
            let slope = slope / count + RIDGE * *weight;
            *weight = (*weight - RATE * slope).max(0.0);
        }
    }
    // Back to the features as they are.
    for feature in 0..FEATURES {
        model.weights[feature] /= deviation[feature];
        model.bias -= model.weights[feature] * mean[feature];
    }
    model
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{AnswerId, Entry};

    fn found(score: f32, coverage: f32) -> Match {
        let entry = Entry {
            answer_id: AnswerId(1),
            questions: Vec::new(),
            answer: String::new(),
            language_code: String::new(),
        };
        Match { entry: entry.into(), score, coverage, verbatim: false }
    }

    fn features(score: f64, coverage: f64, margin: f64) -> Features {
        Features { score, coverage, margin, verbatim: false }
    }

    /// A right hit of one coverage, and a wrong one of another.
    fn pair(right: f64, wrong: f64) -> [(Features, bool); 2] {
        [(features(right * 20.0, right, 0.5), true), (features(wrong * 20.0, wrong, 0.1), false)]
    }

    #[test]
    fn too_few_entries_are_not_fitted_on() {
        let hits = pair(0.8, 0.2).repeat(49);
        assert_eq!(Calibration::fit(49, &hits), Calibration::DEFAULT);
        assert_eq!(Calibration::fit(1_000, &[]), Calibration::DEFAULT);
        assert!(!Calibration::DEFAULT.is_fitted());
    }

    #[test]
    fn a_fit_tells_right_from_wrong() {
        let spread = |id: i32| f64::from(id % 10) * 0.02;
        let hits: Vec<_> =
            (0..60).flat_map(|id| pair(0.6 + spread(id), 0.2 + spread(id))).collect();
        let model = Calibration::fit(60, &hits);
        assert!(model.is_fitted());
        assert!(model.probability(&features(14.0, 0.7, 0.5).vector()) > 0.8);
        assert!(model.probability(&features(5.0, 0.25, 0.1).vector()) < 0.2);
    }

    #[test]
    fn more_of_any_feature_never_lowers_confidence() {
        // Here coverage tells the opposite of what it should; the weight stays at zero.
        let model = Calibration::fit(60, &pair(0.2, 0.8).repeat(60));
        assert!(model.weights.iter().all(|weight| *weight >= 0.0), "{model:?}");
    }

    #[test]
    fn only_the_first_hit_can_be_more_likely_than_not_and_confidence_falls() {
        for model in [Calibration::DEFAULT, Calibration { bias: 9.0, ..Calibration::DEFAULT }] {
            let hits = model.judge(vec![found(9.0, 0.9), found(8.9, 0.89), found(1.0, 0.1)]);
            assert!(hits[1..].iter().all(|hit| hit.confidence <= 0.5));
            assert!(hits.is_sorted_by(|a, b| a.confidence >= b.confidence));
        }
    }

    #[test]
    fn a_question_word_for_word_is_known() {
        let verbatim = Match { verbatim: true, ..found(1.0, 0.1) };
        let hits = Calibration::DEFAULT.judge(vec![verbatim, found(1.0, 0.1)]);
        assert!(hits[0].confidence >= 0.95 && hits[1].confidence < 0.5, "{hits:?}");
    }

    #[test]
    fn nothing_found_is_nothing_judged() {
        assert_eq!(Calibration::DEFAULT.judge(Vec::new()), []);
    }
}
