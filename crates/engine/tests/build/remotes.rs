//! URLs and Git repositories, as contexts and for `ADD`, from servers of our own on loopback.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vessel_build::request::{DockerfileSource, Source};
use vessel_build::session::NoSession;

use crate::world::{Built, World, build, report};

/// Serves files below a directory; counts the requests and keeps their heads.
struct Server {
    address: String,
    requests: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(files: Vec<(String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (requests, heads) = (
            Arc::<AtomicUsize>::default(),
            Arc::<Mutex<Vec<String>>>::default(),
        );
        let (counted, kept) = (Arc::clone(&requests), Arc::clone(&heads));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                counted.fetch_add(1, Ordering::Relaxed);
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let path = path.split('?').next().unwrap_or_default().to_owned();
                kept.lock().unwrap().push(head);
                let found = files.iter().find(|(name, _)| *name == path);
                let _gone = match found {
                    Some((_, body)) => {
                        let head = format!(
                            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nLast-Modified: Sun, 09 Sep 2001 01:46:40 GMT\r\nConnection: close\r\n\r\n",
                            body.len()
                        );
                        stream
                            .write_all(head.as_bytes())
                            .and_then(|()| stream.write_all(body))
                    }
                    None => stream.write_all(
                        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                    ),
                };
            }
        });
        Self {
            address,
            requests,
            heads,
        }
    }
}

fn loopback() {
    let up = Command::new("/bin/busybox")
        .args(["ip", "link", "set", "lo", "up"])
        .status()
        .unwrap();
    assert!(up.success());
}

/// All that a build told, as text.
fn told(built: &Built) -> String {
    format!("{:?} {:?}", built.events, built.result)
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn urls() {
    let world = World::new();
    world.run(async |engine| {
        loopback();
        let archive = tar_of(&[
            ("Dockerfile", "FROM base\nCOPY . /c/\nRUN find /c -name 'f*'\n"),
            (".dockerignore", "f2\n"),
            ("f1", "1"),
            ("f2", "2"),
        ]);
        let mut parts = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        parts.append_data(&mut header, "sub/dir/foo", &b"foo"[..]).unwrap();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        parts.append_link(&mut header, "out", "/etc").unwrap();
        let parts = parts.into_inner().unwrap();
        let server = Server::start(vec![
            ("/dir/file.txt".into(), b"content".to_vec()),
            ("/x.tar".into(), archive.clone()),
            ("/parts.tar".into(), parts),
            ("/Dockerfile".into(), b"FROM base\nRUN echo alone\n".to_vec()),
        ]);
        let at = &server.address;
        let sum = vessel_image::Digest::sha256(b"content");
        let dockerfile = format!("FROM base\nADD --checksum={sum} http://me:passw0rd@{at}/dir/file.txt /one/\nADD http://{at}/x.tar /packed.tar\nADD --unpack=true http://{at}/x.tar /unpacked/\nRUN stat -c '%a %u %Y' /one/file.txt && cat /one/file.txt /unpacked/f1 && test -f /packed.tar\n");
        let built = world.build(&engine, &dockerfile).await;
        built.id();
        assert_eq!(built.output(), "600 0 1000000000\ncontent1");
        assert!(server.heads.lock().unwrap()[0].to_lowercase().contains("authorization: basic"));
        assert!(!told(&built).contains("passw0rd"), "{}", told(&built));
        assert!(told(&built).contains("xxxxx:xxxxx@"));
        assert!(!format!("{:?}", built.config()).contains("passw0rd"));
        assert_eq!(world.build(&engine, &dockerfile).await.cached(), (4, 0));
        let wrong = world.build(&engine, &format!("FROM base\nADD --checksum={sum} http://u:passw0rd@{at}/x.tar /\n")).await;
        assert!(wrong.error().contains("digest mismatch") && !wrong.error().contains("passw0rd"), "{}", wrong.error());
        let missing = world.build(&engine, &format!("FROM base\nADD http://u:passw0rd@{at}/none /\n")).await;
        assert!(missing.error().contains("404") && !told(&missing).contains("passw0rd"), "{}", told(&missing));
        // A context is fetched once.
        for (name, output) in [("x.tar", "/c/f1\n"), ("Dockerfile", "alone\n")] {
            let before = server.requests.load(Ordering::Relaxed);
            let mut request = world.request("");
            request.dockerfile = DockerfileSource::default();
            request.context = Source::Remote(format!("http://{at}/{name}"));
            let built = build(&engine, request, Arc::new(NoSession)).await;
            built.id();
            assert_eq!(built.output(), output);
            assert_eq!(server.requests.load(Ordering::Relaxed) - before, 1, "{name}");
        }
        // A Dockerfile alone has any name.
        let mut request = world.request("");
        request.dockerfile = DockerfileSource::File { source: None, path: "other".to_owned() };
        request.context = Source::Remote(format!("http://{at}/Dockerfile"));
        let built = build(&engine, request, Arc::new(NoSession)).await;
        built.id();
        assert_eq!(built.cached(), (1, 0));
        // A part of what came; no link leads out of it.
        for (part, fine) in [("sub/dir", true), ("sub/../sub/dir/", true), ("out", false), ("none", false), ("sub/dir/foo", false)] {
            let mut request = world.request("FROM base\nCOPY . /c\nRUN ls /c\n");
            request.context = Source::Remote(format!("http://{at}/parts.tar"));
            request.part = Some(part.to_owned());
            request.no_cache = vessel_build::request::NoCache::All;
            let built = build(&engine, request, Arc::new(NoSession)).await;
            if fine {
                assert_eq!(built.output(), "foo\n", "{part}: {:?}", built.result);
            } else {
                assert!(built.error().contains("not found in the build context"), "{part}: {}", built.error());
            }
        }
    });
}

/// A server of repositories; it ends with this.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ended = self.0.wait();
    }
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.com",
            "-c",
            "protocol.file.allow=always",
        ])
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The files below a directory, under the paths they are served by.
fn all_files(directory: &Path, at: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    entries
        .flat_map(|entry| {
            let path = format!("{at}/{}", entry.file_name().display());
            match entry.path().is_dir() {
                true => all_files(&entry.path(), &path),
                false => vec![(path, std::fs::read(entry.path()).unwrap())],
            }
        })
        .collect()
}

pub fn repositories() {
    if Command::new("git")
        .arg("daemon")
        .arg("--help")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err()
    {
        report("repositories: skipped: needs git");
        return;
    }
    let world = World::new();
    let served = world.path().join("served");
    let work = served.join("x.git");
    std::fs::create_dir_all(work.join("dir/deep")).unwrap();
    git(&work, &["init", "--quiet", "-b", "main"]);
    let write = |name: &str, text: &str| std::fs::write(work.join(name), text).unwrap();
    write(
        "Dockerfile",
        "FROM base\nCOPY . /c/\nRUN find /c -type f | grep -v Dockerfile || true\n"
            .replace(" | grep -v Dockerfile || true", " ! -name Dockerfile")
            .as_str(),
    );
    write("file", "one");
    write("dir/deep/inner", "deep");
    write("dir/Dockerfile", "FROM base\nCOPY deep/inner /\nRUN cat /inner\n");
    write("script", "#!/bin/sh\n");
    std::fs::set_permissions(
        work.join("script"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    git(&work, &["add", "."]);
    git(&work, &["commit", "--quiet", "-m", "one"]);
    git(&work, &["tag", "-a", "-m", "v1", "v1"]);
    let first = git(&work, &["rev-parse", "HEAD"]);
    write("file", "two");
    git(&work, &["commit", "--quiet", "-a", "-m", "two"]);
    git(&work, &["update-server-info"]);
    // A repository with another in it, by an address that begins where its own is.
    let (inner, outer) = (served.join("inner.git"), served.join("outer.git"));
    for (path, name, text) in [
        (&inner, "file", "inner"),
        (
            &outer,
            ".gitmodules",
            "[submodule \"sub\"]\n\tpath = sub\n\turl = ../inner.git\n",
        ),
    ] {
        std::fs::create_dir_all(path).unwrap();
        git(path, &["init", "--quiet", "-b", "main"]);
        std::fs::write(path.join(name), text).unwrap();
        git(path, &["add", "."]);
        if name == ".gitmodules" {
            let commit = format!("160000,{},sub", git(&inner, &["rev-parse", "HEAD"]));
            git(path, &["update-index", "--add", "--cacheinfo", &commit]);
        }
        git(path, &["commit", "--quiet", "-m", "one"]);
    }
    // Its commits have names of another kind.
    let long = served.join("long.git");
    std::fs::create_dir_all(&long).unwrap();
    git(
        &long,
        &["init", "--quiet", "-b", "main", "--object-format=sha256"],
    );
    std::fs::write(long.join("file"), "long").unwrap();
    git(&long, &["add", "."]);
    git(&long, &["commit", "--quiet", "-m", "one"]);
    let long_name = git(&long, &["rev-parse", "HEAD"]);
    world.run(async |engine| {
        loopback();
        let mut command = Command::new("git");
        command.args(["daemon", "--export-all", "--listen=127.0.0.1", "--port=9418", "--reuseaddr"]);
        command.arg(format!("--base-path={}", served.display())).arg(&served);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let _daemon = Daemon(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        for _ in 0..500 {
            if std::net::TcpStream::connect("127.0.0.1:9418").is_ok() { break; }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let url = "git://127.0.0.1/x.git";
        let short = &first[..10];
        let dockerfile = format!("FROM base\nADD {url} /head/\nADD {url}#v1 /v1/\nADD {url}#{first} /commit/\nADD {url}#{short} /short/\nADD {url}#main:dir/deep /deep/\nADD --checksum={first} {url}#v1 /sum/\nADD --keep-git-dir=true {url} /kept/\nRUN cat /head/file /v1/file /commit/file /short/file /deep/inner /sum/file /kept/file && test ! -e /head/.git && test -d /kept/.git && stat -c %a /head/script /head/file /head/dir\n");
        let built = world.build(&engine, &dockerfile).await;
        built.id();
        assert_eq!(built.output(), "twooneoneonedeeponetwo755\n644\n755\n");
        assert_eq!(world.build(&engine, &dockerfile).await.cached(), (8, 0));
        let dockerfile = "FROM base\nADD --keep-git-dir=true git://127.0.0.1/outer.git /o/\nRUN cat /o/sub/file && grep -c 127.0.0.1/outer.git /o/.git/config\n";
        let built = world.build(&engine, dockerfile).await;
        built.id();
        assert_eq!(built.output(), "inner1\n");
        let wrong = world.build(&engine, &format!("FROM base\nADD --checksum={first} {url} /sum/\n")).await;
        assert!(wrong.error().contains("expected checksum to match"), "{}", wrong.error());
        let missing = world.build(&engine, "FROM base\nADD git://u:passw0rd@127.0.0.1/none.git /x/\n").await;
        assert!(missing.error().contains("cannot fetch") && !told(&missing).contains("passw0rd"), "{}", told(&missing));
        // A server that only hands out files gives no part of the history.
        let mut files = all_files(&work.join(".git"), "/x.git");
        for (repository, at) in [(&inner, "/inner.git"), (&outer, "/outer.git"), (&long, "/long.git")] {
            git(repository, &["update-server-info"]);
            files.extend(all_files(&repository.join(".git"), at));
        }
        let server = Server::start(files);
        let dockerfile = format!(
            "FROM base\nADD http://{0}/outer.git /o/\nADD http://{0}/long.git#main /long/\nADD git://127.0.0.1/long.git#{long_name} /too/\nRUN cat /o/sub/file /long/file /too/file\n",
            server.address
        );
        let built = world.build(&engine, &dockerfile).await;
        built.id();
        assert_eq!(built.output(), "innerlonglong");
        let dockerfile = format!("FROM base\nADD http://u:passw0rd@{}/x.git#v1 /x/\nRUN cat /x/file\n", server.address);
        let built = world.build(&engine, &dockerfile).await;
        built.id();
        assert_eq!(built.output(), "one");
        assert!(!told(&built).contains("passw0rd") && !format!("{:?}", built.config()).contains("passw0rd"));
        for outside in ["../..", ".git", "file", "nothing"] {
            let refused = world.build(&engine, &format!("FROM base\nADD {url}#main:{outside} /x/\n")).await;
            if outside == "../.." { refused.id(); } else { assert!(refused.error().contains("has no directory"), "{outside}: {}", refused.error()); }
        }
        for (part, output) in [("#v1:dir", "deep"), ("", "/c/dir/deep/inner\n/c/file\n/c/script\n")] {
            let mut request = world.request("");
            request.dockerfile = DockerfileSource::default();
            request.context = Source::Remote(format!("{url}{part}"));
            let built = build(&engine, request, Arc::new(NoSession)).await;
            built.id();
            let mut lines: Vec<_> = built.output().lines().map(str::to_owned).collect();
            lines.sort();
            assert_eq!(lines, output.lines().collect::<Vec<_>>());
            let loads = told(&built).matches("load git source").count();
            // Told when it begins and when it ends.
            assert_eq!(loads, 2, "{}", told(&built));
        }
    });
}
