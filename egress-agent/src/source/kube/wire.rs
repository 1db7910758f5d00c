//! What the API server sends: pages of lists and lines of watches, read without keeping what nobody asks for.
//!
//! Invariant: an object is named by its metadata alone; that the rest of it does not parse is an error of that object and of no
//! other. What cannot even be named is garbage, and ends the stream that it came by. Tested below.
//!
//! Source: Kubernetes API concepts, "Efficient detection of changes" and "Retrieving large results sets in chunks".

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use egress_policy::object::{self, Kind, Object, ObjectRef, Read};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Marks the bookmark that ends the objects of a streaming list.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: PageMetadata,
    /// Null for an empty list of some servers.
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMetadata {
    pub(super) resource_version: Option<String>,
    pub(super) r#continue: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Debug, Deserialize)]
struct Named {
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    resource_version: Option<String>,
}

#[derive(Deserialize)]
struct Labelled<'a> {
    #[serde(borrow)]
    metadata: LabelledMetadata<'a>,
}

#[derive(Deserialize)]
struct LabelledMetadata<'a> {
    #[serde(borrow)]
    labels: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMetadata {
    resource_version: String,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Failure {
    code: u16,
    reason: String,
    message: String,
}

/// An object as it arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) name: ObjectRef,
    pub(super) version: Option<String>,
    /// What to put in its place; `None` where it cannot be read.
    pub(super) object: Option<Object>,
    /// What is wrong with it.
    pub(super) error: Option<String>,
}

/// A line of a watch.
#[derive(Debug)]
pub(super) enum Event {
    /// An object is there.
    Upsert(Arrived),
    /// It is gone.
    Delete(ObjectRef, Option<String>),
    /// The version up to which everything was told, and whether that ends a streaming list.
    Bookmark(String, bool),
    /// The server ends the watch: its code and what it says.
    Error(u16, String),
}

/// What cannot be understood at all.
#[derive(Debug, thiserror::Error)]
#[error("the API server sent something that is not understood: {0}")]
pub(super) struct Garbage(String);

/// Reads a page.
///
/// # Errors
/// It is none.
pub(super) fn page(text: &str) -> Result<Page<'_>, Garbage> {
    serde_json::from_str(text).map_err(|error| Garbage(error.to_string()))
}

/// Reads a line of a watch.
///
/// # Errors
/// It is none, or cannot be named.
pub(super) fn event(kind: Kind, line: &[u8]) -> Result<Event, Garbage> {
    let garbage = |error: serde_json::Error| Garbage(error.to_string());
    let line: Line<'_> = serde_json::from_slice(line).map_err(garbage)?;
    match &*line.r#type {
        "ADDED" | "MODIFIED" => Ok(Event::Upsert(arrived(kind, line.object)?)),
        "DELETED" => {
            let (name, version) = named(kind, line.object)?;
            Ok(Event::Delete(name, version))
        }
        "BOOKMARK" => {
            let bookmark: Bookmark = serde_json::from_str(line.object.get()).map_err(garbage)?;
            let ends = bookmark.metadata.annotations.is_some_and(|all| all.contains_key(INITIAL_END));
            Ok(Event::Bookmark(bookmark.metadata.resource_version, ends))
        }
        "ERROR" => {
            let failure: Failure = serde_json::from_str(line.object.get()).unwrap_or_default();
            let text = if failure.message.is_empty() { failure.reason } else { failure.message };
            Ok(Event::Error(failure.code, text))
        }
        other => Err(Garbage(format!("an event of type {other:?}"))),
    }
}

fn named(kind: Kind, raw: &RawValue) -> Result<(ObjectRef, Option<String>), Garbage> {
    let named: Named = serde_json::from_str(raw.get()).map_err(|error| Garbage(error.to_string()))?;
    let Metadata { name, namespace, resource_version } = named.metadata;
    let namespace = namespace.filter(|namespace| !namespace.is_empty());
    if name.is_empty() || kind.namespaced() != namespace.is_some() {
        return Err(Garbage(format!("a {kind} without a name or namespace")));
    }
    let name = ObjectRef { kind, namespace: namespace.map(Arc::from), name: Arc::from(name) };
    Ok((name, resource_version.filter(|version| !version.is_empty())))
}

/// Reads an object.
///
/// # Errors
/// It cannot be named.
pub(super) fn arrived(kind: Kind, raw: &RawValue) -> Result<Arrived, Garbage> {
    let (name, version) = named(kind, raw)?;
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    let value = match Trimmed(2).deserialize(&mut deserializer) {
        Ok(value) => value,
        // Such as one that is nested too deeply. Of a policy its name is enough for it to close what it may have meant, of a part of a
        // service whose it is.
        Err(error) => {
            let namespace = name.namespace.as_deref();
            let value =
                json!({"metadata": {"name": &*name.name, "namespace": namespace, "labels": labels(raw)}});
            let object = object::stand_in(kind, &name.name, &value);
            return Ok(Arrived { name, version, object, error: Some(error.to_string()) });
        }
    };
    let (object, error) = match object::read_as(kind, &value) {
        Ok(Read::Object(object)) => (Some(object), None),
        Ok(Read::Invalid { stand_in, error, .. }) => (stand_in.map(|one| *one), Some(error.to_string())),
        Ok(Read::Workload { kind: other, .. } | Read::Ignored { kind: other, .. }) => {
            return Err(Garbage(format!("a {other} among {kind}s")));
        }
        Err(error) => (None, Some(error.to_string())),
    };
    Ok(Arrived { name, version, object, error })
}

/// The labels of an object of which no more than the metadata can be read.
fn labels(raw: &RawValue) -> BTreeMap<String, Value> {
    let labelled: Option<Labelled<'_>> = serde_json::from_str(raw.get()).ok();
    let labels = labelled.and_then(|labelled| labelled.metadata.labels);
    labels.and_then(|labels| serde_json::from_str(labels.get()).ok()).unwrap_or_default()
}

/// A JSON value without `managedFields`, which is half of many objects, down to this depth.
struct Trimmed(u8);

impl<'de> DeserializeSeed<'de> for Trimmed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0 == 0 { Value::deserialize(deserializer) } else { deserializer.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Trimmed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = serde_json::Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == "managedFields" {
                entries.next_value::<IgnoredAny>()?;
            } else if key == "metadata" {
                fields.insert(key, entries.next_value_seed(Trimmed(self.0 - 1))?);
            } else {
                fields.insert(key, entries.next_value()?);
            }
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, event, page};
    use egress_policy::object::{Kind, Object};

    fn line(kind: &str, object: &str) -> Vec<u8> {
        format!(r#"{{"type":"{kind}","object":{object}}}"#).into_bytes()
    }

    const POD: &str = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p","namespace":"n","resourceVersion":"7",
        "labels":{"a":"b"},"managedFields":[{"manager":"x"}]},"spec":{"containers":[]}}"#;

    #[test]
    fn objects_are_read_and_named() {
        let Event::Upsert(arrived) = event(Kind::Pod, &line("ADDED", POD)).unwrap() else { panic!() };
        assert_eq!((arrived.name.to_string().as_str(), arrived.version.as_deref()), ("Pod n/p", Some("7")));
        assert!(arrived.object.is_some() && arrived.error.is_none());
    }

    #[test]
    fn the_type_may_come_last() {
        let text = format!(r#"{{"object":{POD},"type":"DELETED"}}"#);
        assert!(matches!(event(Kind::Pod, text.as_bytes()), Ok(Event::Delete(_, Some(_)))));
    }

    #[test]
    fn what_does_not_fit_its_type_is_named_all_the_same() {
        let broken = POD.replace(r#"{"a":"b"}"#, r#"["a"]"#);
        let Event::Upsert(arrived) = event(Kind::Pod, &line("MODIFIED", &broken)).unwrap() else { panic!() };
        assert!(arrived.object.is_none() && arrived.error.unwrap().contains("labels"));
        assert!(matches!(event(Kind::Pod, &line("DELETED", &broken)), Ok(Event::Delete(..))));
    }

    #[test]
    fn a_policy_that_cannot_be_read_has_a_stand_in() {
        let policy = r#"{"metadata":{"name":"mesh","resourceVersion":"1"},"spec":{"subjects":7}}"#;
        let Event::Upsert(arrived) = event(Kind::EgressGatewayPolicy, &line("ADDED", policy)).unwrap() else {
            panic!()
        };
        assert!(arrived.object.is_some() && arrived.error.is_some());
    }

    #[test]
    fn what_is_nested_too_deeply_is_an_error_of_that_object_alone() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
        let policy =
            format!(r#"{{"metadata":{{"name":"mesh","resourceVersion":"1"}},"spec":{{"x":{deep}}}}}"#);
        let arrived = |kind, text: &str| match event(kind, &line("ADDED", text)).unwrap() {
            Event::Upsert(arrived) => arrived,
            other => panic!("{other:?}"),
        };
        let policy = arrived(Kind::EgressGatewayPolicy, &policy);
        assert!(policy.object.is_some() && policy.error.unwrap().contains("recursion"));
        let pod = arrived(Kind::Pod, &POD.replace(r#""containers":[]"#, &format!(r#""x":{deep}"#)));
        assert!(pod.object.is_none() && pod.error.is_some());
        // Of a slice its labels tell whose it is, and its service leads anywhere.
        let slice = format!(
            r#"{{"endpoints":{deep},"metadata":{{"name":"s-1","namespace":"n","labels":{{"kubernetes.io/service-name":"s"}}}}}}"#
        );
        let slice = arrived(Kind::EndpointSlice, &slice);
        let Some(Object::EndpointSlice(read)) = slice.object else { panic!("{slice:?}") };
        assert!(read.unread && read.service.as_deref() == Some("s") && slice.error.is_some());
    }

    #[test]
    fn what_can_be_read_of_a_slice_or_a_service_counts() {
        let arrived = |kind, text: &str| match event(kind, &line("MODIFIED", text)).unwrap() {
            Event::Upsert(arrived) => arrived,
            other => panic!("{other:?}"),
        };
        let slice = r#"{"metadata":{"name":"s-1","namespace":"n","labels":{"kubernetes.io/service-name":"s"}},"addressType":"IPv4",
            "endpoints":[{"addresses":["198.51.100.10"]},{"addresses":["ADDRESS"]}],"ports":[{"name":"x","port":443}]}"#;
        let service = r#"{"metadata":{"name":"s","namespace":"n"},"spec":{"clusterIP":"ADDRESS","clusterIPs":["10.96.0.1"]}}"#;
        for (address, read) in [("10.96.0.1", true), ("10.96.0.x", false)] {
            let slice = arrived(Kind::EndpointSlice, &slice.replace("ADDRESS", address));
            assert_eq!(slice.error.is_none(), read);
            let Some(Object::EndpointSlice(slice)) = slice.object else { panic!("{slice:?}") };
            assert!(slice.unread != read && slice.endpoints.len() == if read { 2 } else { 1 });
            let service = arrived(Kind::Service, &service.replace("ADDRESS", address));
            assert_eq!(service.error.is_none(), read);
            let Some(Object::Service(service)) = service.object else { panic!("{service:?}") };
            assert!(service.unread != read && service.vips.len() == 1);
        }
    }

    #[test]
    fn bookmarks_and_errors_are_told_apart() {
        let end =
            r#"{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}"#;
        assert!(matches!(event(Kind::Pod, &line("BOOKMARK", end)), Ok(Event::Bookmark(_, true))));
        let gone = r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#;
        assert!(matches!(event(Kind::Pod, &line("ERROR", gone)), Ok(Event::Error(410, _))));
    }

    #[test]
    fn everything_else_is_garbage() {
        let unnamed = POD.replace(r#""name":"p","#, "");
        for text in ["", "{", "7", "{}", r#"{"type":"ADDED"}"#, r#"{"type":"X","object":{}}"#] {
            assert!(event(Kind::Pod, text.as_bytes()).is_err(), "{text}");
        }
        assert!(event(Kind::Pod, &line("ADDED", &unnamed)).is_err());
        assert!(event(Kind::Node, &line("ADDED", POD)).is_err(), "nodes have no namespace");
        assert!(page("[").is_err() && page(r#"{"items":null}"#).unwrap().items.is_none());
    }
}
