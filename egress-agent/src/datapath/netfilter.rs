//! Where the running kernel keeps a network namespace's netfilter hooks, by its own type information (BTF).
//!
//! Invariant: what is not found as expected is not known, and then nobody is refused a connection before its first packet.
//! Format: `Documentation/bpf/btf.rst` of the kernel.

use std::collections::BTreeMap;

/// Offsets for the programs' `NETFILTER`: a socket's namespace, that one's hooks of IPv4 and of IPv6, and 1. All zero where they
/// are not known.
#[must_use]
pub(super) fn offsets(btf: &[u8]) -> [u32; 4] {
    find(btf).unwrap_or_default()
}

fn find(btf: &[u8]) -> Option<[u32; 4]> {
    let members = members(
        btf,
        &[
            ("sock", "__sk_common"),
            ("sock_common", "skc_net"),
            ("net", "nf"),
            ("netns_nf", "hooks_ipv4"),
            ("netns_nf", "hooks_ipv6"),
        ],
    )?;
    let at = |index: usize| members.get(&index).copied();
    let (net, nf) = (at(0)? + at(1)?, at(2)?);
    Some([net, nf + at(3)?, nf + at(4)?, 1])
}

/// Bytes to members of structures, each given as structure and member, by its index.
fn members(btf: &[u8], wanted: &[(&str, &str)]) -> Option<BTreeMap<usize, u32>> {
    const MAGIC: u16 = 0xeb9f;
    const STRUCT: u32 = 4;
    let word = |at: usize| Some(u32::from_ne_bytes(btf.get(at..at + 4)?.try_into().ok()?));
    let size = |value: u32| usize::try_from(value).ok();
    if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let header = size(word(4)?)?;
    let (types, length) = (header + size(word(8)?)?, size(word(12)?)?);
    let strings = header + size(word(16)?)?;
    let name = |offset: u32| {
        let text = btf.get(strings + size(offset)?..)?;
        std::str::from_utf8(text.get(..text.iter().position(|byte| *byte == 0)?)?).ok()
    };
    let mut found = BTreeMap::new();
    let mut at = types;
    while at < types + length {
        let (named, info) = (word(at)?, word(at + 4)?);
        let (kind, flagged, count) = (info >> 24 & 0x1f, info >> 31 != 0, size(info & 0xffff)?);
        let body = at + 12;
        if kind == STRUCT {
            let structure = name(named)?;
            for (index, (_, member)) in wanted.iter().enumerate().filter(|(_, of)| of.0 == structure) {
                for place in (0..count).map(|i| body + 12 * i) {
                    let bits = word(place + 8)?;
                    // The high byte is the width of a bit field, where there are any in the structure.
                    let bits = if flagged { bits & 0x00ff_ffff } else { bits };
                    if name(word(place)?)? == *member
                        && bits % 8 == 0
                        && found.insert(index, bits / 8).is_some()
                    {
                        // Two structures of one name.
                        return None;
                    }
                }
            }
        }
        at = body
            + match kind {
                // Integers, variables and declaration tags have a word more; arrays three.
                1 | 14 | 17 => 4,
                3 => 12,
                // Structures and unions, 64-bit enumerations, and sections: three words each.
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::{members, offsets};

    #[test]
    fn the_running_kernel_has_them() {
        let btf = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let [net, hooks4, hooks6, known] = offsets(&btf);
        assert_eq!(known, 1);
        // A namespace is within the part of a socket that all kinds have; there are five hooks of a pointer each.
        assert!(net > 0 && net <= 64 - 8 && net % 8 == 0, "{net}");
        assert!(hooks4 % 8 == 0 && hooks6.abs_diff(hooks4) >= 5 * 8, "{hooks4} {hooks6}");
    }

    #[test]
    fn what_is_not_as_expected_is_not_known() {
        let btf = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        assert_eq!(members(&btf, &[("sock", "no_such_member")]).unwrap().len(), 0);
        for broken in [&[][..], &btf[..3], &btf[..1000], &btf[..btf.len() / 2], &btf[1..]] {
            assert_eq!(offsets(broken), [0; 4]);
        }
        let mut unknown = btf;
        // The kind of the first type.
        unknown[24 + 7] = 0x1f;
        assert_eq!(offsets(&unknown), [0; 4]);
    }
}
