//! Objects from a directory of Kubernetes YAML and JSON files.
//!
//! Invariant: reading gives the events that lead from the last state to this one, and what could not be read is
//! never taken for a deletion: a broken file keeps the objects last read from it, loudly. Tested below.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

use egress_policy::index::Event;
use egress_policy::object::{self, Object, ObjectRef, Read};
use serde::{Deserialize, Serialize};

/// Something in a source that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SourceError {
    /// The file, or the directory.
    pub file: String,
    /// The line, counted from 1, where there is one.
    pub line: Option<usize>,
    /// What is wrong with it.
    pub reason: String,
}

impl std::fmt::Display for SourceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.reason),
            None => write!(f, "{}: {}", self.file, self.reason),
        }
    }
}

/// What one look at the source gave.
#[derive(Debug, Default)]
pub struct Changes {
    /// What became of objects since the last look.
    pub events: Vec<Event>,
    /// What cannot be read now.
    pub errors: Vec<SourceError>,
    /// Kinds that are none of ours, with their number.
    pub ignored: BTreeMap<String, usize>,
}

/// A directory of files ending in `.yaml`, `.yml` or `.json`, not followed into its directories.
#[derive(Debug)]
pub struct FileSource {
    dir: PathBuf,
    files: BTreeMap<PathBuf, BTreeMap<ObjectRef, Object>>,
    objects: BTreeMap<ObjectRef, Object>,
}

impl FileSource {
    /// A source that has not looked yet.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, files: BTreeMap::new(), objects: BTreeMap::new() }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the directory and tells what changed since the last look.
    pub fn look(&mut self) -> Changes {
        let mut changes = Changes::default();
        let paths = match files(&self.dir) {
            Ok(paths) => paths,
            Err(error) => {
                let reason = format!("cannot read the directory: {error}; keeping the objects last read");
                changes.errors.push(SourceError { file: self.dir.display().to_string(), line: None, reason });
                return changes;
            }
        };
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            let last = self.files.remove(&path).unwrap_or_default();
            let objects = file(&path, last, &mut changes);
            self.files.insert(path, objects);
        }
        let merged = self.merge(&mut changes.errors);
        for gone in self.objects.keys().filter(|object| !merged.contains_key(object)) {
            changes.events.push(Event::Delete(gone.clone()));
        }
        for (name, object) in &merged {
            if self.objects.get(name) != Some(object) {
                changes.events.push(Event::Upsert(object.clone()));
            }
        }
        self.objects = merged;
        changes
    }

    /// The objects of all files; of two files with the same object, the one whose name comes last has it.
    fn merge(&self, errors: &mut Vec<SourceError>) -> BTreeMap<ObjectRef, Object> {
        let mut merged = BTreeMap::new();
        let mut origin: BTreeMap<&ObjectRef, &Path> = BTreeMap::new();
        for (path, objects) in &self.files {
            for (name, object) in objects {
                if let Some(other) = origin.insert(name, path) {
                    let reason = format!("{name} is also in {}; this file's counts", other.display());
                    errors.push(SourceError { file: path.display().to_string(), line: None, reason });
                }
                merged.insert(name.clone(), object.clone());
            }
        }
        merged
    }
}

fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let ending = path.extension().and_then(|e| e.to_str());
        let hidden = path.file_name().and_then(|n| n.to_str()).is_none_or(|name| name.starts_with('.'));
        if matches!(ending, Some("yaml" | "yml" | "json")) && !hidden && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads a file. `last` is what was read from it before: kept, where a document of it cannot be read now.
fn file(
    path: &Path,
    last: BTreeMap<ObjectRef, Object>,
    changes: &mut Changes,
) -> BTreeMap<ObjectRef, Object> {
    let name = path.display().to_string();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let reason = format!("cannot be read: {error}; keeping {} objects last read from it", last.len());
            changes.errors.push(SourceError { file: name, line: None, reason });
            return last;
        }
    };
    let mut objects = BTreeMap::new();
    let mut broken = Vec::new();
    for (first_line, document) in documents(&text) {
        let value = match serde_saphyr::from_str::<serde_json::Value>(document) {
            Ok(serde_json::Value::Null) => continue,
            Ok(value) => value,
            Err(error) => {
                let line = error
                    .location()
                    .map_or(first_line, |l| first_line + usize::try_from(l.line()).unwrap_or(1) - 1);
                // The library repeats its location, which counts from the document's start.
                let text = error.without_snippet().to_string();
                let reason = text.split(" at line ").next().unwrap_or(&text).to_owned();
                broken.push(SourceError { file: name.clone(), line: Some(line), reason });
                continue;
            }
        };
        match object::read(value) {
            Ok(reads) => {
                for read in reads {
                    match read {
                        Read::Object(object) => {
                            objects.insert(object.object_ref(), object);
                        }
                        // Applied as it is: it fails closed for what it selects.
                        Read::Invalid { stand_in: Some(object), error, .. } => {
                            let reason = format!("{}: {error}", object.object_ref());
                            changes.errors.push(SourceError {
                                file: name.clone(),
                                line: Some(first_line),
                                reason,
                            });
                            objects.insert(object.object_ref(), *object);
                        }
                        Read::Invalid { object, stand_in: None, error } => {
                            let reason = format!("{object}: {error}");
                            broken.push(SourceError { file: name.clone(), line: Some(first_line), reason });
                        }
                        Read::Ignored { kind, .. } => *changes.ignored.entry(kind).or_default() += 1,
                    }
                }
            }
            Err(error) => {
                broken.push(SourceError {
                    file: name.clone(),
                    line: Some(first_line),
                    reason: error.to_string(),
                });
            }
        }
    }
    if !broken.is_empty() {
        let mut kept = 0;
        for (name, object) in last {
            if let Entry::Vacant(place) = objects.entry(name) {
                place.insert(object);
                kept += 1;
            }
        }
        if let (true, Some(error)) = (kept > 0, broken.last_mut()) {
            error.reason = format!("{}; keeping {kept} objects last read from this file", error.reason);
        }
    }
    changes.errors.append(&mut broken);
    objects
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
    use super::{FileSource, documents};
    use egress_policy::index::Event;
    use std::fs;

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";

    #[test]
    fn documents_keep_their_line_numbers() {
        let text = "a: 1\n---\nb: 2\nc: 3\n--- \nd: 4";
        assert_eq!(documents(text), [(1, "a: 1\n"), (2, "---\nb: 2\nc: 3\n"), (5, "--- \nd: 4")]);
    }

    #[test]
    fn a_malformed_document_names_its_line_and_the_others_apply() {
        let dir = tempfile::tempdir().unwrap();
        let other = NAMESPACE.replace("name: a", "name: b");
        fs::write(dir.path().join("a.yaml"), format!("{NAMESPACE}---\nkind: [\nb: 1\n---\n{other}")).unwrap();
        let changes = FileSource::new(dir.path().to_owned()).look();
        assert_eq!(changes.events.len(), 2, "{changes:?}");
        assert_eq!(changes.errors.len(), 1, "{changes:?}");
        assert!((5..=7).contains(&changes.errors[0].line.unwrap()), "{changes:?}");
    }

    #[test]
    fn a_file_that_breaks_keeps_its_objects_and_a_file_that_goes_takes_them_along() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let mut source = FileSource::new(dir.path().to_owned());
        fs::write(&path, NAMESPACE).unwrap();
        assert!(matches!(source.look().events[..], [Event::Upsert(_)]));
        fs::write(&path, "kind: [\n").unwrap();
        let changes = source.look();
        assert!(changes.events.is_empty() && changes.errors[0].reason.contains("keeping 1"), "{changes:?}");
        fs::remove_file(&path).unwrap();
        let changes = source.look();
        assert!(matches!(changes.events[..], [Event::Delete(_)]) && changes.errors.is_empty(), "{changes:?}");
    }

    #[test]
    fn a_directory_that_cannot_be_read_deletes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("d");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("a.yml"), NAMESPACE).unwrap();
        let mut source = FileSource::new(inner.clone());
        assert_eq!(source.look().events.len(), 1);
        fs::rename(&inner, dir.path().join("e")).unwrap();
        let changes = source.look();
        assert!(changes.events.is_empty() && !changes.errors.is_empty(), "{changes:?}");
    }

    #[test]
    fn other_kinds_are_counted_and_ignored() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n")
            .unwrap();
        let changes = FileSource::new(dir.path().to_owned()).look();
        assert!(changes.events.is_empty() && changes.errors.is_empty());
        assert_eq!(changes.ignored.get("ConfigMap"), Some(&1));
    }
}
