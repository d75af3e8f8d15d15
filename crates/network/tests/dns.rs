//! The DNS server of containers with real sockets: what it knows, what it asks others for, and how much it bears.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::on_a_host;
use vessel_network::dns::{self, Asker, Names, Server};
use vessel_network::{Netns, NetnsConfig};

const WEB: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// The code of an answer, and the address at its end if there is one.
fn read(answer: &[u8]) -> (u8, Option<Ipv4Addr>) {
    let address = answer.last_chunk::<4>().filter(|_| answer[7] > 0);
    (answer[3] & 15, address.map(|octets| Ipv4Addr::from(*octets)))
}

/// Answers every question with `ELSEWHERE`, over UDP with a forged answer before the right one; over TCP, too.
fn upstream(address: Ipv4Addr) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let answer = |packet: &[u8]| {
        let mut answer = packet.to_vec();
        answer[2] |= 0x80;
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ELSEWHERE.octets());
        answer
    };
    let udp = UdpSocket::bind((address, 53)).unwrap();
    let tcp = TcpListener::bind((address, 53)).unwrap();
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buf = [0; 512];
        while let Ok((length, client)) = udp.recv_from(&mut buf) {
            count.fetch_add(1, Ordering::Relaxed);
            let mut forged = answer(&buf[..length]);
            forged[0] ^= 1;
            *forged.last_mut().unwrap() = 66;
            let _ = udp.send_to(&forged, client);
            let _ = udp.send_to(&answer(&buf[..length]), client);
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut packet).unwrap();
            let answer = answer(&packet);
            stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    asked
}

fn serve(servers: &[Ipv4Addr]) -> (Server, Netns) {
    let names = Arc::new(Names::default());
    names.join("net", "1", &[WEB.into()], &["web".into()]);
    names.set_asker(
        "a",
        Asker {
            networks: vec!["net".into()],
            servers: servers.iter().map(|server| (*server).into()).collect(),
            ..Asker::default()
        },
    );
    let server = Server::start(names).unwrap();
    let netns = Netns::new_isolated(&NetnsConfig::default()).unwrap();
    server.serve("a", netns.as_fd()).unwrap();
    (server, netns)
}

fn ask(netns: &Netns, name: &str) -> std::io::Result<(u8, Option<Ipv4Addr>)> {
    netns
        .run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(8)))?;
            socket.connect((dns::ADDRESS, 53))?;
            socket.send(&question(0x1234, name))?;
            let mut buf = [0; 512];
            let length = socket.recv(&mut buf)?;
            assert_eq!(buf[..2], [0x12, 0x34]);
            Ok(read(&buf[..length]))
        })
        .unwrap()
}

#[test]
fn what_is_not_known_is_asked_for() {
    on_a_host(|| {
        let asked = upstream(Ipv4Addr::new(127, 0, 0, 3));
        // Nobody is at the first, which is told at once; the second is the one.
        let (_server, netns) = serve(&[Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)]);
        assert_eq!(ask(&netns, "web").unwrap(), (0, Some(WEB)));
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        assert_eq!(ask(&netns, "example.org").unwrap(), (0, Some(ELSEWHERE)));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn without_servers_the_answer_is_a_failure() {
    on_a_host(|| {
        let (_server, netns) = serve(&[]);
        assert_eq!(ask(&netns, "example.org").unwrap(), (2, None));
        let (_server, netns) = serve(&[Ipv4Addr::new(127, 0, 0, 2)]);
        assert_eq!(ask(&netns, "example.org").unwrap(), (2, None));
    });
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    on_a_host(|| {
        let _silent = UdpSocket::bind("127.0.0.2:53").unwrap();
        let _asked = upstream(Ipv4Addr::new(127, 0, 0, 3));
        let (_server, netns) = serve(&[Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)]);
        let begin = Instant::now();
        assert_eq!(ask(&netns, "example.org").unwrap(), (0, Some(ELSEWHERE)));
        // Before a stub resolver asks again.
        assert!(begin.elapsed() > Duration::from_secs(1) && begin.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn over_tcp_too() {
    on_a_host(|| {
        let _asked = upstream(Ipv4Addr::new(127, 0, 0, 3));
        let (_server, netns) = serve(&[Ipv4Addr::new(127, 0, 0, 3)]);
        netns
            .run(|| {
                let mut stream = TcpStream::connect(SocketAddr::from((dns::ADDRESS, 53))).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
                for (name, address) in [("web", WEB), ("example.org", ELSEWHERE), ("web.net", WEB)] {
                    let packet = question(7, name);
                    stream.write_all(&(packet.len() as u16).to_be_bytes()).unwrap();
                    stream.write_all(&packet).unwrap();
                    let mut length = [0; 2];
                    stream.read_exact(&mut length).unwrap();
                    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut answer).unwrap();
                    assert_eq!(read(&answer), (0, Some(address)), "{name}");
                }
                // Many connections that say nothing keep nobody from asking over UDP, and are closed when there are too many.
                let idle: Vec<TcpStream> = (0..20)
                    .map(|_| TcpStream::connect((dns::ADDRESS, 53)).unwrap())
                    .collect();
                let mut closed = 0;
                for mut stream in idle {
                    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                    closed += usize::from(matches!(stream.read(&mut [0]), Ok(0)));
                }
                assert!(closed >= 8, "{closed} of 20 were closed");
            })
            .unwrap();
        assert_eq!(ask(&netns, "web").unwrap(), (0, Some(WEB)));
    });
}

#[test]
fn port_53_is_the_containers_own() {
    on_a_host(|| {
        let (server, netns) = serve(&[]);
        netns
            .run(|| {
                UdpSocket::bind("0.0.0.0:53").unwrap();
                TcpListener::bind("0.0.0.0:53").unwrap();
            })
            .unwrap();
        // Served anew, as by another daemon, and not served any more.
        server.serve("a", netns.as_fd()).unwrap();
        assert_eq!(ask(&netns, "web").unwrap(), (0, Some(WEB)));
        server.stop("a");
        assert!(ask(&netns, "web").is_err());
    });
}

#[test]
fn rubbish_and_floods_stop_nobody() {
    on_a_host(|| {
        let _silent = UdpSocket::bind("127.0.0.2:53").unwrap();
        let (_server, netns) = serve(&[Ipv4Addr::new(127, 0, 0, 2)]);
        netns
            .run(|| {
                let flood = UdpSocket::bind("0.0.0.0:0").unwrap();
                flood.connect((dns::ADDRESS, 53)).unwrap();
                for number in 0..2_000_u16 {
                    let mut packet = question(number, "example.org");
                    if number % 3 == 0 {
                        packet.truncate(usize::from(number % 29));
                    }
                    let _ = flood.send(&packet);
                }
            })
            .unwrap();
        const MANY: u32 = 2_000;
        let right = netns
            .run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                socket.connect((dns::ADDRESS, 53)).unwrap();
                let mut buf = [0; 512];
                (0..MANY)
                    .filter(|_| {
                        socket.send(&question(1, "web")).unwrap();
                        socket
                            .recv(&mut buf)
                            .is_ok_and(|length| read(&buf[..length]) == (0, Some(WEB)))
                    })
                    .count()
            })
            .unwrap();
        // One may have come when the queue was full.
        assert!(right >= MANY as usize - 2, "{right}");
    });
}
