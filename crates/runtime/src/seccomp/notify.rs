//! The listener of a profile that notifies, on its way to the agent.
//!
//! The runtime specification: over the Unix stream socket at `listenerPath` the agent gets one message, the container
//! process state as JSON, and with it, by `SCM_RIGHTS`, the descriptors that `fds` names.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};
use serde::Serialize;

use crate::error::Context;
use crate::{Error, Result};

/// `containerProcessState` of the runtime specification. `S` is the container's state as `state` prints it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerProcessState<'a, S> {
    /// Version of the specification.
    pub oci_version: &'a str,
    /// Names of the descriptors sent along: for a seccomp listener [`FDS`].
    pub fds: &'a [&'a str],
    /// The process the filter was installed in, as the agent's side numbers it.
    pub pid: i32,
    /// `listenerMetadata` of the profile.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub metadata: &'a str,
    /// The container's state.
    pub state: S,
}

/// The one descriptor that is sent.
pub const FDS: [&str; 1] = ["seccompFd"];

/// Sends the listener to the agent at `path`, from a process outside the container.
///
/// # Errors
/// When there is no agent, or it hangs up.
pub fn send_listener<S: Serialize>(
    path: &Path,
    listener: BorrowedFd<'_>,
    state: &ContainerProcessState<'_, S>,
) -> Result<()> {
    let text = serde_json::to_vec(state)
        .map_err(|error| Error::invalid(format!("encode the state for the seccomp agent: {error}")))?;
    let what = |doing: &str| format!("{doing} the seccomp agent at {}", path.display());
    let address = SocketAddrUnix::new(path).context(|| what("address"))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .context(|| what("make a socket for"))?;
    rustix::net::connect(&socket, &address).context(|| what("connect to"))?;

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [listener.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let mut sent = loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result.context(|| what("send the listener to"))?,
        }
    };
    // The descriptor went with the first byte; a long state may need more calls.
    while sent < text.len() {
        match rustix::net::send(&socket, &text[sent..], SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            result => sent += result.context(|| what("send the state to"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    use std::io::{IoSliceMut, Read};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;

    #[test]
    fn descriptor_and_state_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let agent = UnixListener::bind(&path).unwrap();
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = agent.accept().unwrap();
            let mut bytes = vec![0u8; 64];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = rustix::net::recvmsg(
                &stream,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
            .unwrap();
            let fd: OwnedFd = control
                .drain()
                .find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                    _ => None,
                })
                .unwrap();
            bytes.truncate(got.bytes);
            stream.read_to_end(&mut bytes).unwrap();
            (fd, bytes)
        });

        let (mut read, write) = std::io::pipe().unwrap();
        let id = "c".repeat(300_000); // more than a socket's buffer takes at once
        let state = ContainerProcessState {
            oci_version: "1.2.0",
            fds: &FDS,
            pid: 42,
            metadata: "meta",
            state: serde_json::json!({"id": id}),
        };
        send_listener(&path, write.as_fd(), &state).unwrap();
        drop(write);

        let (fd, bytes) = receiver.join().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["fds"][0], "seccompFd");
        assert_eq!(json["pid"], 42);
        assert_eq!(json["ociVersion"], "1.2.0");
        assert_eq!(json["metadata"], "meta");
        assert_eq!(json["state"]["id"].as_str().unwrap().len(), 300_000);
        rustix::io::write(&fd, b"through").unwrap();
        drop(fd);
        let mut through = String::new();
        read.read_to_string(&mut through).unwrap();
        assert_eq!(through, "through");
    }

    #[test]
    fn no_agent_is_said_so() {
        let (_, write) = std::io::pipe().unwrap();
        let state = ContainerProcessState {
            oci_version: "1.2.0",
            fds: &FDS,
            pid: 1,
            metadata: "",
            state: (),
        };
        let error = send_listener(Path::new("/nonexistent/agent"), write.as_fd(), &state).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("connect to the seccomp agent at /nonexistent/agent")
        );
        let long = "/x".repeat(100);
        assert!(send_listener(Path::new(&long), write.as_fd(), &state).is_err());
    }
}
