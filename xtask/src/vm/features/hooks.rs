//! Hooks, maps and helpers: what the kernel accepts.

use std::fs::File;
use std::os::fd::OwnedFd;

use aya::Btf;
use aya::programs::ProgramType;
use aya::sys::is_helper_supported;
use aya_obj::btf::BtfKind;
use aya_obj::generated::bpf_attach_type::{self, *};
use aya_obj::generated::bpf_map_type::{self, *};
use aya_obj::generated::bpf_prog_type::{self, *};
use egress_topology::{CgroupRoot, Netns};

use super::Table;
use super::bpf::{self, MapKind, Target, Try};
use super::code::{self, Socket};

/// Links on a cgroup: program type and attach type.
const CGROUP_LINKS: [(&str, bpf_prog_type, bpf_attach_type); 10] = [
    ("cgroup_skb/egress", BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_EGRESS),
    ("cgroup_skb/ingress", BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_INGRESS),
    ("cgroup/connect4", BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT),
    ("cgroup/connect6", BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET6_CONNECT),
    ("cgroup/sendmsg4", BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_UDP4_SENDMSG),
    ("cgroup/sendmsg6", BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_UDP6_SENDMSG),
    ("cgroup/bind4", BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_BIND),
    ("cgroup/sock_create", BPF_PROG_TYPE_CGROUP_SOCK, BPF_CGROUP_INET_SOCK_CREATE),
    ("cgroup/sock_release", BPF_PROG_TYPE_CGROUP_SOCK, BPF_CGROUP_INET_SOCK_RELEASE),
    ("sock_ops", BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS),
];

/// Hooks that take links.
pub(crate) fn links(table: &mut Table<'_>) -> anyhow::Result<()> {
    let group = "links";
    let root = CgroupRoot::find_or_mount()?;
    let directory = root.path().join(format!("egress-features-{}", std::process::id()));
    let standing = Standing::new(directory)?;
    let cgroup = File::open(&standing.0)?;
    for (name, kind, attach) in CGROUP_LINKS {
        let made = bpf::program(kind, Some(attach), 0, &code::constant(1))
            .and_then(|program| bpf::link(&program, &Target::File(&cgroup), attach));
        table.tell(group, name, made.map(drop))?;
    }
    let netns = Netns::new("features")?;
    for (name, attach) in [("tcx/ingress", BPF_TCX_INGRESS), ("tcx/egress", BPF_TCX_EGRESS)] {
        let made = bpf::program(BPF_PROG_TYPE_SCHED_CLS, None, 0, &code::constant(0));
        // Interface 1 is `lo`.
        let made = made.and_then(|program| {
            let inside = netns.run(|| Ok(bpf::link(&program, &Target::Interface(1), attach)));
            inside.map_err(|error| error.to_string())?
        });
        table.tell(group, name, made.map(drop))?;
    }
    for name in ["tcp", "udp", "task"] {
        table.tell(group, &format!("iter/{name}"), iterator(name))?;
    }
    let loaded = function("bpf_iter_bpf_sk_storage_map").and_then(|id| {
        bpf::program(BPF_PROG_TYPE_TRACING, Some(BPF_TRACE_ITER), id, &code::constant(0)).map(drop)
    });
    table.tell(group, "iter/bpf_sk_storage_map (loads)", loaded)
}

/// A cgroup of our own, removed when dropped.
struct Standing(std::path::PathBuf);

impl Standing {
    fn new(path: std::path::PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_dir(&self.0);
    }
}

/// The number of a function in the kernel's type information.
fn function(name: &str) -> Try<u32> {
    let btf = Btf::from_sys_fs().map_err(|error| error.to_string())?;
    btf.id_by_type_name_kind(name, BtfKind::Func).map_err(|_| "no such function".to_owned())
}

fn iterator(name: &str) -> Try {
    let id = function(&format!("bpf_iter_{name}"))?;
    let program = bpf::program(BPF_PROG_TYPE_TRACING, Some(BPF_TRACE_ITER), id, &code::constant(0))?;
    bpf::link(&program, &Target::Nothing, BPF_TRACE_ITER).map(drop)
}

/// Kinds of maps, with the flags that we use.
pub(crate) fn maps(table: &mut Table<'_>) -> anyhow::Result<()> {
    const NO_PREALLOC: u32 = 1;
    const KINDS: [(&str, bpf_map_type, u32, u32, u32, u32); 7] = [
        ("hash", BPF_MAP_TYPE_HASH, 4, 8, 16, 0),
        ("hash, NO_PREALLOC", BPF_MAP_TYPE_HASH, 4, 8, 16, NO_PREALLOC),
        ("LPM trie (NO_PREALLOC)", BPF_MAP_TYPE_LPM_TRIE, 20, 8, 16, NO_PREALLOC),
        ("per-CPU array", BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 16, 0),
        ("LRU hash", BPF_MAP_TYPE_LRU_HASH, 4, 8, 16, 0),
        ("ring buffer", BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 16, 0),
        ("bloom filter", BPF_MAP_TYPE_BLOOM_FILTER, 0, 8, 16, 0),
    ];
    for (name, kind, key, value, entries, flags) in KINDS {
        let made = bpf::map(&MapKind { kind, key, value, entries, flags, types: None });
        table.tell("maps", name, made.map(drop))?;
    }
    for (name, kind) in
        [("socket storage", BPF_MAP_TYPE_SK_STORAGE), ("cgroup storage", BPF_MAP_TYPE_CGRP_STORAGE)]
    {
        table.tell("maps", name, storage_map(kind).map(drop))?;
    }
    Ok(())
}

/// A map of storage that hangs on what it belongs to.
pub(crate) fn storage_map(kind: bpf_map_type) -> Try<OwnedFd> {
    let types = bpf::types()?;
    bpf::map(&MapKind { kind, key: 4, value: 8, entries: 0, flags: 1, types: Some(&types) })
}

/// Helpers that some type of program may call.
pub(crate) fn helpers(table: &mut Table<'_>) -> anyhow::Result<()> {
    use ProgramType::{CgroupSkb, CgroupSockAddr, SchedClassifier, SockOps};
    use aya_obj::generated::bpf_func_id::*;
    let group = "helpers";
    let storages: [(&str, bpf_prog_type, Option<bpf_attach_type>, Socket); 5] = [
        ("cgroup_skb", BPF_PROG_TYPE_CGROUP_SKB, Some(BPF_CGROUP_INET_EGRESS), Socket::Packet),
        ("sched_cls", BPF_PROG_TYPE_SCHED_CLS, None, Socket::Packet),
        ("sock_ops", BPF_PROG_TYPE_SOCK_OPS, Some(BPF_CGROUP_SOCK_OPS), Socket::Operations),
        ("connect4", BPF_PROG_TYPE_CGROUP_SOCK_ADDR, Some(BPF_CGROUP_INET4_CONNECT), Socket::Address),
        ("sendmsg4", BPF_PROG_TYPE_CGROUP_SOCK_ADDR, Some(BPF_CGROUP_UDP4_SENDMSG), Socket::Address),
    ];
    for (name, kind, attach, socket) in storages {
        let loaded = storage_map(BPF_MAP_TYPE_SK_STORAGE)
            .and_then(|map| bpf::program(kind, attach, 0, &code::storage(socket, &map, true, None, 1)));
        table.tell(group, &format!("sk_storage_get, called in {name}"), loaded.map(drop))?;
    }
    let helpers = [
        ("skb_ancestor_cgroup_id", BPF_FUNC_skb_ancestor_cgroup_id, &[CgroupSkb, SchedClassifier][..]),
        ("sk_ancestor_cgroup_id", BPF_FUNC_sk_ancestor_cgroup_id, &[CgroupSkb, SchedClassifier]),
        ("get_current_ancestor_cgroup_id", BPF_FUNC_get_current_ancestor_cgroup_id, &[CgroupSockAddr]),
        ("get_current_cgroup_id", BPF_FUNC_get_current_cgroup_id, &[CgroupSockAddr, SockOps]),
        (
            "get_netns_cookie",
            BPF_FUNC_get_netns_cookie,
            &[CgroupSkb, SchedClassifier, CgroupSockAddr, SockOps],
        ),
        (
            "get_socket_cookie",
            BPF_FUNC_get_socket_cookie,
            &[CgroupSkb, SchedClassifier, CgroupSockAddr, SockOps],
        ),
        ("ringbuf_output", BPF_FUNC_ringbuf_output, &[CgroupSkb, SchedClassifier, CgroupSockAddr, SockOps]),
        ("ktime_get_coarse_ns", BPF_FUNC_ktime_get_coarse_ns, &[CgroupSkb, SchedClassifier]),
        ("loop", BPF_FUNC_loop, &[CgroupSkb, SchedClassifier]),
        ("cgrp_storage_get", BPF_FUNC_cgrp_storage_get, &[CgroupSkb, SchedClassifier]),
        ("redirect_peer", BPF_FUNC_redirect_peer, &[SchedClassifier]),
    ];
    for (name, helper, kinds) in helpers {
        for kind in kinds {
            let found = match is_helper_supported(*kind, helper) {
                Ok(true) => Ok(()),
                Ok(false) => Err("unknown there".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            let place = match kind {
                CgroupSkb => "cgroup_skb",
                SchedClassifier => "sched_cls",
                CgroupSockAddr => "connect4",
                _ => "sock_ops",
            };
            table.tell(group, &format!("{name} in {place}"), found)?;
        }
    }
    Ok(())
}
