//! An image of one static binary, as an OCI archive, without a daemon.
//!
//! Invariant: the bytes are a function of what is in [`Image`]: names are sorted, times and owners are given, nothing is compressed.
//! The archive has Docker's `manifest.json` as well, so that old `docker load` takes it.

use std::io::Write;

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// What an image is made of.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// With its registry, such as `localhost/egress-enforcer/egress-agent`.
    pub(crate) name: String,
    /// The tag.
    pub(crate) version: String,
    /// Such as `amd64`.
    pub(crate) architecture: String,
    /// Seconds since 1970 that every file has.
    pub(crate) time: u64,
    /// Path of the program in the image, with a leading slash.
    pub(crate) program: String,
    /// Path without a leading slash, mode, contents; directories are made.
    pub(crate) files: Vec<(String, u32, Vec<u8>)>,
    /// `org.opencontainers.image.*` without that prefix.
    pub(crate) labels: Vec<(&'static str, String)>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Digest of the image's manifest, which registries show: `sha256:…`.
    pub(crate) digest: String,
    /// Bytes of the archive.
    pub(crate) size: u64,
}

/// A blob of the archive.
struct Blob {
    hex: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let hex = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { hex, bytes }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

impl Image {
    /// Name and tag, as in a pod's spec.
    pub(crate) fn reference(&self) -> String {
        format!("{}:{}", self.name, self.version)
    }

    /// Writes the archive.
    pub(crate) fn write(&self, to: impl Write) -> anyhow::Result<Written> {
        let created = jiff::Timestamp::from_second(i64::try_from(self.time)?)?.to_string();
        let labels: serde_json::Map<String, Value> = self
            .labels
            .iter()
            .map(|(name, value)| (format!("org.opencontainers.image.{name}"), json!(value)))
            .collect();
        let layer = Blob::new(self.layer()?);
        let config = Blob::json(&json!({
            "created": created,
            "architecture": self.architecture,
            "os": "linux",
            "config": {
                "User": "0:0",
                "Env": ["PATH=/usr/bin"],
                "Entrypoint": [self.program],
                "WorkingDir": "/",
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.digest()]},
            "history": [{"created": created, "created_by": "cargo xtask image"}],
        }));
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(CONFIG_TYPE),
            "layers": [layer.descriptor(LAYER_TYPE)],
            "annotations": labels,
        }));
        let full = self.reference();
        let mut described = manifest.descriptor(MANIFEST_TYPE);
        described["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        // The first is what containerd goes by, the second everybody else.
        described["annotations"] =
            json!({"io.containerd.image.name": full, "org.opencontainers.image.ref.name": full});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [described]});
        let docker =
            json!([{"Config": config.path(), "RepoTags": [self.reference()], "Layers": [layer.path()]}]);

        let mut files = vec![
            ("index.json".to_owned(), 0o644, index.to_string().into_bytes()),
            ("manifest.json".to_owned(), 0o644, docker.to_string().into_bytes()),
            ("oci-layout".to_owned(), 0o644, LAYOUT.as_bytes().to_vec()),
        ];
        let digest = manifest.digest();
        for blob in [layer, config, manifest] {
            files.push((blob.path(), 0o644, blob.bytes));
        }
        let archive = tar(files, self.time)?;
        let mut to = to;
        to.write_all(&archive).and_then(|()| to.flush()).context("cannot write the archive")?;
        Ok(Written { digest, size: archive.len() as u64 })
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        tar(self.files.clone(), self.time)
    }
}

/// An archive of files, all of root, with the directories that they are in.
fn tar(mut files: Vec<(String, u32, Vec<u8>)>, time: u64) -> anyhow::Result<Vec<u8>> {
    let parents: Vec<_> = files
        .iter()
        .flat_map(|(path, ..)| path.match_indices('/').map(|(at, _)| path[..=at].to_owned()))
        .collect();
    files.extend(parents.into_iter().map(|path| (path, 0o755, Vec::new())));
    files.sort();
    files.dedup_by(|a, b| a.0 == b.0);
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, bytes) in files {
        let mut header = tar::Header::new_ustar();
        let directory = path.ends_with('/');
        header.set_entry_type(if directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(time);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, &path, bytes.as_slice())
            .with_context(|| format!("cannot pack {path}"))?;
    }
    tar.into_inner().context("cannot finish the archive")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use serde_json::Value;
    use sha2::{Digest as _, Sha256};

    use super::Image;

    fn image() -> Image {
        Image {
            name: "localhost/egress-enforcer/egress-agent".to_owned(),
            version: "1.2.3".to_owned(),
            architecture: "amd64".to_owned(),
            time: 1_000_000_000,
            program: "/usr/bin/egress-agent".to_owned(),
            files: vec![
                ("usr/share/doc/LICENSE".to_owned(), 0o644, b"free".to_vec()),
                ("usr/bin/egress-agent".to_owned(), 0o755, b"\x7fELF".to_vec()),
            ],
            labels: vec![("version", "1.2.3".to_owned())],
        }
    }

    fn written(image: &Image) -> (String, Vec<u8>) {
        let mut bytes = Vec::new();
        let written = image.write(&mut bytes).unwrap();
        assert_eq!(written.size, bytes.len() as u64);
        (written.digest, bytes)
    }

    fn unpack(bytes: &[u8]) -> BTreeMap<String, (u32, u64, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let entry = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            (path, (header.mode().unwrap(), header.mtime().unwrap(), bytes))
        };
        archive.entries().unwrap().map(entry).collect()
    }

    #[test]
    fn an_archive_holds_what_its_digests_say() {
        let (digest, bytes) = written(&image());
        let files = unpack(&bytes);
        let json = |path: &str| serde_json::from_slice::<Value>(&files[path].2).unwrap();
        let blob = |descriptor: &Value| {
            let hex = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let bytes = files[&format!("blobs/sha256/{hex}")].2.clone();
            assert_eq!(descriptor["size"], bytes.len());
            assert_eq!(hex, Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect::<String>());
            bytes
        };
        assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
        let described = &json("index.json")["manifests"][0];
        assert_eq!(described["digest"], digest.as_str());
        let name = "localhost/egress-enforcer/egress-agent:1.2.3";
        assert_eq!(described["annotations"]["io.containerd.image.name"], name);
        assert_eq!(described["annotations"]["org.opencontainers.image.ref.name"], name);
        let manifest: Value = serde_json::from_slice(&blob(described)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/egress-agent");
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], "1.2.3");
        assert_eq!(config["created"], "2001-09-09T01:46:40Z");
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let layer = unpack(&blob(&manifest["layers"][0]));
        assert_eq!(layer["usr/bin/egress-agent"], (0o755, 1_000_000_000, b"\x7fELF".to_vec()));
        assert_eq!(layer["usr/bin/"].0, 0o755);
        assert_eq!(layer.len(), 6, "{:?}", layer.keys());
        let docker = &json("manifest.json")[0];
        assert_eq!(docker["RepoTags"][0], name);
        assert!(files.contains_key(docker["Layers"][0].as_str().unwrap()));
        assert!(files.contains_key(docker["Config"].as_str().unwrap()));
    }

    #[test]
    fn equal_images_are_equal_bytes_in_whatever_order_their_files_are() {
        let mut other = image();
        other.files.reverse();
        assert_eq!(written(&image()), written(&other));
        other.time += 1;
        assert_ne!(written(&image()).0, written(&other).0);
    }
}
