//! What a model is sent: as much of the conversation and of the entries as its window has room for.
//!
//! Tokens are estimated, since every model counts differently and its tokenizer is not here. An ASCII
//! byte counts as a third of a token, any other byte as a half: English words come out at about 1.3
//! times what they are, a Hangul syllable, three bytes, at one and a half, where tokenizers of today
//! make 0.6 to 1.5 of it. A little too much is left out rather than a request refused as too long.

use super::{
    Exchange, Question,
    openai::{Message, Role},
};
use crate::knowledge::Hit;

/// Tokens that a message costs besides its text.
const MESSAGE: u32 = 4;

/// Tokens of a text, by estimate.
pub(super) fn estimate(text: &str) -> u32 {
    let ascii = text.bytes().filter(u8::is_ascii).count();
    let other = text.len() - ascii;
    u32::try_from(ascii.div_ceil(3) + other.div_ceil(2)).unwrap_or(u32::MAX)
}

/// The messages for a question: what the model is told to be, what was said before, and `asked`, which
/// is the question or what was made of it. These two are sent in any case; of the history as many of
/// the newest exchanges as fit into `window` tokens beside them.
pub(super) fn messages(
    system: &str,
    question: &Question,
    asked: String,
    window: u32,
) -> Vec<Message> {
    let system = match &question.language {
        Some(language) => format!("{system}\nThe language of the answer: {language}."),
        None => system.to_owned(),
    };
    let mut left = window
        .saturating_sub(estimate(&system) + MESSAGE)
        .saturating_sub(estimate(&asked).saturating_add(MESSAGE));
    let mut kept = 0;
    for Exchange { question, answer } in question.history.iter().rev() {
        let cost = estimate(question).saturating_add(estimate(answer)).saturating_add(2 * MESSAGE);
        if cost > left {
            break;
        }
        left -= cost;
        kept += 1;
    }
    let mut messages = Vec::with_capacity(2 + 2 * kept);
    if !system.trim().is_empty() {
        messages.push(Message { role: Role::System, content: system });
    }
    for Exchange { question, answer } in &question.history[question.history.len() - kept..] {
        messages.push(Message { role: Role::User, content: question.clone() });
        messages.push(Message { role: Role::Assistant, content: answer.clone() });
    }
    messages.push(Message { role: Role::User, content: asked });
    messages
}

/// The question and the entries in the places that `template` has for them, and how many entries there
/// was room for in half of `window`: the rest is for the question, the history and the answer. The best
/// entry is cut to fit if it has to be.
pub(super) fn grounded(
    template: &str,
    question: &str,
    hits: &[Hit],
    window: u32,
) -> (String, usize) {
    let mut left = window / 2;
    let mut entries = String::new();
    let mut used = 0;
    for hit in hits {
        let title = hit.entry.questions.first().map_or("", String::as_str);
        let entry = format!("[{}] {title}\n{}\n", used + 1, hit.entry.answer);
        let cost = estimate(&entry);
        if cost <= left {
            entries.push_str(&entry);
        } else if used == 0 {
            // Never more tokens than half of the bytes.
            let bytes = usize::try_from(left).unwrap_or(usize::MAX).saturating_mul(2);
            entries.push_str(&entry[..entry.floor_char_boundary(bytes)]);
        } else {
            break;
        }
        left = left.saturating_sub(cost);
        used += 1;
    }
    (filled(template, question, entries.trim_end()), used)
}

/// `template` with its places filled in one pass: a question that has a place in it stays as it is.
fn filled(template: &str, question: &str, entries: &str) -> String {
    let mut text = String::with_capacity(template.len() + question.len() + entries.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(behind) = rest.strip_prefix("{question}") {
            text.push_str(question);
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix("{entries}") {
            text.push_str(entries);
            rest = behind;
        } else {
            text.push('{');
            rest = &rest[1..];
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{AnswerId, Entry, RequestId};

    fn question(history: &[(&str, &str)]) -> Question {
        let exchange = |(question, answer): &(&str, &str)| Exchange {
            question: (*question).to_owned(),
            answer: (*answer).to_owned(),
        };
        Question {
            request: RequestId(Uuid::new_v4()),
            text: "now?".to_owned(),
            language: None,
            history: history.iter().map(exchange).collect(),
        }
    }

    fn sent(history: &[(&str, &str)], window: u32) -> Vec<String> {
        let question = question(history);
        messages("be kind", &question, question.text.clone(), window)
            .into_iter()
            .map(|message| message.content)
            .collect()
    }

    fn hit(id: i32, answer: &str) -> Hit {
        let entry = Entry {
            answer_id: AnswerId(id),
            questions: vec![format!("title {id}")],
            answer: answer.to_owned(),
            language_code: String::new(),
        };
        Hit { entry: entry.into(), score: 1.0, confidence: 1.0 }
    }

    #[test]
    fn korean_is_not_counted_as_english() {
        assert_eq!(estimate(""), 0);
        assert_eq!(estimate("too many open files"), 7);
        // Nine syllables, of three bytes each, and two spaces.
        assert_eq!(estimate("연결이 자꾸 끊깁니다"), 15);
        assert!(estimate(&"가".repeat(1000)) == 1500);
    }

    #[test]
    fn the_newest_exchanges_stay_and_whole() {
        let history = [("one?", "1"), ("two?", "2"), ("three?", "3")];
        let all = ["be kind", "one?", "1", "two?", "2", "three?", "3", "now?"];
        assert_eq!(sent(&history, 4096), all);
        let cost = |text: &str| estimate(text) + MESSAGE;
        let needed: u32 = all.iter().map(|text| cost(text)).sum();
        assert_eq!(sent(&history, needed), all);
        assert_eq!(sent(&history, needed - 1), ["be kind", "two?", "2", "three?", "3", "now?"]);
        // The question goes in any case.
        assert_eq!(sent(&history, 0), ["be kind", "now?"]);
        // A large exchange hides those before it: a history with holes would mislead.
        let large = "가".repeat(1000);
        let history = [("one?", "1"), ("two?", &large), ("three?", "3")];
        assert_eq!(sent(&history, 200), ["be kind", "three?", "3", "now?"]);
    }

    #[test]
    fn a_language_is_passed_on_and_nothing_said_is_nothing_sent() {
        let korean = Question { language: Some("ko".to_owned()), ..question(&[]) };
        let told = messages("be kind", &korean, "?".to_owned(), 100);
        assert_eq!(told[0].content, "be kind\nThe language of the answer: ko.");
        assert_eq!(messages(" ", &question(&[]), "?".to_owned(), 100).len(), 1);
    }

    #[test]
    fn places_are_filled_once() {
        let (text, used) = grounded(
            "{{entries}} | {question} {other}",
            "what is {entries}?",
            &[hit(1, "a {question}"), hit(2, "b")],
            4096,
        );
        let expected = "{[1] title 1\na {question}\n[2] title 2\nb} | what is {entries}? {other}";
        assert_eq!((&text[..], used), (expected, 2));
    }

    #[test]
    fn entries_fit_and_the_best_one_is_cut_to() {
        let long = "나".repeat(5000);
        let template = "{entries}{question}";
        let (text, used) = grounded(template, "", &[hit(1, "a"), hit(2, &long), hit(3, "b")], 256);
        assert_eq!((&text[..], used), ("[1] title 1\na", 1));
        let (text, used) = grounded(template, "", &[hit(1, &long)], 256);
        assert_eq!(used, 1);
        assert!(estimate(&text) <= 128 && text.len() > 200, "{}", text.len());
    }
}
