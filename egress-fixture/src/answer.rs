//! Answers: their bodies, and the words of the real server's errors.
//!
//! Invariant: every error has the code, reason and message of the real server's, whose source is named at each.

use std::io;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use http::{Response, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};

use crate::resources::Resource;

/// A body: chunks, and an error where the connection is to break.
pub(crate) type Body = StreamBody<BoxStream<'static, io::Result<Frame<Bytes>>>>;
/// An answer.
pub(crate) type Answer = Response<Body>;

/// A body of these chunks.
pub(crate) fn body(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data)).boxed())
}

/// A whole answer of some type.
pub(crate) fn whole(code: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let text = text.into();
    let mut answer = Response::new(body(stream::iter([Ok(text)])));
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    answer
}

/// A whole answer in JSON.
pub(crate) fn json(code: StatusCode, text: impl Into<Bytes>) -> Answer {
    whole(code, "application/json", text)
}

/// A `metav1.Status` that tells of a failure.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The HTTP code.
    pub code: u16,
    /// The whole object.
    pub status: Value,
}

impl Failure {
    /// A failure without details.
    #[must_use]
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message.into(), "code": code,
        });
        if !reason.is_empty() {
            status["reason"] = reason.into();
        }
        Self { code, status }
    }

    /// With `details`.
    #[must_use]
    pub fn details(mut self, details: Value) -> Self {
        self.status["details"] = details;
        self
    }

    /// Of an object (`NewNotFound` and its like in `apimachinery/pkg/api/errors/errors.go`).
    fn of(resource: &Resource, name: &str) -> Value {
        let mut details = json!({ "kind": resource.plural });
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !resource.group.is_empty() {
            details["group"] = resource.group.into();
        }
        details
    }

    /// There is no such object.
    #[must_use]
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", resource.qualified()))
            .details(Self::of(resource, name))
    }

    /// There is one already.
    #[must_use]
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", resource.qualified()))
            .details(Self::of(resource, name))
    }

    /// It has changed since it was read (`registry.OptimisticLockErrorMsg`).
    #[must_use]
    pub fn conflict(resource: &Resource, name: &str) -> Self {
        Self::conflict_because(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Something that was asked for first does not hold.
    #[must_use]
    pub fn conflict_because(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        Self::new(409, "Conflict", message).details(Self::of(resource, name))
    }

    /// The role does not allow it (`NewForbidden`, `responsewriters.ForbiddenMessage`).
    #[must_use]
    pub fn forbidden(
        user: &str,
        verb: &str,
        resource: &Resource,
        namespace: &str,
        name: &str,
        status: bool,
    ) -> Self {
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let named = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        let part = if status { "/status" } else { "" };
        let message = format!(
            "{}{named} is forbidden: User \"{user}\" cannot {verb} resource \"{}{part}\" in API group \"{}\" {place}",
            resource.qualified(),
            resource.plural,
            resource.group
        );
        Self::new(403, "Forbidden", message).details(Self::of(resource, name))
    }

    /// Who asks is not known, such as after the token has expired (`NewUnauthorized`).
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// Fields that do not pass validation (`NewInvalid`): each a field, the error's type and its text.
    #[must_use]
    pub fn invalid(kind: &str, group: &str, name: &str, errors: &[(&str, &str, String)]) -> Self {
        let texts: Vec<_> = errors.iter().map(|(field, what, text)| line(field, what, text)).collect();
        let text = if let [one] = texts.as_slice() { one.clone() } else { format!("[{}]", texts.join(", ")) };
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let causes: Vec<_> = errors
            .iter()
            .map(|(field, what, text)| {
                let full = line(field, what, text);
                let message = full.strip_prefix(&format!("{field}: ")).unwrap_or(&full);
                json!({ "reason": format!("FieldValue{}", what.replace(' ', "")), "message": message, "field": field })
            })
            .collect();
        let mut details = json!({ "kind": kind, "causes": causes });
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !group.is_empty() {
            details["group"] = group.into();
        }
        Self::new(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {text}")).details(details)
    }

    /// History does not reach back that far (`NewResourceExpired`, in `watch_cache.go`).
    #[must_use]
    pub fn too_old(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// A page of a list that is too long ago (`handleCompactedErrorForPaging`), with a token for what is there now.
    #[must_use]
    pub fn page_too_old(token: &str) -> Self {
        let mut failure = Self::new(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of \
             the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        );
        failure.status["metadata"] = json!({ "continue": token });
        failure
    }

    /// History does not reach that far yet (`storage.NewTooLargeResourceVersionError`).
    #[must_use]
    pub fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        Self::new(504, "Timeout", format!("Timeout: {message}")).details(json!({
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
            "retryAfterSeconds": 1,
        }))
    }

    /// The request cannot be read.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// Something broke inside (`NewInternalError`).
    #[must_use]
    pub fn internal(what: &str) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {what}"))
            .details(json!({ "causes": [{ "message": what }] }))
    }

    /// The server cannot answer now (`NewServiceUnavailable`).
    #[must_use]
    pub fn unavailable() -> Self {
        Self::new(503, "ServiceUnavailable", "the server is currently unable to handle the request")
    }

    /// The watch cache of a resource is not filled yet (since 1.31: `ResilientWatchCacheInitialization`).
    #[must_use]
    pub fn initializing() -> Self {
        Self::new(429, "TooManyRequests", "storage is (re)initializing")
            .details(json!({ "retryAfterSeconds": 1 }))
    }

    /// The answer; its `Retry-After` is that of the details (`responsewriters.ErrorNegotiated`).
    pub fn answer(&self) -> Answer {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = json(code, format!("{}\n", self.status));
        if let Some(seconds) = self.status["details"]["retryAfterSeconds"].as_u64() {
            answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        answer
    }
}

/// One line of `field.Error.Error`.
fn line(field: &str, what: &str, text: &str) -> String {
    let spaced = match what {
        "Invalid" => "Invalid value",
        "Required" => "Required value",
        "NotSupported" => "Unsupported value",
        other => other,
    };
    if text.is_empty() { format!("{field}: {spaced}") } else { format!("{field}: {spaced}: {text}") }
}

/// What the rate limits of API priority and fairness answer: plain text (`priority-and-fairness.go`).
pub(crate) fn too_many_requests(retry_after: u32) -> Answer {
    let text = "Too many requests, please try again later.\n";
    let mut answer = whole(StatusCode::TOO_MANY_REQUESTS, "text/plain; charset=utf-8", text);
    answer.headers_mut().insert(header::RETRY_AFTER, retry_after.into());
    answer
}

/// What a path is answered that nobody serves, such as that of a custom resource without definition: plain text
/// (`notfoundhandler`, `http.NotFound`), in newer servers a Status.
pub(crate) fn nothing_here(newer: bool) -> Answer {
    if newer {
        Failure::new(404, "NotFound", "the server could not find the requested resource").answer()
    } else {
        whole(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n")
    }
}
