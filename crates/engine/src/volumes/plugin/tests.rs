use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// A plug-in that gives each request what `answer` says of its method; none: it is silent.
fn plugin(directory: &Path, name: &str, answer: fn(&str) -> Option<String>) {
    let listener = UnixListener::bind(directory.join(format!("{name}.sock"))).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                // A socket that is closed over something unread is reset.
                let length = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse().unwrap())
                });
                stream
                    .read_exact(&mut vec![0; length.unwrap_or(0)])
                    .await
                    .unwrap();
                let method = head.strip_prefix("POST /").unwrap().split(' ').next().unwrap();
                let Some(text) = answer(method) else {
                    return std::future::pending().await;
                };
                let _ = stream.write_all(text.as_bytes()).await;
            });
        }
    });
}

fn ok(body: &str) -> Option<String> {
    Some(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

fn activated(method: &str) -> Option<Option<String>> {
    (method == "Plugin.Activate").then(|| ok(r#"{"Implements":["VolumeDriver"]}"#))
}

#[test]
fn addresses() {
    let unix = |path: &str| Address::Unix(path.into());
    assert_eq!(address("unix:///a/b.sock\n", false).unwrap(), unix("/a/b.sock"));
    assert_eq!(
        address("tcp://localhost:8080", false).unwrap(),
        Address::Tcp("127.0.0.1:8080".parse().unwrap())
    );
    let described = r#"{"Name":"x","Addr":"unix:///a","TLSConfig":{"InsecureSkipVerify":false}}"#;
    assert_eq!(address(described, true).unwrap(), unix("/a"));
    for (text, as_json) in [
        ("", false),
        ("unix://a", false),
        ("tcp://host.example:1", false),
        ("https://127.0.0.1:1", false),
        ("{", true),
        (r#"{"Addr":"unix:///a","TLSConfig":{"CAFile":"/x"}}"#, true),
    ] {
        assert!(address(text, as_json).is_err(), "{text}");
    }
}

#[test]
fn they_are_found_by_their_sockets_and_files() {
    let root = tempfile::tempdir().unwrap();
    let own = |name: &str| root.path().join(name);
    std::fs::create_dir(own("sub")).unwrap();
    let _sockets = [own("one.sock"), own("sub/sub.sock")]
        .map(|path| std::os::unix::net::UnixListener::bind(path).unwrap());
    std::fs::write(own("two.spec"), "unix:///x").unwrap();
    std::fs::write(own("three.json"), r#"{"Addr":"tcp://127.0.0.1:9"}"#).unwrap();
    std::fs::write(own("plain.sock"), "").unwrap();
    std::fs::write(own("bad.spec"), "nothing").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, own("pipe.spec"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let plugins = Plugins::new(vec![own("none"), root.path().to_owned()]);
    assert_eq!(plugins.names(), ["one", "sub", "three", "two"]);
    for name in ["", ".", "..", "../one", "sub/sub", "a b", "none"] {
        assert!(plugins.find(name).unwrap().is_none(), "{name}");
    }
    assert!(plugins.find("bad").is_err());
}

#[tokio::test]
async fn what_they_say_is_bounded_and_checked() {
    let root = tempfile::tempdir().unwrap();
    plugin(root.path(), "odd", |method| {
        activated(method).unwrap_or_else(|| match method {
            "VolumeDriver.Mount" => ok(r#"{"Mountpoint":"relative"}"#),
            "VolumeDriver.Remove" => ok(r#"{"Err":"not\nnow"}"#),
            "VolumeDriver.Unmount" => {
                Some("HTTP/1.1 500 No\r\nContent-Length: 16\r\n\r\n{\"Err\":\"broken\"}".into())
            }
            "VolumeDriver.Get" => ok(&(" ".repeat(5 << 20) + "{}")),
            "VolumeDriver.List" => {
                ok(r#"{"Volumes":[{"Name":"a","Mountpoint":null,"Status":{"x":1}}],"Err":null}"#)
            }
            _ => Some("nonsense\r\n\r\n".into()),
        })
    });
    plugin(root.path(), "other", |_| {
        ok(r#"{"Implements":["NetworkDriver"]}"#)
    });
    let plugins = Arc::new(Plugins::new(vec![root.path().to_owned()]));
    let odd = plugins.get("odd").await.unwrap();
    let text = |error: Error| error.to_string();
    assert!(text(odd.mount("v", "1").await.unwrap_err()).contains("no absolute path"));
    assert_eq!(text(odd.remove("v").await.unwrap_err()), "not now");
    assert_eq!(
        text(odd.unmount("v", "1").await.unwrap_err()),
        "VolumeDriver.Unmount: broken"
    );
    assert!(text(odd.inspect("v").await.unwrap_err()).contains("length limit"));
    assert!(odd.create("v", &Map::new()).await.is_err());
    assert_eq!(odd.scope().await, "local");
    let (volumes, warnings) = plugins.list().await;
    assert_eq!((volumes.len(), volumes[0].1.name()), (1, "a"));
    // One that drives something else is no reason to warn, unless it is asked for.
    assert_eq!(warnings, Vec::<String>::new());
    assert!(text(plugins.get("other").await.unwrap_err()).contains("does not implement"));
    assert!(text(plugins.get("none").await.unwrap_err()).contains("plugin \"none\" not found"));
}

#[tokio::test]
async fn a_silent_one_is_not_waited_for_twice() {
    let root = tempfile::tempdir().unwrap();
    plugin(root.path(), "silent", |method| activated(method).flatten());
    let plugins = Arc::new(Plugins::new(vec![root.path().to_owned()]));
    let begin = Instant::now();
    assert_eq!(plugins.list().await.1.len(), 1);
    assert!(begin.elapsed() >= GLANCE && begin.elapsed() < 3 * GLANCE);
    let begin = Instant::now();
    assert!(plugins.list().await.1[0].contains("did not answer"));
    assert!(begin.elapsed() < GLANCE / 2);
}
