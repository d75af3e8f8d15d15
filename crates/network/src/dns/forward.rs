//! Questions that others are asked.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::message::{self, Query};

const PORT: u16 = 53;
/// How long one server has. Stub resolvers wait for five seconds, so a second server has its chance.
pub(super) const PATIENCE: Duration = Duration::from_millis(2_000);

/// A question that is under way.
pub(super) struct Pending {
    /// The namespace it came from.
    pub(super) origin: u32,
    pub(super) client: SocketAddr,
    pub(super) query: Query,
    packet: Vec<u8>,
    servers: Vec<IpAddr>,
    next: usize,
    id: u16,
    pub(super) socket: UdpSocket,
    pub(super) deadline: Instant,
}

impl Pending {
    /// Asks the first server that can be asked.
    pub(super) fn begin(
        origin: u32,
        client: SocketAddr,
        query: Query,
        packet: &[u8],
        servers: Vec<IpAddr>,
    ) -> Option<Self> {
        let (mut next, mut packet) = (0, packet.to_vec());
        let (socket, id) = ask(&mut packet, &servers, &mut next)?;
        Some(Self {
            origin,
            client,
            query,
            packet,
            servers,
            next,
            id,
            socket,
            deadline: Instant::now() + PATIENCE,
        })
    }

    /// Asks the next server, from another socket. False: there is none left.
    pub(super) fn ask_next(&mut self) -> bool {
        let Some((socket, id)) = ask(&mut self.packet, &self.servers, &mut self.next) else {
            return false;
        };
        (self.socket, self.id) = (socket, id);
        self.deadline = Instant::now() + PATIENCE;
        true
    }

    /// The answer, if this is it, with the asker's ID.
    pub(super) fn accept(&self, packet: &[u8]) -> Option<Vec<u8>> {
        if !self.query.is_answered_by(packet, self.id) {
            return None;
        }
        let mut answer = packet.to_vec();
        message::set_id(&mut answer, self.query.id);
        Some(answer)
    }
}

fn ask(packet: &mut [u8], servers: &[IpAddr], next: &mut usize) -> Option<(UdpSocket, u16)> {
    while let Some(server) = servers.get(*next) {
        *next += 1;
        let id = random_id()?;
        message::set_id(packet, id);
        // A socket of its own: whoever wants to forge an answer has to guess its port, too.
        let sent = open(*server).and_then(|socket| {
            socket.connect((*server, PORT))?;
            socket.send(packet)?;
            Ok(socket)
        });
        match sent {
            Ok(socket) => return Some((socket, id)),
            Err(error) => tracing::debug!(%server, %error, "a name server cannot be asked"),
        }
    }
    None
}

fn open(server: IpAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(match server {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    })?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn random_id() -> Option<u16> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok()?;
    Some(u16::from_ne_bytes(bytes))
}

/// Asks over TCP, and waits for the answer.
pub(super) fn over_tcp(query: &Query, packet: &[u8], servers: &[IpAddr]) -> Option<Vec<u8>> {
    servers.iter().find_map(|server| {
        let id = random_id()?;
        let mut packet = packet.to_vec();
        message::set_id(&mut packet, id);
        match exchange(*server, &packet) {
            Ok(mut answer) if query.is_answered_by(&answer, id) => {
                message::set_id(&mut answer, query.id);
                Some(answer)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%server, %error, "a name server cannot be asked over TCP");
                None
            }
        }
    })
}

fn exchange(server: IpAddr, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server, PORT), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write_message(&mut stream, packet)?;
    read_message(&mut stream, usize::from(u16::MAX))
}

/// A message over TCP has its length in front (RFC 1035, 4.2.2).
pub(super) fn write_message(stream: &mut impl Write, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed)
}

/// Reads a message of at most `most` bytes.
pub(super) fn read_message(stream: &mut impl Read, most: usize) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > most {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    Ok(message)
}
