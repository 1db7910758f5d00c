//! Two versions side by side: an agent with other maps takes over from one that was killed.

use std::fs;

use egress_common::wire::ABI;

use crate::field::alone;
use crate::kills::Traffic;

#[test]
fn an_agent_with_other_maps_takes_over_without_a_gap() {
    let _alone = alone();
    // An older version's pins, and a newer one's: a downgrade is the same.
    for other in [ABI - 1, ABI + 1] {
        let mut traffic = Traffic::begin();
        traffic.is_answered();
        let all = traffic.stand.bpffs.path().join("egress-enforcer");
        let dirs = |all: &std::path::Path| -> Vec<String> {
            let mut names: Vec<_> = fs::read_dir(all)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        traffic.stand.agent.kill().unwrap();
        // From now on programs and maps are another version's: they go on by themselves, and nobody adopts them.
        fs::rename(all.join(format!("v{ABI}")), all.join(format!("v{other}"))).unwrap();
        assert_eq!(dirs(&all), [format!("v{other}")]);
        traffic.is_answered();
        let old = fs::read_dir(all.join(format!("v{other}"))).unwrap().count();
        let stand = &mut traffic.stand;
        stand.start();
        assert_eq!(dirs(&all), [format!("v{ABI}")], "the other version's pins go once this one enforces");
        assert!(old > 10, "there was something to take over from");
        traffic.is_answered();
        traffic.end(&format!("from v{other} to v{ABI}"));
    }
}
