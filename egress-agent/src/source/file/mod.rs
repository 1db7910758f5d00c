//! Objects from a directory of Kubernetes YAML and JSON files.
//!
//! Invariant: reading gives the events that lead from the last state to this one, and what could not be read is
//! never taken for a deletion: a broken file keeps the objects last read from it, loudly. Tested below.

mod read;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use egress_policy::index::Event;
use egress_policy::object::{Object, ObjectRef};

use super::{Changes, SourceError};
use read::FileRead;

/// A directory of files ending in `.yaml`, `.yml` or `.json`, not followed into its directories; or one file, whatever its ending; or `-`,
/// standard input, which can be read once.
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
                changes.incomplete = self.files.is_empty();
                let reason = format!("cannot read the directory: {error}; keeping the objects last read");
                changes.errors.push(SourceError {
                    place: self.dir.display().to_string(),
                    line: None,
                    reason,
                });
                return changes;
            }
        };
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            let last = self.files.remove(&path).unwrap_or_default();
            let mut read = read::file(&path);
            if read.is_empty() && !last.is_empty() {
                // What empties a file first and writes it after has not finished; what is to go is removed as a file.
                let reason = "is empty".to_owned();
                read.unread.push(SourceError { place: path.display().to_string(), line: None, reason });
            }
            let objects = take(read, last, &mut changes);
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
                    errors.push(SourceError { place: path.display().to_string(), line: None, reason });
                }
                merged.insert(name.clone(), object.clone());
            }
        }
        merged
    }
}

/// Whether this is one file, or standard input, which are read once.
pub(crate) fn is_single(place: &Path) -> bool {
    place == Path::new(read::STDIN) || place.is_file()
}

fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    if is_single(dir) {
        return Ok(vec![dir.to_owned()]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let ending = path.extension().and_then(|e| e.to_str());
        let hidden = path.file_name().and_then(|n| n.to_str()).is_none_or(|name| name.starts_with('.'));
        if matches!(ending, Some("yaml" | "yml" | "json")) && !hidden && may_be_file(&path) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Whether a path is a file's, or, for all that is known, may be: a link that leads nowhere is not a file that was removed.
fn may_be_file(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(metadata) => metadata.is_file(),
        Err(_) => {
            fs::symlink_metadata(path).map_or_else(|error| error.kind() != ErrorKind::NotFound, |_| true)
        }
    }
}

/// Reads one file of objects.
///
/// # Errors
/// Anything in it cannot be read; the first such place is named.
pub fn read_file(path: &Path) -> anyhow::Result<Vec<Event>> {
    whole(path, read::file(path))
}

/// As [`read_file`], of a file whose text was read by somebody else.
///
/// # Errors
/// As [`read_file`].
pub fn read_text(path: &Path, text: &str) -> anyhow::Result<Vec<Event>> {
    whole(path, read::text(path, text))
}

fn whole(path: &Path, read: FileRead) -> anyhow::Result<Vec<Event>> {
    match read.unread.first().or(read.invalid.first()) {
        Some(error) => Err(anyhow::Error::msg(error.to_string())),
        None if read.objects.is_empty() => {
            let kinds: Vec<_> = read.ignored.keys().map(String::as_str).collect();
            let what = if kinds.is_empty() { "nothing".to_owned() } else { kinds.join(", ") };
            Err(anyhow::anyhow!("{}: no object in it counts ({what})", path.display()))
        }
        None => Ok(read.objects.into_values().map(Event::Upsert).collect()),
    }
}

/// Takes a file in. `last` is what was read from it before: kept, where something in it cannot be read now.
fn take(
    read: FileRead,
    last: BTreeMap<ObjectRef, Object>,
    changes: &mut Changes,
) -> BTreeMap<ObjectRef, Object> {
    let FileRead { mut objects, invalid, mut unread, may_hide_policy, ignored, workloads } = read;
    let first = last.is_empty();
    let mut kept = 0;
    if !unread.is_empty() {
        for (name, object) in last {
            if let Entry::Vacant(place) = objects.entry(name) {
                place.insert(object);
                kept += 1;
            }
        }
        changes.incomplete |= first && may_hide_policy;
    }
    if let (true, Some(error)) = (kept > 0, unread.last_mut()) {
        error.reason = format!("{}; keeping {kept} objects last read from this file", error.reason);
    }
    changes.errors.extend(invalid.into_iter().chain(unread));
    for (kind, number) in ignored {
        *changes.ignored.entry(kind).or_default() += number;
    }
    changes.workloads.extend(workloads);
    objects
}

#[cfg(test)]
mod tests {
    use super::FileSource;
    use egress_policy::index::Event;
    use std::fs;

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";

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
    fn a_link_that_leads_nowhere_deletes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let there = tempfile::tempdir().unwrap();
        let (real, link) = (there.path().join("real"), dir.path().join("a.yaml"));
        fs::write(&real, NAMESPACE).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        fs::create_dir(dir.path().join("d.yaml")).unwrap();
        let mut source = FileSource::new(dir.path().to_owned());
        assert!(matches!(source.look().events[..], [Event::Upsert(_)]));
        fs::remove_file(&real).unwrap();
        let changes = source.look();
        assert!(changes.events.is_empty() && changes.errors[0].reason.contains("keeping 1"), "{changes:?}");
        let changes = FileSource::new(dir.path().to_owned()).look();
        assert!(changes.incomplete && changes.errors.len() == 1, "{changes:?}");
        fs::remove_file(&link).unwrap();
        assert!(matches!(source.look().events[..], [Event::Delete(_)]));
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
        assert!(!changes.incomplete, "it was read before");
        assert!(FileSource::new(inner).look().incomplete, "never read, so anything may be missing");
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

    #[test]
    fn a_file_that_is_emptied_keeps_its_objects() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let mut source = FileSource::new(dir.path().to_owned());
        fs::write(&path, NAMESPACE).unwrap();
        source.look();
        fs::write(&path, "").unwrap();
        let changes = source.look();
        assert!(changes.events.is_empty() && changes.errors[0].reason.contains("keeping 1"), "{changes:?}");
    }

    #[test]
    fn what_cannot_be_read_at_first_is_missing_where_it_may_be_a_policy() {
        let incomplete = |text: &[u8]| {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("a.yaml"), text).unwrap();
            FileSource::new(dir.path().to_owned()).look().incomplete
        };
        assert!(incomplete(b"kind: EgressGatewayPolicy\nspec: ["));
        assert!(incomplete(b"kind: NetworkPolicy\n\tspec: {]"));
        assert!(incomplete(b"kind: Namespace\nmetadata: {name: a, labels: {rev: 1}}\napiVersion: v1\n"));
        assert!(incomplete(b"\xff\xfe"), "not even text");
        assert!(!incomplete(b"kind: [\n"));
        assert!(!incomplete(b"kind: Pod\nmetadata: ["));
        assert!(!incomplete(NAMESPACE.as_bytes()));
    }

    #[test]
    fn what_is_wrong_is_said_in_words_for_who_wrote_it() {
        let dir = tempfile::tempdir().unwrap();
        for (text, said) in [
            ("a: 1\na: 2\n", "duplicate mapping key: a"),
            ("kind: Pod\nmetadata: {name: {{ .Release.Name }}-x}\n", "has not been rendered"),
            ("[]\n", "the items of a List"),
            ("kind: Pod\nmetadata: {name: web}\n", "apiVersion: missing, of Pod web"),
        ] {
            fs::write(dir.path().join("a.yaml"), text).unwrap();
            let changes = FileSource::new(dir.path().to_owned()).look();
            let reason = &changes.errors[0].reason;
            assert!(reason.contains(said) && !reason.contains("Options"), "{said}: {reason}");
        }
    }

    #[test]
    fn the_same_object_twice_in_a_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), format!("{NAMESPACE}---\n{NAMESPACE}")).unwrap();
        let changes = FileSource::new(dir.path().to_owned()).look();
        assert!(changes.errors[0].reason.contains("twice"), "{changes:?}");
    }

    #[test]
    fn long_lists_are_read() {
        let pods: Vec<_> = (0..20_000)
            .map(|i| format!("{{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{{\"name\":\"n{i}\",\"labels\":{{\"a\":\"b\",\"c\":\"d\"}}}}}}"))
            .collect();
        let list = format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{}]}}", pods.join(",\n"));
        for name in ["a.yaml", "a.json"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), &list).unwrap();
            let changes = FileSource::new(dir.path().to_owned()).look();
            assert_eq!(
                (changes.events.len(), changes.errors.len()),
                (20_000, 0),
                "{name}: {:?}",
                changes.errors
            );
        }
    }
}
