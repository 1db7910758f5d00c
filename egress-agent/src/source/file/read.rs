//! Reading one file of Kubernetes objects.
//!
//! Invariant: a document that cannot be read takes no other with it, and is never nothing: it is an error with its line, and
//! it is known whether it may have been a policy.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use egress_policy::object::{self, Object, ObjectRef, Read, Workload};
use serde_json::Value;

use crate::source::SourceError;

/// Words without which a text can hold neither a policy nor what policies select pods by.
const POLICY_WORDS: [&str; 4] = ["EgressGatewayPolicy", "NetworkPolicy", "Namespace", "List"];

/// Most nodes of one YAML document: some tens of thousands of pods. The library's own limit is for configuration files.
const MAX_NODES: usize = 20_000_000;

/// The name of standard input.
pub(super) const STDIN: &str = "-";

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct FileRead {
    pub(super) objects: BTreeMap<ObjectRef, Object>,
    /// Objects that were taken in although something is wrong with them: they fail closed.
    pub(super) invalid: Vec<SourceError>,
    /// What could not be taken in.
    pub(super) unread: Vec<SourceError>,
    /// Something that could not be taken in may be a policy.
    pub(super) may_hide_policy: bool,
    /// Objects of kinds that do not count.
    pub(super) ignored: BTreeMap<String, usize>,
    /// Those of them that make pods, or what is wrong with them.
    pub(super) workloads: Vec<Result<Workload, SourceError>>,
}

impl FileRead {
    /// Whether there was nothing in it at all.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.unread.is_empty() && self.ignored.is_empty()
    }

    fn unread(&mut self, file: &str, line: Option<usize>, reason: String, text: Option<&str>) {
        self.may_hide_policy |= text.is_none_or(|text| POLICY_WORDS.iter().any(|word| text.contains(word)));
        self.unread.push(SourceError { place: file.to_owned(), line, reason });
    }
}

/// Reads a file.
pub(super) fn file(path: &Path) -> FileRead {
    let mut out = FileRead::default();
    let name = path.display().to_string();
    let read =
        || if path == Path::new(STDIN) { io::read_to_string(io::stdin()) } else { fs::read_to_string(path) };
    let text = match read() {
        Ok(text) => text,
        Err(error) => {
            out.unread(&name, None, format!("cannot be read: {error}"), None);
            return out;
        }
    };
    self::text(path, &text)
}

/// Reads the text of a file.
pub(super) fn text(path: &Path, text: &str) -> FileRead {
    let mut out = FileRead::default();
    let name = path.display().to_string();
    let json = path.extension().is_some_and(|ending| ending == "json");
    let documents = if json { vec![(1, text)] } else { documents(text) };
    for (first_line, document) in documents {
        let value = if json { read_json(document) } else { read_yaml(document) };
        match value {
            Ok(Value::Null) => {}
            Ok(value) => objects(&mut out, &name, first_line, document, value),
            Err((line, reason)) => {
                let line = line.map_or(first_line, |line| first_line + line.saturating_sub(1));
                out.unread(&name, Some(line), reason, Some(document));
            }
        }
    }
    out
}

fn objects(out: &mut FileRead, file: &str, line: usize, document: &str, value: Value) {
    let at = |reason| SourceError { place: file.to_owned(), line: Some(line), reason };
    let reads = match object::read(value) {
        Ok(reads) => reads,
        Err(error) => return out.unread(file, Some(line), error.to_string(), Some(document)),
    };
    for read in reads {
        let object = match read {
            Read::Object(object) => object,
            // Taken in as it is: it fails closed for what it selects.
            Read::Invalid { stand_in: Some(object), error, .. } => {
                out.invalid.push(at(format!("{}: {error}", object.object_ref())));
                *object
            }
            Read::Invalid { object, stand_in: None, error } => {
                out.unread(file, Some(line), format!("{object}: {error}"), Some(object.kind.name()));
                continue;
            }
            Read::Workload { kind, name, makes } => {
                out.workloads.push(match makes {
                    Ok(workload) => Ok(*workload),
                    Err(error) => Err(at(format!("{kind} {name}: {error}"))),
                });
                *out.ignored.entry(kind).or_default() += 1;
                continue;
            }
            Read::Ignored { kind, .. } => {
                *out.ignored.entry(kind).or_default() += 1;
                continue;
            }
        };
        let name = object.object_ref();
        if out.objects.insert(name.clone(), object).is_some() {
            out.invalid.push(at(format!("{name} is in this file twice; the last one counts")));
        }
    }
}

/// The line within the document, where one is known, and what is wrong.
type Unreadable = (Option<usize>, String);

fn read_json(document: &str) -> Result<Value, Unreadable> {
    if document.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(document).map_err(|error| (Some(error.line()), error.to_string()))
}

fn read_yaml(document: &str) -> Result<Value, Unreadable> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: MAX_NODES, max_events: 2 * MAX_NODES },
    };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        let line = error.location().and_then(|location| usize::try_from(location.line()).ok());
        // The library repeats its location, which counts from the document's start.
        let text = error.without_snippet().to_string();
        let text = text.split(" at line ").next().unwrap_or(&text);
        (line, in_our_words(text, document))
    })
}

/// What is wrong, without what the library's own users could do about it.
fn in_our_words(text: &str, document: &str) -> String {
    let text = text.split_once(", set ").map_or(text, |(text, _)| text);
    if document.contains("{{") {
        return format!("{text}; is this a template that has not been rendered (`helm template`)?");
    }
    if text.contains("budget breached") {
        return format!("too large for one document, or its aliases come to that ({text})");
    }
    text.to_owned()
}

/// The YAML documents of a text, each with the number of its first line. A line that starts with `---` separates
/// (YAML 1.2, section 9.1.2); inside a document no line can, because contents are indented or quoted.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first_line) = (0, 1);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            documents.push((first_line, &text[start..offset]));
            // The separator's own line stays with the document it starts, so that lines count alike.
            (start, first_line) = (offset, index + 1);
        }
        offset += line.len();
    }
    documents.push((first_line, &text[start..]));
    documents
}

#[cfg(test)]
mod tests {
    use super::documents;

    #[test]
    fn documents_keep_their_line_numbers() {
        let text = "a: 1\n---\nb: 2\nc: 3\n--- \nd: 4";
        assert_eq!(documents(text), [(1, "a: 1\n"), (2, "---\nb: 2\nc: 3\n"), (5, "--- \nd: 4")]);
    }
}
