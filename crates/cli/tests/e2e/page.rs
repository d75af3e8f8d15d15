//! The page, in a browser.
//!
//! Chromium is spoken to through its pipe (`--remote-debugging-pipe`): messages of JSON that end with a zero byte.
//! With `VESSEL_SCREENSHOTS=DIRECTORY` it leaves pictures (in base64) to be looked at.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, daemon_with_bin, prepared_daemon};

struct Browser {
    child: Child,
    input: File,
    output: BufReader<File>,
    next: u64,
    session: Option<String>,
    _dir: tempfile::TempDir,
}

impl Browser {
    fn start() -> Option<Self> {
        if Command::new("chromium")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            eprintln!("skipped: there is no chromium");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let [to, from] = ["to", "from"].map(|name| dir.path().join(name));
        for path in [&to, &from] {
            assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
        }
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --window-size=1200,800 --remote-debugging-pipe --user-data-dir=\"$3\" 3<\"$1\" 4>\"$2\"";
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .args([&to, &from, &dir.path().join("profile")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let input = File::options().write(true).open(&to).unwrap();
        let output = BufReader::new(File::open(&from).unwrap());
        let mut browser = Self {
            child,
            input,
            output,
            next: 0,
            session: None,
            _dir: dir,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attached = browser.call(
            "Target.attachToTarget",
            json!({"targetId": target["targetId"], "flatten": true}),
        );
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        browser.call("Page.enable", json!({}));
        Some(browser)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut answer = Vec::new();
            self.output.read_until(0, &mut answer).unwrap();
            answer.pop();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            if answer["id"] == id {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
    }

    fn eval(&mut self, script: &str) -> Value {
        let params = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let said = self.call("Runtime.evaluate", params);
        assert!(said.get("exceptionDetails").is_none(), "{script}: {said}");
        said["result"]["value"].clone()
    }

    fn text(&mut self) -> String {
        self.eval("document.body ? document.body.innerText : ''")
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until a text is on the page.
    #[track_caller]
    fn until(&mut self, wanted: &str) -> String {
        let begin = Instant::now();
        loop {
            let text = self.text();
            if text.contains(wanted) {
                return text;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "no {wanted:?} in:\n{text}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn keys(&mut self, text: &str) {
        for letter in text.chars() {
            let (key, text) = if letter == '\n' {
                ("Enter".to_owned(), "\r".to_owned())
            } else {
                (letter.to_string(), letter.to_string())
            };
            self.call(
                "Input.dispatchKeyEvent",
                json!({"type": "keyDown", "key": key, "text": text}),
            );
            self.call("Input.dispatchKeyEvent", json!({"type": "keyUp", "key": key}));
        }
    }

    fn click(&mut self, text: &str) {
        self.eval(&format!(
            "[...document.querySelectorAll('button')].find((button) => button.textContent === '{text}').click()"
        ));
    }

    fn picture(&mut self, name: &str) {
        if let Ok(directory) = std::env::var("VESSEL_SCREENSHOTS") {
            let picture = self.call("Page.captureScreenshot", json!({"format": "png"}));
            let path = format!("{directory}/{name}.base64");
            std::fs::write(path, picture["data"].as_str().unwrap()).unwrap();
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its helpers write into the profile, which is about to be removed.
        let group = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.child.wait();
        let begin = Instant::now();
        while rustix::process::test_kill_process_group(group).is_ok()
            && begin.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A daemon with a page and a bin, and the page's address.
fn with_page() -> Option<(Daemon, String)> {
    Some(serve_page(daemon_with_bin()?))
}

fn serve_page(mut daemon: Daemon) -> (Daemon, String) {
    daemon.stop();
    daemon.more.extend(["--page".into(), "127.0.0.1:0".into()]);
    daemon.start();
    let log = daemon.log();
    let line = log
        .lines()
        .rfind(|line| line.contains("The page: "))
        .expect("it is printed");
    let url = line.split("The page: ").nth(1).unwrap().trim().to_owned();
    (daemon, url)
}

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
        .write_all(request.replace('\n', "\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn the_page_keeps_strangers_and_other_sites_out() {
    let Some((daemon, url)) = with_page() else { return };
    let (place, token) = url.split_once("/#token=").unwrap();
    let address = place.strip_prefix("http://").unwrap();
    let get = |path: &str, more: &str| {
        ask(
            address,
            &format!("GET {path} HTTP/1.1\nHost: {address}\n{more}Connection: close\n\n"),
        )
    };
    let page = get("/", "");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(
        page.contains("content-security-policy: default-src 'none'; script-src 'self'"),
        "{page}"
    );
    assert!(page.contains("x-frame-options: DENY") && !page.contains(token));
    assert!(get("/api/containers/json", "").starts_with("HTTP/1.1 401"));
    assert!(get("/api/containers/json", "Cookie: vessel-page=0\n").starts_with("HTTP/1.1 401"));
    // The API is there by its prefix only.
    assert!(get("/containers/json", "").starts_with("HTTP/1.1 404"));
    let login = |origin: &str, token: &str| {
        let length = token.len();
        ask(
            address,
            &format!(
                "POST /login HTTP/1.1\nHost: {address}\nOrigin: {origin}\nContent-Length: {length}\nConnection: close\n\n{token}"
            ),
        )
    };
    assert!(login(place, "0123").starts_with("HTTP/1.1 403"));
    assert!(login("http://evil.example", token).starts_with("HTTP/1.1 403"));
    let said = login(place, token);
    let cookie = said
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .unwrap_or_else(|| panic!("{said}"));
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{cookie}"
    );
    let cookie = format!("Cookie: {}\n", cookie.split(';').next().unwrap());
    let key: Value = serde_json::from_str(said.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let key = format!("X-Vessel-Key: {}\n", key["Key"].as_str().unwrap());
    // Another port of this host gets the cookie, and the page's script has the key.
    assert!(get("/api/containers/json", &cookie).starts_with("HTTP/1.1 401"));
    assert!(get("/api/containers/json", &key).starts_with("HTTP/1.1 401"));
    let cookie = format!("{cookie}{key}");
    let answer = get("/api/containers/json", &cookie);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for header in [
        "x-content-type-options: nosniff",
        "content-security-policy: default-src 'none'; frame-ancestors 'none'; sandbox",
        "x-frame-options: DENY",
        "cache-control: no-store",
    ] {
        assert!(answer.contains(header), "{header} {answer}");
    }
    for (more, host) in [
        ("Origin: http://evil.example\n", address),
        ("Sec-Fetch-Site: cross-site\n", address),
        ("", "evil.example"),
    ] {
        let answer = ask(
            address,
            &format!("GET /api/containers/json HTTP/1.1\nHost: {host}\n{cookie}{more}Connection: close\n\n"),
        );
        assert!(answer.starts_with("HTTP/1.1 403"), "{more} {host} {answer}");
    }
    // A form of another site sends no Origin of ours.
    let answer = ask(
        address,
        &format!(
            "POST /api/containers/prune HTTP/1.1\nHost: {address}\n{cookie}Content-Length: 0\nConnection: close\n\n"
        ),
    );
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let ws = ask(
        address,
        &format!(
            "GET /api/vessel/exec/x/ws HTTP/1.1\nHost: {address}\n{cookie}Origin: http://evil.example\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\n\n"
        ),
    );
    assert!(ws.starts_with("HTTP/1.1 403"), "{ws}");
    drop(daemon);
}

#[test]
fn a_login_that_does_not_come_is_not_waited_for() {
    let Some((mut daemon, url)) = with_page() else {
        return;
    };
    let place = url.split("/#").next().unwrap();
    let address = place.strip_prefix("http://").unwrap();
    let head = format!(
        "POST /login HTTP/1.1\nHost: {address}\nOrigin: {place}\nContent-Length: 32\nConnection: close\n\n"
    );
    let said = ask(address, &head);
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    let mut waits = TcpStream::connect(address).unwrap();
    waits.write_all(head.replace('\n', "\r\n").as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    daemon.stop();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn without_a_bin_the_page_says_so_before_it_removes() {
    let Some(daemon) = prepared_daemon(|daemon| daemon.more.extend(["--bin".into(), "off".into()])) else {
        return;
    };
    let (daemon, url) = serve_page(daemon);
    let Some(mut browser) = Browser::start() else {
        return;
    };
    daemon
        .vessel(&["create", "--name", "web", "busybox", "true"])
        .ok();
    browser.open(&url);
    browser.until("web");
    browser.click("Remove");
    let text = browser.until("Remove container web?");
    assert!(
        text.contains("There is no bin: it cannot be brought back."),
        "{text}"
    );
    browser.eval("document.querySelector('dialog button').click()");
    browser.eval("new Promise((done) => setTimeout(done, 500))");
    assert_eq!(daemon.inspect("web", "{{.Name}}"), "/web");
    browser.click("Remove");
    browser.until("Remove container web?");
    browser.eval("document.querySelector('dialog .danger').click()");
    browser.until("There are no containers");
    assert!(browser.text().contains("Removed: container web."));
}

#[test]
fn a_browser_shows_and_does_everything() {
    let Some((daemon, url)) = with_page() else { return };
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let script = "i=0; while :; do echo line $i; echo odd >&2; i=$((i+1)); sleep 0.2; done";
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "web",
            "-v",
            "data:/data",
            "-p",
            "127.0.0.1::80",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .ok();
    daemon
        .vessel(&["network", "create", "--subnet", &daemon.further_subnet(1), "back"])
        .ok();
    browser.open(&url);
    let text = browser.until("Up ");
    assert!(text.contains("web") && text.contains("busybox"), "{text}");
    // The token is not left where it could be read.
    assert_eq!(
        browser.eval("location.href + document.cookie"),
        url.split('#').next().unwrap()
    );
    browser.picture("containers");
    for (view, wanted) in [
        ("images", "busybox:latest"),
        ("networks", "back"),
        ("volumes", "data"),
        ("operations", "container start"),
    ] {
        browser.eval(&format!("location.hash = '#{view}'"));
        browser.until(wanted);
        browser.picture(view);
    }
    let id = daemon.inspect("web", "{{.Id}}");
    browser.eval(&format!("location.hash = '#container/{id}/logs'"));
    browser.until("line 3");
    let seen = browser.eval("document.querySelectorAll('.output .stderr').length");
    assert!(seen.as_u64().unwrap() > 0);
    browser.picture("logs");
    browser.eval(&format!("location.hash = '#container/{id}/statistics'"));
    browser.until("Memory");
    let begin = Instant::now();
    while browser
        .eval("document.querySelectorAll('svg path').length")
        .as_u64()
        < Some(6)
    {
        assert!(begin.elapsed() < Duration::from_secs(30), "nothing is plotted");
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_secs(3));
    browser.picture("statistics");
    browser.eval(&format!("location.hash = '#container/{id}/terminal'"));
    browser.until("#");
    browser.keys("cd /etc && echo it is $((6*7)) && pwd\n");
    browser.until("it is 42");
    browser.keys("printf '\\033[31mred\\033[0m \\033[1;44mblue\\033[0m\\n'; stty size\n");
    let text = browser.until("red blue");
    assert!(text.contains("/etc"), "{text}");
    browser.picture("terminal");
    browser.keys("vi passwd\n");
    browser.until("root:");
    browser.picture("editor");
    browser.keys(":q\n");
    browser.keys("exit\n");
    browser.until("Open another");
    // What is removed can be brought back.
    browser.eval("location.hash = '#containers'");
    browser.until("Stop");
    browser.click("Stop");
    browser.until("Exited");
    browser.click("Remove");
    let text = browser.until("Remove container web?");
    assert!(text.contains("brought back from the bin"), "{text}");
    browser.picture("sure");
    browser.eval("document.querySelector('dialog .danger').click()");
    browser.until("There are no containers");
    assert_eq!(daemon.vessel(&["ps", "-aq"]).ok(), "");
    browser.eval("location.hash = '#bin'");
    browser.until("Undo");
    browser.picture("bin");
    browser.click("Undo");
    browser.until("Back: container web");
    assert_eq!(daemon.vessel(&["ps", "-aq", "--no-trunc"]).ok(), id);
    let log = daemon
        .vessel(&["system", "log", "--format", "{{.Via}} {{.Action}}"])
        .ok();
    assert!(
        log.contains("page exec terminal")
            && log.contains("page container remove")
            && log.contains("page undo"),
        "{log}"
    );
}

#[test]
fn another_site_in_the_same_browser_gets_nothing() {
    let Some((daemon, url)) = with_page() else { return };
    let Some(mut browser) = Browser::start() else {
        return;
    };
    browser.open(&url);
    browser.until("There are no containers");
    // Another origin of this host: what it asks, the browser sends, and the page refuses.
    let place = url.split("/#").next().unwrap();
    let evil = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = evil.local_addr().unwrap().port();
    let other = format!("http://localhost:{port}");
    let (heard, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in evil.incoming().flatten() {
            let mut stream = stream;
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let _ = heard.send(String::from_utf8_lossy(&request[..length]).into_owned());
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\nevil");
        }
    });
    browser.open(&other);
    browser.until("evil");
    let tried = browser.eval(&format!(
        "(async () => {{ const got = []; for (const [path, options] of [['/api/info', {{credentials: 'include'}}], ['/api/containers/prune', {{method: 'POST', mode: 'no-cors', credentials: 'include'}}]]) {{ try {{ const r = await fetch('{place}' + path, options); got.push(r.type + r.status); }} catch (e) {{ got.push('failed'); }} }} return got.join(' '); }})()"
    ));
    // The second is blocked by the answer's resource policy besides.
    assert_eq!(tried, "failed failed");
    let log = daemon.vessel(&["system", "log", "--format", "{{.Action}}"]).ok();
    assert!(!log.contains("prune"), "{log}");
    // Cookies know no ports: a server on another one of the same host gets this page's, and that is not enough.
    browser.open(&format!("http://127.0.0.1:{port}"));
    let address = place.strip_prefix("http://").unwrap();
    let cookie = loop {
        let request = hears.recv_timeout(Duration::from_secs(20)).unwrap();
        let cookie = request
            .lines()
            .find(|line| line.to_lowercase().starts_with("cookie:"));
        if let Some(cookie) = cookie {
            break cookie.to_owned();
        }
    };
    assert!(cookie.contains("vessel-page-"), "{cookie}");
    let said = ask(
        address,
        &format!("GET /api/info HTTP/1.1\nHost: {address}\n{cookie}\nConnection: close\n\n"),
    );
    assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    browser.until("evil");
    let stored = browser.eval("Object.keys(localStorage).length + Object.keys(sessionStorage).length");
    assert_eq!(stored, 0);
}
