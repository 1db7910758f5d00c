//! Which connections to services go on to what the policy denies. The hooks see the service's address, which is judged by what is behind
//! it now; a connection stays with what was behind it when it began.
//!
//! Invariant: what a service led to is let go of only after connections to it that are denied were forgotten by the node's netfilter. Where
//! that cannot be seen, it is let go of all the same. Tested by `tests/former.rs`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egress_policy::explain::Target;
use egress_policy::standing::Standing;

use super::Agent;
use crate::beside::Turn;
use crate::network::Translated;
use crate::translations::{Seen, Translations};

impl Agent {
    /// Whether connections to services are to be looked at: policies have changed, or what a service led to is to be let go of.
    pub(crate) fn wants_translations(&mut self) -> bool {
        let enforces = self.datapath.attached().is_some() && !self.held;
        enforces && (std::mem::take(&mut self.judged_anew) || self.former.is_due(std::time::Instant::now()))
    }

    /// Takes the next turn in looking at them.
    pub(crate) fn translations(&mut self, translations: &mut Translations, turn: Turn<Seen>) {
        match turn {
            // What failed in part closes pods that it should not.
            Turn::Look | Turn::Done(Seen::Found(_)) if self.behind.is_none() => {
                self.judged_anew = true;
                return;
            }
            Turn::Look => {
                let senders = self.senders();
                if !senders.is_empty() {
                    return translations.look(senders.into_keys().collect());
                }
            }
            Turn::Done(Seen::Found(found)) => {
                let senders = self.senders();
                let standing = Standing::new(self.datapath.observed());
                let denied = |one: &Translated| {
                    let to = Target {
                        address: one.backend.ip(),
                        protocol: one.protocol,
                        port: one.backend.port(),
                        behind: true,
                    };
                    let cgroup = senders.get(&one.from)?;
                    standing.denied_to_all(*cgroup, one.from, &to)
                };
                // Many are alike, and a service may have thousands of backends.
                let mut behind = BTreeMap::new();
                let mut is_judged_behind = |one: &Translated| {
                    let (port, backend) = ((one.protocol, one.to.port()), one.backend.ip());
                    let asked = || self.index.is_judged_behind(one.to.ip(), port, backend);
                    *behind.entry((one.protocol, one.to, backend)).or_insert_with(asked)
                };
                let mut verdicts = BTreeMap::new();
                let mut doomed = Vec::new();
                for one in found.into_iter().filter(|one| is_judged_behind(one)) {
                    let Translated { from, to, backend, protocol, .. } = &one;
                    let is_denied = *verdicts.entry((*from, *to, *backend, *protocol)).or_insert_with(|| {
                        let Some(reason) = denied(&one) else { return false };
                        let reason = reason.name();
                        tracing::info!(%from, %to, %backend, reason, "what went to a service goes on to what is denied now");
                        true
                    });
                    if is_denied {
                        doomed.push(one);
                    }
                }
                if !doomed.is_empty() {
                    return translations.forget(doomed);
                }
            }
            Turn::Done(Seen::Forgot(number)) => {
                self.untranslated = None;
                tracing::info!(number, "ended connections to services that led to what is denied");
            }
            Turn::Failed(error) => {
                if self.untranslated.as_ref() != Some(&error) {
                    tracing::warn!("{error}");
                }
                self.untranslated = Some(error);
            }
        }
        if let Some(begun) = translations.begun() {
            self.forget_former(begun);
        }
    }

    /// The pods that a policy selects, by their own addresses.
    fn senders(&self) -> BTreeMap<IpAddr, u64> {
        let standing = Standing::new(self.datapath.observed());
        let endpoints = self.compiler.compiled().endpoints.iter();
        // What the node's own address sends is not a pod's alone.
        let judged = endpoints.filter(|(cgroup, info)| !info.host_network && standing.is_judged(**cgroup));
        judged.flat_map(|(cgroup, info)| info.addresses.iter().map(|ip| (*ip, *cgroup))).collect()
    }
}
