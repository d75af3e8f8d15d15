//! A log's lines on their way to somebody else's: a syslog server or the journal.
//!
//! What is sent is sent without waiting: a server that is slow, full or gone costs lines there, never a moment of the
//! container. (Its own file has them all the same, unless it was told not to.) A connection that broke is tried again with
//! the next line, at most once a second. While one is being made, lines are kept for it, 64 KiB of them; what is left at the
//! log's end is given a moment. The formats are those of Docker's drivers: RFC 3164 and its local form, RFC 5424,
//! and the journal's native protocol.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::log::{Stream, date_time};
use super::protocol::{LogAddress, LogFormat, LogTarget, SyslogStyle};

/// Longer lines are cut on their way: datagrams have an end.
const LONGEST: usize = 32 << 10;
/// The most that is kept for a connection that is being made.
const MOST_WAITING: usize = 64 << 10;
/// How long such a connection is waited for when the log is over, in nanoseconds.
const LAST_MOMENT: i64 = 200_000_000;
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
    /// What was said while the connection was being made.
    waiting: Vec<u8>,
}

#[derive(Debug)]
enum Socket {
    Datagram(OwnedFd),
    Stream {
        socket: OwnedFd,
        /// The other side has not answered yet, or has not taken all that was said before it did.
        connecting: bool,
    },
}

impl Remote {
    /// Nothing is connected yet.
    pub fn new(target: LogTarget) -> Self {
        Self {
            target,
            socket: None,
            failed: i64::MIN,
            message: Vec::new(),
            waiting: Vec::new(),
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
        let sent = match &mut self.socket {
            None => return,
            Some(Socket::Datagram(socket)) => transmit(socket, &self.message),
            Some(Socket::Stream { socket, connecting }) => {
                self.message.push(b'\n');
                if *connecting && self.waiting.len() + self.message.len() <= MOST_WAITING {
                    self.waiting.extend_from_slice(&self.message);
                }
                if *connecting {
                    match transmit(socket, &self.waiting) {
                        Sent::Part(length) => drop(self.waiting.drain(..length)),
                        Sent::Well => {
                            *connecting = false;
                            self.waiting = Vec::new();
                        }
                        Sent::Not => {}
                        Sent::Broken => self.fail(now),
                    }
                    return;
                }
                transmit(socket, &self.message)
            }
        };
        if matches!(sent, Sent::Part(_) | Sent::Broken) {
            self.fail(now);
        }
    }

    /// Nobody is there, or has half a message.
    fn fail(&mut self, now: i64) {
        self.socket = None;
        self.failed = now;
        self.waiting.clear();
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let Some(Socket::Stream { socket, .. }) = &self.socket else {
            return;
        };
        if self.waiting.is_empty() {
            return;
        }
        let moment = Timespec {
            tv_sec: 0,
            tv_nsec: LAST_MOMENT,
        };
        // The program is over: it is nobody who waits now.
        let _ready = rustix::event::poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&moment));
        transmit(socket, &self.waiting);
    }
}

enum Sent {
    /// It was taken.
    Well,
    /// There is no room now, or no connection yet.
    Not,
    /// So much of it was taken.
    Part(usize),
    /// Nobody is there.
    Broken,
}

fn transmit(socket: &impl AsFd, message: &[u8]) -> Sent {
    match rustix::net::send(socket, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(sent) if sent == message.len() => Sent::Well,
        Err(Errno::AGAIN | Errno::NOBUFS | Errno::MSGSIZE | Errno::INTR) => Sent::Not,
        Ok(sent) => Sent::Part(sent),
        // The server of a datagram socket may come back at the same address, which takes a new connection.
        Err(_) => Sent::Broken,
    }
}

/// Connects without waiting.
fn connect(address: &LogAddress) -> Option<Socket> {
    match address {
        LogAddress::Unix(path) => {
            let datagram = UnixDatagram::unbound().ok()?;
            if datagram.connect(path).is_ok() {
                return Some(Socket::Datagram(datagram.into()));
            }
            let socket = stream(AddressFamily::UNIX)?;
            // EAGAIN, too, is a failure here: the server's queue is full, and nothing is under way.
            rustix::net::connect(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
            Some(Socket::Stream {
                socket,
                connecting: false,
            })
        }
        LogAddress::Udp(address) => {
            let any: SocketAddr = match address {
                SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
            };
            let socket = UdpSocket::bind(any).ok()?;
            socket.connect(address).ok()?;
            Some(Socket::Datagram(socket.into()))
        }
        LogAddress::Tcp(address) => {
            let socket = stream(match address {
                SocketAddr::V4(_) => AddressFamily::INET,
                SocketAddr::V6(_) => AddressFamily::INET6,
            })?;
            match rustix::net::connect(&socket, address) {
                // A send says EAGAIN until the connection is there, and why it did not come to be.
                Ok(()) | Err(Errno::INPROGRESS) => Some(Socket::Stream {
                    socket,
                    connecting: true,
                }),
                Err(_) => None,
            }
        }
    }
}

fn stream(family: AddressFamily) -> Option<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None).ok()
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
            tag,
            process,
        } => {
            let priority = u16::from(*facility) * 8 + u16::from(severity);
            let seconds = now.div_euclid(1_000_000_000);
            let head = match style {
                SyslogStyle::Local => format!("<{priority}>{} {tag}[{process}]: ", stamp(seconds)),
                SyslogStyle::Rfc3164 => format!("<{priority}>{} {host} {tag}[{process}]: ", stamp(seconds)),
                SyslogStyle::Rfc5424 => format!(
                    "<{priority}>1 {}Z {host} {tag} {process} {tag} - ",
                    date_time(seconds)
                ),
                SyslogStyle::Rfc5424Micro => format!(
                    "<{priority}>1 {}.{:06}Z {host} {tag} {process} {tag} - ",
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
    use std::time::Duration;

    use super::*;

    const NOW: i64 = 1_700_000_000_123_456_789;

    fn syslog(address: LogAddress, style: SyslogStyle) -> Remote {
        Remote::new(LogTarget {
            address,
            format: LogFormat::Syslog {
                style,
                facility: 3,
                host: "box".into(),
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
                "<30>1 2023-11-14T22:13:20Z box 0123456789ab 42 0123456789ab - hello",
            ),
            (
                SyslogStyle::Rfc5424Micro,
                Stream::Output,
                "<30>1 2023-11-14T22:13:20.123456Z box 0123456789ab 42 0123456789ab - hello",
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

    #[test]
    fn nobody_waits_for_a_server_that_accepts_nothing() {
        use std::os::unix::net::{UnixListener, UnixStream};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let (done, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut remote = syslog(LogAddress::Unix(path), SyslogStyle::Local);
            remote.send(Stream::Output, b"lost\n", NOW);
            let _gone = done.send(remote.socket.is_none());
        });
        assert!(answer.recv_timeout(Duration::from_secs(5)).unwrap());
    }

    #[test]
    fn lines_are_kept_while_a_connection_is_made() {
        use std::io::Read;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        // The queue is full: the answer to the next one comes when there is room, which the kernel tries after a second.
        let first = std::net::TcpStream::connect(address).unwrap();
        let mut remote = syslog(LogAddress::Tcp(address), SyslogStyle::Local);
        let begin = std::time::Instant::now();
        for _ in 0..5000 {
            remote.send(Stream::Output, b"early\n", NOW);
        }
        assert!(matches!(
            remote.socket,
            Some(Socket::Stream { connecting: true, .. })
        ));
        assert!(remote.waiting.len() > MOST_WAITING / 2 && remote.waiting.len() <= MOST_WAITING);
        let kept = remote.waiting.len();
        drop((listener.accept().unwrap(), first));
        let server = std::thread::spawn(move || {
            let mut text = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut text).unwrap();
            text
        });
        while matches!(remote.socket, Some(Socket::Stream { connecting: true, .. })) {
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(50));
            remote.send(Stream::Output, b"late\n", NOW);
        }
        drop(remote);
        let text = server.join().unwrap();
        assert!(text.starts_with(b"<30>") && text.len() >= kept && text.ends_with(b"\n"));
    }
}
