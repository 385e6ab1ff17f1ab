//! The messages of `/v1/chat/completions`, as servers really send them.
//!
//! Every field may be missing or null, and most may be of another type: a server of the same name has been
//! seen to send each of these. What is not understood is left out; an event that is no JSON object at all
//! is an error, and so is one whose choices are none.

use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};
use serde_json::Value;

use crate::domain::{FinishReason, Usage};

/// What is asked.
#[derive(Debug, Serialize)]
pub(super) struct Request<'a> {
    pub(super) model: &'a str,
    pub(super) messages: &'a [Message],
    pub(super) stream: bool,
    pub(super) stream_options: StreamOptions,
    /// The older name of the limit, which every server understands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) temperature: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: bool,
}

/// One message of what is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::engine) struct Message {
    /// Who says it.
    pub(in crate::engine) role: Role,
    /// What is said.
    pub(in crate::engine) content: String,
}

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::engine) enum Role {
    /// The operator.
    System,
    /// Who asks.
    User,
    /// The model.
    Assistant,
}

/// An event of the answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Chunk {
    /// The next piece of the text; often empty.
    pub(super) text: String,
    /// Whether the model has made anything of it, a thought that is not shown included.
    pub(super) begun: bool,
    pub(super) finish: Option<Finish>,
    pub(super) usage: Option<Usage>,
    /// The model that answers, as the server names it.
    pub(super) model: Option<String>,
    pub(super) error: Option<Reported>,
}

/// Why the model ended, in its server's word and ours.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finish {
    pub(super) word: String,
    pub(super) reason: FinishReason,
}

/// An error that is reported in the stream, or in the body of a refusal.
#[derive(Debug, PartialEq)]
pub(super) struct Reported {
    pub(super) message: String,
    /// The status that it would have had.
    pub(super) status: Option<u16>,
}

impl Chunk {
    /// Reads an event's data; the error says why it is none.
    pub(super) fn read(data: &[u8]) -> Result<Self, serde_json::Error> {
        let raw: RawChunk = serde_json::from_slice(data)?;
        let mut chunk = Self {
            usage: raw.usage.and_then(RawUsage::read),
            model: raw.model,
            error: raw.error.as_ref().and_then(Reported::read),
            ..Self::default()
        };
        let choices = raw.choices.unwrap_or_default();
        // Only one is asked for.
        let Some(choice) = choices.into_iter().next() else { return Ok(chunk) };
        chunk.finish = choice.finish_reason.and_then(Finish::read);
        if let Some(delta) = choice.delta.or(choice.message) {
            let thought = delta.reasoning.or(delta.reasoning_content);
            chunk.text = delta.content.map(Content::text).unwrap_or_default();
            chunk.begun = !chunk.text.is_empty() || thought.is_some_and(|text| !text.is_empty());
        }
        Ok(chunk)
    }
}

impl Finish {
    fn read(word: String) -> Option<Self> {
        let reason = match word.as_str() {
            // As some servers say in every event that nothing has ended.
            "" | "null" => return None,
            "length" | "max_tokens" => FinishReason::MaxTokens,
            "content_filter" => FinishReason::ContentFilter,
            _ => FinishReason::Stop,
        };
        Some(Self { word, reason })
    }
}

impl Reported {
    pub(super) fn read(value: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match value {
            Value::Null | Value::Bool(false) => None,
            Value::Object(fields) => {
                let code = fields.get("code").or_else(|| fields.get("status"));
                let code = code.and_then(|code| {
                    code.as_u64().or_else(|| code.as_str().and_then(|code| code.parse().ok()))
                });
                Some(Self {
                    message: fields
                        .get("message")
                        .and_then(text)
                        .unwrap_or_else(|| value.to_string()),
                    status: code.and_then(|code| u16::try_from(code).ok()),
                })
            }
            other => Some(Self {
                message: text(other).unwrap_or_else(|| other.to_string()),
                status: None,
            }),
        }
    }

    /// What the body of a refusal says, where it is one of the usual objects.
    pub(super) fn of_body(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        Self::read(value.get("error")?)
    }
}

#[derive(Debug, Deserialize)]
struct RawChunk {
    #[serde(default)]
    choices: Option<Vec<RawChoice>>,
    #[serde(default, deserialize_with = "lenient")]
    usage: Option<RawUsage>,
    #[serde(default, deserialize_with = "lenient")]
    model: Option<String>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct RawChoice {
    #[serde(default)]
    delta: Option<RawDelta>,
    /// In place of `delta` where a server does not stream after all.
    #[serde(default)]
    message: Option<RawDelta>,
    #[serde(default, deserialize_with = "lenient")]
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawDelta {
    #[serde(default, deserialize_with = "lenient")]
    content: Option<Content>,
    #[serde(default, deserialize_with = "lenient")]
    reasoning: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    reasoning_content: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(default, deserialize_with = "lenient")]
    text: Option<String>,
}

impl Content {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().filter_map(|part| part.text).collect(),
        }
    }
}

#[derive(Debug, Deserialize)]
struct RawUsage {
    #[serde(default, deserialize_with = "lenient")]
    prompt_tokens: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    completion_tokens: Option<u32>,
}

impl RawUsage {
    fn read(self) -> Option<Usage> {
        self.prompt_tokens.or(self.completion_tokens)?;
        Some(Usage {
            input_tokens: self.prompt_tokens.unwrap_or_default(),
            output_tokens: self.completion_tokens.unwrap_or_default(),
        })
    }
}

/// A value of the right type; anything else is none.
fn lenient<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Maybe<T> {
        Is(T),
        Not(IgnoredAny),
    }
    Ok(match Maybe::deserialize(deserializer)? {
        Maybe::Is(value) => Some(value),
        Maybe::Not(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &str) -> Chunk {
        Chunk::read(data.as_bytes()).expect(data)
    }

    #[test]
    fn what_servers_send_is_understood() {
        let first = r#"{"id":"x","object":"chat.completion.chunk","created":1,"model":"m",
            "choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,
            "finish_reason":null}]}"#;
        assert_eq!(read(first), Chunk { model: Some("m".to_owned()), ..Chunk::default() });
        let text = read(r#"{"choices":[{"delta":{"content":"안녕"}}]}"#);
        assert_eq!((&text.text[..], text.begun), ("안녕", true));
        let parts =
            r#"{"choices":[{"delta":{"content":[{"type":"text","text":"a"},{"text":null}]}}]}"#;
        assert_eq!(read(parts).text, "a");
        let thought = read(r#"{"choices":[{"delta":{"content":null,"reasoning_content":"hm"}}]}"#);
        assert_eq!((&thought.text[..], thought.begun), ("", true));
        let usage = read(r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#);
        assert_eq!(usage.usage, Some(Usage { input_tokens: 7, output_tokens: 3 }));
    }

    #[test]
    fn what_is_missing_null_or_odd_is_left_out() {
        for odd in [
            "{}",
            r#"{"choices":null,"usage":null,"error":null,"model":null}"#,
            r#"{"choices":[{"delta":null}],"usage":"none","model":5}"#,
            r#"{"choices":[{"delta":{"content":7},"finish_reason":0}]}"#,
            r#"{"choices":[{"finish_reason":""}],"usage":{"prompt_tokens":-1}}"#,
        ] {
            let chunk = Chunk { model: None, ..read(odd) };
            assert_eq!(chunk, Chunk::default(), "{odd}");
        }
        assert!(Chunk::read(b"[DONE").is_err());
        assert!(Chunk::read(b"7").is_err());
    }

    #[test]
    fn an_unknown_reason_to_finish_is_a_stop() {
        for (word, reason) in [
            ("stop", FinishReason::Stop),
            ("eos", FinishReason::Stop),
            ("tool_calls", FinishReason::Stop),
            ("length", FinishReason::MaxTokens),
            ("content_filter", FinishReason::ContentFilter),
        ] {
            let data = format!(r#"{{"choices":[{{"delta":{{}},"finish_reason":"{word}"}}]}}"#);
            let finish = read(&data).finish.expect("an end");
            assert_eq!((&finish.word[..], finish.reason), (word, reason));
        }
    }

    #[test]
    fn errors_come_in_many_shapes() {
        let reported = |data| read(data).error.expect("an error");
        let object = reported(r#"{"error":{"message":"no room","code":429,"type":"x"}}"#);
        assert_eq!((&object.message[..], object.status), ("no room", Some(429)));
        let word = reported(r#"{"error":{"message":"no","code":"invalid_api_key"}}"#);
        assert_eq!((&word.message[..], word.status), ("no", None));
        assert_eq!(reported(r#"{"error":"overloaded"}"#).message, "overloaded");
        assert_eq!(reported(r#"{"error":{"why":1}}"#).message, r#"{"why":1}"#);
        assert_eq!(Reported::of_body(b"<html>"), None);
    }
}
