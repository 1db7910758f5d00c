//! What is looked for, with the source of each fact.
//!
//! Invariant: a check has one name, one severity and one advice, and the names are stable: they are what scripts know it
//! by. Tested by `tests/lint.rs`.

use std::fmt;

use serde::{Serialize, Serializer};

/// How bad a finding is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// There is a way round the mesh's exit, or the exit does not do what was written.
    Error,
    /// Nobody is round it by this alone, but somebody should have a look.
    Warning,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl Serialize for Severity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What is looked for.
///
/// The checks of a pod are about subjects that have not finished. They read what the objects say: the user that an
/// image names, and what a mesh was told for all of its pods (as by `meshConfig` or `proxy.istio.io/config`), are
/// not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// An annotation takes some of a subject's traffic out of its sidecar's hands.
    ///
    /// `traffic.sidecar.istio.io/excludeOutboundIPRanges`, `excludeOutboundPorts`, `excludeInterfaces` with any value;
    /// `includeOutboundIPRanges` other than `*` (an empty one ends the redirect); `sidecar.istio.io/interceptionMode:
    /// NONE` (<https://istio.io/latest/docs/reference/config/annotations/>). `includeOutboundPorts` adds ports to what
    /// is redirected and takes none away, and the injector itself writes `includeOutboundIPRanges: "*"` and
    /// `interceptionMode: REDIRECT`: those are no findings. `config.linkerd.io/skip-outbound-ports` and `skip-subnets`
    /// with any value (<https://linkerd.io/2/reference/proxy-configuration/>).
    MeshExclusion,
    /// A subject has no proxy because it asks for none: label or annotation `sidecar.istio.io/inject` says no (of
    /// both, the label counts: `injectRequired` in Istio's `pkg/kube/inject/inject.go`), or `linkerd.io/inject:
    /// disabled`. With a proxy all the same, put in by hand, it is no finding.
    InjectionDisabled,
    /// A container of a subject that is no proxy runs as the user or group by which the redirect knows the proxy.
    ///
    /// Istio's rules let pass what UID 1337 or GID 1337 sends (`--uid-owner`, `--gid-owner` in
    /// `tools/istio-iptables/pkg/capture/run.go`), Linkerd's what UID 2102 sends (`proxyUID` in linkerd2-proxy-init).
    /// `istio-validation` runs as 1337 by Istio's template, before anything else does.
    ProxyUser,
    /// A container of a subject may change the redirect or go below it: `NET_ADMIN` flushes the rules, `NET_RAW` sends
    /// frames that they never see.
    ///
    /// Capabilities that are added, in any case and with or without `CAP_`. Not reported: `NET_RAW` of a container that
    /// adds nothing, which the runtime gives to all that do not drop it; the proxies themselves, which have both in
    /// Istio's TPROXY mode; the init containers by which a mesh sets the redirect up.
    NetCapability,
    /// A container of a subject owns its node: privileged, `ALL`, or `SYS_ADMIN`, with which
    /// `BPF_LINK_GET_FD_BY_ID` and `BPF_LINK_DETACH` take the enforcer's own programs off
    /// (`bpf_link_get_fd_by_id` in the kernel's `kernel/bpf/syscall.c`).
    NodeCapability,
    /// A subject shares the node's network namespace. Neither Istio nor Linkerd injects such a pod, and nothing judges
    /// it but the socket hook.
    HostNetwork,
    /// A subject's containers see its proxy's processes (`shareProcessNamespace`, or an ephemeral container's `targetContainerName`): by
    /// `pidfd_getfd` they may take the proxy's sockets, of which a lock says that the proxy alone has them. Not reported where there is no
    /// proxy.
    SharedProcesses,
    /// A subject has no proxy, and nothing says why: the pod may be older than the injection, or the webhook was away.
    /// Not reported: pods of an ambient mesh (`istio.io/dataplane-mode: ambient` on the pod or, where the pod does not
    /// say otherwise, on its namespace), pods on the host network, what [`Check::InjectionDisabled`] is about, and pods without a lock in a
    /// cluster without a mesh.
    NoProxy,
    /// A debug container was put into a subject. Its entry stays when it has ended.
    DebugContainer,
    /// Pods look like an egress gateway (label `istio: egressgateway` or `app: istio-egressgateway`, which Istio's
    /// charts set, or a Gateway API gateway with `egress` in its name), and no policy's gateways name them: to subjects
    /// they are pods of the cluster, which `allow.inCluster` lets everybody reach.
    GatewayWithoutPolicy,
    /// A gateway entry without `destinations`: its pods may reach everything outside.
    GatewayUnrestricted,
    /// A gateway entry whose pods some policy's subjects select, and that run more than a proxy: an application in them
    /// is exempt from every lock-down.
    GatewayExemptsSubjects,
    /// A gateway entry that takes pods of every namespace: who can label a pod anywhere makes it a way out.
    GatewayAnyNamespace,
    /// A policy without `spec.proxy` opens a gateway to subjects that another policy locks to their proxy: what a policy allows, it
    /// allows to all containers that its own lock does not shut out.
    LockOpened,
    /// A gateway entry that leads to no ready pod.
    NoWayOut,
    /// `allow.to` or a gateway's `addresses` hold a block wider than any private one (10.0.0.0/8, RFC 1918; fc00::/7,
    /// RFC 4193): the exit is open without a gateway.
    OpenExit,
    /// A policy is invalid, and fails closed for what it selects.
    PolicyInvalid,
    /// A policy that audits allows to pods what others, which enforce, do not: what is allowed to a pod is what any of its policies
    /// allows, whichever of them denies the rest.
    AuditOpens,
    /// Something in an object has no effect, or another one than it seems: what the agents warn of in `status`.
    LikelyMistake,
    /// A policy audits: it denies nothing.
    PolicyAudits,
    /// A policy's subjects select no pod.
    PolicyWithoutSubjects,
    /// Pods of a mesh (`istio-injection: enabled`, `istio.io/rev` or `istio.io/dataplane-mode: ambient` on the namespace;
    /// or a proxy in the pod) that no policy locks down. Not reported: gateways, also for incoming traffic, which run
    /// nothing but a proxy; the lifeline.
    NotLockedDown,
    /// Policies ask for the labels of a namespace whose object is missing: its pods are not judged.
    NamespaceMissing,
}

impl Check {
    /// Every check.
    pub const ALL: [Self; 23] = [
        Self::MeshExclusion,
        Self::InjectionDisabled,
        Self::ProxyUser,
        Self::NetCapability,
        Self::NodeCapability,
        Self::HostNetwork,
        Self::SharedProcesses,
        Self::NoProxy,
        Self::DebugContainer,
        Self::GatewayWithoutPolicy,
        Self::GatewayUnrestricted,
        Self::GatewayExemptsSubjects,
        Self::GatewayAnyNamespace,
        Self::LockOpened,
        Self::NoWayOut,
        Self::OpenExit,
        Self::PolicyInvalid,
        Self::AuditOpens,
        Self::LikelyMistake,
        Self::PolicyAudits,
        Self::PolicyWithoutSubjects,
        Self::NotLockedDown,
        Self::NamespaceMissing,
    ];

    /// Its name, severity, description and advice.
    const fn about(self) -> (&'static str, Severity, &'static str, &'static str) {
        use Severity::{Error, Warning};
        match self {
            Self::MeshExclusion => (
                "mesh-exclusion",
                Error,
                "an annotation takes traffic out of the sidecar's hands",
                "remove the annotation; what needs no gateway belongs in the policy's allow.to",
            ),
            Self::InjectionDisabled => (
                "injection-disabled",
                Error,
                "a subject asks to have no proxy",
                "remove it and start the pod anew; what is to have no proxy gets a policy without gateways",
            ),
            Self::ProxyUser => (
                "proxy-user",
                Error,
                "a container runs as the proxy's user or group",
                "run the container as another user and group; forbid these to applications at admission",
            ),
            Self::NetCapability => (
                "net-capability",
                Error,
                "a container can change the redirect or go below it",
                "drop the capability; what cannot do without gets a namespace and a policy of its own",
            ),
            Self::NodeCapability => (
                "node-capability",
                Error,
                "a container can take the enforcement off its node",
                "run the container without it; the Baseline level of Pod Security Admission forbids it",
            ),
            Self::HostNetwork => (
                "host-network",
                Error,
                "a subject shares the node's network namespace",
                "give the pod a network of its own; no sidecar is injected, and packet sockets are not judged",
            ),
            Self::SharedProcesses => (
                "shared-processes",
                Error,
                "a subject's containers can take its proxy's sockets",
                "leave shareProcessNamespace out; do not debug with the proxy as target, and start pods anew where it was done",
            ),
            Self::NoProxy => (
                "no-proxy",
                Warning,
                "a subject has no proxy",
                "start the pod anew once injection is on for it",
            ),
            Self::DebugContainer => (
                "debug-container",
                Warning,
                "a debug container was put into a subject",
                "find out who did it; delete the pod to be rid of it",
            ),
            Self::GatewayWithoutPolicy => (
                "gateway-without-policy",
                Error,
                "no policy names what looks like an egress gateway",
                "name the pods in spec.gateways of a policy, so that only clients reach them",
            ),
            Self::GatewayUnrestricted => (
                "gateway-unrestricted",
                Warning,
                "a gateway's pods may reach everything outside",
                "list what they may reach in destinations",
            ),
            Self::GatewayExemptsSubjects => (
                "gateway-exempts-subjects",
                Error,
                "a gateway's selector exempts applications from every lock-down",
                "narrow namespaces and pods of the gateway to the gateway's own workload",
            ),
            Self::GatewayAnyNamespace => (
                "gateway-any-namespace",
                Warning,
                "a label on a pod of any namespace makes it a gateway",
                "name the gateway's namespace in the gateway's namespaces",
            ),
            Self::LockOpened => (
                "lock-opened",
                Warning,
                "a gateway is open past another policy's lock",
                "give the policy the same spec.proxy, or leave those pods out of the gateway's clients",
            ),
            Self::NoWayOut => (
                "no-way-out",
                Warning,
                "a gateway has no ready pod",
                "start the gateway, or correct the selectors of the entry; until then nothing gets out by it",
            ),
            Self::OpenExit => (
                "open-exit",
                Error,
                "subjects get out without a gateway",
                "allow the destinations that are needed, one by one, or by way of a gateway",
            ),
            Self::PolicyInvalid => (
                "policy-invalid",
                Error,
                "a policy cannot be understood",
                "correct the field; until then all it selects is denied",
            ),
            Self::AuditOpens => (
                "audit-opens",
                Warning,
                "a policy that audits allows what others deny",
                "try a policy on pods that no other one selects, or by simulate --with, before it enforces",
            ),
            Self::LikelyMistake => (
                "likely-mistake",
                Warning,
                "an object says something that does not count",
                "write what is meant; the finding says what happens now",
            ),
            Self::PolicyAudits => (
                "policy-audits",
                Warning,
                "a policy denies nothing",
                "look at the audited flows, then set spec.enforcement to Enforce",
            ),
            Self::PolicyWithoutSubjects => (
                "policy-without-subjects",
                Warning,
                "a policy selects no pod",
                "compare spec.subjects with the labels of namespaces and pods, or remove the policy",
            ),
            Self::NotLockedDown => (
                "not-locked-down",
                Warning,
                "pods of the mesh are subjects of no policy",
                "add the namespace to the subjects of a policy",
            ),
            Self::NamespaceMissing => (
                "namespace-missing",
                Warning,
                "pods cannot be judged without the labels of their namespace",
                "add the Namespace object to the source",
            ),
        }
    }

    /// The name that scripts know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.about().0
    }

    /// How bad it is.
    #[must_use]
    pub const fn severity(self) -> Severity {
        self.about().1
    }

    /// What it is, in a line.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        self.about().2
    }

    /// What to do next.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        self.about().3
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
