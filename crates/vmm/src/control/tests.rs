use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;
use rustix::net::SendFlags;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

fn pair() -> (Client, Server) {
    let (client, socket) = Client::pair().unwrap();
    (client, Server::new(socket))
}

#[test]
fn requests_are_answered_and_events_wait() {
    let (mut client, server) = pair();
    let thread = std::thread::spawn(move || {
        let sender = server.sender();
        let asked = server.receive().unwrap().unwrap();
        assert_eq!(asked.request, Request::Connect { port: 7 });
        let mut stream = UnixStream::from(asked.descriptor.unwrap());
        stream.write_all(b"there").unwrap();
        drop(stream);
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let called = Event::Accepted {
            port: 5,
            guest_port: 6,
        };
        sender.event_with(&called, &ours).unwrap();
        sender.answer(asked.id, Answer::default()).unwrap();
        let asked = server.receive().unwrap().unwrap();
        assert_eq!(asked.request, Request::Pause);
        sender.refuse(asked.id, "not now").unwrap();
        assert!(server.receive().unwrap().is_none(), "the client has gone");
    });
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    client
        .call(Request::Connect { port: 7 }, Some(theirs.as_fd()), PATIENCE)
        .unwrap();
    drop(theirs);
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert_eq!(text, "there");
    assert!(client.has_waiting());
    let event = client.receive().unwrap().unwrap();
    assert_eq!(
        event.message,
        FromMachine::Event(Event::Accepted {
            port: 5,
            guest_port: 6
        })
    );
    assert!(event.descriptor.is_some());
    assert!(client.receive().unwrap().is_none());
    let error = client.call(Request::Pause, None, PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), "not now");
    drop(client);
    thread.join().unwrap();
}

#[test]
fn the_end_and_silence_are_told() {
    let (mut client, server) = pair();
    let error = client
        .call(Request::Stats, None, Duration::from_millis(20))
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    drop(server);
    assert_eq!(
        client.receive().unwrap_err().kind(),
        std::io::ErrorKind::UnexpectedEof
    );
}

#[test]
fn messages_look_as_documented() {
    let text = |value: serde_json::Value| value.to_string();
    let event = |event: Event| text(serde_json::to_value(event).unwrap());
    assert_eq!(
        event(Event::Ended { how: Ended::PowerOff }),
        r#"{"event":"ended","how":"power_off"}"#
    );
    let failed: FromMachine = serde_json::from_str(r#"{"event":"failed","message":"m"}"#).unwrap();
    assert_eq!(
        failed,
        FromMachine::Event(Event::Failed {
            message: "m".to_owned()
        })
    );
    let reply: FromMachine = serde_json::from_str(r#"{"id":1,"ok":{}}"#).unwrap();
    assert_eq!(
        reply,
        FromMachine::Reply(Reply {
            id: 1,
            ok: Some(Answer::default()),
            error: None
        })
    );
    let request: Request = serde_json::from_str(r#"{"request":"balloon","bytes":5,"later":true}"#).unwrap();
    assert_eq!(request, Request::Balloon { bytes: 5 });
}

#[test]
fn what_cannot_be_understood_is_answered() {
    let (mut client, server) = pair();
    let thread = std::thread::spawn(move || server.receive().unwrap().is_none());
    for (message, id) in [
        ("{\"id\":9,\"request\":\"fly\"}", 9),
        ("nonsense", 0),
        ("[]", 0),
        ("{}", 0),
    ] {
        packet::send(&client, message.as_bytes(), &[], SendFlags::empty()).unwrap();
        let end = std::time::Instant::now() + PATIENCE;
        let answer = loop {
            match client.receive().unwrap() {
                Some(answer) => break answer,
                None => assert!(std::time::Instant::now() < end),
            }
        };
        let FromMachine::Reply(reply) = answer.message else {
            panic!()
        };
        assert_eq!(reply.id, id);
        assert!(reply.into_result().is_err());
    }
    // Too many descriptors.
    let end = client.as_fd();
    assert!(packet::send(&client, b"x", &[end; 5], SendFlags::empty()).is_err());
    drop(client);
    assert!(thread.join().unwrap());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(message in prop::collection::vec(any::<u8>(), 1..200)) {
        let (client, server) = pair();
        packet::send(&client, &message, &[], SendFlags::empty()).unwrap();
        drop(client);
        // It is answered, to nobody, or is a request after all.
        let _ = server.receive();
    }
}
