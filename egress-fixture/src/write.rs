//! POST, PUT, PATCH and DELETE.
//!
//! Invariant: a write from an older version is refused. After `registry/generic/registry/store.go` and
//! `endpoints/handlers/patch.go` of the API server. Held by `tests/write.rs`.
//!
//! Not taught: finalizers and graceful deletion (an object that is deleted is gone), admission but for namespaces,
//! defaults, schemas of custom resources, field ownership. A server-side apply merges as a merge patch does.

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::answer::{Answer, Failure, json};
use crate::read::Query;
use crate::resources::{Path, Resource, resource};
use crate::state::{Shared, State};
use crate::store::{Change, Key, metadata, with_kind};
use crate::validate::validate;

/// A body that should be an object.
fn object(body: &[u8]) -> Result<Value, Failure> {
    let read: Value = serde_json::from_slice(body).map_err(|error| {
        Failure::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
    })?;
    if read.is_object() { Ok(read) } else { Err(Failure::bad_request("couldn't get version/kind")) }
}

fn key(path: &Path<'_>, name: &str) -> Key {
    (path.namespace.to_owned(), name.to_owned())
}

fn in_its_namespace(path: &Path<'_>, object: &Value) -> Result<(), Failure> {
    let given = object["metadata"]["namespace"].as_str().unwrap_or_default();
    if given.is_empty() || given == path.namespace {
        return Ok(());
    }
    let message = "the namespace of the provided object does not match the namespace sent on the request";
    Err(Failure::bad_request(message))
}

pub(crate) fn create(shared: &Shared, path: &Path<'_>, body: &[u8]) -> Result<Answer, Failure> {
    let mut new = object(body)?;
    in_its_namespace(path, &new)?;
    shared.change(|state| {
        let metadata = metadata(&mut new);
        let given = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut name = given("name");
        if name.is_empty() && !given("generateName").is_empty() {
            // Five characters, as `names.SimpleNameGenerator` adds.
            name = format!("{}{:05}", given("generateName"), state.store.version);
        }
        if name.is_empty() {
            let message = "name or generateName is required".to_owned();
            return Err(invalid(path.resource, "", &[("metadata.name", "Required", message)]));
        }
        if !given("resourceVersion").is_empty() {
            return Err(Failure::new(500, "", "resourceVersion should not be set on objects to be created"));
        }
        make(state, path, &name, new)
    })
}

/// Makes an object that is not there yet.
fn make(state: &mut State, path: &Path<'_>, name: &str, mut new: Value) -> Result<Answer, Failure> {
    // The admission plugin NamespaceLifecycle.
    let namespace = (String::new(), path.namespace.to_owned());
    let namespaces = resource("namespaces");
    if path.resource.namespaced && !state.store.shelf(namespaces).objects.contains_key(&namespace) {
        return Err(Failure::not_found(namespaces, path.namespace));
    }
    if path.resource.status
        && let Some(map) = new.as_object_mut()
    {
        // `PrepareForCreate` empties it.
        map.remove("status");
    }
    validate(path.resource, name, None, &new, path.namespace)?;
    let text = state.store.create(path.resource, key(path, name), new)?;
    state.follow(path.resource, Change::Added, name);
    Ok(json(StatusCode::CREATED, with_kind(path.resource, &text)))
}

pub(crate) fn update(shared: &Shared, path: &Path<'_>, name: &str, body: &[u8]) -> Result<Answer, Failure> {
    let new = object(body)?;
    in_its_namespace(path, &new)?;
    let given = new["metadata"]["name"].as_str().unwrap_or_default();
    if given != name {
        let message = format!("the name of the object ({given}) does not match the name on the URL ({name})");
        return Err(Failure::bad_request(message));
    }
    shared.change(|state| {
        let Some(old) = state.store.get(path.resource, &key(path, name)) else {
            if path.resource.made_by_put && !path.status {
                return make(state, path, name, new);
            }
            return Err(Failure::not_found(path.resource, name));
        };
        let versioned =
            new["metadata"]["resourceVersion"].as_str().is_some_and(|version| !version.is_empty());
        if !versioned && !path.resource.unconditional {
            // This error names the resource where others name the kind (`store.Update`).
            let message = "0: must be specified for an update".to_owned();
            let errors = [("metadata.resourceVersion", "Invalid", message)];
            return Err(Failure::invalid(path.resource.plural, path.resource.group, name, &errors));
        }
        replace(state, path, name, &old, new)
    })
}

/// Puts an object in the place of the one that stands, or its status alone, or all but its status.
fn replace(
    state: &mut State,
    path: &Path<'_>,
    name: &str,
    old: &Value,
    mut new: Value,
) -> Result<Answer, Failure> {
    let resource = path.resource;
    let version = new["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !version.is_empty() && old["metadata"]["resourceVersion"] != version {
        return Err(Failure::conflict(resource, name));
    }
    let uid = new["metadata"]["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && old["metadata"]["uid"] != uid {
        return Err(other_uid(resource, name, uid, old));
    }
    if path.status {
        // `PrepareForUpdate` of the status strategies.
        let status = new["status"].take();
        new = old.clone();
        put(&mut new, "status", status);
    } else if resource.status {
        put(&mut new, "status", old["status"].clone());
    }
    validate(resource, name, Some(old), &new, path.namespace)?;
    let text = state.store.replace(resource, key(path, name), old, new);
    state.follow(resource, Change::Modified, name);
    Ok(json(StatusCode::OK, with_kind(resource, &text)))
}

fn put(object: &mut Value, field: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        if value.is_null() {
            map.remove(field);
        } else {
            map.insert(field.to_owned(), value);
        }
    }
}

fn other_uid(resource: &Resource, name: &str, uid: &str, old: &Value) -> Failure {
    let found = old["metadata"]["uid"].as_str().unwrap_or_default();
    let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}");
    Failure::conflict_because(resource, name, &why)
}

pub(crate) fn patch(
    shared: &Shared,
    path: &Path<'_>,
    name: &str,
    (media, query, body): (&str, &Query, &[u8]),
) -> Result<Answer, Failure> {
    let apply = media == "application/apply-patch+yaml";
    if apply && query.get("fieldManager").is_none_or(String::is_empty) {
        let message = "is required for apply patch".to_owned();
        return Err(Failure::invalid(
            "PatchOptions",
            "meta.k8s.io",
            "",
            &[("fieldManager", "Required", message)],
        ));
    }
    shared.change(|state| {
        let old = state.store.get(path.resource, &key(path, name));
        let Some(old) = old else {
            if apply && !path.status {
                return make(state, path, name, object(body)?);
            }
            return Err(Failure::not_found(path.resource, name));
        };
        let mut new = old.clone();
        put(&mut new, "kind", path.resource.kind.into());
        put(&mut new, "apiVersion", path.resource.api_version().into());
        match media {
            "application/apply-patch+yaml" | "application/merge-patch+json" => {
                json_patch::merge(&mut new, &object(body)?);
            }
            "application/json-patch+json" => {
                let steps: json_patch::Patch = serde_json::from_slice(body).map_err(|error| {
                    Failure::bad_request(format!("error decoding patch: {error}"))
                })?;
                // A test that fails is no conflict, but what cannot be processed (`jsonPatcher.applyPatchToCurrentObject`).
                json_patch::patch(&mut new, &steps).map_err(|_| {
                    let message = "the server rejected our request due to an error in our request";
                    Failure::new(422, "Invalid", message).details(json!({}))
                })?;
            }
            // Built-in kinds know strategic merges, too; the fixture was not taught them.
            other => {
                let message = format!(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml; not {other}"
                );
                return Err(Failure::new(415, "UnsupportedMediaType", message));
            }
        }
        replace(state, path, name, &old, new)
    })
}

pub(crate) fn delete(shared: &Shared, path: &Path<'_>, name: &str, body: &[u8]) -> Result<Answer, Failure> {
    let options: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let (resource, key) = (path.resource, key(path, name));
    shared.change(|state| {
        let old = state.store.get(resource, &key).ok_or_else(|| Failure::not_found(resource, name))?;
        let wanted = &options["preconditions"];
        if let Some(uid) = wanted["uid"].as_str().filter(|uid| old["metadata"]["uid"] != *uid) {
            return Err(other_uid(resource, name, uid, &old));
        }
        if wanted["resourceVersion"]
            .as_str()
            .is_some_and(|version| old["metadata"]["resourceVersion"] != version)
        {
            return Err(Failure::conflict(resource, name));
        }
        let text = state.store.delete(resource, &key)?;
        state.follow(resource, Change::Deleted, name);
        // Kinds with graceful deletion or finalizers return what was deleted, the others say that it went well.
        if ["pods", "namespaces"].contains(&resource.plural) {
            return Ok(json(StatusCode::OK, with_kind(resource, &text)));
        }
        let mut details = Map::new();
        details.insert("name".to_owned(), name.into());
        if !resource.group.is_empty() {
            details.insert("group".to_owned(), resource.group.into());
        }
        details.insert("kind".to_owned(), resource.plural.into());
        details.insert("uid".to_owned(), old["metadata"]["uid"].clone());
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
        });
        Ok(json(StatusCode::OK, status.to_string()))
    })
}

fn invalid(resource: &Resource, name: &str, errors: &[(&str, &str, String)]) -> Failure {
    Failure::invalid(resource.kind, resource.group, name, errors)
}
