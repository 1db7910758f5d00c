//! The command lines of what judges by objects: `explain`, `simulate`, `plan`, `lint`.
//!
//! Invariant: as of all commands (see [`super`]).

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use egress_policy::compile::UnknownPods;
use egress_policy::explain::Target;
use egress_policy::lint::Check;
use serde::{Deserialize, Serialize};

use super::{ReadArgs, SourceArgs};
use crate::offline::{self, Sender};
use crate::source::Source;

/// Which objects are judged from.
#[derive(Clone, Debug, Args)]
pub struct JudgedArgs {
    /// Where the objects are: `kube`, the API server of a cluster; `file:DIR`, the files in a directory; `file:FILE`, or `file:-` for
    /// standard input, as of `helm template`; when absent, those of the running agent.
    #[arg(long, env = "EGRESS_SOURCE", value_name = "SOURCE")]
    pub source: Option<Source>,
    /// How the API server is reached, for `--source kube`; found by itself when absent: KUBECONFIG, ~/.kube/config, the
    /// ServiceAccount of the pod.
    #[arg(long, env = "EGRESS_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

impl JudgedArgs {
    /// The source, where one is named.
    #[must_use]
    pub fn named(&self) -> Option<SourceArgs> {
        let source = self.source.clone()?;
        Some(SourceArgs { source, kubeconfig: self.kubeconfig.clone() })
    }
}

/// Arguments of `explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// The sender: NS/POD or NS/POD/CONTAINER; without a container, one that is no proxy of a lock.
    #[arg(long, env = "EGRESS_FROM", value_name = "NS/POD[/CONTAINER]")]
    pub from: Sender,
    /// The destination: ADDR:PORT/PROTO, or ADDR/ICMP.
    #[arg(long, env = "EGRESS_TO", value_name = "ADDR:PORT/PROTO", value_parser = offline::target)]
    pub to: Target,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub source: JudgedArgs,
    /// What pods may send that the objects do not have; with --source, else as the agent was told.
    #[arg(long, env = "EGRESS_UNKNOWN_PODS", value_enum, default_value_t = Unknown::DenyOutside)]
    pub unknown_pods: Unknown,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub read: ReadArgs,
}

/// Arguments of `simulate`.
#[derive(Clone, Debug, Args)]
pub struct SimulateArgs {
    /// The flows: CSV with the header `from,to,port,protocol`, or JSON lines with those keys, or the agent's flow log;
    /// `-` for standard input.
    /// `from` is NS/POD or NS/POD/CONTAINER; `to` is an address, NS/POD or svc:NS/NAME. Of several addresses of a pod or a service
    /// the line is about the one to which least passes.
    #[arg(long, env = "EGRESS_FLOWS", value_name = "FILE")]
    pub flows: PathBuf,
    /// A file of objects that are not applied yet: prints the flows whose verdict would change.
    #[arg(long, env = "EGRESS_WITH", value_name = "FILE")]
    pub with: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub source: JudgedArgs,
    /// What pods may send that the objects do not have; with --source, else as the agent was told.
    #[arg(long, env = "EGRESS_UNKNOWN_PODS", value_enum, default_value_t = Unknown::DenyOutside)]
    pub unknown_pods: Unknown,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub read: ReadArgs,
}

/// Arguments of `plan`.
#[derive(Clone, Debug, Args)]
#[command(group = clap::ArgGroup::new("of-objects").args(["source"]).requires("node_name"))]
pub struct PlanArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub source: JudgedArgs,
    /// The node, with --source; its pods are numbered from 1 by name, in place of their cgroups.
    #[arg(long, env = "EGRESS_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// What pods may send that the agent does not know; with --source, else as it was told.
    #[arg(long, env = "EGRESS_UNKNOWN_PODS", value_enum, default_value_t = Unknown::DenyOutside)]
    pub unknown_pods: Unknown,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub read: ReadArgs,
}

/// Arguments of `lint`.
#[derive(Clone, Debug, Args)]
pub struct LintArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub asked: Asked,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub source: JudgedArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub read: ReadArgs,
}

/// Which findings are asked for; others are neither told nor make `lint` fail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Args)]
pub struct Asked {
    /// Leave these checks out.
    #[arg(long, env = "EGRESS_SKIP", value_name = "CHECK", value_delimiter = ',', value_parser = PossibleValuesParser::new(Check::ALL.map(Check::name)), hide_possible_values = true)]
    pub skip: Vec<String>,
    /// Leave warnings out.
    #[arg(long, env = "EGRESS_ERRORS_ONLY", value_parser = clap::builder::FalseyValueParser::new())]
    pub errors_only: bool,
}

/// What unknown pods may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unknown {
    /// Nothing but loopback.
    Deny,
    /// Pods and services of the cluster, its DNS and its API server; not gateways.
    DenyOutside,
    /// Everything.
    Allow,
}

impl From<Unknown> for UnknownPods {
    fn from(unknown: Unknown) -> Self {
        match unknown {
            Unknown::Deny => Self::Deny,
            Unknown::DenyOutside => Self::DenyOutside,
            Unknown::Allow => Self::Allow,
        }
    }
}
