//! The watches against an API server that fails in every way it was taught.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use egress_fixture::{Failure, Fault, Fixture, Settings, StreamingLists, Verb};
use egress_policy::index::Event;
use egress_policy::object::{Kind, Object, ObjectRef};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use super::follow::Timing;
use super::{Connector, Watches};
use crate::source::Changes;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(35);

/// What an agent would know.
struct World {
    cluster: Watches,
    objects: BTreeMap<ObjectRef, Object>,
    last: Changes,
    /// Deletions, in the order in which they were told.
    gone: Vec<ObjectRef>,
    dir: TempDir,
}

impl World {
    fn new(fixture: &Fixture) -> Self {
        Self::with(fixture, "")
    }

    fn with(fixture: &Fixture, token: &str) -> Self {
        let timing = Timing {
            silence: Duration::from_millis(1500),
            answer: Duration::from_secs(2),
            older: Duration::from_secs(3),
            installed: Duration::from_millis(100),
            away: Duration::from_millis(400),
            wait: Duration::from_millis(500),
            brief: Duration::from_millis(200),
        };
        Self::timed(fixture, token, timing)
    }

    fn timed(fixture: &Fixture, token: &str, timing: Timing) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, kubeconfig(&fixture.url(), token)).unwrap();
        Self::of(Watches::start_with(Connector::new(Some(path)), timing), dir)
    }

    /// For tests that stop the clock; with the times of a real agent.
    fn without_socket(fixture: &Fixture) -> Self {
        let connector = Connector::with(fixture.client_without_socket());
        Self::of(Watches::start_with(connector, Timing::default()), TempDir::new().unwrap())
    }

    fn of(cluster: Watches, dir: TempDir) -> Self {
        Self { cluster, objects: BTreeMap::new(), last: Changes::default(), gone: Vec::new(), dir }
    }

    /// Takes in what arrived, as the agent does.
    fn look(&mut self) {
        let mut changes = self.cluster.look();
        for event in changes.events.drain(..) {
            match event {
                Event::Upsert(object) => drop(self.objects.insert(object.object_ref(), object)),
                Event::Delete(name) => {
                    self.objects.remove(&name);
                    self.gone.push(name);
                }
            }
        }
        for (kind, listed) in changes.listed.drain(..) {
            let gone = self.objects.keys().filter(|name| name.kind == kind && !listed.contains(name));
            let gone: Vec<_> = gone.cloned().collect();
            self.objects.retain(|name, _| !gone.contains(name));
            self.gone.extend(gone);
        }
        self.last = changes;
    }

    /// Looks until something holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let changed = self.cluster.changed();
        let start = Instant::now();
        loop {
            self.look();
            if holds(self) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain: {what}: {:?} {:?}", self.last, self.names());
            let _ = timeout(Duration::from_millis(100), changed.notified()).await;
        }
    }

    async fn complete(&mut self) {
        self.until("everything was read", |world| !world.last.incomplete).await;
    }

    /// Looks for a while, in which something must hold all the time.
    async fn meanwhile(&mut self, time: Duration, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.look();
            assert!(holds(self), "{:?} {:?}", self.last, self.names());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn names(&self) -> BTreeSet<String> {
        self.objects.keys().map(ToString::to_string).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.objects.keys().any(|one| one.to_string() == name)
    }

    fn pods(&self) -> usize {
        self.objects.keys().filter(|name| name.kind == Kind::Pod).count()
    }

    fn label(&self, pod: &str) -> Option<String> {
        self.objects.iter().find_map(|(name, object)| match object {
            Object::Pod(one) if name.to_string() == pod => Some(one.labels.get("v")?.to_owned()),
            _ => None,
        })
    }

    fn watch(&self, kind: Kind) -> &crate::status::WatchStatus {
        self.last.watches.iter().find(|watch| watch.kind == kind.name()).unwrap()
    }

    /// What cannot be read, and what stands in the way of watches.
    fn error(&self) -> String {
        let errors = self.last.errors.iter().map(ToString::to_string);
        let watches = self.last.watches.iter().filter_map(|watch| watch.error.clone());
        errors.chain(watches).map(|error| format!("{error}\n")).collect()
    }

    fn is_well(&self) -> bool {
        self.error().is_empty()
    }
}

pub(crate) fn kubeconfig(url: &str, token: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    })
    .to_string()
}

fn pod(value: &str) -> Value {
    json!({"metadata": {"labels": {"v": value}}, "spec": {"containers": [{"name": "app"}]}})
}

fn settings(streaming_lists: StreamingLists) -> Settings {
    Settings { streaming_lists, ..Settings::default() }
}

fn fixture() -> Fixture {
    let fixture = Fixture::start().unwrap();
    for name in ["a", "b", "c"] {
        fixture.apply("pods", "n", name, &pod("1"));
    }
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_listed_and_followed_on_servers_of_every_age() {
    for lists in [StreamingLists::On, StreamingLists::GateOff, StreamingLists::Unknown] {
        let fixture = Fixture::start_with(settings(lists)).unwrap();
        fixture.apply("pods", "n", "a", &pod("1"));
        let mut world = World::new(&fixture);
        world.complete().await;
        assert!(world.has("Pod n/a") && world.has("Namespace kube-system"), "{:?}", world.names());
        for of in ["pods", "namespaces", "services", "nodes", "endpointslices", "networkpolicies"] {
            fixture.until_watches(of, 1).await;
        }
        fixture.apply("pods", "n", "a", &pod("2"));
        fixture.apply("pods", "n", "b", &pod("1"));
        fixture.delete("namespaces", "", "kube-system");
        world
            .until("changes arrive", |world| {
                world.label("Pod n/a").as_deref() == Some("2")
                    && world.has("Pod n/b")
                    && !world.has("Namespace kube-system")
            })
            .await;
        assert_eq!(fixture.requests_of("pods", Verb::List).is_empty(), lists == StreamingLists::On);
        assert!(world.is_well(), "{}", world.error());
        let watch = world.watch(Kind::Pod);
        assert_eq!((watch.state.as_str(), watch.relists), ("Watching", 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_come_in_pages() {
    let fixture = Fixture::start_with(settings(StreamingLists::GateOff)).unwrap();
    for i in 0..1234 {
        fixture.apply("pods", "n", &format!("p{i}"), &pod("1"));
    }
    let mut world = World::new(&fixture);
    world.complete().await;
    assert_eq!(world.pods(), 1234);
    let lists = fixture.requests_of("pods", Verb::List);
    assert_eq!(lists.len(), 13, "{lists:?}");
    assert!(
        lists.iter().all(|list| list.query["limit"] == "100" && !list.query.contains_key("resourceVersion"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_takes_longer_than_the_server_keeps_it_comes_in_larger_pages() {
    for (pods, last) in [(150, Some("1000")), (1234, Some("10000")), (10_100, None)] {
        let fixture = Fixture::start_with(settings(StreamingLists::GateOff)).unwrap();
        for i in 0..pods {
            fixture.apply("pods", "n", &format!("p{i}"), &pod("1"));
        }
        // Of every page the server forgets the version before the next one is asked for.
        let slow = fixture.fault("pods", &[Verb::List], Fault::Delay(Duration::from_millis(50)));
        let mut world = World::new(&fixture);
        let changes = async {
            for n in 0.. {
                fixture.apply("pods", "n", "p0", &pod(&n.to_string()));
                fixture.forget_history();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = world.complete() => {}
            () = changes => {}
        }
        assert_eq!(world.pods(), pods);
        let limits = || -> Vec<Option<String>> {
            let lists = fixture.requests_of("pods", Verb::List);
            lists.iter().map(|list| list.query.get("limit").cloned()).collect()
        };
        let asked = limits();
        assert!(
            asked.contains(&Some("100".to_owned())) && asked.contains(&Some("1000".to_owned())),
            "{asked:?}"
        );
        assert!(asked.contains(&last.map(str::to_owned)) && asked.len() < 20, "{asked:?}");
        // The next one begins with small pages again.
        slow.lift();
        fixture.until_watches("pods", 1).await;
        fixture.forget_requests();
        fixture.fail_watches("pods", &Failure::too_old(1, 2));
        fixture.until_requests("pods", Verb::List, 1).await;
        assert_eq!(limits()[0].as_deref(), Some("100"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_while_history_was_lost_is_gone_by_the_next_list() {
    for gone_as_answer in [false, true] {
        let mut fixture = Fixture::start_with(Settings { gone_as_answer, ..Settings::default() }).unwrap();
        fixture.apply("pods", "n", "a", &pod("1"));
        fixture.apply("pods", "n", "b", &pod("1"));
        let mut world = World::new(&fixture);
        world.complete().await;
        fixture.stop().await.unwrap();
        fixture.delete("pods", "n", "a");
        fixture.apply("pods", "n", "c", &pod("1"));
        world.until("it is said", |world| world.error().contains("cannot reach the API server")).await;
        assert!(world.has("Pod n/a") && !world.last.incomplete, "what was read stays");
        fixture.start_again().unwrap();
        world.until("it was listed anew", |world| !world.has("Pod n/a") && world.has("Pod n/c")).await;
        assert!(world.has("Pod n/b") && world.gone.len() == 1, "{:?}", world.gone);
        world.until("all is well", World::is_well).await;
        assert_eq!(world.watch(Kind::Pod).relists, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_in_the_middle_of_a_line_loses_nothing_and_lists_nothing_anew() {
    let fixture = fixture();
    let mut world = World::new(&fixture);
    world.complete().await;
    fixture.until_watches("pods", 1).await;
    for round in 2..7 {
        if round % 2 == 0 {
            fixture.cut_watches_inside("pods")
        } else {
            fixture.cut_watches("pods")
        };
        fixture.apply("pods", "n", "a", &pod(&round.to_string()));
        fixture.delete("pods", "n", "b");
        fixture.apply("pods", "n", "b", &pod("1"));
        let label = round.to_string();
        world.until("it goes on", |world| world.label("Pod n/a").as_deref() == Some(&label)).await;
    }
    world.until("it came back", |world| world.has("Pod n/b")).await;
    assert_eq!(world.watch(Kind::Pod).relists, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_brings_something_new_is_not_waited_for_longer_and_longer() {
    let fixture = fixture();
    let mut world = World::timed(&fixture, "", Timing::default());
    world.complete().await;
    let start = Instant::now();
    // Doubled each time, the last wait alone would be as long as a test waits.
    for round in 2..10 {
        fixture.until_watches("pods", 1).await;
        fixture.apply("pods", "n", "a", &pod(&round.to_string()));
        let label = round.to_string();
        world.until("it goes on", |world| world.label("Pod n/a").as_deref() == Some(&label)).await;
        fixture.end_watches("pods");
    }
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_no_event_and_no_end_of_events() {
    let fixture = fixture();
    let mut world = World::new(&fixture);
    world.complete().await;
    fixture.until_watches("pods", 1).await;
    for garbage in [
        "\u{0}\u{1}\n",
        "{\"type\":\"MODIFIED\",\"object\":{\n",
        "{\"type\":\"DELETED\",\"object\":{}}\n",
        "[]\n",
    ] {
        fixture.say_in_watches("pods", garbage);
        fixture.apply("pods", "n", "a", &pod(garbage.len().to_string().as_str()));
        let label = garbage.len().to_string();
        world.until("the next event", |world| world.label("Pod n/a").as_deref() == Some(&label)).await;
        assert_eq!(world.pods(), 3);
    }
    assert!(world.gone.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_parse_stays_what_it_was_and_can_be_deleted() {
    let fixture = fixture();
    let mut world = World::new(&fixture);
    world.complete().await;
    fixture.apply("pods", "n", "a", &json!({"metadata": {"labels": ["x"]}, "spec": 7}));
    world.until("it is said", |world| world.error().contains("Pod n/a")).await;
    assert_eq!(world.label("Pod n/a").as_deref(), Some("1"));
    fixture.delete("pods", "n", "a");
    world.until("it is gone", |world| !world.has("Pod n/a")).await;
    assert!(world.is_well(), "{}", world.error());
    // A policy that cannot be read is still a policy.
    fixture.apply("egressgatewaypolicies", "", "mesh", &json!({"spec": {"subjects": 7}}));
    world.until("it is there", |world| world.has("EgressGatewayPolicy mesh")).await;
    assert!(world.error().contains("EgressGatewayPolicy mesh"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lacking_rights_are_named_and_recovered_from() {
    let fixture = fixture();
    let fault = fixture.fault("networkpolicies", &Verb::READ, Fault::Forbidden);
    let mut world = World::new(&fixture);
    world.until("it is said", |world| world.error().contains("list and watch on networkpolicies")).await;
    assert!(world.last.incomplete && world.error().contains("networking.k8s.io"));
    assert_eq!(world.watch(Kind::NetworkPolicy).state, "Failing");
    world.meanwhile(Duration::from_secs(1), |world| world.last.incomplete).await;
    fault.lift();
    world.complete().await;
    world.until("all is well", World::is_well).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_is_not_installed_is_empty_and_is_picked_up_when_it_comes() {
    for newer_not_found in [false, true] {
        let fixture = Fixture::start_with(Settings { newer_not_found, ..Settings::default() }).unwrap();
        fixture.remove_definition();
        let mut world = World::new(&fixture);
        world.complete().await;
        world
            .until("it is known", |world| world.watch(Kind::EgressGatewayPolicy).state == "NotInstalled")
            .await;
        assert!(world.error().contains("deploy/crd"), "{}", world.error());
        fixture.install_definition();
        fixture.apply("egressgatewaypolicies", "", "mesh", &json!({"spec": {"subjects": [{}]}}));
        world.until("it is picked up", |world| world.has("EgressGatewayPolicy mesh")).await;
        world.until("all is well", World::is_well).await;
        fixture.remove_definition();
        world.until("it goes", |world| !world.has("EgressGatewayPolicy mesh")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_stays_away_is_looked_for_less_often() {
    let fixture = fixture();
    fixture.remove_definition();
    let mut world = World::without_socket(&fixture);
    world.complete().await;
    let asked = || fixture.requests_of("egressgatewaypolicies", Verb::Watch).len();
    let mut waits = BTreeSet::new();
    for _ in 0..20 {
        let (start, before) = (Instant::now(), asked());
        world.until("it is looked for", |_| asked() > before).await;
        waits.insert(start.elapsed());
    }
    let (first, last) = (waits.first().unwrap(), waits.last().unwrap());
    assert!(*first < Duration::from_secs(8) && *last > Duration::from_secs(20), "{waits:?}");
    assert!(*last < Duration::from_secs(31) && waits.len() > 10, "{waits:?}");
    assert_eq!(world.watch(Kind::EgressGatewayPolicy).relists, 0);
    fixture.install_definition();
    fixture.apply("egressgatewaypolicies", "", "mesh", &json!({"spec": {"subjects": [{}]}}));
    world.until("it is picked up", |world| world.has("EgressGatewayPolicy mesh")).await;
    // Once it is there, it is looked for often where it goes.
    fixture.remove_definition();
    world.until("it is missed", |world| world.error().contains("is not installed any more")).await;
    let before = asked();
    world.meanwhile(Duration::from_secs(50), |_| true).await;
    assert!(asked() >= before + 6);
}

#[tokio::test(start_paused = true)]
async fn watches_do_not_end_all_at_once() {
    let fixture = fixture();
    let mut world = World::without_socket(&fixture);
    world.complete().await;
    tokio::time::sleep(Duration::from_hours(2)).await;
    let asked = fixture.requests().into_iter().filter(|one| one.verb == Some(Verb::Watch));
    let seconds: Vec<u32> = asked.map(|one| one.query["timeoutSeconds"].parse().unwrap()).collect();
    assert!(seconds.iter().all(|time| (300..600).contains(time)), "{seconds:?}");
    // Seven kinds, of which each watches for seven and a half minutes or so.
    assert!((85..170).contains(&seconds.len()), "{seconds:?}");
    let different: BTreeSet<&u32> = seconds.iter().collect();
    assert!(different.len() > 40, "{seconds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_serve_a_kind_yet_takes_nothing_away() {
    let fixture = fixture();
    fixture.apply("egressgatewaypolicies", "", "mesh", &json!({"spec": {"subjects": [{}]}}));
    let mut world = World::new(&fixture);
    world.complete().await;
    let fault = fixture.fault("egressgatewaypolicies", &Verb::READ, Fault::NothingHere);
    fixture.cut_watches("egressgatewaypolicies");
    world.until("it is said", |world| world.error().contains("not served yet")).await;
    world.meanwhile(Duration::from_secs(1), |world| world.has("EgressGatewayPolicy mesh")).await;
    fault.lift();
    world.until("all is well", World::is_well).await;
    assert!(world.has("EgressGatewayPolicy mesh"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_replaced_by_the_kubeconfigs_next_one() {
    let token = |token: &str| Some(token.to_owned());
    let fixture = Fixture::start_with(Settings { token: token("old"), ..Settings::default() }).unwrap();
    fixture.apply("pods", "n", "a", &pod("1"));
    let mut world = World::with(&fixture, "old");
    world.complete().await;
    fixture.set(|settings| settings.token = token("new"));
    fixture.cut_watches("pods");
    world.until("it is said", |world| world.error().contains("credentials")).await;
    assert!(world.has("Pod n/a"));
    fs::write(world.dir.path().join("config"), kubeconfig(&fixture.url(), "new")).unwrap();
    fixture.apply("pods", "n", "a", &pod("2"));
    world.until("it goes on", |world| world.label("Pod n/a").as_deref() == Some("2")).await;
}

/// As kubelet keeps a ServiceAccount's token in a pod: the file changes before the token expires.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_changes_in_its_file_is_read_anew() {
    let token = |token: &str| Some(token.to_owned());
    let fixture = Fixture::start_with(Settings { token: token("old"), ..Settings::default() }).unwrap();
    fixture.apply("pods", "n", "a", &pod("1"));
    let mut world = World::with(&fixture, "no token at all");
    let file = world.dir.path().join("token");
    fs::write(&file, "old").unwrap();
    let by_file =
        kubeconfig(&fixture.url(), "").replace(r#""token":"""#, &format!(r#""tokenFile":{file:?}"#));
    fs::write(world.dir.path().join("config"), &by_file).unwrap();
    world.complete().await;
    fs::write(&file, "new").unwrap();
    fixture.set(|settings| settings.token = token("new"));
    fixture.cut_watches("pods");
    fixture.apply("pods", "n", "a", &pod("2"));
    world.until("it goes on", |world| world.label("Pod n/a").as_deref() == Some("2")).await;
    world.until("all is well", World::is_well).await;
    assert_eq!(fs::read_to_string(world.dir.path().join("config")).unwrap(), by_file);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_that_is_missing_is_waited_for() {
    let fixture = fixture();
    let mut world = World::new(&fixture);
    let path = world.dir.path().join("later");
    world.cluster = Watches::start(Connector::new(Some(path.clone())));
    world.until("it is said", |world| world.error().contains("cannot read the kubeconfig")).await;
    assert!(world.last.incomplete);
    fs::write(&path, kubeconfig(&fixture.url(), "")).unwrap();
    world.complete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_than_what_is_known_is_refused_for_a_while() {
    for lists in [StreamingLists::On, StreamingLists::GateOff] {
        let fixture = Fixture::start_with(settings(lists)).unwrap();
        fixture.apply("pods", "n", "a", &pod("1"));
        let before = fixture.version();
        fixture.apply("pods", "n", "a", &pod("2"));
        fixture.apply("pods", "n", "b", &pod("1"));
        let mut world = World::new(&fixture);
        world.complete().await;
        let fault = fixture.fault("pods", &Verb::READ, Fault::Stale(before));
        fixture.until_watches("pods", 1).await;
        fixture.fail_watches("pods", &Failure::too_old(1, 2));
        let newest = |world: &World| world.has("Pod n/b") && world.label("Pod n/a").as_deref() == Some("2");
        if lists == StreamingLists::GateOff {
            world.until("it is said", |world| world.error().contains("older state")).await;
        }
        world.meanwhile(Duration::from_secs(1), newest).await;
        fault.lift();
        world.until("all is well", World::is_well).await;
        assert!(newest(&world) && world.gone.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_go_back_are_of_another_history() {
    let fixture = fixture();
    let mut world = World::new(&fixture);
    world.complete().await;
    fixture.until_watches("pods", 1).await;
    fixture.say_in_watches(
        "pods",
        "{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"1\"}}}\n",
    );
    world.until("it was listed anew", |world| world.watch(Kind::Pod).relists == 1).await;
    assert_eq!((world.pods(), world.gone.len()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_before_the_api_server_and_answers_404_takes_nothing_away() {
    let fixture = fixture();
    fixture.apply("egressgatewaypolicies", "", "mesh", &json!({"spec": {"subjects": [{}]}}));
    let mut world = World::new(&fixture);
    world.complete().await;
    fixture.fault("*", &Verb::ALL, Fault::NothingHere);
    fixture.cut_watches("egressgatewaypolicies");
    world.until("it is said", |world| !world.is_well()).await;
    world.meanwhile(Duration::from_secs(5), |world| world.has("EgressGatewayPolicy mesh")).await;
    fixture.lift_faults();
    world.until("all is well", World::is_well).await;
}

/// A control plane that knows nothing of the definition, as one that a load balancer reaches by mistake.
fn blank(fixture: &Fixture) {
    let text = "customresourcedefinitions.apiextensions.k8s.io \"egressgatewaypolicies.egress-enforcer.io\" not found";
    let none = Fault::Failure(Failure::new(404, "NotFound", text));
    fixture.fault("customresourcedefinitions", &[Verb::Get], none);
    fixture.fault("egressgatewaypolicies", &Verb::READ, Fault::NothingHere);
    fixture.cut_watches("egressgatewaypolicies");
}

#[tokio::test(start_paused = true)]
async fn moments_without_the_definition_do_not_add_up_to_a_minute() {
    let fixture = fixture();
    fixture.apply("egressgatewaypolicies", "", "mesh", &json!({"spec": {"subjects": [{}]}}));
    let mut world = World::without_socket(&fixture);
    world.complete().await;
    let there = |world: &World| world.has("EgressGatewayPolicy mesh");
    for _ in 0..3 {
        blank(&fixture);
        world.until("it is said", |world| world.error().contains("is not installed any more")).await;
        world.meanwhile(Duration::from_secs(50), there).await;
        fixture.lift_faults();
        world.until("all is well", World::is_well).await;
        world.meanwhile(Duration::from_mins(3), there).await;
    }
    // Nor is what was no answer at all a part of it.
    blank(&fixture);
    world.meanwhile(Duration::from_secs(50), there).await;
    fixture.lift_faults();
    fixture.fault("*", &Verb::ALL, Fault::Unavailable);
    world.meanwhile(Duration::from_mins(2), there).await;
    fixture.lift_faults();
    blank(&fixture);
    world.meanwhile(Duration::from_secs(50), there).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    world.until("it stays away", |world| !there(world)).await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_once_waits_as_long_as_something_new_comes() {
    let patience = Duration::from_mins(1);
    let fixture = fixture();
    for i in 0..30 {
        fixture.apply("pods", "n", &format!("p{i}"), &pod("1"));
    }
    let start = Instant::now();
    let slow = fixture.fault("pods", &Verb::READ, Fault::Dribble(1 << 20, Duration::from_secs(10)));
    fixture.fault_times("nodes", &Verb::READ, Fault::Internal, 1);
    World::without_socket(&fixture).cluster.complete(patience).await.unwrap();
    assert!(start.elapsed() > Duration::from_mins(5), "{:?}", start.elapsed());
    slow.lift();
    // What comes again and again is not new, and what is followed already tells nothing of what is missing.
    fixture.fault("pods", &Verb::READ, Fault::EndAfter(5));
    fixture.fault("nodes", &Verb::READ, Fault::Stalled);
    let start = Instant::now();
    let world = World::without_socket(&fixture);
    let changes = async {
        for n in 0.. {
            fixture.apply("namespaces", "", &format!("n{n}"), &json!({}));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        done = world.cluster.complete(patience) => assert!(done.is_err()),
        () = changes => {}
    }
    assert!(start.elapsed() < Duration::from_secs(75), "{:?}", start.elapsed());
    // One refusal at first is nothing as long as something comes.
    fixture.lift_faults();
    fixture.fault_times("pods", &Verb::READ, Fault::Internal, 1);
    fixture.fault("pods", &Verb::READ, Fault::Dribble(1 << 20, Duration::from_secs(2)));
    World::without_socket(&fixture).cluster.complete(patience).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_says_nothing_is_asked_again() {
    let fixture = fixture();
    let mut world = World::new(&fixture);
    world.complete().await;
    fixture.until_watches("pods", 1).await;
    fixture.stall_watches("pods");
    fixture.apply("pods", "n", "a", &pod("2"));
    world.until("it goes on", |world| world.label("Pod n/a").as_deref() == Some("2")).await;
    assert_eq!(world.watch(Kind::Pod).relists, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_list_never_counts() {
    let fixture = fixture();
    let mut world = World::new(&fixture);
    world.complete().await;
    let halves = fixture.fault("pods", &Verb::READ, Fault::CutAfter(1));
    fixture.until_watches("pods", 1).await;
    fixture.fail_watches("pods", &Failure::too_old(1, 2));
    world.until("it is said", |world| !world.is_well()).await;
    world.meanwhile(Duration::from_secs(2), |world| world.pods() == 3).await;
    halves.lift();
    world.until("all is well", World::is_well).await;
    assert_eq!((world.pods(), world.gone.len()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_every_kind_are_waited_out() {
    let faults = [
        Fault::Internal,
        Fault::Unavailable,
        Fault::TooManyRequests(1),
        Fault::Initializing,
        Fault::Refused,
        Fault::Garbage,
        Fault::Silent,
        Fault::Stalled,
        Fault::Expired,
        Fault::Dribble(7, Duration::from_millis(1)),
    ];
    for fault in faults {
        let fixture = fixture();
        fixture.fault_times("pods", &Verb::READ, fault.clone(), 2);
        let mut world = World::new(&fixture);
        world.until(&format!("{fault:?} is over"), |world| !world.last.incomplete).await;
        assert_eq!(world.pods(), 3, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_come_twice_count_once_and_floods_are_one_change() {
    let fixture = fixture();
    let mut world = World::new(&fixture);
    world.complete().await;
    fixture.until_watches("pods", 1).await;
    fixture.fault("pods", &[Verb::Watch], Fault::Duplicate);
    fixture.cut_watches("pods");
    fixture.until_watches("pods", 1).await;
    for i in 0..3000 {
        fixture.apply("pods", "n", "a", &pod(&format!("f{i}")));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.until("the last one counts", |world| world.label("Pod n/a").as_deref() == Some("f2999")).await;
    assert_eq!(world.pods(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_a_mebibyte_are_read() {
    let fixture = fixture();
    let mut world = World::new(&fixture);
    world.complete().await;
    let mut large = pod("large");
    large["metadata"]["annotations"] = json!({"x": "y".repeat(1 << 20)});
    fixture.apply("pods", "n", "a", &large);
    world.until("it is read", |world| world.label("Pod n/a").as_deref() == Some("large")).await;
}
