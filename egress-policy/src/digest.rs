//! Numbers from content: the same meaning has the same number, always and everywhere.
//!
//! Invariant: the encoding is unambiguous, every part carries its length or has a fixed one; a number never stands
//! for two meanings.

use std::collections::BTreeMap;

use egress_common::wire::IDENTITY_WORLD;
use sha2::{Digest as _, Sha256};

/// SHA-256 of a meaning's encoding.
pub(crate) type Digest = [u8; 32];

/// Builds an encoding.
#[derive(Debug, Default)]
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    /// Starts with a tag that names the type of what is encoded.
    pub(crate) fn new(tag: &str) -> Self {
        let mut encoder = Self::default();
        encoder.text(tag);
        encoder
    }

    /// A number.
    pub(crate) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    /// The length of a list that follows.
    pub(crate) fn list(&mut self, length: usize) {
        self.number(length as u64);
    }

    /// A text or a run of bytes, with its length.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.list(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// A text, with its length.
    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// The digest of all that was put in.
    pub(crate) fn digest(self) -> Digest {
        Sha256::digest(&self.0).into()
    }
}

/// A number for a digest; `salt` 0 is the first to try.
pub(crate) fn number(digest: &Digest, salt: u64) -> u64 {
    let digest = if salt == 0 {
        *digest
    } else {
        let mut encoder = Encoder::new("salt");
        encoder.number(salt);
        encoder.bytes(digest);
        encoder.digest()
    };
    let [a, b, c, d, e, f, g, h, ..] = digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The numbers given out so far. Numbers 0 and [`IDENTITY_WORLD`] are never given out.
#[derive(Debug, Default)]
pub(crate) struct Numbers(BTreeMap<u64, Digest>);

impl Numbers {
    /// The number of a digest: the same each time, and no other digest's.
    pub(crate) fn of(&mut self, digest: &Digest) -> u64 {
        let mut salt = 0;
        loop {
            let number = number(digest, salt);
            if number != 0 && number != IDENTITY_WORLD && self.0.entry(number).or_insert(*digest) == digest {
                return number;
            }
            salt += 1;
        }
    }

    /// Takes a number back from a digest that had it.
    pub(crate) fn forget(&mut self, number: u64, digest: &Digest) {
        if self.0.get(&number) == Some(digest) {
            self.0.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Encoder, Numbers, number};

    #[test]
    fn parts_do_not_run_into_each_other() {
        let digest = |a: &str, b: &str| {
            let mut encoder = Encoder::new("test");
            encoder.text(a);
            encoder.text(b);
            encoder.digest()
        };
        assert_ne!(digest("ab", "c"), digest("a", "bc"));
        assert_eq!(digest("ab", "c"), digest("ab", "c"));
    }

    #[test]
    fn a_collision_gets_another_number() {
        let mut numbers = Numbers::default();
        let (one, mut other) = ([7; 32], [7; 32]);
        other[31] = 8;
        assert_eq!(number(&one, 0), number(&other, 0));
        assert_ne!(numbers.of(&one), numbers.of(&other));
        assert_eq!(numbers.of(&one), number(&one, 0));
        assert!(![0, 1].contains(&numbers.of(&[0; 32])));
    }
}
