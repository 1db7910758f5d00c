//! Audit: evaluated alike, let through with an event.

mod common;

use common::{World, egp, json, labels, lock, mesh, np, pod, service, slice};
use egress_common::decide::NO_RULE;
use egress_common::{Action, Reason};
use egress_policy::compile::PodState;

fn annotated(mut object: serde_json::Value, value: &str) -> serde_json::Value {
    object["metadata"]["annotations"] = json!({"egress-enforcer.io/enforcement": value});
    object
}

fn action(world: &World, to: &str) -> Action {
    world.action("app/web", to, "tcp/443")
}

#[test]
fn an_auditing_lock_down_lets_pass_what_it_would_deny() {
    let world = mesh().with(lock(json!({"enforcement": "Audit"})));
    let verdict = world.verdict("app/web", "1.1.1.1", "tcp/443");
    assert_eq!((verdict.action, verdict.reason, verdict.rule), (Action::Audit, Reason::NotAllowed, NO_RULE));
    assert_eq!(action(&world, "10.0.2.1"), Action::Allow);
    assert_eq!(world.state("app/web"), PodState::Isolated { audit: true });
    let enforced = mesh().with(lock(json!({"enforcement": "Enforce"})));
    assert_eq!(action(&enforced, "1.1.1.1"), Action::Deny);
}

#[test]
fn one_enforcing_policy_enforces_and_the_union_stays() {
    let audit = lock(json!({"enforcement": "Audit", "allow": {"to": [{"cidr": "1.1.1.0/24"}]}}));
    let enforce = egp("enforce", json!({"subjects": [{"pods": labels("app", "web")}]}));
    let world = mesh().with(audit).with(enforce);
    assert_eq!(action(&world, "2.2.2.2"), Action::Deny);
    assert_eq!(action(&world, "1.1.1.1"), Action::Allow);
    assert_eq!(world.action("app/db", "2.2.2.2", "tcp/443"), Action::Audit, "under the auditing one alone");
}

#[test]
fn a_network_policy_audits_by_its_own_or_its_namespaces_annotation() {
    let deny = || np("app/deny", json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    let space = |value| annotated(common::namespace("app", json!({"mesh": "on"})), value);
    assert_eq!(action(&mesh().with(deny()), "1.1.1.1"), Action::Deny);
    assert_eq!(action(&mesh().with(annotated(deny(), "Audit")), "1.1.1.1"), Action::Audit);
    assert_eq!(action(&mesh().with(deny()).with(space("Audit")), "1.1.1.1"), Action::Audit);
    assert_eq!(action(&mesh().with(deny()).with(space("Enforce")), "1.1.1.1"), Action::Deny);
    assert_eq!(
        action(&mesh().with(annotated(deny(), "Enforce")).with(space("Audit")), "1.1.1.1"),
        Action::Deny
    );
    let typo = mesh().with(annotated(deny(), "audit"));
    assert_eq!(action(&typo, "1.1.1.1"), Action::Deny);
    assert!(typo.diagnostics().contains("is not Audit or Enforce"));
}

#[test]
fn tiers_audit_each_for_itself() {
    let to_free =
        json!([{"to": [{"ipBlock": {"cidr": "10.0.1.3/32"}}, {"ipBlock": {"cidr": "1.1.1.1/32"}}]}]);
    let network = || np("app/p", json!({"podSelector": {}, "egress": to_free}));
    // The lock-down enforces, the network policy audits.
    let world = mesh().with(lock(json!({}))).with(annotated(network(), "Audit"));
    assert_eq!(action(&world, "10.0.1.3"), Action::Allow, "both allow");
    assert_eq!(action(&world, "10.0.1.2"), Action::Audit, "the network policy alone denies");
    assert_eq!(action(&world, "1.1.1.1"), Action::Deny, "the lock-down denies");
    assert_eq!(action(&world, "2.2.2.2"), Action::Deny, "both deny");
    assert_eq!(world.rule("app/web", "10.0.1.2", "tcp/443"), "NetworkPolicy app/p no rule allows it");
    assert_eq!(world.action("app/web", "10.96.0.10", "udp/53"), Action::Audit, "by a service");
    assert_eq!(world.action("app/web", "10.0.1.2", "icmp"), Action::Audit);
    assert_eq!(world.state("app/web"), PodState::Isolated { audit: false });
    // And the other way round.
    let world = mesh().with(lock(json!({"enforcement": "Audit"}))).with(network());
    assert_eq!(action(&world, "10.0.1.3"), Action::Allow);
    assert_eq!(action(&world, "10.0.1.2"), Action::Deny);
    assert_eq!(action(&world, "1.1.1.1"), Action::Audit);
    // Both audit.
    let world = mesh().with(lock(json!({"enforcement": "Audit"}))).with(annotated(network(), "Audit"));
    for (to, expected) in
        [("10.0.1.3", Action::Allow), ("10.0.1.2", Action::Audit), ("2.2.2.2", Action::Audit)]
    {
        assert_eq!(action(&world, to), expected, "{to}");
    }
}

#[test]
fn both_tiers_must_allow() {
    let world = mesh()
        .with(lock(json!({})))
        .with(np("app/p", json!({"podSelector": {}, "egress": [{"ports": [{"port": 443}]}]})));
    assert!(world.allows("app/web", "10.0.1.3", "tcp/443"));
    assert!(!world.allows("app/web", "10.0.1.3", "tcp/80"));
    assert!(!world.allows("app/web", "1.1.1.1", "tcp/443"));
    assert!(!world.allows("app/web", "10.0.1.3", "icmp"));
}

#[test]
fn a_gateways_destinations_audit_with_their_policy() {
    let policy = |enforcement: &str| {
        let mut policy = lock(json!({ "enforcement": enforcement }));
        policy["spec"]["gateways"][0]["destinations"] = json!([]);
        mesh().with(policy).action("gw/gate", "1.1.1.1", "tcp/443")
    };
    assert_eq!(policy("Audit"), Action::Audit);
    assert_eq!(policy("Enforce"), Action::Deny);
}

#[test]
fn a_service_audits_where_one_backend_does_in_whatever_order() {
    // The network policy audits and means the pod at one of the addresses only.
    let meant = |label: &str| {
        let rule = json!([{"to": [{"podSelector": labels("app", label)}]}]);
        annotated(np("app/p", json!({"podSelector": labels("app", "web"), "egress": rule})), "Audit")
    };
    let port = json!([{"name": "x", "port": 80}]);
    let world = mesh()
        .with(lock(json!({})))
        .with(pod("app/cache", "10.0.1.8", json!({"app": "cache"})))
        .with(service("app/s", "10.96.5.5", port.clone()))
        .with(slice("app/s", &["10.0.1.2", "10.0.1.8"], port));
    for label in ["db", "cache"] {
        assert_eq!(action(&world.with(meant(label)), "10.96.5.5"), Action::Deny, "{label}: on another port");
        assert_eq!(
            world.with(meant(label)).action("app/web", "10.96.5.5", "tcp/80"),
            Action::Audit,
            "{label}"
        );
    }
    let both = annotated(
        np("app/p", json!({"podSelector": labels("app", "web"), "egress": [{"to": [{"podSelector": {}}]}]})),
        "Audit",
    );
    assert_eq!(world.with(both).action("app/web", "10.96.5.5", "tcp/80"), Action::Allow);
}
