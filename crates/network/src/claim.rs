//! A bridge has one owner: who makes it match their records removes what others made.
//!
//! The claim is a listening Unix socket with an abstract name (unix(7)): such names belong to the network namespace, as
//! bridges do, and vanish with the process however it ends. Anybody may take an abstract name, so only a holder of this
//! process's own user counts; another one's is reported and does not keep the owner from its bridge.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::address::check_name;
use crate::error::{Error, Result};

/// How long an owner that is just ending may keep its claim.
const ENDING: Duration = Duration::from_secs(2);

/// The right to a bridge's name in this network namespace, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    _socket: OwnedFd,
}

impl Claim {
    /// Claims a bridge, whether it exists or not, before [`Bridge::ensure`](crate::Bridge::ensure).
    ///
    /// A process that ends is waited for, for at most two seconds.
    ///
    /// # Errors
    /// When another process of this user has claimed it.
    pub fn take(bridge: &str) -> Result<Self> {
        check_name("a bridge", bridge)?;
        let failed = |error: Errno| Error::io(format_args!("claim the bridge {bridge}"), error);
        let name = format!("vessel/bridge/{bridge}");
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(failed)?;
        let begin = Instant::now();
        loop {
            let socket = socket().map_err(failed)?;
            match bind(&socket, &address) {
                Ok(()) => {
                    listen(&socket, 1).map_err(failed)?;
                    return Ok(Self { _socket: socket });
                }
                Err(Errno::ADDRINUSE) => {}
                Err(error) => return Err(failed(error)),
            }
            if begin.elapsed() > ENDING {
                if let Some(pid) = holder(&address) {
                    return Err(Error::conflict(format!(
                        "the bridge {bridge} is in use by another daemon (process {pid}): stop it, or choose another \
                         --bridge"
                    )));
                }
                tracing::warn!(
                    bridge,
                    "the abstract socket @{name} is taken by a process that is no daemon; whether another daemon uses the \
                     bridge cannot be told"
                );
                return Ok(Self { _socket: socket });
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn socket() -> Result<OwnedFd, Errno> {
    // A full backlog must not hold anybody up.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// The process that listens there, when it is of this process's user.
fn holder(address: &SocketAddrUnix) -> Option<i32> {
    let socket = socket().ok()?;
    connect(&socket, address).ok()?;
    let peer = socket_peercred(&socket).ok()?;
    (peer.uid == rustix::process::geteuid()).then_some(peer.pid.as_raw_nonzero().get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(letter: char) -> String {
        format!("{letter}claim{}", std::process::id() % 1_000_000)
    }

    #[test]
    fn a_bridge_has_one_owner() {
        let name = name('a');
        let first = Claim::take(&name).unwrap();
        let error = Claim::take(&name).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(
            error.contains(&name) && error.contains(&format!("process {pid}")),
            "{error}"
        );
        drop(first);
        Claim::take(&name).unwrap();
    }

    #[test]
    fn an_owner_that_ends_is_waited_for() {
        let name = name('b');
        let first = Claim::take(&name).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(100));
                drop(first);
            });
            Claim::take(&name).unwrap();
        });
    }

    #[test]
    fn a_name_that_nobody_listens_at_keeps_nobody_off() {
        let name = name('c');
        let squatter = socket().unwrap();
        let address = format!("vessel/bridge/{name}");
        bind(
            &squatter,
            &SocketAddrUnix::new_abstract_name(address.as_bytes()).unwrap(),
        )
        .unwrap();
        Claim::take(&name).unwrap();
    }
}
