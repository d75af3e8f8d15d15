//! The wire form, both ways.

use proptest::prelude::*;

use super::client::{Error, MAX_REPLY, Replies, receive};
use super::protocol::*;
use super::wire::Wire;

fn start() -> Start {
    Start {
        root: Root {
            kind: b"virtiofs".to_vec(),
            source: b"root".to_vec(),
            ..Root::default()
        },
        mounts: vec![Mount {
            kind: b"proc".to_vec(),
            target: b"/proc".to_vec(),
            flags: 14,
            ..Mount::default()
        }],
        process: Process {
            args: vec![b"sh".to_vec(), b"\xff".to_vec()],
            umask: Some(0o27),
            terminal: Some(Size {
                rows: 24,
                columns: 80,
            }),
            capabilities: Some(Capabilities {
                bounding: u64::MAX,
                ..Capabilities::default()
            }),
            ..Process::default()
        },
        ..Start::default()
    }
}

fn requests() -> Vec<Request> {
    vec![
        Request::Hello,
        Request::Start(start()),
        Request::Exec(start().process),
        Request::Stream(Stream {
            process: "exec".into(),
            number: 2,
        }),
        Request::Signal {
            process: String::new(),
            signal: 15,
            all: true,
        },
        Request::Network(Network {
            interfaces: vec![Interface {
                hardware: vec![2, 0, 0, 0, 0, 1],
                addresses: vec![Address {
                    address: vec![10, 0, 0, 2],
                    prefix: 24,
                }],
                ..Interface::default()
            }],
            dns: true,
            ..Network::default()
        }),
        Request::Shutdown { restart: false },
    ]
}

#[test]
fn requests_survive_the_wire() {
    for request in requests() {
        let bytes = frame(&request);
        assert_eq!(
            parse(&bytes, MAX_FRAME),
            Parsed::Message(request.clone(), bytes.len())
        );
        for cut in 0..bytes.len() {
            assert_eq!(parse::<Request>(&bytes[..cut], MAX_FRAME), Parsed::Partial);
        }
        // One byte more inside the frame is not the same message.
        let mut longer = bytes.clone();
        longer.push(0);
        longer[..4].copy_from_slice(&(bytes.len() as u32 - 3).to_le_bytes());
        assert_eq!(parse::<Request>(&longer, MAX_FRAME), Parsed::Garbage);
        // Another version's is none at all.
        let mut other = bytes;
        other[4] = VERSION + 1;
        assert_eq!(parse::<Request>(&other, MAX_FRAME), Parsed::Garbage);
    }
}

#[test]
fn a_refusal_is_an_error_without_control_characters() {
    let reply = Reply::Failed {
        kind: Failure::NotFound,
        message: "no \x1b[31m".into(),
    };
    let error = receive(&mut &frame(&reply)[..]).unwrap_err();
    assert_eq!(error.to_string(), "in the guest: no \u{fffd}[31m");
    assert!(matches!(
        error,
        Error::Refused {
            kind: Failure::NotFound,
            ..
        }
    ));
}

#[test]
fn a_count_reserves_nothing_and_a_length_is_bounded() {
    let mut bytes = &[0xff, 0xff, 0xff, 0xff, 0][..];
    assert!(Vec::<u8>::decode(&mut bytes).is_none());
    let long = (MAX_REPLY as u32 + 1).to_le_bytes();
    assert!(matches!(receive(&mut &long[..]).unwrap_err(), Error::Garbage));
    let promised = [0xff, 0xff, 0x0f, 0, VERSION];
    assert!(matches!(
        receive(&mut &promised[..]).unwrap_err(),
        Error::Connection(_)
    ));
}

#[test]
fn replies_come_out_of_any_pieces_and_leave_the_stream() {
    let mut bytes = frame(&Reply::Started { pid: 7 });
    bytes.extend(frame(&Reply::Done));
    bytes.extend(b"raw");
    for size in 1..bytes.len() {
        let mut replies = Replies::default();
        let mut seen = Vec::new();
        for piece in bytes.chunks(size) {
            replies.push(piece);
            while seen.len() < 2
                && let Some(reply) = replies.pull().unwrap()
            {
                seen.push(reply);
            }
        }
        assert_eq!(seen, [Reply::Started { pid: 7 }, Reply::Done]);
        assert_eq!(replies.into_rest(), b"raw");
    }
}

proptest! {
    #[test]
    fn whatever_is_understood_is_written_the_same(mut bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..7, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        // Pure noise, and messages with a few bytes changed.
        let _ = parse::<Request>(&bytes, MAX_FRAME);
        let _ = parse::<Reply>(&bytes, MAX_FRAME);
        if let Some(request) = requests().get(at) {
            bytes = frame(request);
            for (index, value) in flips {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
        }
        if let Parsed::Message(request, length) = parse::<Request>(&bytes, MAX_FRAME) {
            prop_assert_eq!(frame(&request), &bytes[..length]);
        }
    }
}
