//! UIDs, in less memory than their text.
//!
//! Invariant: what is displayed is the text that was given; two are equal where their texts are.

use std::fmt;
use std::sync::Arc;

/// A UID: any text. One as the API server gives them out takes sixteen bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(Form);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Form {
    /// What [`hyphenated`] makes text of again. Every such text has this form.
    Number([u8; 16]),
    Text(Arc<str>),
}

fn hyphenated(number: u128) -> String {
    let hex = format!("{number:032x}");
    let ends = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
    ends.map(|(from, to)| hex.get(from..to).unwrap_or_default()).join("-")
}

impl Uid {
    /// Whether it is the empty text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Form::Text(text) if text.is_empty())
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        let number = || u128::from_str_radix(&text.replace('-', ""), 16).ok();
        let number = Some(text).filter(|text| text.len() == 36).and_then(|_| number());
        Self(match number.filter(|number| hyphenated(*number) == text) {
            Some(number) => Form::Number(number.to_be_bytes()),
            None => Form::Text(Arc::from(text)),
        })
    }
}

impl Default for Uid {
    fn default() -> Self {
        Self(Form::Text(Arc::default()))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Number(number) => f.write_str(&hyphenated(u128::from_be_bytes(*number))),
            Form::Text(text) => f.write_str(text),
        }
    }
}

impl PartialEq<str> for Uid {
    fn eq(&self, text: &str) -> bool {
        match &self.0 {
            Form::Number(number) => hyphenated(u128::from_be_bytes(*number)) == *text,
            Form::Text(own) => **own == *text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Form, Uid};

    #[test]
    fn every_text_comes_out_as_it_was_given() {
        let texts = [
            ("9e3779b9-0000-4000-8000-000000000001", true),
            ("00000000-0000-0000-0000-000000000000", true),
            ("9E3779B9-0000-4000-8000-000000000001", false),
            ("9e3779b9-0000-4000-80000-00000000001", false),
            ("9e3779b900004000800000000000000123456", false),
            ("+e3779b9-0000-4000-8000-000000000001", false),
            ("9e3779b9-0000-4000-8000-00000000000é", false),
            ("------------------------------------", false),
            ("ffffffffffffffffffffffffffffffffffff", false),
            ("0123456789abcdef", false),
            ("uid-app-web", false),
            ("", false),
        ];
        for (text, is_number) in texts {
            let uid = Uid::from(text);
            assert_eq!((uid.to_string().as_str(), uid.is_empty()), (text, text.is_empty()));
            assert_eq!(matches!(uid.0, Form::Number(_)), is_number, "{text}");
            for (other, _) in texts {
                let same = Uid::from(other);
                assert_eq!((uid == *other, uid == same), (text == other, text == other));
            }
        }
        assert_eq!(Uid::default(), Uid::from(""));
    }
}
