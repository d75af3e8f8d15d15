//! Images over HTTP: import, load, save, tag, list, inspect, history, remove, prune.

mod common;

use common::{Answer, Daemon, root_archive};
use serde_json::{Value, json};

fn import(daemon: &Daemon, name: &str, marker: &str, changes: &[&str]) -> String {
    let mut path = "/images/create?fromSrc=-".to_owned();
    if !name.is_empty() {
        path.push_str(&format!("&repo={name}"));
    }
    for change in changes {
        path.push_str(&format!(
            "&changes={}",
            change.replace(' ', "+").replace('"', "%22")
        ));
    }
    let answer = daemon.request("POST", &path, "application/x-tar", &root_archive(marker));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let id = answer.lines()[0]["status"].as_str().unwrap().to_owned();
    assert!(id.starts_with("sha256:"), "{id}");
    id
}

fn list(daemon: &Daemon, query: &str) -> Vec<Value> {
    let answer = daemon.get(&format!("/images/json{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().as_array().unwrap().clone()
}

fn filtered(daemon: &Daemon, filters: Value) -> Vec<String> {
    let encoded: String = filters
        .to_string()
        .bytes()
        .map(|byte| format!("%{byte:02X}"))
        .collect();
    list(daemon, &format!("?filters={encoded}"))
        .iter()
        .map(|image| image["Id"].as_str().unwrap().to_owned())
        .collect()
}

fn deleted(answer: &Answer) -> (Vec<String>, Vec<String>) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let all = |key: &str| {
        let items = answer.json();
        items
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|item| Some(item[key].as_str()?.to_owned()))
            .collect()
    };
    (all("Untagged"), all("Deleted"))
}

#[test]
fn an_import_is_an_image() {
    let daemon = Daemon::start();
    let id = import(
        &daemon,
        "app:v1",
        "one",
        &[
            "CMD [\"/bin/sh\"]",
            "ENV A=1",
            "LABEL kind=test",
            "EXPOSE 80",
            "USER www",
            "WORKDIR /etc",
        ],
    );
    let images = list(&daemon, "");
    assert_eq!(images.len(), 1);
    assert_eq!(images[0]["Id"], id.as_str());
    assert_eq!(images[0]["RepoTags"], json!(["app:v1"]));
    assert_eq!(images[0]["Labels"], json!({"kind": "test"}));
    assert_eq!(images[0]["Containers"], 0);

    let hex = id.strip_prefix("sha256:").unwrap();
    for name in ["app:v1", "docker.io/library/app:v1", id.as_str(), hex, &hex[..12]] {
        let inspect = daemon.get(&format!("/images/{name}/json"));
        assert_eq!(inspect.status, 200, "{name}: {}", inspect.text());
        let inspect = inspect.json();
        assert_eq!(inspect["Id"], id.as_str());
        assert_eq!(inspect["RepoTags"], json!(["app:v1"]));
        assert_eq!(inspect["Config"]["Cmd"], json!(["/bin/sh"]));
        assert_eq!(inspect["Config"]["Env"], json!(["A=1"]));
        assert_eq!(inspect["Config"]["ExposedPorts"], json!({"80/tcp": {}}));
        assert_eq!(inspect["Config"]["User"], "www");
        assert_eq!(inspect["Os"], "linux");
        assert_eq!(inspect["RootFS"]["Type"], "layers");
        assert_eq!(inspect["RootFS"]["Layers"].as_array().unwrap().len(), 1);
        assert!(inspect["Size"].as_i64().unwrap() > 0);
    }
    let history = daemon.get("/images/app:v1/history").json();
    assert_eq!(history.as_array().unwrap().len(), 1);
    assert_eq!(history[0]["Id"], id.as_str());
    assert_eq!(history[0]["Tags"], json!(["app:v1"]));
    assert!(history[0]["Size"].as_i64().unwrap() > 0);
    assert_eq!(daemon.get("/info").json()["Images"], 1);
}

#[test]
fn bad_imports_leave_nothing() {
    let daemon = Daemon::start();
    for (query, body, part) in [
        ("&repo=UPPER", root_archive("x"), "invalid reference format"),
        (
            "&repo=app&changes=RUN+make",
            root_archive("x"),
            "not a valid change command",
        ),
        (
            "&repo=app&platform=windows",
            root_archive("x"),
            "invalid platform",
        ),
        ("&repo=app", b"this is no archive".repeat(100), ""),
        ("&repo=app", common::tar_entry("../escape", b'0', b"x", ""), ""),
    ] {
        let answer = daemon.request("POST", &format!("/images/create?fromSrc=-{query}"), "", &body);
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
        assert!(answer.message().contains(part), "{}", answer.message());
    }
    assert_eq!(daemon.post("/images/create?fromSrc=http://x/y").status, 501);
    assert!(list(&daemon, "").is_empty());
    let layers = std::fs::read_dir(daemon.directory.path().join("root/layers"))
        .unwrap()
        .count();
    assert_eq!(layers, 0);
}

#[test]
fn archives_are_loaded_and_saved_for_a_platform() {
    let daemon = Daemon::start();
    // {"architecture":…,"os":"linux"}, as the Docker CLI sends it.
    let platform =
        |arch: &str| format!("platform=%7B%22architecture%22%3A%22{arch}%22%2C%22os%22%3A%22linux%22%7D");
    import(&daemon, "app:arm", "one", &[]);
    let archive = daemon.get("/images/app:arm/get").body;
    let host = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    for (arch, status) in [(host, 200), ("s390x", 404)] {
        let query = platform(arch);
        assert_eq!(daemon.get(&format!("/images/app:arm/get?{query}")).status, status);
        let path = format!("/images/load?{query}");
        let loaded = daemon.request("POST", &path, "application/x-tar", &archive);
        assert_eq!(loaded.status, 200, "{}", loaded.text());
        assert_eq!(loaded.text().contains("no image for linux/s390x"), status == 404);
    }
    assert_eq!(daemon.get("/images/app:arm/get?platform=linux").status, 400);
}

#[test]
fn what_was_saved_loads_again() {
    let daemon = Daemon::start();
    let one = import(&daemon, "app:v1", "one", &[]);
    let two = import(&daemon, "app:v2", "two", &["LABEL a=b"]);
    assert_ne!(one, two);
    let by_repository = daemon.get("/images/app/get");
    assert_eq!(by_repository.header("Content-Type"), Some("application/x-tar"));
    let both = daemon.get("/images/get?names=app:v1&names=app:v2");
    assert_eq!(both.status, 200);
    assert_eq!(
        by_repository.body, both.body,
        "a name without a tag stands for all of them"
    );
    assert_eq!(daemon.get("/images/get").status, 400);
    assert_eq!(
        daemon.get("/images/get?names=nosuch").message(),
        "No such image: nosuch:latest"
    );

    let other = Daemon::start();
    let loaded = other.request("POST", "/images/load", "application/x-tar", &both.body);
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    let lines = loaded.lines();
    let text: String = lines.iter().filter_map(|line| line["stream"].as_str()).collect();
    assert!(
        text.contains("Loaded image: app:v1\n") && text.contains("Loaded image: app:v2\n"),
        "{text}"
    );
    assert!(lines.iter().any(|line| line["status"] == "Loading layer"));
    let mut ids: Vec<String> = list(&other, "")
        .iter()
        .map(|image| image["Id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    let mut expected = vec![one, two];
    expected.sort();
    assert_eq!(ids, expected);
    // And is the same byte for byte.
    assert_eq!(other.get("/images/get?names=app:v1&names=app:v2").body, both.body);

    let quiet = other.request("POST", "/images/load?quiet=1", "application/x-tar", &both.body);
    assert!(quiet.lines().iter().all(|line| line["status"].is_null()));
}

#[test]
fn a_bad_archive_is_refused() {
    let daemon = Daemon::start();
    let mut archive = common::tar_entry("etc/", b'5', b"", "");
    archive.extend(common::tar_entry(
        "etc/passwd",
        b'0',
        b"root:x:0:0::/:/bin/sh\n",
        "",
    ));
    archive.extend([0; 1024]);
    let root = daemon.request("POST", "/images/load", "application/x-tar", &archive);
    // As with dockerd, the answer has begun when the archive is looked at.
    let said = |answer: &common::Answer| answer.lines()[0]["error"].as_str().unwrap_or_default().to_owned();
    assert_eq!(root.status, 200, "{}", root.text());
    assert!(said(&root).contains("import"), "{}", root.text());
    let nothing = daemon.request("POST", "/images/load", "application/x-tar", b"");
    assert!(!said(&nothing).is_empty(), "{}", nothing.text());
    assert!(list(&daemon, "").is_empty());
}

#[test]
fn a_client_that_breaks_off_leaves_nothing() {
    let daemon = Daemon::start();
    import(&daemon, "app:v1", "one", &[]);
    let archive = daemon.get("/images/app:v1/get").body;
    let other = Daemon::start();
    let mut stream = other.connect();
    let head = format!(
        "POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        archive.len()
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    std::io::Write::write_all(&mut stream, &archive[..archive.len() / 2]).unwrap();
    drop(stream);
    // Ending waits for the load to notice.
    let directory = other.stop();
    let other = Daemon::start_in(directory);
    assert!(list(&other, "").is_empty());
    assert_eq!(
        std::fs::read_dir(other.directory.path().join("root/layers"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn names_come_and_go() {
    let daemon = Daemon::start();
    let id = import(&daemon, "app", "one", &[]);
    assert_eq!(
        daemon
            .post("/images/app/tag?repo=localhost:5000/team/app&tag=v2")
            .status,
        201
    );
    assert_eq!(daemon.post("/images/app/tag?repo=other").status, 201);
    assert_eq!(daemon.post("/images/app/tag?repo=BAD").status, 400);
    assert_eq!(daemon.post("/images/nosuch/tag?repo=x").status, 404);
    let inspect = daemon.get("/images/other/json").json();
    assert_eq!(
        inspect["RepoTags"],
        json!(["app:latest", "localhost:5000/team/app:v2", "other:latest"])
    );

    let several = daemon.delete(&format!("/images/{id}"));
    assert_eq!(several.status, 409);
    let short = &id["sha256:".len()..][..12];
    assert_eq!(
        several.message(),
        format!(
            "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        )
    );
    let (untagged, gone) = deleted(&daemon.delete("/images/localhost:5000/team/app:v2"));
    assert_eq!(
        (untagged, gone.len()),
        (vec!["localhost:5000/team/app:v2".to_owned()], 0)
    );
    let (mut untagged, gone) = deleted(&daemon.delete(&format!("/images/{id}?force=1")));
    untagged.sort();
    assert_eq!(untagged, ["app:latest", "other:latest"]);
    assert_eq!(gone.len(), 2, "the image and its layer: {gone:?}");
    assert_eq!(gone[0], id);
    assert!(list(&daemon, "").is_empty());
    for directory in ["root/layers", "root/blobs/sha256"] {
        assert_eq!(
            std::fs::read_dir(daemon.directory.path().join(directory))
                .unwrap()
                .count(),
            0,
            "{directory}"
        );
    }
}

#[test]
fn layers_stay_while_another_image_has_them() {
    let daemon = Daemon::start();
    let one = import(&daemon, "one", "same", &[]);
    let two = import(&daemon, "two", "same", &["LABEL x=y"]);
    let shared = list(&daemon, "?shared-size=1");
    assert!(
        shared
            .iter()
            .all(|image| image["SharedSize"].as_i64().unwrap() > 0),
        "{shared:?}"
    );
    let (_, gone) = deleted(&daemon.delete("/images/one"));
    assert_eq!(gone, [one]);
    assert_eq!(daemon.get("/images/two/get").status, 200);
    let (_, gone) = deleted(&daemon.delete("/images/two"));
    assert_eq!((gone.len(), &gone[0]), (2, &two));
}

#[test]
fn a_name_moves_and_leaves_a_dangling_image() {
    let daemon = Daemon::start();
    let old = import(&daemon, "app", "one", &["LABEL old=1"]);
    let new = import(&daemon, "app", "two", &[]);
    assert_eq!(daemon.get("/images/app/json").json()["Id"], new.as_str());
    assert_eq!(filtered(&daemon, json!({"dangling": ["true"]})), [old.as_str()]);
    assert_eq!(
        filtered(&daemon, json!({"dangling": {"false": true}})),
        [new.as_str()]
    );
    assert_eq!(filtered(&daemon, json!({"label": ["old=1"]})), [old.as_str()]);
    assert_eq!(filtered(&daemon, json!({"label!": ["old"]})), [new.as_str()]);
    assert_eq!(filtered(&daemon, json!({"reference": ["ap*"]})), [new.as_str()]);
    assert_eq!(
        filtered(&daemon, json!({"since": [old.as_str()]})),
        [new.as_str()]
    );
    assert_eq!(filtered(&daemon, json!({"before": ["app"]})), [old.as_str()]);
    assert!(filtered(&daemon, json!({"until": ["1h"]})).is_empty());

    let pruned = daemon
        .post("/images/prune?filters=%7B%22until%22:%5B%221h%22%5D%7D")
        .json();
    assert_eq!(pruned["ImagesDeleted"], Value::Null);
    let pruned = daemon.post("/images/prune").json();
    assert_eq!(pruned["ImagesDeleted"][0]["Deleted"], old.as_str());
    assert!(pruned["SpaceReclaimed"].as_u64().unwrap() > 0);
    assert_eq!(list(&daemon, "").len(), 1);
    let pruned = daemon
        .post("/images/prune?filters=%7B%22dangling%22:%5B%22false%22%5D%7D")
        .json();
    assert_eq!(pruned["ImagesDeleted"][0]["Untagged"], "app:latest");
    assert!(list(&daemon, "").is_empty());
}

#[test]
fn images_survive_the_daemon() {
    let daemon = Daemon::start();
    let id = import(&daemon, "app:v1", "one", &[]);
    let before = daemon.get("/images/app:v1/json").json();
    let daemon = Daemon::start_in(daemon.stop());
    assert_eq!(daemon.get("/images/app:v1/json").json(), before);
    assert_eq!(list(&daemon, "")[0]["Id"], id.as_str());
}

#[test]
fn a_pull_asks_the_registry_but_for_what_is_built_in() {
    let daemon = Daemon::start();
    let hello = daemon.post("/images/create?fromImage=hello&tag=latest");
    assert_eq!(hello.status, 200, "{}", hello.text());
    assert_eq!(
        hello.lines()[0]["status"],
        "Status: Image is up to date for hello:latest"
    );
    import(&daemon, "127.0.0.1:1/app:v1", "one", &[]);
    let away = daemon.post("/images/create?fromImage=127.0.0.1:1/app&tag=v1");
    assert_eq!(away.status, 500);
    assert!(
        away.message().contains("127.0.0.1:1 cannot be reached"),
        "{}",
        away.message()
    );
}

#[test]
fn disk_usage_counts_images() {
    let daemon = Daemon::start();
    import(&daemon, "one", "same", &[]);
    import(&daemon, "two", "same", &["LABEL x=y"]);
    let usage = daemon.get("/system/df?type=image").json();
    assert_eq!(usage["Images"].as_array().unwrap().len(), 2);
    let size = usage["Images"][0]["Size"].as_i64().unwrap();
    assert_eq!(
        usage["LayersSize"].as_i64().unwrap(),
        size,
        "a shared layer counts once"
    );
    assert_eq!(usage["Volumes"], Value::Null);
}

#[test]
fn events_tell_of_images() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    std::io::Write::write_all(
        &mut stream,
        b"GET /events?filters=%7B%22type%22:%5B%22image%22%5D%7D HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .unwrap();
    let mut seen = Vec::new();
    let mut read_until = |wanted: &str, seen: &mut Vec<u8>| {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(seen).contains(wanted) {
            let read = std::io::Read::read(&mut stream, &mut buffer).unwrap();
            assert!(read > 0);
            seen.extend_from_slice(&buffer[..read]);
        }
    };
    // The head comes at once, before anything happens.
    read_until("\r\n\r\n", &mut seen);
    import(&daemon, "app", "one", &[]);
    read_until("\"Action\":\"tag\"", &mut seen);
    assert!(String::from_utf8_lossy(&seen).contains("app:latest"));
}
