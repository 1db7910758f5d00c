//! The part of the container runtime interface that we speak: its messages, with the fields that are used.
//!
//! Invariant: names, numbers and types are those of `runtime.v1` in
//! `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto` (Kubernetes 1.23 and later; containerd 1.6, CRI-O 1.23, cri-dockerd 0.2.5 and later).
//! Tested below against bytes written by hand.

use std::collections::BTreeMap;

/// `rpc Version(VersionRequest) returns (VersionResponse)`.
pub const VERSION: &str = "/runtime.v1.RuntimeService/Version";
/// `rpc ListContainers(ListContainersRequest) returns (ListContainersResponse)`.
pub const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";

/// The label with a container's name in its pod's spec, as kubelet sets it (`k8s.io/kubelet/pkg/types/labels.go`).
pub const NAME: &str = "io.kubernetes.container.name";
/// The label with the UID of its pod; for a static pod the hash of its manifest, as in its cgroup's name.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// The labels with its pod's name and namespace.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// See [`POD_NAME`].
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// Asks who answers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VersionRequest {
    /// The version that the client speaks.
    #[prost(string, tag = "1")]
    pub version: String,
}

/// Who answers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VersionResponse {
    /// Such as `containerd`.
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    /// Such as `v2.1.4`.
    #[prost(string, tag = "3")]
    pub runtime_version: String,
}

/// Asks for containers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListContainersRequest {
    /// Which; all without.
    #[prost(message, optional, tag = "1")]
    pub filter: Option<ContainerFilter>,
}

/// Which containers are meant; an empty field means any.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerFilter {
    /// The id of one; runtimes also take the beginning of an id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The id of their pod's sandbox.
    #[prost(string, tag = "3")]
    pub pod_sandbox_id: String,
}

/// Containers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListContainersResponse {
    /// Those that were asked for, whatever their state.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Container>,
}

/// A container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Container {
    /// Its id, as in its cgroup's name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The id of its pod's sandbox, which has a cgroup like a container's.
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    /// What kubelet said about it.
    #[prost(btree_map = "string, string", tag = "8")]
    pub labels: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::{
        Container, ContainerFilter, ListContainersRequest, ListContainersResponse, VersionRequest,
        VersionResponse,
    };
    use prost::Message as _;

    /// A field of type string or message: its number with wire type 2, its length in groups of seven bits, its contents.
    fn field(number: u8, contents: &[u8]) -> Vec<u8> {
        let (low, high) = (contents.len() % 128, contents.len() / 128);
        let length = if high == 0 { vec![low] } else { vec![low + 128, high] };
        let length: Vec<u8> = length.into_iter().map(|group| u8::try_from(group).unwrap()).collect();
        [&[number << 3 | 2], &*length, contents].concat()
    }

    #[test]
    fn what_is_sent_has_the_numbers_of_the_definition() {
        assert_eq!(VersionRequest { version: "v1".to_owned() }.encode_to_vec(), field(1, b"v1"));
        let filter =
            |id: &str, of: &str| Some(ContainerFilter { id: id.to_owned(), pod_sandbox_id: of.to_owned() });
        let encoded = |filter| ListContainersRequest { filter }.encode_to_vec();
        assert_eq!(encoded(filter("0123", "")), field(1, &field(1, b"0123")));
        assert_eq!(encoded(filter("", "4567")), field(1, &field(3, b"4567")));
        assert_eq!(ListContainersRequest::default().encode_to_vec(), b"");
    }

    #[test]
    fn what_comes_back_is_read_with_all_its_other_fields() {
        let version =
            [field(1, b"0.1.0"), field(2, b"containerd"), field(3, b"2.1"), field(4, b"v1")].concat();
        let version = VersionResponse::decode(&*version).unwrap();
        assert_eq!((version.runtime_name.as_str(), version.runtime_version.as_str()), ("containerd", "2.1"));

        let label = |key: &[u8], value: &[u8]| field(8, &[field(1, key), field(2, value)].concat());
        let container = [
            field(1, b"id"),
            field(2, b"sandbox"),
            // Metadata, image, image_ref, state (an enum), created_at (an int64).
            field(3, &field(1, b"other name")),
            field(4, &field(1, b"image")),
            field(5, b"ref"),
            vec![6 << 3, 1, 7 << 3, 42],
            label(b"io.kubernetes.container.name", b"istio-proxy"),
            label(b"io.kubernetes.pod.uid", b"uid"),
            field(9, &[field(1, b"annotation"), field(2, b"x")].concat()),
            field(10, b"image id"),
        ];
        let list = [field(1, &container.concat()), field(1, &field(1, b"second"))].concat();
        let ListContainersResponse { containers } = ListContainersResponse::decode(&*list).unwrap();
        let [Container { id, pod_sandbox_id, labels }, second] = &containers[..] else {
            panic!("{containers:?}")
        };
        assert_eq!((id.as_str(), pod_sandbox_id.as_str(), second.id.as_str()), ("id", "sandbox", "second"));
        assert_eq!((labels[super::NAME].as_str(), labels[super::POD_UID].as_str()), ("istio-proxy", "uid"));
    }
}
