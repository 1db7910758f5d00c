//! Where objects come from, as the command line says it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::is_single;

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of YAML and JSON files, or one such file, or `-`.
    File(PathBuf),
    /// The API server of a cluster.
    Kube,
}

impl Source {
    /// Whether this is one file, or standard input.
    #[must_use]
    pub fn is_read_once(&self) -> bool {
        matches!(self, Self::File(place) if is_single(place))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(dir) => write!(f, "file:{}", dir.display()),
            Self::Kube => f.write_str("kube"),
        }
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", dir)) if !dir.is_empty() => Ok(Self::File(dir.into())),
            None if text == "kube" => Ok(Self::Kube),
            _ => Err("expected kube or file:DIR".to_owned()),
        }
    }
}
