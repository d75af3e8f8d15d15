//! Loading: what files mean together.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use vessel_compose::{Options, Project, load};

/// Writes files and loads a project of those that are named.
fn project(
    files: &[(&str, &str)],
    named: &[&str],
    change: impl FnOnce(&mut Options),
) -> Result<Project, String> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("app");
    for (name, text) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let mut options = Options {
        files: named.iter().map(Into::into).collect(),
        current_directory: root.clone(),
        ..Options::default()
    };
    change(&mut options);
    load(&options).map_err(|error| error.to_string().replace(root.to_str().unwrap(), "ROOT"))
}

fn one(text: &str) -> Result<Project, String> {
    project(&[("compose.yaml", text)], &[], |_| {})
}

/// A service in its long form.
fn service(project: &Project, name: &str) -> Value {
    project.canonical().to_json()["services"][name].clone()
}

#[test]
fn the_files_of_a_directory_and_its_override() {
    let files = [
        ("compose.yaml", "services: {a: {image: x, ports: ['80']}}"),
        ("compose.override.yml", "services: {a: {image: y, ports: ['81']}}"),
        (".env", "UNUSED=1\nCOMPOSE_PROJECT_NAME=named"),
    ];
    let found = project(&files, &[], |_| {}).unwrap();
    assert_eq!((found.name.as_str(), found.files.len()), ("named", 2));
    let service = service(&found, "a");
    assert_eq!(
        (&service["image"], service["ports"].as_array().unwrap().len()),
        (&json!("y"), 2)
    );
    // Of a directory below it, too.
    let mut files = files.to_vec();
    files.push(("deep/down/x", ""));
    let found = project(&files, &[], |options| options.current_directory.push("deep/down")).unwrap();
    assert!(found.directory.ends_with("app"));
    let refused = project(&[("x", "")], &[], |_| {}).unwrap_err();
    assert!(refused.contains("no configuration file provided"), "{refused}");
}

#[test]
fn variables() {
    let text = "services: {a: {image: \"x:${TAG:-1}\", command: \"$$HOME ${B:?must be}\", scale: $N}}";
    let found = project(
        &[("compose.yaml", text), (".env", "TAG=2\nB=b\nN=3")],
        &[],
        |options| {
            options.environment.insert("TAG".into(), "4".into());
        },
    )
    .unwrap();
    let found = service(&found, "a");
    assert_eq!(
        (&found["image"], &found["command"], &found["scale"]),
        (&json!("x:4"), &json!(["$HOME", "b"]), &json!(3))
    );
    let refused = one(text).unwrap_err();
    assert_eq!(
        refused,
        "ROOT/compose.yaml:1:38: services.a.command: required variable B is missing a value: must be"
    );
    let unset = one("services: {a: {image: \"x$NO\"}}").unwrap();
    assert_eq!(
        unset.warnings,
        ["The \"NO\" variable is not set. Defaulting to a blank string."]
    );
    let text = text.replace(", scale: $N", "");
    let kept = project(&[("compose.yaml", &text)], &[], |options| {
        options.no_interpolate = true
    })
    .unwrap();
    assert_eq!(service(&kept, "a")["image"], "x:${TAG:-1}");
}

#[test]
fn environment_files() {
    let files = [
        (
            "compose.yaml",
            "services: {a: {image: x, env_file: [one.env, {path: no.env, required: false}, {path: raw.env, format: raw}],\
             environment: {B: own, C: , D: 1}}}",
        ),
        ("one.env", "A=file\nB=file\nE=${HOST}/$A"),
        ("raw.env", "R='x' $A"),
    ];
    let found = project(&files, &[], |options| {
        options.environment.insert("HOST".into(), "h".into());
        options.environment.insert("C".into(), "c".into());
    })
    .unwrap();
    let expected = json!({"A": "file", "B": "own", "C": "c", "D": "1", "E": "h/file", "R": "'x' $A"});
    let found = service(&found, "a")["environment"].clone();
    // Members in any order.
    assert_eq!(found, expected);
    let refused = one("services: {a: {image: x, env_file: no.env}}").unwrap_err();
    assert_eq!(refused, "env file ROOT/no.env not found");
}

#[test]
fn services_extend_others() {
    let files = [
        (
            "compose.yaml",
            "services:\n  a: {extends: {file: base/b.yaml, service: b}, image: y, environment: [X=2]}\n  c: {extends: a, command: z}\n",
        ),
        (
            "base/b.yaml",
            "services: {b: {extends: c, volumes: ['./data:/data'], environment: {X: 1, Y: 1}}, c: {image: x, ports: ['1'], build: .}}",
        ),
    ];
    let found = project(&files, &[], |_| {}).unwrap();
    let a = service(&found, "a");
    assert_eq!(
        (&a["image"], &a["environment"]),
        (&json!("y"), &json!({"X": "2", "Y": "1"}))
    );
    assert!(
        a["volumes"][0]["source"]
            .as_str()
            .unwrap()
            .ends_with("/app/base/data"),
        "{a}"
    );
    assert!(
        a["build"]["context"].as_str().unwrap().ends_with("/app/base"),
        "{a}"
    );
    assert_eq!(
        (&service(&found, "c")["command"], &service(&found, "c")["image"]),
        (&json!(["z"]), &json!("y"))
    );
    for (text, part) in [
        (
            "services: {a: {extends: b, image: x}, b: {extends: a, image: x}}",
            "circular reference",
        ),
        (
            "services: {a: {extends: nope, image: x}}",
            "service \"nope\" not found",
        ),
        (
            "services: {a: {extends: {service: a, file: compose.yaml}, image: x}}",
            "circular reference",
        ),
    ] {
        let refused = one(text).unwrap_err();
        assert!(refused.contains(part), "{refused}");
    }
}

#[test]
fn projects_include_others() {
    let files = [
        (
            "compose.yaml",
            "include: [inner/compose.yaml]\nservices: {a: {image: x, depends_on: [b]}}",
        ),
        (
            "inner/compose.yaml",
            "services: {b: {image: \"y:$TAG\", volumes: ['./d:/d', 'v:/v']}}\nvolumes: {v: }",
        ),
        ("inner/.env", "TAG=7"),
    ];
    let found = project(&files, &[], |_| {}).unwrap();
    let b = service(&found, "b");
    assert_eq!(b["image"], "y:7");
    assert!(
        b["volumes"][0]["source"]
            .as_str()
            .unwrap()
            .ends_with("/app/inner/d"),
        "{b}"
    );
    assert_eq!(found.volumes["v"].name, "app_v");
    let cycle = [
        ("compose.yaml", "include: [b.yaml]"),
        ("b.yaml", "include: [compose.yaml]"),
    ];
    let refused = project(&cycle, &[], |_| {}).unwrap_err();
    assert!(refused.contains("include cycle detected"), "{refused}");
}

#[test]
fn profiles() {
    let text = "services: {a: {image: x}, b: {image: x, profiles: [dev, test]}, c: {image: x, profiles: [test], depends_on: [b]}}";
    let names = |project: &Project| project.services.keys().cloned().collect::<Vec<_>>();
    let with = |profiles: &[&str]| {
        let profiles = profiles.iter().map(|name| (*name).to_owned()).collect();
        project(&[("compose.yaml", text)], &[], |options| {
            options.profiles = profiles
        })
        .unwrap()
    };
    assert_eq!(names(&with(&[])), ["a"]);
    assert_eq!(names(&with(&["dev"])), ["a", "b"]);
    assert_eq!(names(&with(&["*"])), ["a", "b", "c"]);
    let naming = |text: &str, name: &str| {
        let files = [("compose.yaml", text), ("vars", "A=1"), ("labels", "l=2")];
        project(&files, &[], |options| options.services = vec![name.to_owned()])
    };
    assert_eq!(names(&naming(text, "c").unwrap()), ["a", "b", "c"]);
    assert_eq!(naming(text, "nope").unwrap_err(), "no such service: nope");
    // A named service is as whole as one whose profile is active.
    let text = "services: {a: {image: x}, b: {image: x, profiles: [p], env_file: vars, label_file: labels}}";
    let named = naming(text, "b").unwrap();
    assert_eq!(named.services["b"].environment["A"].as_deref(), Some("1"));
    assert!(named.services["b"].labels.contains_key("l"));
    // What it needs and nothing activates is a fault, not left out.
    let text = "services: {a: {image: x, profiles: [p], depends_on: [b]}, b: {image: x, profiles: [q]}}";
    assert!(naming(text, "a").unwrap_err().contains("none of whose profiles"));
}

#[test]
fn copies_of_long_texts_are_bounded() {
    let long = "x".repeat(1 << 20);
    let aliases = ["*a"; 1000].join(", ");
    let text = format!("x-a: &a {long}\nx-b: [{aliases}]\nservices: {{a: {{image: x}}}}");
    let error = project(&[("compose.yaml", &text)], &[], |_| ()).unwrap_err();
    assert!(error.contains("too large"), "{error}");
    let text = format!("x-b: [{}]\nservices: {{a: {{image: x}}}}", ["$A"; 100].join(", "));
    let error = project(&[("compose.yaml", &text)], &[], |options| {
        options.environment.insert("A".to_owned(), long);
    })
    .unwrap_err();
    assert!(error.contains("too much text"), "{error}");
}

#[test]
fn volumes_that_go_with_the_project() {
    let text = "services:\n  a: {image: x, volumes: ['used:/u', '/anonymous', 'theirs:/t']}\n  \
                b: {image: x, volumes: ['hidden:/h'], profiles: [p]}\n\
                volumes: {used: {}, unused: {}, hidden: {}, theirs: {external: true}}";
    let project = project(&[("compose.yaml", text)], &[], |_| ()).unwrap();
    assert!(project.is_of_files());
    assert_eq!(
        project.used_volumes().into_iter().collect::<Vec<_>>(),
        ["app_used"]
    );
}

#[test]
fn long_chains_and_cycles() {
    let chain = |last: &str| {
        let mut text = "services:\n".to_owned();
        for number in 0..3000 {
            text.push_str(&format!(
                "  s{number}: {{image: x, depends_on: [s{}]}}\n",
                number + 1
            ));
        }
        text.push_str(&format!("  s3000: {{image: x{last}}}\n"));
        project(&[("compose.yaml", &text)], &[], |_| ()).map(|project| project.services.len())
    };
    assert_eq!(chain(""), Ok(3001));
    assert!(
        chain(", depends_on: [s7]")
            .unwrap_err()
            .contains("dependency cycle detected: ")
    );
}

#[test]
fn files_on_top_of_files() {
    let files = [
        (
            "a.yaml",
            "services: {s: {image: x, ports: ['80:80', '90:90'], networks: [n], command: [a], labels: {l: 1}, volumes: ['v:/v']}}\n\
             networks: {n: }\nvolumes: {v: }",
        ),
        (
            "b.yaml",
            "services:\n  s:\n    ports: !override ['81:81']\n    networks: {n: {aliases: [q]}}\n    command: !reset null\n    labels: [m=2]\n    volumes: ['./w:/v']\n",
        ),
    ];
    let found = project(&files, &["a.yaml", "b.yaml"], |_| {}).unwrap();
    let s = service(&found, "s");
    assert_eq!(s["ports"].as_array().unwrap().len(), 1);
    assert_eq!(s["ports"][0]["published"], "81");
    assert_eq!(s["networks"], json!({"n": {"aliases": ["q"]}}));
    assert_eq!(
        (&s["command"], &s["labels"]),
        (&Value::Null, &json!({"l": "1", "m": "2"}))
    );
    assert_eq!(
        (s["volumes"].as_array().unwrap().len(), &s["volumes"][0]["type"]),
        (1, &json!("bind"))
    );
}

#[test]
fn references_are_checked() {
    for (text, part) in [
        ("services: {a: {}}", "neither an image nor a build"),
        (
            "services: {a: {image: x, depends_on: [b]}}",
            "depends on undefined service \"b\"",
        ),
        ("services: {a: {image: x, networks: [n]}}", "undefined network n"),
        (
            "services: {a: {image: x, volumes: ['v:/v']}}",
            "undefined volume v",
        ),
        ("services: {a: {image: x, secrets: [s]}}", "undefined secret s"),
        ("services: {a: {image: x, configs: [s]}}", "undefined config s"),
        (
            "services: {a: {image: x, network_mode: host, networks: [default]}}",
            "mutually exclusive",
        ),
        (
            "services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}",
            "dependency cycle detected",
        ),
        (
            "services: {a: {image: x}}\nsecrets: {s: {}}",
            "one of file|environment must be set",
        ),
        (
            "services: {a: {image: x}}\nconfigs: {s: {file: a, content: b}}",
            "mutually exclusive",
        ),
        (
            "services: {a: {image: x}}\nvolumes: {v: {external: true, driver: d}}",
            "conflicting parameters",
        ),
        ("name: ++\nservices: {a: {image: x}}", "invalid project name"),
        (
            "services: {a: {image: x, container_name: ''}}",
            "no name of a container",
        ),
        (
            "services: {a: {image: x, volumes: [{type: bind, target: /x}]}}",
            "needs a source",
        ),
        ("[]", "top-level object must be a mapping"),
        ("", "empty compose file"),
    ] {
        let refused = one(text).unwrap_err();
        assert!(refused.contains(part), "{text}: {refused}");
    }
}

#[test]
fn long_forms_and_types() {
    let text = "
services:
  a:
    build: {context: sub, args: [A, B=1], ssh: [default], additional_contexts: [x=../y]}
    cpus: '0.5'
    mem_limit: 1g
    stop_grace_period: 90s
    privileged: 'true'
    entrypoint: sh -c 'a b'
    extra_hosts: {h: '::1'}
    ulimits: {nofile: {soft: 1, hard: 2}, nproc: 3}
    devices: ['/dev/null:/dev/x:r']
    gpus: all
    healthcheck: {test: exit 1, interval: 1m30s}
    tmpfs: /t
    group_add: [1]
    deploy: {replicas: 2, resources: {limits: {cpus: 1, memory: 50M}}}
    secrets: [s]
secrets: {s: {environment: S}}
";
    let found = project(&[("compose.yaml", text)], &[], |options| {
        options.environment.insert("S".into(), "hidden".into());
        options.environment.insert("A".into(), "a".into());
    })
    .unwrap();
    let a = service(&found, "a");
    assert_eq!(a["build"]["args"], json!({"A": "a", "B": "1"}));
    assert_eq!(
        (&a["mem_limit"], &a["stop_grace_period"]),
        (&json!("1073741824"), &json!("1m30s"))
    );
    assert_eq!(
        (&a["privileged"], &a["entrypoint"]),
        (&json!(true), &json!(["sh", "-c", "a b"]))
    );
    assert_eq!(a["extra_hosts"], json!(["h=::1"]));
    assert_eq!(
        a["devices"],
        json!([{"source": "/dev/null", "target": "/dev/x", "permissions": "r"}])
    );
    assert_eq!(
        a["healthcheck"],
        json!({"test": ["CMD-SHELL", "exit 1"], "interval": "1m30s"})
    );
    assert_eq!(
        (&a["tmpfs"], &a["gpus"]),
        (&json!(["/t"]), &json!([{"count": -1}]))
    );
    assert_eq!(a["secrets"], json!([{"source": "s", "target": "/run/secrets/s"}]));
    assert!(
        !found.canonical().to_json().to_string().contains("hidden"),
        "a secret is not shown"
    );
    let typed = &found.services["a"];
    assert_eq!((typed.count(), typed.cpus), (2, 0.5));
    assert_eq!(found.secrets["s"].value.as_deref(), Some("hidden"));
}

#[test]
fn a_hash_is_of_what_matters() {
    let hash = |text: &str| one(text).unwrap().config_hash("a");
    let plain = hash("services: {a: {image: x, environment: {A: 1, B: 2}}}");
    assert_eq!(
        plain,
        hash("services: {a: {environment: [B=2, A=1], image: x, scale: 3}, b: {image: y}}")
    );
    assert_ne!(
        plain,
        hash("services: {a: {image: x, environment: {A: 1, B: 3}}}")
    );
}

/// Words that mean something in Compose files, and some that do not.
const WORDS: &[&str] = &[
    "services",
    "a",
    "b",
    "image",
    "build",
    "ports",
    "80:80",
    "1-3:1-3",
    "volumes",
    "./x:/y",
    "v:/v:ro",
    "networks",
    "default",
    "depends_on",
    "extends",
    "service",
    "file",
    "environment",
    "A=1",
    "${A:-b}",
    "${",
    "$$",
    "deploy",
    "replicas",
    "'3'",
    "resources",
    "limits",
    "memory",
    "1g",
    "healthcheck",
    "test",
    "interval",
    "1m",
    "secrets",
    "configs",
    "x-y",
    "!reset",
    "!override",
    "&r",
    "*r",
    "<<",
    "true",
    "null",
    "1",
    "-1",
    "0777",
    "1e9",
    "name",
    "profiles",
    "include",
    "env_file",
    "develop",
    "watch",
    "command",
    "ulimits",
    "nofile",
    "extra_hosts",
    "gpus",
    "all",
    "external",
    "ipam",
    "config",
    "subnet",
    "é",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Files of words that mean something are loaded or refused, and what is loaded is loaded again as the same.
    #[test]
    fn nothing_panics(lines in proptest::collection::vec((0usize..5, 0..WORDS.len(), 0usize..4, 0..WORDS.len()), 1..25)) {
        let mut text = String::from("services:\n  a: {image: x}\n");
        for (indent, key, kind, value) in lines {
            let (pad, key, value) = ("  ".repeat(indent), WORDS[key], WORDS[value]);
            text.push_str(&match kind {
                0 => format!("{pad}{key}:\n"),
                1 => format!("{pad}{key}: {value}\n"),
                2 => format!("{pad}- {value}\n"),
                _ => format!("{pad}{key}: [{value}, {key}]\n"),
            });
        }
        check(&text)?;
    }

    #[test]
    fn values_of_any_kind_are_taken_or_refused(
        key in 0..WORDS.len(),
        value in prop_oneof!["[a-z0-9:./${}-]{0,12}", Just("[a, 1]".to_owned()), Just("{a: 1, b: [c]}".to_owned())],
    ) {
        check(&format!("services:\n  a:\n    image: x\n    {}: {value}\n", WORDS[key]))?;
    }
}

fn check(text: &str) -> Result<(), TestCaseError> {
    let load = |text: &str| {
        vessel_compose::load(&Options {
            files: vec!["-".into()],
            current_directory: Path::new("/nonexistent/app").into(),
            stdin: Some(text.to_owned()),
            ..Options::default()
        })
    };
    let Ok(project) = load(text) else { return Ok(()) };
    let canonical = vessel_compose::yaml::emit(&project.canonical()).replace('$', "$$");
    let again =
        load(&canonical).map_err(|error| TestCaseError::fail(format!("{error}\n{text}\n{canonical}")))?;
    prop_assert_eq!(
        project.canonical().to_json(),
        again.canonical().to_json(),
        "{}\n{}",
        text,
        canonical
    );
    Ok(())
}
