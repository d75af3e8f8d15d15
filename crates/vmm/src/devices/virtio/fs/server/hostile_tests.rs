//! Requests that no kernel sends.

use proptest::prelude::*;
use vm_memory::ByteValued;

use super::super::abi::*;
use super::tests::{Guest, init, object, on_a_thread};
use super::*;

/// A request of any opcode whose lengths need not be true.
fn request() -> impl Strategy<Value = (InHeader, Vec<u8>, bool)> {
    let opcode = prop_oneof![20 => 1u32..54, 1 => any::<u32>()];
    let id = prop_oneof![10 => 0u64..12, 1 => any::<u64>()];
    let word = prop_oneof![6 => 0u64..8, 2 => (0u64..16).prop_map(|bits| 1 << (bits * 4)), 1 => any::<u64>()];
    let names = prop::sample::select(vec![
        &b"a\0"[..],
        b"b\0",
        b"a\0b\0",
        b"b\0a\0",
        b"..\0",
        b".\0",
        b"a",
        b"\0",
        b"a/b\0",
        b"user.x\0value",
        b"link\0/etc/passwd\0",
        b"",
    ]);
    let body = (prop::collection::vec(word, 0..9), any::<bool>(), names).prop_map(|(words, half, name)| {
        let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        if half {
            body.truncate(body.len().saturating_sub(4));
        }
        body.extend_from_slice(name);
        body
    });
    let lie = prop_oneof![20 => Just(0i64), 1 => -60i64..60, 1 => any::<i32>().prop_map(i64::from)];
    (
        opcode,
        id,
        body,
        lie,
        prop_oneof![Just(0u32), Just(1000)],
        any::<bool>(),
    )
        .prop_map(|(opcode, nodeid, body, lie, uid, room)| {
            let len = (size_of::<InHeader>() + body.len()) as i64 + lie;
            let header = InHeader {
                len: len as u32,
                opcode,
                unique: 1,
                nodeid,
                uid,
                gid: uid,
                ..Default::default()
            };
            (header, body, room)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a guest sends, there is an answer, and nothing beside the directory is touched.
    #[test]
    fn garbage_is_answered(requests in prop::collection::vec(request(), 1..120), descriptors in 16usize..24) {
        let outer = tempfile::tempdir().unwrap();
        let shared = outer.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::write(shared.join("a"), "text").unwrap();
        on_a_thread(|| {
            let guest = Guest::new(&shared, Options { descriptors, inodes: 100, handles: 20, ..Options::default() });
            for (header, body, room) in requests {
                let bytes = [header.as_slice(), &body].concat();
                let reply = guest.send(&bytes, if room { 70_000 } else { 40 });
                if !reply.is_empty() {
                    let head: OutHeader = object(&reply);
                    assert_eq!(head.len as usize, reply.len());
                    assert!((-4095..=0).contains(&head.error));
                }
                if header.opcode == DESTROY {
                    guest.call(INIT, 0, init(0).as_slice());
                }
            }
            let cut = guest.send(&[1, 2, 3], 100);
            assert!(cut.is_empty());
        });
        let beside: Vec<_> = std::fs::read_dir(outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        prop_assert_eq!(beside, vec!["shared"]);
    }
}
