//! IDs and names that nobody chose.

use rustix::rand::{GetRandomFlags, getrandom};

/// Bytes of the kernel's generator, which does not fail once the system has booted.
fn unguessable<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(bytes)
}

/// Random bytes that are no secret: the clock will do where there is no generator.
fn random<const N: usize>() -> [u8; N] {
    unguessable()
        .unwrap_or_else(|_| std::array::from_fn(|index| (crate::time::now() >> (index % 8 * 8)) as u8))
}

fn hexadecimal(bytes: [u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 64 hexadecimal digits that nobody can guess.
pub fn secret() -> std::io::Result<String> {
    unguessable().map(hexadecimal)
}

/// A new ID: 64 hexadecimal digits. The short form is never a number, which some tools would take for one.
pub fn id() -> String {
    loop {
        let id = hexadecimal(random());
        if !id[..12].bytes().all(|byte| byte.is_ascii_digit()) {
            return id;
        }
    }
}

/// `adjective_surname` of someone who made computing or networks what they are; from the second attempt on with a
/// number, as the pairs may be used up.
pub fn name(attempt: usize) -> String {
    let pick = |list: &[&'static str], bytes: [u8; 4]| list[u32::from_le_bytes(bytes) as usize % list.len()];
    let (adjective, surname) = (pick(&ADJECTIVES, random()), pick(&SURNAMES, random()));
    match attempt {
        0 => format!("{adjective}_{surname}"),
        _ => format!(
            "{adjective}_{surname}{}",
            u32::from_le_bytes(random()) % 10_u32.pow(attempt.clamp(1, 9) as u32)
        ),
    }
}

const ADJECTIVES: [&str; 96] = [
    "able", "agile", "amber", "ample", "apt", "astute", "balmy", "bold", "brave", "breezy", "bright",
    "brisk", "calm", "candid", "cheery", "civil", "clear", "clever", "cosmic", "cosy", "crisp", "curious",
    "daring", "deft", "eager", "earnest", "easy", "exact", "fair", "fearless", "fine", "fleet", "fond",
    "frank", "fresh", "gentle", "genial", "glad", "golden", "grand", "handy", "happy", "hardy", "hearty",
    "honest", "humble", "ideal", "jolly", "jovial", "keen", "kind", "lively", "loyal", "lucid", "lucky",
    "mellow", "merry", "mild", "modest", "neat", "nimble", "noble", "open", "patient", "placid", "plucky",
    "polite", "prime", "proud", "quick", "quiet", "rapid", "ready", "robust", "serene", "sharp", "silent",
    "sleek", "smooth", "snug", "solid", "sound", "spry", "stable", "steady", "stellar", "sturdy", "subtle",
    "sunny", "swift", "tidy", "trusty", "vivid", "warm", "wise", "witty",
];

const SURNAMES: [&str; 96] = [
    "adleman",
    "allen",
    "amdahl",
    "babbage",
    "bachman",
    "backus",
    "baran",
    "bartik",
    "bell",
    "bellman",
    "berners",
    "blum",
    "boole",
    "borg",
    "brooks",
    "bush",
    "cerf",
    "chomsky",
    "church",
    "clark",
    "codd",
    "cook",
    "cray",
    "dahl",
    "davies",
    "dean",
    "diffie",
    "dijkstra",
    "engelbart",
    "estrin",
    "feinler",
    "floyd",
    "gauss",
    "goldberg",
    "gray",
    "hamilton",
    "hamming",
    "hellman",
    "hennessy",
    "hoare",
    "holberton",
    "hollerith",
    "hopcroft",
    "hopper",
    "huffman",
    "iverson",
    "jacquard",
    "jennings",
    "johnson",
    "kahan",
    "kahn",
    "karp",
    "kay",
    "keller",
    "kernighan",
    "kilby",
    "kleene",
    "knuth",
    "lamport",
    "lampson",
    "leibniz",
    "liskov",
    "lovelace",
    "lynch",
    "mauchly",
    "mccarthy",
    "mcilroy",
    "meltzer",
    "micali",
    "milner",
    "minsky",
    "moore",
    "naur",
    "newell",
    "noyce",
    "nygaard",
    "patterson",
    "perlis",
    "perlman",
    "postel",
    "rabin",
    "ritchie",
    "rivest",
    "scott",
    "shamir",
    "shannon",
    "sifakis",
    "simon",
    "sutherland",
    "tarjan",
    "thompson",
    "turing",
    "ullman",
    "wilkes",
    "wing",
    "wirth",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_have_their_form() {
        let ids: std::collections::BTreeSet<String> = (0..100).map(|_| id()).collect();
        assert_eq!(ids.len(), 100);
        assert!(
            ids.iter()
                .all(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
        for attempt in 0..12 {
            let name = name(attempt);
            crate::container::table::check_name(&name).unwrap();
        }
    }
}
