//! Who is at the other end of a connection.

use std::sync::OnceLock;

use vessel_api::Operation;

use super::subject;
use crate::conn::Conn;

/// A client, as far as its connection tells.
#[derive(Debug, Default)]
pub struct Peer {
    via: &'static str,
    uid: Option<u32>,
    pid: i32,
    client: String,
    address: String,
    /// Read when it is needed: most connections change nothing.
    process: OnceLock<Process>,
}

/// A process while it has a connection.
#[derive(Debug, Default)]
struct Process {
    program: String,
    /// When it began, in ticks since the boot: with its number it names it for good.
    began: String,
}

impl Peer {
    /// The client of a connection.
    pub fn of(conn: &Conn, page: bool) -> Self {
        let peer = Self::of_conn(conn);
        Self {
            via: if page { "page" } else { peer.via },
            ..peer
        }
    }

    fn of_conn(conn: &Conn) -> Self {
        match conn {
            Conn::Unix(stream) => {
                let peer = stream.peer_cred().ok();
                Self {
                    via: "unix",
                    uid: peer.map(|peer| peer.uid()),
                    // 0 is one outside this process's namespace of processes.
                    pid: peer.and_then(|peer| peer.pid()).unwrap_or_default(),
                    ..Self::default()
                }
            }
            Conn::Tcp(stream) => Self {
                via: "tcp",
                address: stream
                    .peer_addr()
                    .map(|address| address.to_string())
                    .unwrap_or_default(),
                ..Self::default()
            },
            Conn::Tls(stream) => {
                let (tcp, tls) = stream.get_ref();
                let certificate = tls.peer_certificates().and_then(<[_]>::first);
                Self {
                    via: "tls",
                    address: tcp
                        .peer_addr()
                        .map(|address| address.to_string())
                        .unwrap_or_default(),
                    client: certificate
                        .and_then(|der| subject::common_name(der))
                        .unwrap_or_default(),
                    ..Self::default()
                }
            }
        }
    }

    /// The daemon itself.
    pub fn daemon() -> Self {
        Self {
            via: "daemon",
            uid: Some(rustix::process::geteuid().as_raw()),
            pid: std::process::id().cast_signed(),
            ..Self::default()
        }
    }

    fn process(&self) -> &Process {
        self.process.get_or_init(|| {
            if self.pid == 0 {
                return Process::default();
            }
            let read = |file: &str| {
                std::fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap_or_default()
            };
            let stat = read("stat");
            // proc_pid_stat(5): the name in parentheses may hold anything; the 22nd field is the time of the start.
            let began = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().nth(19))
                .unwrap_or_default();
            Process {
                program: read("comm").trim_end().to_owned(),
                began: began.to_owned(),
            }
        })
    }

    /// A line of the log that says who.
    pub(super) fn line(&self) -> Operation {
        Operation {
            via: self.via.to_owned(),
            uid: self.uid,
            pid: self.pid,
            program: self.process().program.clone(),
            client: self.client.clone(),
            address: self.address.clone(),
            ..Operation::default()
        }
    }

    /// What is the same for all that one client does, and no other's: a process, or an address.
    pub fn identity(&self) -> String {
        let host = self.address.rsplit_once(':').map_or("", |(host, _)| host);
        match self.pid {
            0 if host.is_empty() => String::new(),
            0 => format!("{} {} {host}", self.via, self.client),
            pid => format!("process {pid} {}", self.process().began),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_tells_which_process_is_there() {
        let (one, _other) = tokio::net::UnixStream::pair().unwrap();
        let peer = Peer::of(&Conn::Unix(one), false);
        let line = peer.line();
        assert_eq!(line.pid, std::process::id().cast_signed());
        assert_eq!(line.uid, Some(rustix::process::geteuid().as_raw()));
        assert!(!line.program.is_empty());
        assert!(peer.identity().starts_with(&format!("process {} ", line.pid)));
        assert_ne!(peer.process().began, "");
    }

    #[test]
    fn addresses_are_the_same_client_whatever_the_port() {
        let of = |address: &str| {
            let peer = Peer {
                via: "tcp",
                address: address.to_owned(),
                ..Peer::default()
            };
            peer.identity()
        };
        assert_eq!(of("127.0.0.1:1"), of("127.0.0.1:2"));
        assert_ne!(of("127.0.0.1:1"), of("127.0.0.2:1"));
        assert_eq!(of(""), "");
    }
}
