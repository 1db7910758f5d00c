//! Label selectors, with the semantics of `metav1.LabelSelector`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{Labels, NAMESPACE_NAME_LABEL, ObjectError, Set, join};

/// One requirement of a selector. `In` and `NotIn` never hold an empty set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// The label is there and has one of these values.
    In(String, Set<String>),
    /// The label is not there, or has none of these values.
    NotIn(String, Set<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    DoesNotExist(String),
}

impl Requirement {
    /// The label it is about.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::In(key, _) | Self::NotIn(key, _) | Self::Exists(key) | Self::DoesNotExist(key) => key,
        }
    }
}

/// A selector: all requirements must hold, so an empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector(pub Set<Requirement>);

impl Selector {
    /// Whether labels, given by their lookup, fulfil every requirement.
    pub fn matches<'l>(&self, get: impl Fn(&str) -> Option<&'l str>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => get(key).is_some(),
            Requirement::DoesNotExist(key) => get(key).is_none(),
        })
    }

    /// Whether these labels fulfil every requirement.
    #[must_use]
    pub fn matches_labels(&self, labels: &Labels) -> bool {
        self.matches(|key| labels.get(key))
    }
}

/// The labels of a namespace, its name's label included, also where there is no Namespace object.
#[derive(Clone, Copy, Debug)]
pub struct NamespaceLabels<'a> {
    /// The namespace's name.
    pub name: &'a str,
    /// The labels of its object, if there is one.
    pub labels: Option<&'a Labels>,
}

impl<'a> NamespaceLabels<'a> {
    /// Whether it is known if the namespace fulfils the selector: without its object nothing is known of its labels but
    /// the name, not even that one is absent.
    #[must_use]
    pub fn decides(&self, selector: &Selector) -> bool {
        self.labels.is_some()
            || selector.0.iter().all(|requirement| requirement.key() == NAMESPACE_NAME_LABEL)
    }

    /// Whether the namespace is known to fulfil every requirement.
    #[must_use]
    pub fn match_selector(&self, selector: &Selector) -> bool {
        self.decides(selector) && selector.matches(|key| self.get(key))
    }

    /// The value of a label that is known.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        if key == NAMESPACE_NAME_LABEL { Some(self.name) } else { self.labels?.get(key) }
    }

    /// Every label that is known, with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + Clone + use<'a> {
        let labels = self.labels.into_iter().flat_map(Labels::iter);
        labels.filter(|(key, _)| *key != NAMESPACE_NAME_LABEL).chain([(NAMESPACE_NAME_LABEL, self.name)])
    }
}

/// Selects by labels; all requirements must hold, so that an empty selector matches everything.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(expecting = "a label selector")]
pub(crate) struct RawSelector {
    /// Labels that must be there with these values.
    match_labels: Option<BTreeMap<String, String>>,
    /// Further requirements.
    match_expressions: Option<Vec<RawExpression>>,
}

/// A requirement on one label.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[serde(expecting = "key, operator and values")]
pub(crate) struct RawExpression {
    /// The label.
    key: String,
    /// In: it has one of the values. NotIn: it is not there, or has none of them. Exists: it is there. DoesNotExist: it is not.
    operator: String,
    /// The values, for In and NotIn alone.
    values: Option<Vec<String>>,
}

impl RawSelector {
    /// Validates the selector at `path`.
    pub(super) fn validate(self, path: &str) -> Result<Selector, ObjectError> {
        let mut requirements = BTreeSet::new();
        for (key, value) in self.match_labels.unwrap_or_default() {
            check_key(&key, &join(path, "matchLabels"))?;
            requirements.insert(Requirement::In(key, Set::from([value])));
        }
        for (i, raw) in self.match_expressions.unwrap_or_default().into_iter().enumerate() {
            let path = join(path, &format!("matchExpressions[{i}]"));
            check_key(&raw.key, &join(&path, "key"))?;
            let values: Set<String> = raw.values.unwrap_or_default().into_iter().collect();
            let wrong = |field: &str, reason: String| Err(ObjectError::new(join(&path, field), reason));
            requirements.insert(match (raw.operator.as_str(), values.is_empty()) {
                ("In", false) => Requirement::In(raw.key, values),
                ("NotIn", false) => Requirement::NotIn(raw.key, values),
                ("Exists", true) => Requirement::Exists(raw.key),
                ("DoesNotExist", true) => Requirement::DoesNotExist(raw.key),
                ("In" | "NotIn", true) => {
                    return wrong("values", "must not be empty for In and NotIn".to_owned());
                }
                ("Exists" | "DoesNotExist", false) => {
                    return wrong("values", "must be empty for Exists and DoesNotExist".to_owned());
                }
                (other, _) => {
                    return wrong("operator", format!("{other:?} is not In, NotIn, Exists or DoesNotExist"));
                }
            });
        }
        Ok(Selector(requirements.into_iter().collect()))
    }
}

fn check_key(key: &str, path: &str) -> Result<(), ObjectError> {
    if key.is_empty() { Err(ObjectError::new(path, "a label key must not be empty")) } else { Ok(()) }
}
