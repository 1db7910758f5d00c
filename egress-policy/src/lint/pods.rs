//! Pods: subjects that can get round their sidecar, gateways without a policy, pods that nothing locks down.
//!
//! Invariant: a pod that has finished is not looked at, and of a subject everything is. Tested by `tests/lint.rs`.

use std::collections::BTreeMap;

use super::mesh::{
    Member, egress_gateway_label, has_proxy, is_ambient, is_mesh, is_mesh_init, is_proxy, only_proxy,
};
use super::{Check, Found, count, few};
use crate::object::{Container, ContainerKind, Kind, LIFELINE_NAMESPACES, ObjectRef, Pod};

/// The user that a mesh's redirect lets pass, by the mesh.
const PROXY_USERS: [(i64, &str); 2] = [(1337, "Istio"), (2102, "Linkerd")];
/// The group that Istio's redirect lets pass.
const PROXY_GROUP: i64 = 1337;

/// What the members of a namespace are called.
type Noun = &'static str;

pub(super) fn lint(members: &[Member<'_>], found: &mut Found) {
    // Without a mesh nobody has a proxy.
    let mesh = members.iter().any(|one| has_proxy(one.pod) || is_mesh(one.namespace));
    let mut outside: BTreeMap<(&str, Noun), Vec<&str>> = BTreeMap::new();
    let mut undecided: BTreeMap<(&str, Noun), usize> = BTreeMap::new();
    for member in members {
        let Member { pod, namespace, workload, .. } = *member;
        let noun = if workload.is_some() { "workload" } else { "pod" };
        if member.subject() {
            subject(member, mesh, found);
        } else if member.undecided && !member.gateway {
            *undecided.entry((&pod.namespace, noun)).or_default() += 1;
        } else if !member.gateway
            && !LIFELINE_NAMESPACES.contains(&&*pod.namespace)
            && (is_mesh(namespace) || has_proxy(pod))
            && !only_proxy(pod)
        {
            outside.entry((&pod.namespace, noun)).or_default().push(&pod.name);
        }
        if let Some((key, value)) = egress_gateway_label(pod).filter(|_| !member.gateway) {
            let host = if pod.host_network { ", as none can: it is on the host network" } else { "" };
            let detail = format!("label {key} is {value:?}, but no policy's gateways name it{host}");
            found.add(Check::GatewayWithoutPolicy, member.place(), detail);
        }
    }
    for ((name, noun), pods) in outside {
        let verb = if pods.len() == 1 { "is a subject" } else { "are subjects" };
        let detail = format!("{} {verb} of no policy: {}", count(pods.len(), noun), few(pods));
        found.add(Check::NotLockedDown, namespace(name), detail);
    }
    for ((name, noun), pods) in undecided {
        let detail = format!("it has no object: {} could not be looked at", count(pods, noun));
        found.add(Check::NamespaceMissing, namespace(name), detail);
    }
}

fn namespace(name: &str) -> ObjectRef {
    ObjectRef { kind: Kind::Namespace, namespace: None, name: name.into() }
}

fn subject(member: &Member<'_>, mesh: bool, found: &mut Found) {
    let pod = member.pod;
    for (key, value) in pod.spec.mesh_annotations.iter().filter(|(key, value)| excludes(key, value)) {
        found.add(Check::MeshExclusion, member.place(), format!("{key} is {value:?}"));
    }
    let lock: Vec<_> = member.lock().into_iter().collect();
    let proxy = |one: &Container| one.kind.lasts() && lock.contains(&&*one.name);
    let lacks = if pod.host_network {
        None
    } else if lock.is_empty() {
        let lacks = mesh && !has_proxy(pod) && !is_ambient(pod, member.namespace);
        lacks.then(|| "no container istio-proxy or linkerd-proxy".to_owned())
    } else {
        let lacks = !pod.spec.containers.iter().any(proxy);
        let names = lock.join(" or ");
        lacks.then(|| format!("no container {names}, by which alone its policies let it out"))
    };
    if pod.host_network {
        found.add(Check::HostNetwork, member.place(), "hostNetwork is true");
    }
    let template = member.workload.is_some();
    let has_any = pod.spec.containers.iter().any(|one| is_proxy(one) || proxy(one));
    let mut injected = false;
    match (lacks, asks_for_no_proxy(pod)) {
        // The mesh of a template may be written elsewhere: that it asks for no proxy, and has none, says enough.
        (lacks, Some(wish)) if lacks.is_some() || (template && !has_any && !pod.host_network) => {
            found.add(Check::InjectionDisabled, member.place(), wish);
        }
        // What a mesh injects is not in a template yet.
        (Some(_), _) if template => injected = true,
        (Some(detail), _) => found.add(Check::NoProxy, member.place(), detail),
        (None, _) => {}
    }
    for path in pod.spec.host_paths.iter().filter(|path| owns_node(path)) {
        found.add(Check::NodeCapability, member.place(), format!("it mounts {path} of its node"));
    }
    let proxy = |one: &Container| is_proxy(one) || member.lock().contains(&&*one.name);
    if pod.spec.shared_processes && (injected || pod.spec.containers.iter().any(proxy)) {
        found.add(Check::SharedProcesses, member.place(), "shareProcessNamespace is true");
    }
    for container in &pod.spec.containers {
        if let Some(target) = &container.target
            && pod.spec.containers.iter().any(|one| one.name == *target && proxy(one))
        {
            let detail = format!("container {} is ephemeral, and its target is {target}", container.name);
            found.add(Check::SharedProcesses, member.place(), detail);
        }
        self::container(member, container, found);
    }
}

/// Capabilities with which a process is the node's: its programs can be taken off, its kernel be changed.
const NODE_CAPABILITIES: [&str; 4] = ["ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO"];
/// What is written there runs as the node: pins, programs and the agent's socket; runtimes' and kubelet's sockets, static pods and
/// credentials; the kernel's own files, and devices.
const NODE_PATHS: [&str; 15] = [
    "/dev",
    "/etc/cni",
    "/etc/cron.d",
    "/etc/kubernetes",
    "/etc/systemd",
    "/opt/cni",
    "/proc",
    "/root",
    "/run/containerd",
    "/run/crio",
    "/run/docker.sock",
    "/run/egress-enforcer",
    "/sys",
    "/var/lib/containerd",
    "/var/lib/kubelet",
];

/// Whether who may write at a path of the node owns the node: it is above one of [`NODE_PATHS`], or below.
fn owns_node(path: &str) -> bool {
    let path = path.strip_prefix("/var/run").map_or_else(|| path.to_owned(), |rest| format!("/run{rest}"));
    let parts = |path: &str| {
        path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect::<Vec<_>>()
    };
    let written = parts(&path);
    NODE_PATHS.iter().any(|one| parts(one).iter().zip(&written).all(|(a, b)| a == b))
}

/// Whether an annotation takes traffic out of the sidecar's hands.
fn excludes(key: &str, value: &str) -> bool {
    let value = value.trim();
    match key {
        "traffic.sidecar.istio.io/excludeOutboundIPRanges"
        | "traffic.sidecar.istio.io/excludeOutboundPorts"
        | "traffic.sidecar.istio.io/excludeInterfaces"
        | "config.linkerd.io/skip-outbound-ports"
        | "config.linkerd.io/skip-subnets" => !value.is_empty(),
        "traffic.sidecar.istio.io/includeOutboundIPRanges" => value != "*",
        "sidecar.istio.io/interceptionMode" => value.eq_ignore_ascii_case("NONE"),
        _ => false,
    }
}

/// By which word a pod asks for no proxy.
fn asks_for_no_proxy(pod: &Pod) -> Option<String> {
    let annotation = |wanted: &str| {
        let mut all = pod.spec.mesh_annotations.iter();
        all.find(|(key, _)| **key == *wanted).map(|(_, value)| &**value)
    };
    let istio = "sidecar.istio.io/inject";
    let (what, value) = match pod.labels.get(istio) {
        Some(value) => ("label", Some(value)),
        None => ("annotation", annotation(istio)),
    };
    // What is neither yes nor no is the default's to decide; older releases took it, and YAML's other words, for a no.
    let no = ["false", "no", "n", "off"];
    if let Some(value) = value.filter(|value| no.contains(&value.to_ascii_lowercase().as_str())) {
        return Some(format!("{what} {istio} is {value:?}"));
    }
    let linkerd = "linkerd.io/inject";
    let value = annotation(linkerd).filter(|value| *value == "disabled")?;
    Some(format!("annotation {linkerd} is {value:?}"))
}

fn container(member: &Member<'_>, container: &Container, found: &mut Found) {
    let (pod, name) = (member.pod, &container.name);
    let mut add = |check, detail: String| found.add(check, member.place(), detail);
    if container.kind == ContainerKind::Ephemeral {
        add(Check::DebugContainer, format!("container {name} is ephemeral"));
    }
    if is_mesh_init(container) {
        return;
    }
    let capabilities: Vec<String> = container.capabilities.iter().map(|c| capability(c)).collect();
    let has = |wanted: &str| capabilities.iter().any(|capability| capability == wanted);
    if container.privileged {
        add(Check::NodeCapability, format!("container {name} is privileged"));
    } else if let Some(capability) = NODE_CAPABILITIES.into_iter().find(|wanted| has(wanted)) {
        add(Check::NodeCapability, format!("container {name} has {capability}"));
    } else if pod.spec.host_pid && has("SYS_PTRACE") {
        add(Check::NodeCapability, format!("container {name} has SYS_PTRACE, and hostPID is true"));
    }
    if is_proxy(container) {
        return;
    }
    let net: Vec<&str> = ["NET_ADMIN", "NET_RAW"].into_iter().filter(|wanted| has(wanted)).collect();
    if !net.is_empty() {
        add(Check::NetCapability, format!("container {name} has {}", net.join(" and ")));
    }
    for (user, mesh) in PROXY_USERS.into_iter().filter(|(user, _)| container.run_as_user == Some(*user)) {
        add(Check::ProxyUser, format!("container {name} runs as user {user}, which is {mesh}'s proxy"));
    }
    if container.run_as_group == Some(PROXY_GROUP) {
        let detail = format!("container {name} runs as group {PROXY_GROUP}, which is Istio's proxy");
        add(Check::ProxyUser, detail);
    }
}

/// A capability's name as the kernel writes it, without `CAP_`.
fn capability(written: &str) -> String {
    let upper = written.trim().to_ascii_uppercase();
    upper.strip_prefix("CAP_").map_or(upper.clone(), str::to_owned)
}
