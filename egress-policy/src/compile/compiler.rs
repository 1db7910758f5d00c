//! The state of a node, kept up with the objects.
//!
//! Invariant: after every update the state is what compiling the same objects from nothing gives; but a pod that was locked down and cannot
//! be judged any more is closed, as one that an earlier agent left so. What an update costs depends on what changed and what hangs on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egress_common::wire::{
    ABI, Addr, Config, IDENTITY_WORLD, POLICY_SENT_ON, Proxy, ROW_ENTRIES, RowKey, UNKNOWN_ALLOW,
    UNKNOWN_DENY, UNKNOWN_POLICY,
};

use super::address::{self, Addresses, Pass};
use super::endpoint::{self, Local, Namespaces};
use super::grants::Grants;
use super::identity::{self, Identities};
use super::place::{self, Place};
use super::policies::{self, Policies};
use super::report::{Diagnostic, Diagnostics, EndpointInfo, Origin, PolicyInfo, ProxyInfo, Severity};
use super::rows::{Rows, Wholes};
use super::{Compiled, LocalContainer, LocalPod, Node, UnknownPods, diagnose, select, terms};
use crate::index::{Dirty, Index};
use crate::object::Pod;
use crate::plan::{Keys, Prefixes};

/// The settings of a node, without its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    name: String,
    pod_root_level: u32,
    unknown_pods: UnknownPods,
    incomplete: bool,
}

/// A cgroup that was found.
#[derive(Debug)]
struct Found {
    local: LocalPod,
    /// The namespaces of the pods that claim it.
    namespaces: Namespaces,
}

/// The containers of a pod, and the pod.
type Placed = (Vec<LocalContainer>, Arc<Pod>);

/// Compiles the state of a node, and keeps it up.
#[derive(Debug, Default)]
pub struct Compiler {
    compiled: Compiled,
    /// `None` until the first update.
    settings: Option<Settings>,
    found: BTreeMap<u64, Found>,
    grants: Grants,
    policies: Policies,
    identities: Identities,
    /// There are policies.
    isolating: bool,
    diagnostics: Diagnostics,
    work: u64,
}

impl Compiler {
    /// What was compiled last.
    #[must_use]
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// What was compiled last.
    #[must_use]
    pub fn into_compiled(self) -> Compiled {
        self.compiled
    }

    /// Takes less memory for the same, after an update that changed much. Looks at everything.
    pub fn pack(&mut self) {
        self.compiled.desired.pack();
    }

    /// The work done so far, in addresses judged, backends and service ports looked at, and entries of rows made: what tests
    /// of cost count, since time depends on the machine.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.work
    }

    /// Brings the state up to the objects. `dirty` is what the index said of every event since the last update; for the first
    /// one it does not count. Tells which keys of the state may have changed.
    pub fn update(&mut self, index: &Index, node: &Node<'_>, dirty: Dirty) -> Keys {
        let mut keys = Keys::default();
        let (dirty, every_pod) = self.begin(index, node, dirty);
        let uids: BTreeSet<String> = dirty.uids.iter().map(ToString::to_string).collect();
        let here: BTreeMap<u64, &LocalPod> =
            node.pods.iter().filter(|pod| !pod.uid.is_empty()).map(|pod| (pod.cgroup, pod)).collect();
        let gone = self.found.iter().filter(|(cgroup, found)| here.get(cgroup) != Some(&&found.local));
        let gone: Vec<u64> = gone.map(|(cgroup, _)| *cgroup).collect();
        for cgroup in gone {
            let was = self.found.remove(&cgroup);
            if here.get(&cgroup).map(|local| &local.uid) != was.as_ref().map(|was| &was.local.uid) {
                self.endpoint(cgroup, Local::default(), &mut keys);
            }
        }
        for (cgroup, local) in here {
            let found = self.found.get(&cgroup);
            let in_namespace =
                || found.is_some_and(|one| one.namespaces.iter().any(|name| dirty.namespaces.contains(name)));
            if found.is_some() && !every_pod && !uids.contains(&local.uid) && !in_namespace() {
                continue;
            }
            let before = self.compiled.desired.endpoints.get(&cgroup);
            let (namespaces, judged) = endpoint::of_cgroup(index, node, local, before);
            self.found.insert(cgroup, Found { local: local.clone(), namespaces });
            self.endpoint(cgroup, judged, &mut keys);
        }
        self.settle(index, dirty, &mut keys);
        keys
    }

    /// Compiles as if these pods stood on the node, by cgroup, with their containers. For the first update only.
    pub(super) fn place(&mut self, index: &Index, node: &Node<'_>, pods: BTreeMap<u64, Placed>) {
        let mut keys = Keys::default();
        let (dirty, _) = self.begin(index, node, Dirty::default());
        for (cgroup, (containers, pod)) in pods {
            self.endpoint(
                cgroup,
                endpoint::local(index, &pod, &containers, node.incomplete, false),
                &mut keys,
            );
        }
        self.settle(index, dirty, &mut keys);
    }

    /// Takes the settings over; tells what to look at, and whether that is every pod.
    fn begin(&mut self, index: &Index, node: &Node<'_>, dirty: Dirty) -> (Dirty, bool) {
        let settings = Settings {
            name: node.name.to_owned(),
            pod_root_level: node.pod_root_level,
            unknown_pods: node.unknown_pods,
            incomplete: node.incomplete,
        };
        let dirty = if self.settings.is_none() { index.everything() } else { dirty };
        if self.settings.as_ref() == Some(&settings) {
            let every_pod = dirty.every_pod;
            return (dirty, every_pod);
        }
        let config = &mut self.compiled.desired.config;
        let before = (config.unknown == UNKNOWN_POLICY).then_some(config.unknown_policy);
        let pod_root_level = node.pod_root_level;
        *config = Config { abi: ABI, pod_root_level, unknown: UNKNOWN_DENY, ..Config::default() };
        match node.unknown_pods {
            UnknownPods::Deny => {}
            UnknownPods::Allow => config.unknown = UNKNOWN_ALLOW,
            UnknownPods::DenyOutside => {
                config.unknown = UNKNOWN_POLICY;
                config.unknown_policy = self.policies.take(select::unknown_pods(node.name), &mut self.grants);
            }
        }
        before.into_iter().for_each(|policy| self.policies.drop(policy));
        if self.settings.is_none() {
            self.policies.hold(terms::standing(), &mut self.grants);
        }
        self.settings = Some(settings);
        (dirty, true)
    }

    /// Puts what there is of a local pod in the place of what there was.
    fn endpoint(&mut self, cgroup: u64, local: Local, keys: &mut Keys) {
        let mut take = |content| self.policies.take(content, &mut self.grants);
        let policy = local.content.map_or(0, &mut take);
        let lock = local.lock.map_or(0, &mut take);
        let proxies: Vec<ProxyInfo> = local
            .proxies
            .into_iter()
            .map(|(LocalContainer { name, cgroup }, content)| ProxyInfo {
                name,
                cgroup,
                policy: take(content),
            })
            .collect();
        let before = self.compiled.endpoints.remove(&cgroup);
        let numbers = |info: &EndpointInfo| -> Vec<u64> {
            info.proxies.iter().map(|proxy| proxy.policy).chain([info.policy, info.lock]).collect()
        };
        // A policy has no number 0.
        let dropped = before.iter().flat_map(numbers).filter(|number| *number != 0);
        dropped.for_each(|number| self.policies.drop(number));
        let old = match local.endpoint {
            Some((mut entry, info)) => {
                (entry.policy, entry.lock) = (policy, lock);
                for (place, proxy) in entry.proxies.iter_mut().zip(&proxies) {
                    *place = Proxy { cgroup: proxy.cgroup, policy: proxy.policy };
                }
                if let Some(mut info) = info {
                    (info.policy, info.lock, info.proxies) = (policy, lock, proxies);
                    self.compiled.endpoints.insert(cgroup, info);
                }
                self.compiled.desired.endpoints.insert(cgroup, entry).filter(|old| *old == entry)
            }
            None => {
                self.compiled.desired.endpoints.remove(&cgroup);
                None
            }
        };
        if old.is_none() {
            keys.endpoints.insert(cgroup);
        }
        self.diagnostics.say(Origin::Endpoint(cgroup), local.diagnostics);
    }

    /// Follows what changed through addresses and identities to rows.
    fn settle(&mut self, index: &Index, dirty: Dirty, keys: &mut Keys) {
        let policies = self.policies.collect(&mut self.grants);
        let mut targets = Vec::new();
        for grant in &policies.grants {
            address::targets(index, &self.grants, grant, &mut targets);
        }
        // They may be as many as the cluster has: a set that is made of them at once is the fastest way to have them in order.
        let mut addresses = dirty.addresses;
        addresses.append(&mut targets.into_iter().collect());
        let divided = self.grants.divide();
        if divided {
            policies.grants.iter().for_each(|grant| self.grants.singles(grant, &mut addresses));
            self.cidrs(keys);
        }
        // Where there are no policies, nobody asks what is behind a service.
        if self.isolating != self.policies.any() {
            self.isolating = !self.isolating;
            addresses.extend(index.vips());
        }
        self.addresses(index, addresses, divided, keys);
        let identities = self.identities.collect();
        self.grants.reuse();
        self.rows(&policies, &identities, keys);
        for object in dirty.objects {
            let diagnostics = diagnose::diagnose(index, &object);
            self.diagnostics.say(Origin::Object(object), diagnostics);
        }
        if let Some(changed) = self.diagnostics.changed() {
            self.compiled.diagnostics = changed;
        }
    }

    /// Finds the identity of every region but single addresses, and writes those that say something new.
    fn cidrs(&mut self, keys: &mut Keys) {
        let mut cidrs = BTreeMap::new();
        for (cidr, grants) in self.grants.asked() {
            let matches = grants.map(|grant| (grant, Vec::new())).collect();
            cidrs.insert(cidr, self.identities.base(matches, &self.grants));
            self.work += 1;
        }
        // A prefix that says what is said around it says nothing.
        let lengths = Prefixes::new(&cidrs);
        let around = |cidr| lengths.around(&cidrs, cidr).map_or(IDENTITY_WORLD, |(_, identity)| *identity);
        let said = cidrs.iter().filter(|(cidr, identity)| **identity != around(cidr));
        let new: BTreeMap<_, _> = said.map(|(cidr, identity)| (*cidr, *identity)).collect();
        let old = std::mem::take(&mut self.compiled.desired.cidrs);
        for (cidr, identity) in &new {
            self.identities.take(*identity);
            if old.get(cidr) != Some(identity) {
                keys.cidrs.insert(*cidr);
            }
        }
        for (cidr, identity) in &old {
            self.identities.drop(*identity);
            if !new.contains_key(cidr) {
                keys.cidrs.insert(*cidr);
            }
        }
        self.compiled.desired.cidrs = new;
    }

    /// Judges addresses anew: those that are only themselves before those that stand for others.
    fn addresses(&mut self, index: &Index, dirty: BTreeSet<Addr>, divided: bool, keys: &mut Keys) {
        let mut pass = Pass::new(index);
        let (mut fronts, mut behind) = (BTreeSet::new(), Vec::new());
        for addr in dirty {
            let place = Place::at(index, addr);
            if place.in_front {
                fronts.insert(addr);
                behind.push(addr);
                continue;
            }
            let (before, after) = self.address(&mut pass, &place, keys);
            // Without an identity of its own it has that of its prefix.
            let same_prefix = before.is_some() || !divided;
            let same = before == after && same_prefix && place.plain();
            if !same {
                behind.push(addr);
            }
        }
        place::add_fronts(index, behind, &mut fronts);
        for addr in fronts {
            self.address(&mut pass, &Place::at(index, addr), keys);
        }
    }

    /// Judges one address anew; tells the identities that were, and are, written for it.
    fn address(
        &mut self,
        pass: &mut Pass<'_>,
        place: &Place<'_>,
        keys: &mut Keys,
    ) -> (Option<u64>, Option<u64>) {
        let desired = &mut self.compiled.desired;
        let mut judge = Addresses {
            pass,
            grants: &self.grants,
            identities: &mut self.identities,
            known: &desired.addresses,
            work: &mut self.work,
        };
        let addr = place.addr;
        let asked = self.isolating || !place.vip;
        let after = asked.then(|| judge.identity(place)).filter(|found| judge.tells_more(place, *found));
        let before = match after {
            Some(identity) => desired.addresses.insert(addr, identity),
            None => desired.addresses.remove(&addr),
        };
        if before != after {
            keys.addresses.insert(addr);
            after.into_iter().for_each(|identity| self.identities.take(identity));
            before.into_iter().for_each(|identity| self.identities.drop(identity));
        }
        self.diagnostics.say(Origin::Address(addr), place.wrong().into_iter().collect());
        (before, after)
    }

    /// The rows of identities that nothing leads to any more: looked up where they are few, else found in one pass over all rows.
    fn rows_of_lost(&self, lost: &BTreeSet<u64>) -> Vec<RowKey> {
        let rows = &self.compiled.desired.rows;
        let policies = || self.policies.iter().map(|(policy, _)| policy).chain([POLICY_SENT_ON]);
        if lost.len() * policies().count() < rows.len() {
            let keys = policies()
                .flat_map(|policy| lost.iter().map(move |identity| RowKey { policy, identity: *identity }));
            return keys.filter(|key| rows.contains_key(key)).collect();
        }
        rows.keys().filter(|key| lost.contains(&key.identity)).copied().collect()
    }

    /// Writes the rows of new policies with all identities, and of all policies with new identities.
    fn rows(&mut self, policies: &policies::Changes, identities: &identity::Changes, keys: &mut Keys) {
        let mut gone = self.rows_of_lost(&identities.lost);
        for policy in &policies.gone {
            self.compiled.provenance.policies.remove(policy);
            let range =
                RowKey { policy: *policy, identity: 0 }..=RowKey { policy: *policy, identity: u64::MAX };
            gone.extend(self.compiled.desired.rows.range(range).map(|(key, _)| *key));
        }
        for identity in &identities.found {
            let Some(row) = self.identities.sent_on(*identity) else { continue };
            let key = RowKey { policy: POLICY_SENT_ON, identity: *identity };
            self.compiled.desired.rows.insert(key, row);
            keys.rows.insert(key);
        }
        for key in gone {
            if self.compiled.desired.rows.remove(&key).is_some() {
                keys.rows.insert(key);
            }
            self.diagnostics.say(Origin::Row(key), Vec::new());
        }
        let mut wrong = Vec::new();
        let mut wholes = Wholes::new(&self.identities, &self.grants);
        let touched = self
            .policies
            .iter()
            .filter(|(number, _)| policies.born.contains(number) || !identities.found.is_empty());
        for (number, policy) in touched {
            let born = policies.born.contains(&number);
            let mut rows = Rows::new(policy, &mut wholes);
            let identities = if born { rows.candidates() } else { rows.candidates_in(&identities.found) };
            for identity in identities {
                let key = RowKey { policy: number, identity };
                let (row, dropped) = rows.row(identity);
                if let Some(row) = row {
                    self.compiled.desired.rows.insert(key, row);
                    keys.rows.insert(key);
                }
                if dropped > 0 {
                    wrong.push((key, dropped));
                }
            }
            self.work += rows.work;
            if born {
                let content = &policy.content;
                let objects = content.tiers.iter().flat_map(|tier| tier.policies.clone()).collect();
                let rules = content.infos().collect();
                self.compiled.provenance.policies.insert(number, PolicyInfo { objects, rules });
            }
        }
        for (key, dropped) in wrong {
            let policies = self.compiled.provenance.policies(key.policy);
            let diagnostic = Diagnostic {
                object: policies.first().cloned(),
                path: String::new(),
                reason: format!(
                    "more than {ROW_ENTRIES} port ranges to one destination; {dropped} are denied"
                ),
                severity: Severity::Error,
            };
            self.diagnostics.say(Origin::Row(key), vec![diagnostic]);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Compiler;
    use crate::compile::{LocalPod, Node, UnknownPods};
    use crate::index::{Dirty, Event, Index};
    use crate::object::read;

    /// A namespace with a pod, a service and policies of which `round` makes different ones.
    fn objects(round: usize) -> Vec<Value> {
        let peers = json!([{"podSelector": {"matchLabels": {"round": format!("r{round}")}}}, {"ipBlock": {"cidr": "198.51.100.0/24"}},
            {"namespaceSelector": {"matchLabels": {"team": format!("t{round}")}}}]);
        let meta = |name: &str| json!({"namespace": "app", "name": name, "uid": name});
        vec![
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("web"), "spec": {"nodeName": "n"}, "status": {"podIP": "10.0.0.1"}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("s"), "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"namespace": "app", "name": "s", "labels": {"kubernetes.io/service-name": "s"}},
                "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta("p"),
                "spec": {"podSelector": {}, "egress": [{"to": peers, "ports": [{"port": 80 + round}]}]}}),
            json!({"apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy", "metadata": {"name": "e"},
                "spec": {"subjects": [{}], "gateways": [{"namespaces": {}, "pods": {"matchLabels": {"gw": format!("g{round}")}}}],
                    "allow": {"node": true, "apiServer": true, "to": [{"cidr": "198.51.100.0/24"}, {"service": {"namespace": "app", "name": format!("s{round}")}}]}}}),
        ]
    }

    #[test]
    fn what_is_gone_leaves_nothing_behind() {
        let (mut index, mut compiler) = (Index::default(), Compiler::default());
        let pods = [LocalPod { uid: "web".to_owned(), cgroup: 1, containers: Vec::new(), left: None }];
        let node = Node {
            name: "n",
            pod_root_level: 1,
            unknown_pods: UnknownPods::Deny,
            incomplete: false,
            pods: &pods,
        };
        compiler.update(&index, &Node { pods: &[], ..node }, Dirty::default());
        let (_, held_at_first) = compiler.grants.held();
        let mut room = Vec::new();
        for round in 0..20 {
            let mut dirty = Dirty::default();
            for object in objects(round) {
                for read in read(object).into_iter().flatten() {
                    read.event().into_iter().for_each(|event| dirty |= index.apply(event));
                }
            }
            compiler.update(&index, &node, dirty);
            assert!(!compiler.compiled().desired.rows.is_empty());
            assert!(compiler.grants.held().1 != held_at_first && compiler.identities.held().0 > 2);
            room.push(compiler.grants.held().0);
        }
        // The next round's grants come before the last one's go, so that there is room for two rounds and no more.
        assert!(room.iter().all(|held| *held <= 2 * room[0]), "{room:?}");
        let mut dirty = Dirty::default();
        for object in index.objects().collect::<Vec<_>>() {
            dirty |= index.apply(Event::Delete(object));
        }
        compiler.update(&index, &node, dirty);
        assert_eq!((compiler.grants.held().1, compiler.identities.held()), (held_at_first, (1, 0)));
        assert!(!compiler.policies.any() && compiler.diagnostics.is_empty());
        let desired = &compiler.compiled().desired;
        assert!(desired.rows.is_empty() && desired.addresses.is_empty() && desired.cidrs.is_empty());
        assert!(compiler.compiled().provenance.policies.is_empty() && desired.endpoints.is_empty());
    }
}
