//! The server over TCP: a short-lived thread per connection.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::forward::{self, read_message, write_message};
use super::names::Names;
use super::{Verdict, decide, failure};

/// How long a client may take for a question, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may last in all.
const LIFETIME: Duration = Duration::from_secs(30);
/// More than any question has.
const MAX_QUESTION: usize = 4096;

/// Connections at a time: of all namespaces, and of one.
const MOST: usize = 64;
const MOST_OF_ONE: usize = 8;

/// Counts connections while it lives.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let place = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::AcqRel) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves a connection on a thread of its own, or closes it when there are too many.
pub(super) fn serve(
    stream: TcpStream,
    key: &Arc<str>,
    names: &Arc<Names>,
    all: &Arc<AtomicUsize>,
    own: &Arc<AtomicUsize>,
) {
    let (Some(all), Some(own)) = (Place::take(all, MOST), Place::take(own, MOST_OF_ONE)) else {
        return;
    };
    let (key, names) = (Arc::clone(key), Arc::clone(names));
    let spawned = thread::Builder::new()
        .name("dns-tcp".into())
        .stack_size(256 * 1024)
        .spawn(move || {
            let _places = (all, own);
            // Its client notices by itself when the connection ends.
            let _ = converse(stream, &key, &names);
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "a DNS client over TCP is not served: there is no thread for it");
    }
}

fn converse(mut stream: TcpStream, key: &str, names: &Names) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let begin = Instant::now();
    let mut rotation = 0;
    while begin.elapsed() < LIFETIME {
        let packet = read_message(&mut stream, MAX_QUESTION)?;
        rotation += 1;
        let answer = match decide(names, key, &packet, rotation, Some(usize::from(u16::MAX))) {
            Verdict::Drop => return Ok(()),
            Verdict::Answer(answer) => answer,
            Verdict::Forward(query) => {
                forward::over_tcp(&query, &packet, &names.servers(key)).unwrap_or_else(|| failure(&query))
            }
        };
        write_message(&mut stream, &answer)?;
    }
    Ok(())
}
