//! Clients that take nothing of what they asked for.

mod common;

use std::time::Duration;

use common::{Registry, start_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const SILENCE: Duration = Duration::from_millis(400);
const SIZE: usize = 24 << 20;

async fn registry() -> (Registry, String) {
    let registry = start_with(|config| config.silence = SILENCE).await;
    let digest = registry.push_blob("a", &vec![7; SIZE]).await;
    (registry, format!("/v2/a/blobs/{digest}"))
}

/// Of this process itself there is one, which asks.
async fn connections(registry: &Registry) -> u64 {
    let text = registry.get("/metrics").await.text().await.unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("vessel_registry_connections"))
        .unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn ask(registry: &Registry, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // What the kernel takes looks like progress.
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut stream = socket.connect(registry.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_loses_the_connection() {
    let (registry, path) = registry().await;
    let mut stream = ask(&registry, &path).await;
    let mut first = [0; 1000];
    stream.read_exact(&mut first).await.unwrap();
    let before = connections(&registry).await;
    tokio::time::sleep(SILENCE * 4).await;
    assert_eq!(connections(&registry).await, before - 1);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < SIZE / 2, "{} bytes came", rest.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_gets_all_of_it() {
    let (registry, path) = registry().await;
    let mut stream = ask(&registry, &path).await;
    let (mut got, mut reads) = (0, 0);
    let mut buffer = vec![0; 1 << 20];
    while got < SIZE {
        // Altogether it takes several times longer than a silence may.
        if reads < 12 {
            tokio::time::sleep(SILENCE / 2).await;
        }
        reads += 1;
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            n => got += n,
        }
    }
    assert!(got >= SIZE, "{got} of {SIZE} bytes came");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lets_streams_starve_loses_the_connection() {
    let (registry, path) = registry().await;
    let client = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .http2_initial_stream_window_size(65_535)
        .http2_keep_alive_interval(SILENCE / 4)
        .build()
        .unwrap();
    let mut response = client.get(registry.url(&path)).send().await.unwrap();
    let _first = response.chunk().await.unwrap().unwrap();
    let before = connections(&registry).await;
    tokio::time::sleep(SILENCE * 4).await;
    assert_eq!(connections(&registry).await, before - 1);
    let rest = response.bytes().await;
    assert!(rest.is_err(), "all of it came");
}

/// A client that takes a byte of each stream.
fn sipping() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .http2_initial_stream_window_size(1)
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_one_byte_of_a_small_answer_loses_the_connection_whatever_else_is_asked() {
    let registry = start_with(|config| config.silence = SILENCE).await;
    let digest = registry.push_blob("a", &[7; 1000]).await;
    let url = registry.url(&format!("/v2/a/blobs/{digest}"));
    let client = sipping();
    let starving = client.get(&url).send().await.unwrap();
    for _ in 0..16 {
        tokio::time::sleep(SILENCE / 4).await;
        // Of the lost connection, or of a new one.
        let _ = client.head(&url).send().await;
    }
    assert!(starving.bytes().await.is_err(), "all of it came");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_byte_by_byte_gets_all_of_it() {
    let registry = start_with(|config| config.silence = SILENCE).await;
    let digest = registry.push_blob("a", &[7; 1000]).await;
    let url = registry.url(&format!("/v2/a/blobs/{digest}"));
    let answer = sipping().get(&url).send().await.unwrap();
    assert_eq!(answer.bytes().await.unwrap(), [7; 1000][..]);
}
