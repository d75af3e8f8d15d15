//! The processor in software against the real one: random instructions are executed by both, and everything they leave must be the same.
//!
//! `SOFTCPU_CASES` says how many cases per group (some thousand otherwise), `SOFTCPU_SEED` where to begin, `SOFTCPU_GROUPS` which groups.

mod case;
mod compare;
mod generate;
mod native;
mod opcode;
mod software;

use case::{Case, Outcome};
use generate::{GROUPS, Group, Random};

/// Cases of one child.
const BATCH: usize = 400;

/// Cases per group when nothing is said.
const SMALL: u64 = 2000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// What the child has at low addresses beside what it maps for the test.
fn host_mappings() -> Vec<std::ops::Range<u64>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines()
        .filter_map(|line| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
        })
        .collect()
}

/// Whether a case came upon memory of the host's.
fn met_host(host: &[std::ops::Range<u64>], outcome: &Outcome) -> bool {
    const TARGET: u64 = 0x0f00_0000;
    outcome.vector == 14
        && (outcome.cr2 & !0xfff == TARGET || host.iter().any(|range| range.contains(&outcome.cr2)))
}

/// Compares cases of a group; the first few differences.
fn compare(group: Group, cases: u64, seed: u64) -> Vec<String> {
    let mut shared = native::Shared::new(BATCH);
    let mut processors = [false, true].map(|translated| (translated, software::Software::new(translated)));
    let mut outcome = Outcome::new();
    let mut failures = vec![];
    let host = host_mappings();
    let mut done = 0;
    let mut batch = 0;
    let mut lost = 0;
    while done < cases {
        let mut random = Random(seed ^ (batch << 20) ^ (group as u64) << 56);
        let (data, stack) = generate::memory(&mut random);
        let list: Vec<Case> = (0..BATCH).map(|_| generate::case(&mut random, group)).collect();
        let natives = shared.run(&list, &data, &stack);
        for (case, native) in list.iter().zip(natives) {
            if native.done == 0 {
                lost += 1;
                failures.push(format!(
                    "the real processor did not come back:\n{}",
                    compare::text(case)
                ));
                break;
            }
            for (translated, software) in &mut processors {
                software.run(case, &data, &stack, &mut outcome);
                let differences = compare::differences(case, native, &outcome, *translated);
                if !differences.is_empty() && !met_host(&host, &outcome) {
                    let how = if *translated { "translated" } else { "interpreted" };
                    failures.push(format!(
                        "batch {batch}, {how}:\n{}{differences}",
                        compare::text(case)
                    ));
                    if failures.len() >= number("SOFTCPU_SHOW", 3) as usize {
                        return failures;
                    }
                }
            }
        }
        done += BATCH as u64;
        batch += 1;
        assert!(lost < 10, "{}", failures.join("\n"));
    }
    failures
}

fn test(group: Group) {
    let wanted = std::env::var("SOFTCPU_GROUPS").unwrap_or_default();
    if !wanted.is_empty() && !wanted.split(',').any(|name| name == format!("{group:?}")) {
        return;
    }
    assert!(GROUPS.contains(&group));
    let failures = compare(group, number("SOFTCPU_CASES", SMALL), number("SOFTCPU_SEED", 1));
    assert!(
        failures.is_empty(),
        "{group:?}: {} differences\n{}",
        failures.len(),
        failures.join("\n")
    );
}

macro_rules! groups {
    ($($name:ident: $group:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                test(Group::$group);
            }
        )*
    };
}

groups!(
    arithmetic: Arithmetic,
    moves: Moves,
    shifts: Shifts,
    bits: Bits,
    strings: Strings,
    stack: Stack,
    jumps: Jumps,
    locked: Locked,
    sse: Sse,
    sse_float: SseFloat,
    mmx: Mmx,
    x87: X87,
    any: Any,
);
