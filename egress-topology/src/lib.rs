//! Real pods without Kubernetes: network namespaces, veths, a bridge, service addresses, the sidecar's redirect, and
//! kubelet's cgroup tree, shared by the demonstration, the privileged tests and the benchmarks.
//!
//! Invariants:
//! - Nothing outlives its owner. Namespaces are held by file descriptors only, processes are killed with their parent
//!   (`PR_SET_PDEATHSIG`), and both vanish on any death, `kill -9` included. Cgroups are removed on drop; what a killed
//!   owner leaves is empty and carries its process id and start time, so [`sweep`] can tell it from a living tree.
//! - No traffic leaves the namespaces: nothing here is connected to the machine's own network.
//! - Only processes below our own cgroup tree are ever killed.
//!
//! Everything needs root.

mod addresses;
mod agent;
pub mod bookinfo;
mod capabilities;
mod cgroup;
mod container;
mod exec;
pub mod kubernetes;
mod mounts;
mod netns;
mod nft;
mod pod;
mod process;
mod random;
mod topology;

pub use addresses::{
    BRIDGE_V4, BRIDGE_V6, NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, POD_CIDR_V4, POD_CIDR_V6, pod_v4, pod_v6,
};
pub use agent::Agent;
pub use capabilities::Capabilities;
pub use cgroup::{CgroupDriver, CgroupRoot, PodRoot, Qos, cgroup_id, sweep};
pub use container::{Container, ContainerKind};
pub use exec::Exec;
pub use mounts::{MountPoint, mount_bpffs, mount_cgroup2, private_mount_namespace};
pub use netns::Netns;
pub use nft::{Backend, Protocol, Service, ServicePort};
pub use pod::{Pod, PodSpec};
pub use process::{Finished, Process};
pub use topology::{Options, Topology};
