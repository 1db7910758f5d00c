//! GET of an object and of collections: pages, resource versions, what each of them promises.
//!
//! After "Resource versions" in the API concepts of kubernetes.io, `ValidateListOptions` and the list functions of
//! `etcd3/store.go` and `cacher.go`. Held by `tests/read.rs`.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

use crate::answer::{Answer, Failure, json};
use crate::resources::{Path, Resource};
use crate::state::Shared;
use crate::store::{Key, Objects, with_kind};

/// How long a request waits for a version that is not there yet (`blockTimeout`).
const FRESH: Duration = Duration::from_secs(3);

pub(crate) type Query = BTreeMap<String, String>;

/// Which objects of a collection are asked for.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    namespace: String,
    name: Option<String>,
}

impl Filter {
    /// # Errors
    /// A selector other than that of one name: the fixture was not taught those, and must not pass them over.
    pub(crate) fn new(path: &Path<'_>, query: &Query) -> Result<Self, Failure> {
        let selector = |name: &str| query.get(name).map_or("", String::as_str);
        let labels = selector("labelSelector");
        let fields = selector("fieldSelector");
        let name = fields.strip_prefix("metadata.name=").map(|name| name.trim_start_matches('=').to_owned());
        if !labels.is_empty() || (!fields.is_empty() && name.is_none()) {
            return Err(Failure::bad_request(format!("the fixture was not taught {fields}{labels}")));
        }
        Ok(Self { namespace: path.namespace.to_owned(), name })
    }

    pub(crate) fn takes(&self, key: &Key) -> bool {
        (self.namespace.is_empty() || self.namespace == key.0)
            && self.name.as_ref().is_none_or(|name| *name == key.1)
    }
}

/// Reads `resourceVersion`: `None` where it is absent or empty. What is wrong with it is said in the real server's words
/// for lists; a watch, other than they, fails with 500.
pub(crate) fn version(query: &Query) -> Result<Option<u64>, Failure> {
    let text = query.get("resourceVersion").map_or("", String::as_str);
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = format!(
        "resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
    );
    let failure = || match query.contains_key("watch") {
        true => Failure::new(500, "", wrong.clone()),
        false => Failure::bad_request(format!("invalid resource version: {wrong}")),
    };
    text.parse().map(Some).map_err(|_| failure())
}

/// Waits until a version is there.
///
/// # Errors
/// It does not come.
pub(crate) async fn fresh(shared: &Shared, version: u64) -> Result<(), Failure> {
    let come = shared.wait(|state| (state.store.version >= version).then_some(()));
    let late = |_| Failure::too_large(version, shared.lock().store.version);
    tokio::time::timeout(FRESH, come).await.map_err(late)
}

pub(crate) fn get(shared: &Shared, path: &Path<'_>, name: &str) -> Result<Answer, Failure> {
    let key = (path.namespace.to_owned(), name.to_owned());
    let state = shared.lock();
    let text = state.store.shelf(path.resource).objects.get(&key);
    let text = text.ok_or_else(|| Failure::not_found(path.resource, name))?;
    Ok(json(StatusCode::OK, with_kind(path.resource, text)))
}

/// Where a list goes on: at which version, after which object.
struct Token {
    /// The version of the first page; `None` for what is there now.
    version: Option<u64>,
    after: Key,
}

impl Token {
    /// Opaque, and needs no escaping, as the real ones (`EncodeContinue`).
    fn encode(&self) -> String {
        let version = self.version.map_or_else(|| "x".to_owned(), |version| version.to_string());
        let text = format!("{version}\0{}\0{}", self.after.0, self.after.1);
        text.bytes().fold(String::new(), |all, byte| format!("{all}{byte:02x}"))
    }

    fn decode(text: &str) -> Option<Self> {
        let digits = text
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        let text = String::from_utf8(digits.collect::<Option<Vec<u8>>>()?).ok()?;
        let mut parts = text.split('\0');
        let version = parts.next()?;
        let after = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let version = if version == "x" { None } else { Some(version.parse().ok()?) };
        Some(Self { version, after })
    }
}

/// What `ValidateListOptions` refuses of a list.
fn validate(query: &Query) -> Result<(), Failure> {
    let given = |name: &str| query.get(name).map_or("", String::as_str);
    let mut errors = Vec::new();
    let of_match = given("resourceVersionMatch");
    let mut forbidden = |field, text: &str| errors.push((field, "Forbidden", text.to_owned()));
    if !of_match.is_empty() {
        let field = "resourceVersionMatch";
        if given("resourceVersion").is_empty() {
            forbidden(field, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !given("continue").is_empty() {
            forbidden(field, "resourceVersionMatch is forbidden when continue is provided");
        }
        if of_match == "Exact" && given("resourceVersion") == "0" {
            forbidden(field, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        if of_match != "Exact" && of_match != "NotOlderThan" {
            let text = format!("\"{of_match}\": supported values: \"Exact\", \"NotOlderThan\", \"\"");
            errors.push((field, "NotSupported", text));
        }
    }
    if query.contains_key("sendInitialEvents") {
        let text = "sendInitialEvents is forbidden for list".to_owned();
        errors.push(("sendInitialEvents", "Forbidden", text));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Failure::invalid("ListOptions", "meta.k8s.io", "", &errors))
}

pub(crate) async fn list(
    shared: &Shared,
    path: &Path<'_>,
    query: &Query,
    stale: Option<u64>,
) -> Result<Answer, Failure> {
    validate(query)?;
    let filter = Filter::new(path, query)?;
    let given = |name: &str| query.get(name).map_or("", String::as_str);
    let asked = version(query)?;
    let limit: usize = match given("limit") {
        "" => 0,
        text => text.parse().map_err(|_| Failure::bad_request("limit is not a number"))?,
    };
    // The watch cache answers "any version", and takes no notice of the limit (`shouldDelegateList`).
    let limit = if asked == Some(0) && given("continue").is_empty() { 0 } else { limit };
    let token = match given("continue") {
        "" => None,
        _ if asked.is_some_and(|version| version > 0) => {
            let message = "specifying resource version is not allowed when using continue";
            return Err(Failure::bad_request(message));
        }
        text => Some(Token::decode(text).ok_or_else(|| Failure::bad_request("continue key is not valid"))?),
    };
    if let Some(version) = asked {
        fresh(shared, version).await?;
    }
    // A limit makes a version exact, where nothing else is said ("Semantics for get and list").
    let exact =
        given("resourceVersionMatch") == "Exact" || (given("resourceVersionMatch").is_empty() && limit > 0);
    let at = match (&token, asked) {
        (Some(token), _) => token.version,
        (None, Some(version)) if version > 0 && exact => Some(version),
        (None, _) => stale,
    };
    let state = shared.lock();
    let shelf = state.store.shelf(path.resource);
    let version = at.unwrap_or(state.store.version);
    let old: Objects;
    let objects = if shelf.unchanged_since(version) {
        &shelf.objects
    } else {
        let gone = || match &token {
            Some(token) => {
                Failure::page_too_old(&Token { version: None, after: token.after.clone() }.encode())
            }
            None => Failure::too_old(version, shelf.oldest),
        };
        old = shelf.at(version).ok_or_else(gone)?;
        &old
    };
    let from = token.as_ref().map_or(Bound::Unbounded, |token| Bound::Excluded(&token.after));
    let mut rest = objects.range::<Key, _>((from, Bound::Unbounded)).filter(|(key, _)| filter.takes(key));
    let page: Vec<_> = rest.by_ref().take(if limit == 0 { usize::MAX } else { limit }).collect();
    let left = rest.count();
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if left > 0
        && let Some((last, _)) = page.last()
    {
        metadata["continue"] = Token { version: Some(version), after: (*last).clone() }.encode().into();
        metadata["remainingItemCount"] = left.into();
    }
    Ok(json(StatusCode::OK, collection(path.resource, &metadata, &page)))
}

/// The text of a list. Items of built-in kinds do not name their kind, those of custom resources do.
fn collection(resource: &Resource, metadata: &serde_json::Value, page: &[(&Key, &Bytes)]) -> Vec<u8> {
    let (kind, version) = (resource.kind, resource.api_version());
    let mut text =
        format!("{{\"kind\":\"{kind}List\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":[")
            .into_bytes();
    for (place, (_, item)) in page.iter().enumerate() {
        if place > 0 {
            text.push(b',');
        }
        if resource.custom {
            text.extend_from_slice(&with_kind(resource, item));
        } else {
            text.extend_from_slice(item);
        }
    }
    text.extend_from_slice(b"]}\n");
    text
}
