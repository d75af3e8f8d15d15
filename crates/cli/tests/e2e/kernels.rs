//! `vessel kernel`: no daemon is asked, so none runs.

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::VESSEL;

fn vessel(root: &Path, arguments: &[&str]) -> Output {
    Command::new(VESSEL)
        .arg("kernel")
        .args(arguments)
        .env("VESSEL_ROOT", root)
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT")
        .output()
        .unwrap()
}

/// What a command that succeeds prints.
fn said(root: &Path, arguments: &[&str]) -> String {
    let output = vessel(root, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// What one that fails complains of.
fn complaint(root: &Path, arguments: &[&str]) -> String {
    let output = vessel(root, arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// As much of a bzImage as an import looks at, packed in no way we unpack.
fn bzimage(release: &str) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    file[0x300..0x300 + release.len()].copy_from_slice(release.as_bytes());
    file
}

#[test]
fn kernels_are_imported_listed_chosen_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    assert!(complaint(&root, &["default"]).contains("kernel import"));
    std::fs::write(at("one"), bzimage("6.1.0-1-amd64 (x@y) #1")).unwrap();
    std::fs::write(at("two"), bzimage("6.12.9 (x@y) #1")).unwrap();
    assert_eq!(said(&root, &["import", &at("one")]), "6.1.0-1-amd64");
    assert_eq!(said(&root, &["import", "--name", "new", &at("two")]), "new");
    assert!(complaint(&root, &["import", &at("one")]).contains("--force"));
    assert_eq!(said(&root, &["ls", "-q"]), "6.1.0-1-amd64\nnew");
    assert_eq!(said(&root, &["default"]), "6.1.0-1-amd64");
    assert_eq!(said(&root, &["default", "new"]), "new");
    let format = "{{.Name}} {{.Release}} {{.Default}}";
    assert_eq!(
        said(&root, &["ls", "--format", format]),
        "6.1.0-1-amd64 6.1.0-1-amd64 \nnew 6.12.9 yes"
    );
    let other = root.to_str().unwrap();
    assert_eq!(
        said(Path::new("/nonexistent"), &["ls", "-q", "--root", other]),
        "6.1.0-1-amd64\nnew"
    );
    assert_eq!(said(&root, &["rm", "new"]), "new");
    let gone = complaint(&root, &["rm", "new"]);
    assert!(gone.contains("there is no kernel \"new\""), "{gone}");
    std::fs::write(at("text"), "no kernel").unwrap();
    assert!(complaint(&root, &["import", &at("text")]).contains("no kernel for x86-64"));
    // Another host's kernels are not this one's.
    let remote = Command::new(VESSEL)
        .args(["-H", "tcp://192.0.2.1:2375", "kernel", "ls"])
        .output()
        .unwrap();
    assert!(!remote.status.success());
    assert!(String::from_utf8_lossy(&remote.stderr).contains("on another"));
}

/// A source whose "compilation" takes a second.
const MAKEFILE: &str = "\
allnoconfig:
\tcp $(KCONFIG_ALLCONFIG) .config
bzImage:
\tmkdir -p arch/x86/boot
\tcc -nostdlib -static -o vmlinux kernel.c
\tcp vmlinux arch/x86/boot/bzImage
kernelrelease:
\t@echo 6.12.99-vessel
";
const SOURCE: &str = "\
const char banner[] = \"Linux version 6.12.99-vessel (vessel@vessel) #1\";
const char *volatile used = banner;
void _start(void) { for (;;); }
";

#[test]
fn a_kernel_is_built_once() {
    let tools = ["make", "cc", "strip", "tar"];
    let there = |tool: &&str| {
        Command::new(tool)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !tools.iter().all(there) {
        eprintln!("skipped: it takes make, cc, strip and tar");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let archive = |name: &str, makefile: &str| {
        let path = directory.path().join(name);
        let mut builder = tar::Builder::new(std::fs::File::create(&path).unwrap());
        for (name, text) in [("Makefile", makefile), ("kernel.c", SOURCE)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder
                .append_data(&mut header, format!("linux-source-6.12/{name}"), text.as_bytes())
                .unwrap();
        }
        builder.finish().unwrap();
        path.to_str().unwrap().to_owned()
    };
    let source = archive("linux-source-6.12.tar", MAKEFILE);
    assert_eq!(said(&root, &["build", &source]), "6.12.99-vessel");
    let described = said(&root, &["ls", "--format", "{{.Source}}"]);
    assert!(
        described.starts_with("built from linux-source-6.12.tar, recipe "),
        "{described}"
    );
    // It is there: nothing is compiled, whatever the compiler.
    let again = Command::new(VESSEL)
        .args(["kernel", "build", &source])
        .env("VESSEL_ROOT", &root)
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&again.stdout).trim(), "6.12.99-vessel");
    assert_eq!(said(&root, &["build", "--force", &source]), "6.12.99-vessel");

    // An option that does not take stops the build; so does the compiler. Neither leaves anything.
    let other = archive(
        "other.tar",
        &MAKEFILE.replace(
            "cp $(KCONFIG_ALLCONFIG) .config",
            "grep -v PVH $(KCONFIG_ALLCONFIG) >.config",
        ),
    );
    let error = complaint(&root, &["build", &other]);
    assert!(
        error.contains("CONFIG_PVH=y") && error.contains("not built"),
        "{error}"
    );
    let broken = archive("broken.tar", &MAKEFILE.replace("cc -nostdlib", "false"));
    assert!(complaint(&root, &["build", &broken]).contains("not built"));
    let mut left: Vec<_> = std::fs::read_dir(root.join("kernels"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, [".lock", "6.12.99-vessel", "default"]);
}
