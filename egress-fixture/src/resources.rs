//! The resources that the fixture serves, and what in a request's path names them.
//!
//! Invariant: a path that names nothing the fixture was taught is not served. Held by the tests here.

/// What the server knows of a resource.
///
/// Facts about kinds are those of their registries' strategies (`pkg/registry/*/strategy.go`).
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about a kind")]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// As in paths.
    pub plural: &'static str,
    /// As in objects.
    pub kind: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether it has `/status`.
    pub status: bool,
    /// Whether `metadata.generation` counts changes of the specification.
    pub generation: bool,
    /// Whether it is a custom resource: its definition comes and goes, items of lists name their kind.
    pub custom: bool,
    /// `AllowUnconditionalUpdate`: whether a PUT may lack a resource version.
    pub unconditional: bool,
    /// `AllowCreateOnUpdate`: whether a PUT makes an object that is not there.
    pub made_by_put: bool,
}

impl Resource {
    /// `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// As in messages: `pods`, `leases.coordination.k8s.io` (`schema.GroupResource.String`).
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// As in messages: `Lease.coordination.k8s.io` (`schema.GroupKind.String`).
    #[must_use]
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }
}

const NAMESPACED: Resource = Resource {
    group: "",
    version: "v1",
    plural: "",
    kind: "",
    namespaced: true,
    status: false,
    generation: false,
    custom: false,
    unconditional: true,
    made_by_put: false,
};
const CLUSTER: Resource = Resource { namespaced: false, ..NAMESPACED };

/// Every resource served. The first eight are the ones that the agent reads; tests name resources by their plural, and
/// `events` there means those of `events.k8s.io`, `corev1events` those of the core group.
///
/// The real server keeps both kinds of events in one place and translates; here they are two.
pub static RESOURCES: [Resource; 11] = [
    Resource { plural: "pods", kind: "Pod", status: true, ..NAMESPACED },
    Resource { plural: "namespaces", kind: "Namespace", status: true, ..CLUSTER },
    Resource { plural: "services", kind: "Service", status: true, ..NAMESPACED },
    Resource { plural: "nodes", kind: "Node", status: true, ..CLUSTER },
    Resource {
        group: "discovery.k8s.io",
        plural: "endpointslices",
        kind: "EndpointSlice",
        generation: true,
        ..NAMESPACED
    },
    Resource {
        group: "networking.k8s.io",
        plural: "networkpolicies",
        kind: "NetworkPolicy",
        generation: true,
        ..NAMESPACED
    },
    Resource {
        group: "egress-enforcer.io",
        version: "v1alpha1",
        plural: "egressgatewaypolicies",
        kind: "EgressGatewayPolicy",
        status: true,
        generation: true,
        custom: true,
        unconditional: false,
        ..CLUSTER
    },
    Resource {
        group: "apiextensions.k8s.io",
        plural: "customresourcedefinitions",
        kind: "CustomResourceDefinition",
        status: true,
        generation: true,
        unconditional: false,
        ..CLUSTER
    },
    Resource {
        group: "coordination.k8s.io",
        plural: "leases",
        kind: "Lease",
        unconditional: false,
        made_by_put: true,
        ..NAMESPACED
    },
    Resource { group: "events.k8s.io", plural: "events", kind: "Event", made_by_put: true, ..NAMESPACED },
    Resource { plural: "events", kind: "Event", made_by_put: true, ..NAMESPACED },
];

/// The resource of this name, see [`RESOURCES`].
///
/// # Panics
/// The fixture was not taught it.
#[must_use]
pub fn resource(name: &str) -> &'static Resource {
    let found = match name {
        "corev1events" => RESOURCES.iter().find(|one| one.plural == "events" && one.group.is_empty()),
        name => RESOURCES.iter().find(|one| one.plural == name),
    };
    match found {
        Some(found) => found,
        None => panic!("the fixture was not taught {name}"),
    }
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Path<'a> {
    /// The resource.
    pub resource: &'static Resource,
    /// The namespace, empty for all of them and for what lives in none.
    pub namespace: &'a str,
    /// The object, for one.
    pub name: Option<&'a str>,
    /// Whether it is the object's `/status`.
    pub status: bool,
}

/// Reads a path: `/api/v1/…` or `/apis/GROUP/VERSION/…`, then `[namespaces/NS/]RESOURCE[/NAME[/status]]`.
#[must_use]
pub(crate) fn parse(path: &str) -> Option<Path<'_>> {
    let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let find = |plural: &str| {
        RESOURCES.iter().find(|one| (one.group, one.version, one.plural) == (group, version, plural))
    };
    let namespaced = |plural| find(plural).filter(|one| one.namespaced);
    let cluster = |plural| find(plural).filter(|one| !one.namespaced);
    let path = |resource, namespace, name, status| Path { resource, namespace, name, status };
    Some(match rest {
        [plural] => path(find(plural)?, "", None, false),
        [plural, name] if cluster(plural).is_some() => path(cluster(plural)?, "", Some(*name), false),
        [plural, name, "status"] if cluster(plural).is_some_and(|one| one.status) => {
            path(cluster(plural)?, "", Some(*name), true)
        }
        ["namespaces", namespace, plural] => path(namespaced(plural)?, namespace, None, false),
        ["namespaces", namespace, plural, name] => path(namespaced(plural)?, namespace, Some(*name), false),
        ["namespaces", namespace, plural, name, "status"] => {
            path(namespaced(plural).filter(|one| one.status)?, namespace, Some(*name), true)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{parse, resource};

    #[test]
    fn paths_name_what_the_real_servers_do() {
        let parsed =
            |path| parse(path).map(|path| (path.resource.plural, path.namespace, path.name, path.status));
        assert_eq!(parsed("/api/v1/pods"), Some(("pods", "", None, false)));
        assert_eq!(parsed("/api/v1/namespaces/a/pods/b/status"), Some(("pods", "a", Some("b"), true)));
        assert_eq!(parsed("/api/v1/namespaces"), Some(("namespaces", "", None, false)));
        assert_eq!(parsed("/api/v1/namespaces/a"), Some(("namespaces", "", Some("a"), false)));
        assert_eq!(parsed("/api/v1/namespaces/a/status"), Some(("namespaces", "", Some("a"), true)));
        let policies = "/apis/egress-enforcer.io/v1alpha1/egressgatewaypolicies";
        assert_eq!(parsed(policies), Some(("egressgatewaypolicies", "", None, false)));
        assert_eq!(
            parsed(&format!("{policies}/mesh/status")),
            Some(("egressgatewaypolicies", "", Some("mesh"), true))
        );
        assert_eq!(
            parse("/apis/events.k8s.io/v1/namespaces/a/events").map(|path| path.resource),
            Some(resource("events"))
        );
        assert_eq!(
            parse("/api/v1/namespaces/a/events").map(|path| path.resource),
            Some(resource("corev1events"))
        );
    }

    #[test]
    fn what_was_not_taught_is_not_served() {
        for path in [
            "/",
            "/api/v1/secrets",
            "/apis/apps/v1/deployments",
            "/apis/coordination.k8s.io/v1beta1/leases",
            "/api/v1/pods/b",
            "/api/v1/namespaces/a/nodes",
            "/apis/coordination.k8s.io/v1/namespaces/a/leases/b/status",
            "/api/v1/namespaces/a/pods/b/log",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
