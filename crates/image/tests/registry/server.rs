//! A registry that misbehaves as it is told to, on a loopback port.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte that a `Range` asks for.
    pub fn first(&self) -> Option<usize> {
        self.header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?
            .0
            .parse()
            .ok()
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection is closed after so many bytes of the body.
    pub cut: Option<usize>,
    /// The body goes on for ever, in chunks.
    pub endless: bool,
    /// Nothing is sent after so many bytes until the server ends.
    pub stall: Option<usize>,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            ..Self::default()
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// A blob from some byte on.
    pub fn part(blob: &[u8], first: usize) -> Self {
        let last = blob.len() - 1;
        Self::new(206, &blob[first..]).header("content-range", format!("bytes {first}-{last}/{}", blob.len()))
    }
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

pub struct Server {
    pub address: SocketAddr,
    pub log: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
}

/// How bodies are read.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// As they come.
    Fast,
    /// With a pause after each piece.
    Slow(Duration),
    /// No more of them after so many bytes.
    Deaf(u64),
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::with_pace(Pace::Fast, handler)
    }

    pub fn with_pace(pace: Pace, handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::listening(TcpListener::bind("127.0.0.1:0").unwrap(), pace, handler)
    }

    /// Where another was before.
    pub fn start_at(
        address: SocketAddr,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::listening(TcpListener::bind(address).unwrap(), Pace::Fast, handler)
    }

    fn listening(
        listener: TcpListener,
        pace: Pace,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        if !matches!(pace, Pace::Fast) {
            // What the kernel takes looks like progress.
            rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 64 << 10).unwrap();
        }
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let ended = Arc::new(AtomicBool::new(false));
        let (handler, told, end): (Arc<Handler>, _, _) =
            (Arc::new(handler), Arc::clone(&log), Arc::clone(&ended));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (handler, told, end) = (Arc::clone(&handler), Arc::clone(&told), Arc::clone(&end));
                std::thread::spawn(move || {
                    // Who goes away, or speaks TLS, is not a failure of the test.
                    let _ = serve(stream, pace, &*handler, &told, &end);
                });
            }
        });
        Self { address, log, ended }
    }

    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// Requests whose method and path begin so.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|request| request.method == method && request.path.starts_with(path))
            .count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: TcpStream,
    pace: Pace,
    handler: &Handler,
    log: &Mutex<Vec<Request>>,
    ended: &AtomicBool,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let Some(request) = read_request(&mut reader, pace, ended)? else {
            return Ok(());
        };
        log.lock().unwrap().push(request.clone());
        let answer = handler(&request);
        let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if answer.endless {
            write!(writer, "{head}transfer-encoding: chunked\r\n\r\n")?;
            while !ended.load(Ordering::Relaxed) {
                write!(writer, "10000\r\n")?;
                writer.write_all(&[b'x'; 65536])?;
                write!(writer, "\r\n")?;
            }
            return Ok(());
        }
        write!(writer, "{head}content-length: {}\r\n\r\n", answer.body.len())?;
        if request.method == "HEAD" {
            continue;
        }
        let until = answer
            .cut
            .or(answer.stall)
            .unwrap_or(answer.body.len())
            .min(answer.body.len());
        writer.write_all(&answer.body[..until])?;
        if answer.stall.is_some() {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if until < answer.body.len() {
            return Ok(());
        }
    }
}

fn read_request(
    reader: &mut BufReader<TcpStream>,
    pace: Pace,
    ended: &AtomicBool,
) -> std::io::Result<Option<Request>> {
    let mut line = Vec::new();
    reader.take(8192).read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line).into_owned();
    let mut words = line.split_whitespace();
    let (Some(method), Some(path), Some("HTTP/1.1")) = (words.next(), words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: HashMap::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        request
            .headers
            .insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
    if let Some(length) = request
        .header("content-length")
        .and_then(|text| text.parse::<u64>().ok())
    {
        reader.take(length).read_to_end(&mut request.body)?;
    } else if request.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let length = u64::from_str_radix(line.trim(), 16).unwrap_or(0);
            reader.take(length).read_to_end(&mut request.body)?;
            match pace {
                Pace::Slow(pause) => std::thread::sleep(pause),
                Pace::Deaf(after) if request.body.len() as u64 >= after => {
                    while !ended.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
                _ => {}
            }
            reader.read_line(&mut line)?;
            if length == 0 {
                break;
            }
        }
    }
    Ok(Some(request))
}
