//! The state of the agent, and the one path from objects and cgroups to the kernel.
//!
//! Invariant: what was not read is not absent. Until the source was read whole once, what is pinned stays as it is, and
//! pods that no policy selects stay unknown; a Pod object that goes before its cgroup is kept until the cgroup is gone.
//! Tested by `tests/lifecycle.rs` and `tests/unread.rs`.

mod addresses;
mod answer;
mod former;
mod gone;
mod intake;
mod names;
mod report;
mod services;
mod sever;
mod translations;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use egress_common::wire::{ABI, Endpoint, FLAG_AUDIT, FLAG_HOST_NETWORK, STATE_UNSELECTED};
use egress_policy::compile::{Compiler, Node, UnknownPods};
use egress_policy::index::{Dirty, Index};
use egress_policy::object::ObjectRef;
use egress_policy::plan::{self, Keys, Plan, Step};

use crate::beside::Turn;
use crate::clock::monotonic;
use crate::cluster::Cluster;
use crate::coverage::{Coverage, Look};
use crate::datapath::Datapath;
use crate::metrics::{Meters, Tally};
use crate::pods::{PodRoot, Scan};
use crate::preflight::Missing;
use crate::source::{Changes, Objects};
use crate::watch::Watcher;
use crate::witnesses::{Here, Witnesses};

/// Everything the agent knows.
pub(crate) struct Agent {
    node: String,
    root: PodRoot,
    unknown_pods: UnknownPods,
    datapath: Datapath,
    source: Objects,
    source_state: Changes,
    /// What is written to the API server, once that was reached, and the number of the client that it uses.
    cluster: Option<(Cluster, u64)>,
    /// Something that the status of policies is counted from has changed since that was handed over.
    uncounted: bool,
    index: Index,
    scan: Scan,
    /// Why the pod root could not be read at the last look.
    scan_error: Option<String>,
    /// Where else pods run, which nothing judges.
    elsewhere: Option<String>,
    /// The pod root was found, not named: then it is looked whether it still is the only one.
    searches: bool,
    /// What runtimes said of containers.
    names: names::Names,
    /// The node's own addresses.
    own: addresses::Own,
    /// Which hooks judge each pod.
    coverage: Coverage,
    /// Pod objects that went while their cgroup, named by the UID, still stands.
    lingering: Vec<(String, ObjectRef)>,
    /// What services led to a moment ago.
    former: former::Former,
    /// Addresses that were pods' a moment ago.
    gone: gone::Gone,
    /// The source was not read whole yet.
    held: bool,
    /// What the first complete look at the objects brought is held tightly.
    packed: bool,
    /// The maps were another agent's when this one started.
    adopted: bool,
    /// The pods that those locked down, by cgroup.
    left: BTreeMap<u64, Endpoint>,
    compiler: Compiler,
    /// What the events since the last compile may have changed.
    changed: Dirty,
    /// The log knows that this enforces, or that it waits for the source.
    announced: bool,
    waiting: bool,
    /// There is a reason to compile and apply.
    dirty: bool,
    /// The maps hold what was compiled but for these keys; `None` where that is not known.
    behind: Option<Keys>,
    /// Something failed in the last apply; tried again at the next tick.
    retry: bool,
    /// The last apply's failures, and what else stands in the way.
    errors: Vec<String>,
    /// Something was applied since open connections were last looked at.
    applied: bool,
    /// What pods may reach, or who an address is, has changed since connections to services were last looked at.
    judged_anew: bool,
    /// Why they cannot be looked at.
    untranslated: Option<String>,
    /// Connections that were ended, where that was asked for.
    severed: Option<u64>,
    /// Why connections cannot be ended.
    severs_not: Option<String>,
    /// How long things take.
    meters: Arc<Meters>,
    /// Denials by policy.
    tally: Tally,
}

impl Agent {
    pub(crate) fn new(
        node: String,
        root: PodRoot,
        unknown_pods: UnknownPods,
        datapath: Datapath,
        source: Objects,
    ) -> Self {
        let adopted = datapath.observed().config.abi == ABI;
        let before = datapath.observed().endpoints.iter();
        let enforced = |one: &Endpoint| one.state != STATE_UNSELECTED && one.flags & FLAG_AUDIT == 0;
        let left = before.filter(|(_, endpoint)| adopted && enforced(endpoint));
        let left = left.map(|(cgroup, endpoint)| (*cgroup, *endpoint)).collect();
        Self {
            root,
            unknown_pods,
            datapath,
            source,
            source_state: Changes::default(),
            cluster: None,
            uncounted: true,
            index: Index::of_node(&node),
            node,
            scan: Scan::default(),
            scan_error: None,
            elsewhere: None,
            searches: false,
            names: names::Names::default(),
            own: addresses::Own::default(),
            coverage: Coverage::default(),
            lingering: Vec::new(),
            former: former::Former::default(),
            gone: gone::Gone::default(),
            held: true,
            packed: false,
            adopted,
            left,
            compiler: Compiler::default(),
            changed: Dirty::default(),
            announced: false,
            waiting: false,
            dirty: true,
            behind: None,
            retry: false,
            errors: Vec::new(),
            applied: false,
            judged_anew: true,
            untranslated: None,
            severed: None,
            severs_not: None,
            meters: Arc::default(),
            tally: Tally::default(),
        }
    }

    /// Records what it measures here from now on.
    pub(crate) fn measure_by(&mut self, meters: Arc<Meters>) {
        self.meters = meters;
    }

    /// Does without the hook on the veths.
    pub(crate) fn leave_veths_alone(&mut self) {
        self.coverage.leave_veths_alone();
    }

    /// Looks for pods elsewhere from now on: nobody has said where they are.
    pub(crate) fn search_for_pods(&mut self) {
        self.searches = true;
    }

    pub(crate) fn look_at_pods(&mut self, watcher: &mut Watcher) {
        if !self.root.stands()
            && let Ok(root) = self.find_again()
        {
            tracing::warn!(pod_root = %root.path.display(), "the pod root was made anew; attaching to it");
            watcher.forget();
            self.root = root;
            self.dirty = true;
        }
        match self.root.scan() {
            Ok(scan) => {
                watcher.watch(&scan.directories);
                let recovered = self.scan_error.take().is_some();
                self.dirty |= recovered || scan != self.scan;
                self.scan = scan;
                self.let_go();
            }
            Err(error) => {
                tracing::error!(pod_root = %self.root.path.display(), %error, "cannot read the pod root");
                self.scan_error =
                    Some(format!("cannot read the pod root {}: {error}", self.root.path.display()));
            }
        }
    }

    /// The pod root after it was removed: made anew in its place, or where kubelet makes it now.
    fn find_again(&self) -> Result<PodRoot, Missing> {
        let same = PodRoot::find(Some(&self.root.path));
        if self.searches { same.or_else(|_| PodRoot::find(None)) } else { same }
    }

    /// Looks whether pods run outside of the pod root.
    fn look_elsewhere(&mut self) {
        let found = if self.searches { self.root.elsewhere() } else { Vec::new() };
        let found: Vec<_> = found.iter().map(|path| path.display().to_string()).collect();
        let now = (!found.is_empty()).then(|| {
            format!(
                "pods run outside of {}, and nothing judges them: {}; name kubelet's pod root with --pod-root, \
                 and give kubelet and the runtime the same cgroup driver",
                self.root.path.display(),
                found.join(", ")
            )
        });
        if now != self.elsewhere {
            if let Some(error) = &now {
                tracing::error!("{error}");
            }
            self.elsewhere = now;
        }
    }

    /// Looks whether what was done still stands, and has what failed done again.
    pub(crate) fn check(&mut self) {
        self.look_elsewhere();
        self.dirty |= self.retry || self.has_new_static();
        if let Err(error) = self.datapath.check() {
            tracing::error!("{error:#}; attaching again");
            self.dirty = true;
        }
    }

    /// Takes the next turn in letting go of what was seen of flows.
    pub(crate) fn witnesses(&mut self, witnesses: &mut Witnesses, turn: Turn<usize>) {
        match turn {
            Turn::Look if self.datapath.attached().is_none() => {}
            Turn::Look => match self.datapath.witnesses() {
                Ok(map) => {
                    let now = monotonic();
                    let cgroups = self.scan.pods.iter().map(|pod| pod.cgroup).collect();
                    let gone = self.gone.since(now, |addr| self.index.owned(addr));
                    witnesses.sweep(map, Here { cgroups, gone }, now);
                }
                Err(error) => tracing::error!("{error:#}"),
            },
            Turn::Done(number) => self.datapath.count_witnesses(number),
            Turn::Failed(error) => tracing::error!("{error}"),
        }
    }

    /// Whether nothing is done yet: there is nothing of ours in the kernel, and what is allowed is not known.
    pub(crate) fn waits_for_source(&self) -> bool {
        self.held && !self.adopted && self.source.comes_first()
    }

    /// Lets the pod pass that this runs in, where the maps are another agent's and do not know it: they rule until everything was read, and
    /// what unknown pods may do need not be enough to reach the API server (it has moved, or they may do nothing).
    pub(crate) fn let_ourselves_pass(&mut self) {
        let known = &self.datapath.observed().endpoints;
        let Some(own) = self.scan.pods.iter().find(|pod| pod.holds(std::process::id())) else { return };
        if !self.adopted || known.contains_key(&own.cgroup) {
            return;
        }
        // Whoever looks at the node's devices is in its network.
        let endpoint = Endpoint { state: STATE_UNSELECTED, flags: FLAG_HOST_NETWORK, ..Endpoint::default() };
        let plan = Plan { steps: vec![Step::PutEndpoint(own.cgroup, endpoint)] };
        for error in self.datapath.apply(&plan).err().unwrap_or_default() {
            tracing::error!("the agent's own pod stays unknown: {error}");
        }
    }

    /// Brings the kernel to the desired state; tells whether there was anything to do.
    pub(crate) fn enforce(&mut self) -> bool {
        self.meters.turned();
        if self.waits_for_source() {
            return false;
        }
        if !std::mem::take(&mut self.dirty) {
            self.meters.in_step(!self.retry && !self.held);
            return false;
        }
        let pods = self.local_pods();
        let node = Node {
            name: &self.node,
            pod_root_level: self.root.level,
            unknown_pods: self.unknown_pods,
            incomplete: self.held,
            pods: &pods,
        };
        let told = self.compiler.compiled().diagnostics.clone();
        let keys = self.compiler.update(&self.index, &node, std::mem::take(&mut self.changed));
        let compiled = self.compiler.compiled();
        for diagnostic in compiled.diagnostics.iter().filter(|one| told.binary_search(one).is_err()) {
            tracing::warn!("{diagnostic}");
        }
        self.errors.clear();
        // What another agent had read may be more than what we could: its maps rule until everything was read.
        if self.held && self.adopted {
            self.behind = None;
        } else {
            let observed = self.datapath.observed();
            let plan = match self.behind.take() {
                Some(mut behind) => {
                    behind |= keys;
                    plan::diff_at(&compiled.desired, observed, behind)
                }
                None => plan::diff(&compiled.desired, observed),
            };
            self.apply(&plan);
        }
        self.attach();
        // Of another version, and perhaps under policies that could not be read yet: until then either one denies.
        if !self.held && self.datapath.attached().is_some() {
            self.datapath.retire_other_versions();
        }
        if !self.held && !std::mem::replace(&mut self.packed, true) {
            // Everything came in order, object by object, which leaves maps half empty.
            self.index.pack();
            self.compiler.pack();
            self.datapath.pack();
        }
        self.retry = !self.errors.is_empty();
        self.meters.in_step(!self.retry && !self.held);
        true
    }

    fn apply(&mut self, plan: &Plan) {
        // Rows are never changed, and what is new has no connections yet.
        let observed = self.datapath.observed();
        let judges = |step: &Step| match step {
            Step::PutEndpoint(cgroup, _) => observed.endpoints.contains_key(cgroup),
            Step::PutAddress(addr, _) => observed.addresses.contains_key(addr),
            Step::PutCidr(..) | Step::DeleteCidr(..) => true,
            _ => false,
        };
        self.judged_anew |= plan.steps.iter().any(judges);
        let begun = Instant::now();
        let result = self.datapath.apply(plan);
        if !plan.steps.is_empty() {
            if result.is_ok() {
                self.meters.applied(begun);
            }
            let revision = self.datapath.observed().config.revision;
            tracing::info!(steps = plan.steps.len(), revision, "applied");
        }
        // What failed in part denies more than was asked for: that ends nobody's connection.
        self.applied |= result.is_ok() && !plan.steps.is_empty();
        // After a failure nobody knows but the maps: they are compared as a whole the next time.
        self.behind = result.is_ok().then(Keys::default);
        for error in result.err().unwrap_or_default() {
            tracing::error!("{error}");
            self.errors.push(error.to_string());
        }
    }

    /// Attaches where the hook is not attached yet. A first plan that failed half-way does not keep it from being attached:
    /// what the maps lack is denied.
    fn attach(&mut self) {
        if self.datapath.attached().is_some_and(|attached| attached.root == self.root) {
            return;
        }
        self.coverage.classify(&self.scan, &mut self.datapath);
        if let Err(error) = self.datapath.attach(&self.root) {
            tracing::error!("{error:#}");
            self.errors.push(format!("{error:#}"));
        }
    }

    /// Brings the veth hook to pods and devices that do not have it yet; tells whether there was anything to do.
    pub(crate) fn cover(&mut self, look: Look) -> bool {
        self.datapath.attached().is_some() && self.coverage.update(&self.scan, &mut self.datapath, look)
    }

    /// Whether pods are to be covered whose processes are not there yet.
    pub(crate) fn waits_for_processes(&self) -> bool {
        self.coverage.waits()
    }
}
