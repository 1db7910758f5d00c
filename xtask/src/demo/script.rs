//! What is tried, in which state of the enforcer.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use egress_topology::bookinfo::{
    DNS_VIP, GATEWAY_PORT, GATEWAY_VIP, OUTSIDE_HTTP, OUTSIDE_NAME, OUTSIDE_UDP, REVIEWS_VIP,
};
use egress_topology::{Agent, Container, OUTSIDE_V4, OUTSIDE_V6};

use super::Stage;
use super::run::{self, Try};
use crate::tries::table::Line;
use crate::tries::{DENIED_MS, Expect, Outside, SIDECAR_USER, around};

/// Plays the whole life of the enforcer.
pub(crate) fn play(stage: &mut Stage, agent: &mut Agent, policy: &str) -> anyhow::Result<Vec<Line>> {
    let mut lines = run::run(stage, None, "no enforcer", &direct(stage, Expect::Works))?;

    agent.start(&stage.topology)?;
    let enforced = enforced(stage);
    lines.extend(run::run(stage, Some(agent), "enforced", &enforced)?);

    agent.kill()?;
    lines.extend(run::run(stage, None, "agent killed with -9", &enforced)?);

    agent.start(&stage.topology)?;
    lines.push(reported_after_restart(agent, &enforced)?);
    lines.extend(run::run(stage, Some(agent), "agent restarted", &enforced)?);
    let ours = ours(agent)?;

    let audit = policy.replace("enforcement: Enforce", "enforcement: Audit");
    anyhow::ensure!(audit != policy, "the policy of the guide does not enforce");
    stage.write_policy(&audit)?;
    agent.wait("the policy audits", |status| status["endpoints"]["Isolated (audit)"] == 2)?;
    lines.extend(run::run(stage, Some(agent), "policy audits", &direct(stage, Expect::Audited))?);

    fs::remove_file(stage.policy())?;
    agent.wait("no policy is left", |status| status["endpoints"]["Isolated (audit)"].is_null())?;
    lines.extend(run::run(stage, Some(agent), "policy removed", &direct(stage, Expect::Works))?);

    agent.stop()?;
    agent.cleanup(&stage.topology)?;
    lines.push(nothing_left(agent, &ours)?);
    lines.extend(run::run(stage, None, "cleaned up", &direct(stage, Expect::Works))?);
    Ok(lines)
}

/// Everything, as it has to be while the policy enforces.
fn enforced(stage: &Stage) -> Vec<Try> {
    let page = &stage.bookinfo.productpage;
    let reviews = &stage.bookinfo.reviews;
    let by_name = format!("http://{OUTSIDE_NAME}/");
    let gateway: IpAddr = GATEWAY_VIP.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let by_sidecar = |app: &Container, expect| {
        Try::get(app.clone(), "http by name, through sidecar and gateway", &by_name, expect)
            .words(&["--dns", DNS_VIP])
    };
    let get = |who: &Container, how, url: &str| Try::get(who.clone(), how, url, Expect::Works);
    let mut all = vec![by_sidecar(&page.app, Expect::Works), by_sidecar(&reviews.app, Expect::Refused(503))];
    all.extend(direct(stage, Expect::Denied));
    // By the application of the pod that may use it, by the one of the pod that may not, and by a container of the former.
    let to_gateway = |who: &Container, address: IpAddr, port: u16| {
        let words = ["tcp", &SocketAddr::new(address, port).to_string(), "--timeout-ms", DENIED_MS];
        Try::new(who.clone(), "gateway, as UID 1337", &words, Expect::Denied)
            .user(SIDECAR_USER)
            .to(address, "TCP", port)
    };
    let gateway_pod = stage.bookinfo.gateway.pod().v4().into();
    all.extend([
        to_gateway(&page.app, gateway, 443),
        to_gateway(&page.debug, gateway_pod, GATEWAY_PORT),
        to_gateway(&reviews.app, gateway, 443),
    ]);
    let vip = format!("http://{REVIEWS_VIP}:9080/");
    let pod = format!("http://{}:9080/", reviews.pod.v4());
    let pod6 = format!("http://[{}]:9080/", reviews.pod.v6());
    let outside = format!("http://{OUTSIDE_V4}/");
    let dns = ["resolve", OUTSIDE_NAME, "--dns", DNS_VIP];
    all.extend([
        get(&page.app, "in the cluster: reviews by service", &vip),
        get(&page.app, "in the cluster: reviews by pod address", &pod).user(SIDECAR_USER),
        get(&page.app, "in the cluster: reviews by IPv6", &pod6).user(SIDECAR_USER),
        Try::new(page.app.clone(), "in the cluster: DNS", &dns, Expect::Works),
        get(&stage.bookinfo.gateway, "outside, as the gateway", &outside),
        get(&stage.bookinfo.free, "outside, as a pod without policy", &outside),
    ]);
    all
}

/// Every way past the sidecar, for both applications.
fn direct(stage: &Stage, expect: Expect) -> Vec<Try> {
    let [http, debug] = OUTSIDE_HTTP;
    let outside = Outside { first: OUTSIDE_V4.into(), v6: OUTSIDE_V6.into(), http, debug, udp: OUTSIDE_UDP };
    let apps = [&stage.bookinfo.productpage, &stage.bookinfo.reviews];
    apps.into_iter().flat_map(|app| around(&app.app, &app.debug, &outside, expect)).collect()
}

/// What was denied while no agent ran waits in the kernel for the next one.
fn reported_after_restart(agent: &Agent, tries: &[Try]) -> anyhow::Result<Line> {
    let denied: Vec<_> = tries.iter().filter(|one| one.expect == Expect::Denied).collect();
    let start = Instant::now();
    let mut reported = 0;
    while reported < denied.len() && start.elapsed() < Duration::from_secs(3) {
        let flows = agent.flows()?;
        reported = denied.iter().filter(|one| run::reported(one, &flows).is_some()).count();
    }
    Ok(Line {
        when: "agent restarted",
        who: "egress-agent".to_owned(),
        how: "flows of the time without it".to_owned(),
        expected: "all reported".to_owned(),
        got: format!("{reported} of {}", denied.len()),
        as_expected: reported == denied.len(),
        skipped: None,
    })
}

/// Programs and maps of this agent in the kernel, by id; another agent on the machine is none of our business.
fn ours(agent: &Agent) -> anyhow::Result<BTreeSet<(&'static str, u64)>> {
    let status = agent.status().context("the agent does not answer")?;
    let hooks = status["hooks"].as_array().context("the agent has no hooks")?;
    let mut ours: BTreeSet<_> =
        hooks.iter().filter_map(|hook| hook["id"].as_u64()).map(|id| ("program", id)).collect();
    let is_link =
        |pin: &Path| pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link_"));
    for pin in agent.pins()?.into_iter().filter(|pin| !is_link(pin)) {
        if let Ok(info) = aya::maps::MapInfo::from_pin(&pin) {
            ours.insert(("map", u64::from(info.id())));
        }
    }
    anyhow::ensure!(
        ours.len() > hooks.len() && !hooks.is_empty(),
        "no programs or no maps are pinned: {ours:?}"
    );
    Ok(ours)
}

fn nothing_left(agent: &Agent, ours: &BTreeSet<(&'static str, u64)>) -> anyhow::Result<Line> {
    let mut left = BTreeSet::new();
    for program in aya::programs::loaded_programs() {
        left.insert(("program", u64::from(program.context("cannot list the kernel's programs")?.id())));
    }
    for map in aya::maps::loaded_maps() {
        left.insert(("map", u64::from(map.context("cannot list the kernel's maps")?.id())));
    }
    left.retain(|one| ours.contains(one));
    let pins = agent.pins()?;
    let none = left.is_empty() && pins.is_empty();
    Ok(Line {
        when: "cleaned up",
        who: "the kernel".to_owned(),
        how: format!("its {} programs and maps, its pins", ours.len()),
        expected: "none".to_owned(),
        got: if none { "none".to_owned() } else { format!("{left:?}, {pins:?}") },
        as_expected: none,
        skipped: None,
    })
}
