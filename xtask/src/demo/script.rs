//! What is tried, in which state of the enforcer.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use egress_topology::bookinfo::{
    App, DNS_VIP, GATEWAY_VIP, OUTSIDE_HTTP, OUTSIDE_NAME, OUTSIDE_UDP, REVIEWS_VIP, SIDECAR_USER,
};
use egress_topology::{Agent, Container, OUTSIDE_V4, OUTSIDE_V6};

use super::tries::{self, Expect, Target, Try};
use super::{Line, Stage};

/// A connection that is denied ends by running out of this.
const DENIED_MS: &str = "1000";

/// Plays the whole life of the enforcer.
pub(crate) fn play(stage: &mut Stage, agent: &mut Agent, policy: &str) -> anyhow::Result<Vec<Line>> {
    let mut lines = tries::run(stage, None, "no enforcer", &direct(stage, Expect::Works))?;

    agent.start(&stage.topology)?;
    let enforced = enforced(stage);
    lines.extend(tries::run(stage, Some(agent), "enforced", &enforced)?);

    agent.kill()?;
    lines.extend(tries::run(stage, None, "agent killed with -9", &enforced)?);

    agent.start(&stage.topology)?;
    lines.push(reported_after_restart(agent, &enforced)?);
    lines.extend(tries::run(stage, Some(agent), "agent restarted", &enforced)?);
    let ours = ours(agent)?;

    let audit = policy.replace("enforcement: Enforce", "enforcement: Audit");
    anyhow::ensure!(audit != policy, "the policy of the guide does not enforce");
    stage.write_policy(&audit)?;
    agent.wait("the policy audits", |status| status["endpoints"]["Isolated (audit)"] == 2)?;
    lines.extend(tries::run(stage, Some(agent), "policy audits", &direct(stage, Expect::Audited))?);

    fs::remove_file(stage.policy())?;
    agent.wait("no policy is left", |status| status["endpoints"]["Isolated (audit)"].is_null())?;
    lines.extend(tries::run(stage, Some(agent), "policy removed", &direct(stage, Expect::Works))?);

    agent.stop()?;
    agent.cleanup(&stage.topology)?;
    lines.push(nothing_left(agent, &ours)?);
    lines.extend(tries::run(stage, None, "cleaned up", &direct(stage, Expect::Works))?);
    Ok(lines)
}

/// Everything, as it has to be while the policy enforces.
fn enforced(stage: &Stage) -> Vec<Try> {
    let page = &stage.bookinfo.productpage;
    let reviews = &stage.bookinfo.reviews;
    let by_name = format!("http://{OUTSIDE_NAME}/");
    let gateway: IpAddr = GATEWAY_VIP.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let mut all = vec![
        get(&page.app, None, "http by name, through sidecar and gateway", &by_name, Expect::Works),
        get(&reviews.app, None, "http by name, through sidecar and gateway", &by_name, Expect::Refused),
    ];
    all.extend(direct(stage, Expect::Denied));
    all.push(Try {
        target: Some(Target { address: gateway, protocol: "TCP", port: 443 }),
        ..words(
            &reviews.app,
            Some(SIDECAR_USER),
            "gateway, as UID 1337",
            &["tcp", &format!("{GATEWAY_VIP}:443"), "--timeout-ms", DENIED_MS],
            Expect::Denied,
        )
    });
    let vip = format!("http://{REVIEWS_VIP}:9080/");
    let pod = format!("http://{}:9080/", reviews.pod.v4());
    let pod6 = format!("http://[{}]:9080/", reviews.pod.v6());
    let outside = format!("http://{OUTSIDE_V4}/");
    all.extend([
        get(&page.app, None, "in the cluster: reviews by service", &vip, Expect::Works),
        get(&page.app, Some(SIDECAR_USER), "in the cluster: reviews by pod address", &pod, Expect::Works),
        get(&page.app, Some(SIDECAR_USER), "in the cluster: reviews by IPv6", &pod6, Expect::Works),
        words(
            &page.app,
            None,
            "in the cluster: DNS",
            &["resolve", OUTSIDE_NAME, "--dns", DNS_VIP],
            Expect::Works,
        ),
        get(&stage.bookinfo.gateway, None, "outside, as the gateway", &outside, Expect::Works),
        get(&stage.bookinfo.free, None, "outside, as a pod without policy", &outside, Expect::Works),
    ]);
    all
}

/// Every way past the sidecar, for both applications.
fn direct(stage: &Stage, expect: Expect) -> Vec<Try> {
    let apps = [&stage.bookinfo.productpage, &stage.bookinfo.reviews];
    apps.into_iter().flat_map(|app| around(app, expect)).collect()
}

fn around(app: &App, expect: Expect) -> Vec<Try> {
    let (v4, v6) = (IpAddr::from(OUTSIDE_V4), IpAddr::from(OUTSIDE_V6));
    let to = |address, protocol, port| Some(Target { address, protocol, port });
    let [http, other] = OUTSIDE_HTTP;
    let proxy_user = Some(SIDECAR_USER);
    let (url, url6) = (format!("http://{v4}:{http}/"), format!("http://[{v6}]:{http}/"));
    let debug_url = format!("http://{v4}:{other}/");
    let echo = format!("{v4}:{OUTSIDE_UDP}");
    let (ping, ping6) = (v4.to_string(), v6.to_string());
    vec![
        Try { target: to(v4, "TCP", http), ..get(&app.app, proxy_user, "direct, as UID 1337", &url, expect) },
        Try {
            target: to(v6, "TCP", http),
            ..get(&app.app, proxy_user, "direct by IPv6, as UID 1337", &url6, expect)
        },
        Try {
            target: to(v4, "TCP", other),
            ..get(&app.debug, proxy_user, "direct, from a debug container", &debug_url, expect)
        },
        Try {
            target: to(v4, "UDP", OUTSIDE_UDP),
            ..words(&app.app, None, "direct by UDP", &["udp", &echo, "--timeout-ms", DENIED_MS], expect)
        },
        Try {
            target: to(v4, "ICMP", 0),
            ..words(&app.app, None, "direct by ICMP", &["ping", &ping, "--timeout-ms", DENIED_MS], expect)
        },
        Try {
            target: to(v6, "ICMPv6", 0),
            ..words(&app.app, None, "direct by ICMPv6", &["ping", &ping6, "--timeout-ms", DENIED_MS], expect)
        },
    ]
}

fn get(container: &Container, user: Option<u32>, how: &'static str, url: &str, expect: Expect) -> Try {
    // What works may take its time on a busy machine.
    let timeout = if expect == Expect::Denied { DENIED_MS } else { "5000" };
    words(container, user, how, &["get", url, "--dns", DNS_VIP, "--timeout-ms", timeout], expect)
}

fn words(container: &Container, user: Option<u32>, how: &'static str, words: &[&str], expect: Expect) -> Try {
    let words = words.iter().map(|&word| word.to_owned()).collect();
    Try { container: container.clone(), user, how, words, expect, target: None }
}

/// What was denied while no agent ran waits in the kernel for the next one.
fn reported_after_restart(agent: &Agent, tries: &[Try]) -> anyhow::Result<Line> {
    let denied: Vec<_> = tries.iter().filter(|one| one.expect == Expect::Denied).collect();
    let start = Instant::now();
    let mut reported = 0;
    while reported < denied.len() && start.elapsed() < Duration::from_secs(3) {
        let flows = agent.flows()?;
        reported = denied.iter().filter(|one| one.reported(&flows).is_some()).count();
    }
    Ok(Line {
        when: "agent restarted",
        who: "egress-agent".to_owned(),
        how: "flows of the time without it".to_owned(),
        expected: "all reported",
        got: format!("{reported} of {}", denied.len()),
        as_expected: reported == denied.len(),
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
        expected: "none",
        got: if none { "none".to_owned() } else { format!("{left:?}, {pins:?}") },
        as_expected: none,
    })
}
