//! What compiling and following events costs, by the size of the cluster; run by `cargo xtask bench policy`.
//!
//! An event is measured from the index to the steps of the plan, and with taking these over into what is observed. What
//! the index holds per pod is printed first: `memory PODS of WHAT BYTES`.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a benchmark fails by panicking"
)]

mod cluster;

use std::alloc::System;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use cap::Cap;
use cluster::{
    Cluster, NODE, cluster, labelled_policy, lock_down, network_policy, pod, pods_alone, slice, wide_policy,
};
use criterion::{BatchSize, BenchmarkId, Criterion};
use egress_policy::compile::{Compiler, Node, UnknownPods};
use egress_policy::index::{Dirty, Event};
use egress_policy::object::Object;
use egress_policy::plan::{State, diff, diff_at};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];

/// A compiler that has seen a cluster, with maps that hold what it wants.
struct Followed {
    cluster: Cluster,
    compiler: Compiler,
    observed: State,
}

fn node(cluster: &Cluster) -> Node<'_> {
    Node {
        name: NODE,
        pod_root_level: 2,
        unknown_pods: UnknownPods::DenyOutside,
        incomplete: false,
        pods: &cluster.local,
    }
}

impl Followed {
    fn new(cluster: Cluster) -> Self {
        let mut compiler = Compiler::default();
        compiler.update(&cluster.index, &node(&cluster), Dirty::default());
        let mut observed = State::default();
        for step in diff(&compiler.compiled().desired, &observed).steps {
            observed.apply(&step);
        }
        Self { cluster, compiler, observed }
    }

    fn follow(&mut self, object: Object) -> usize {
        let dirty = self.cluster.index.apply(Event::Upsert(object));
        let keys = self.compiler.update(&self.cluster.index, &node(&self.cluster), dirty);
        let plan = diff_at(&self.compiler.compiled().desired, &self.observed, keys);
        plan.steps.iter().for_each(|step| self.observed.apply(step));
        plan.steps.len()
    }
}

/// A pod, with its own labels and with those of another application.
fn moved(number: usize) -> [Object; 2] {
    let (own, other) = (pod(number, "a"), pod(number + 20, "a"));
    let moved = match (own.clone(), other) {
        (Object::Pod(mut own), Object::Pod(other)) => {
            Arc::make_mut(&mut own.template).labels = other.labels.clone();
            Object::Pod(own)
        }
        other => panic!("{other:?}"),
    };
    [own, moved]
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for size in SIZES {
        let before = ALLOCATOR.allocated();
        let pods = pods_alone(size);
        println!("memory {size} of pods alone {}", (ALLOCATOR.allocated() - before) / size);
        drop(pods);
        let before = ALLOCATOR.allocated();
        let mut cluster = cluster(size);
        cluster.index.pack();
        println!("memory {size} of all objects {}", (ALLOCATOR.allocated() - before) / size);
        let before = ALLOCATOR.allocated();
        let mut followed = Followed::new(cluster);
        followed.compiler.pack();
        followed.observed.pack();
        println!(
            "memory {size} compiled, with what the maps hold {}",
            (ALLOCATOR.allocated() - before) / size
        );
        let desired = &followed.compiler.compiled().desired;
        println!(
            "entries {size} addresses {} rows {} endpoints {}",
            desired.addresses.len(),
            desired.rows.len(),
            desired.endpoints.len()
        );
        let mut group = criterion.benchmark_group("policy");
        group.bench_function(BenchmarkId::new("compile from nothing", size), |bench| {
            bench.iter_batched_ref(
                Compiler::default,
                |compiler| {
                    black_box(compiler.update(
                        &followed.cluster.index,
                        &node(&followed.cluster),
                        Dirty::default(),
                    ))
                },
                BatchSize::PerIteration,
            );
        });
        // Both forms of an object, one after the other.
        let mut events = |name: &str, forms: [Object; 2]| {
            let steps: Vec<usize> = forms.iter().map(|form| followed.follow(form.clone())).collect();
            println!("steps {size} {name}: {steps:?}");
            let mut next = 0;
            group.bench_function(BenchmarkId::new(name, size), |bench| {
                bench.iter_batched(
                    || {
                        next = 1 - next;
                        forms[1 - next].clone()
                    },
                    |object| black_box(followed.follow(object)),
                    BatchSize::PerIteration,
                );
            });
        };
        let (far, last) = (size / 2 + 7, size / 100 - 1);
        events("pod event that changes nothing", [pod(far, "a"), pod(far, "a")]);
        events("pod event, label that nobody asks for", [pod(far, "a"), pod(far, "b")]);
        events("pod event, moved to another application", moved(far));
        events("local pod event, moved to another application", moved(0));
        events("local pod event, label that nobody asks for", [pod(0, "a"), pod(0, "b")]);
        events("service's backend not ready", [slice(0, usize::MAX), slice(0, 3)]);
        events(
            "network policy of local pods changes",
            [network_policy(0, 0, 8080), network_policy(0, 0, 9090)],
        );
        events(
            "network policy of other pods changes",
            [network_policy(last, 1, 8080), network_policy(last, 1, 9090)],
        );
        events(
            "network policy comes to lead to every address, or goes",
            [wide_policy("0.0.0.0/0", &["198.18.0.0/16"]), wide_policy("198.18.0.0/15", &["198.18.0.0/16"])],
        );
        // Every pod's address is in it.
        events(
            "network policy comes to lead to half of all addresses, or goes",
            [wide_policy("0.0.0.0/1", &[]), wide_policy("198.18.0.0/15", &["198.18.0.0/16"])],
        );
        // Nobody else asks for this label, which every pod has.
        events(
            "network policy comes to lead to all pods by a label, or goes",
            [labelled_policy("app"), labelled_policy("nothing")],
        );
        events("lock-down changes", [lock_down(0, 5432), lock_down(0, 5433)]);
        group.finish();
        assert!(followed.cluster.namespaces * 100 == followed.cluster.pods);
    }
}
