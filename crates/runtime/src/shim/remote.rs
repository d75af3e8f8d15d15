//! A log's lines on their way to somebody else's: a syslog server or the journal.
//!
//! What is sent is sent without waiting: a server that is slow, full or gone costs lines there, never a moment of the
//! container. (Its own file has them all the same, unless it was told not to.) A connection that broke is tried again with
//! the next line, at most once a second. The formats are those of Docker's drivers: RFC 3164 and its local form, RFC 5424,
//! and the journal's native protocol.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use rustix::net::SendFlags;

use super::log::{Stream, date_time};
use super::protocol::{LogAddress, LogFormat, LogTarget, SyslogStyle};

/// Longer lines are cut on their way: datagrams have an end.
const LONGEST: usize = 32 << 10;
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_millis(200);
/// How long nothing is tried after it could not be made, in nanoseconds.
const PAUSE: i64 = 1_000_000_000;

/// Severities of syslog.
const ERROR: u8 = 3;
const INFORMATION: u8 = 6;

/// Where lines go, and the connection there.
#[derive(Debug)]
pub struct Remote {
    target: LogTarget,
    socket: Option<Socket>,
    failed: i64,
    message: Vec<u8>,
}

#[derive(Debug)]
enum Socket {
    Datagram(UnixDatagram),
    Local(UnixStream),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Remote {
    /// Nothing is connected yet.
    pub fn new(target: LogTarget) -> Self {
        Self {
            target,
            socket: None,
            failed: i64::MIN,
            message: Vec::new(),
        }
    }

    /// Sends a line, if it can be done now.
    pub fn send(&mut self, stream: Stream, line: &[u8], now: i64) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = &line[..line.len().min(LONGEST)];
        if self.socket.is_none() {
            if now.saturating_sub(self.failed) < PAUSE {
                return;
            }
            self.socket = connect(&self.target.address);
            if self.socket.is_none() {
                self.failed = now;
                return;
            }
        }
        self.message.clear();
        format(&self.target.format, stream, line, now, &mut self.message);
        let Some(socket) = &self.socket else { return };
        let sent = match socket {
            Socket::Datagram(socket) => transmit(socket, &self.message),
            Socket::Udp(socket) => transmit(socket, &self.message),
            Socket::Local(socket) => {
                self.message.push(b'\n');
                transmit(socket, &self.message)
            }
            Socket::Tcp(socket) => {
                self.message.push(b'\n');
                transmit(socket, &self.message)
            }
        };
        if sent == Sent::Broken {
            self.socket = None;
            self.failed = now;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Sent {
    /// It was taken, or there is no room now.
    Well,
    /// Nobody is there, or half a message is.
    Broken,
}

fn transmit(socket: &impl AsFd, message: &[u8]) -> Sent {
    use rustix::io::Errno;
    match rustix::net::send(socket, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(sent) if sent == message.len() => Sent::Well,
        Err(Errno::AGAIN | Errno::NOBUFS | Errno::MSGSIZE | Errno::INTR) => Sent::Well,
        // The server of a datagram socket may come back at the same address, which takes a new connection.
        Ok(_) | Err(_) => Sent::Broken,
    }
}

fn connect(address: &LogAddress) -> Option<Socket> {
    match address {
        LogAddress::Unix(path) => {
            let datagram = UnixDatagram::unbound().ok()?;
            if datagram.connect(path).is_ok() {
                return Some(Socket::Datagram(datagram));
            }
            UnixStream::connect(path).ok().map(Socket::Local)
        }
        LogAddress::Udp(address) => {
            let any: SocketAddr = match address {
                SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
            };
            let socket = UdpSocket::bind(any).ok()?;
            socket.connect(address).ok()?;
            Some(Socket::Udp(socket))
        }
        LogAddress::Tcp(address) => TcpStream::connect_timeout(address, CONNECT).ok().map(Socket::Tcp),
    }
}

fn format(format: &LogFormat, stream: Stream, line: &[u8], now: i64, out: &mut Vec<u8>) {
    let severity = match stream {
        Stream::Errors => ERROR,
        Stream::Output => INFORMATION,
    };
    match format {
        LogFormat::Journal { fields } => journal(fields, severity, line, now, out),
        LogFormat::Syslog {
            style,
            facility,
            host,
            program,
            tag,
            process,
        } => {
            let priority = u16::from(*facility) * 8 + u16::from(severity);
            let seconds = now.div_euclid(1_000_000_000);
            let head = match style {
                SyslogStyle::Local => format!("<{priority}>{} {tag}[{process}]: ", stamp(seconds)),
                SyslogStyle::Rfc3164 => format!("<{priority}>{} {host} {tag}[{process}]: ", stamp(seconds)),
                SyslogStyle::Rfc5424 => format!(
                    "<{priority}>1 {}Z {host} {program} {process} {tag} - ",
                    date_time(seconds)
                ),
                SyslogStyle::Rfc5424Micro => format!(
                    "<{priority}>1 {}.{:06}Z {host} {program} {process} {tag} - ",
                    date_time(seconds),
                    now.rem_euclid(1_000_000_000) / 1000
                ),
            };
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(line);
        }
    }
}

/// `Jan _2 15:04:05`, in UTC: the shim knows of no time zones.
fn stamp(seconds: i64) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let text = date_time(seconds);
    let number = |range: std::ops::Range<usize>| text.get(range).and_then(|part| part.parse::<usize>().ok());
    let month = number(5..7)
        .and_then(|month| MONTHS.get(month.wrapping_sub(1)))
        .unwrap_or(&MONTHS[0]);
    let time = text.get(11..19).unwrap_or("00:00:00");
    format!("{month} {:>2} {time}", number(8..10).unwrap_or(1))
}

/// The journal's native protocol: `NAME=value` lines; a value with newlines has its length before it.
fn journal(fields: &[(String, String)], severity: u8, line: &[u8], now: i64, out: &mut Vec<u8>) {
    let mut field = |name: &str, value: &[u8]| {
        out.extend_from_slice(name.as_bytes());
        if value.contains(&b'\n') {
            out.push(b'\n');
            out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            out.push(b'=');
        }
        out.extend_from_slice(value);
        out.push(b'\n');
    };
    field("MESSAGE", line);
    field("PRIORITY", severity.to_string().as_bytes());
    let seconds = now.div_euclid(1_000_000_000);
    let time = format!("{}.{:09}Z", date_time(seconds), now.rem_euclid(1_000_000_000));
    field("SYSLOG_TIMESTAMP", time.as_bytes());
    for (name, value) in fields {
        field(name, value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_123_456_789;

    fn syslog(address: LogAddress, style: SyslogStyle) -> Remote {
        Remote::new(LogTarget {
            address,
            format: LogFormat::Syslog {
                style,
                facility: 3,
                host: "box".into(),
                program: "vessel".into(),
                tag: "0123456789ab".into(),
                process: 42,
            },
        })
    }

    #[test]
    fn the_formats_are_dockers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let server = UnixDatagram::bind(&path).unwrap();
        for (style, stream, expected) in [
            (
                SyslogStyle::Local,
                Stream::Output,
                "<30>Nov 14 22:13:20 0123456789ab[42]: hello",
            ),
            (
                SyslogStyle::Rfc3164,
                Stream::Errors,
                "<27>Nov 14 22:13:20 box 0123456789ab[42]: hello",
            ),
            (
                SyslogStyle::Rfc5424,
                Stream::Output,
                "<30>1 2023-11-14T22:13:20Z box vessel 42 0123456789ab - hello",
            ),
            (
                SyslogStyle::Rfc5424Micro,
                Stream::Output,
                "<30>1 2023-11-14T22:13:20.123456Z box vessel 42 0123456789ab - hello",
            ),
        ] {
            syslog(LogAddress::Unix(path.clone()), style).send(stream, b"hello\n", NOW);
            let mut message = [0; 200];
            let length = server.recv(&mut message).unwrap();
            assert_eq!(std::str::from_utf8(&message[..length]).unwrap(), expected);
        }
    }

    #[test]
    fn the_journal_gets_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let mut remote = Remote::new(LogTarget {
            address: LogAddress::Unix(path),
            format: LogFormat::Journal {
                fields: vec![
                    ("CONTAINER_NAME".into(), "web".into()),
                    ("ODD".into(), "a\nb".into()),
                ],
            },
        });
        remote.send(Stream::Errors, b"oops\n", NOW);
        let mut message = [0; 500];
        let length = server.recv(&mut message).unwrap();
        let expected = b"MESSAGE=oops\nPRIORITY=3\nSYSLOG_TIMESTAMP=2023-11-14T22:13:20.123456789Z\nCONTAINER_NAME=web\nODD\n\x03\0\0\0\0\0\0\0a\nb\n";
        assert_eq!(
            String::from_utf8_lossy(&message[..length]),
            String::from_utf8_lossy(expected)
        );
    }

    #[test]
    fn a_server_that_is_gone_or_reads_nothing_costs_lines_only() {
        use std::io::Read;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut remote = syslog(LogAddress::Tcp(address), SyslogStyle::Rfc3164);
        remote.send(Stream::Output, b"first\n", NOW);
        let (mut peer, _) = listener.accept().unwrap();
        let line = vec![b'x'; 1000];
        let begin = std::time::Instant::now();
        for _ in 0..20_000 {
            remote.send(Stream::Output, &line, NOW);
        }
        assert!(begin.elapsed() < Duration::from_secs(10));
        let mut start = [0; 60];
        peer.read_exact(&mut start).unwrap();
        assert!(String::from_utf8_lossy(&start).contains("first\n"));
        drop((peer, listener));
        for second in 1..5 {
            remote.send(Stream::Output, b"nobody\n", NOW + second * PAUSE);
        }
        assert!(remote.socket.is_none());
        // Somebody is there again.
        let listener = std::net::TcpListener::bind(address).unwrap();
        remote.send(Stream::Output, b"again\n", NOW + 9 * PAUSE);
        let (mut peer, _) = listener.accept().unwrap();
        drop(remote);
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("again\n"), "{text}");
    }
}
