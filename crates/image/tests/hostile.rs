//! Hostile and damaged archives: a clear error, nothing left behind, nothing outside touched.

mod common;

use common::{Tar, config, docker_archive, docker_archive_with, leftovers, load_bytes, load_layers, store};
use vessel_image::{ErrorKind, Limits, LoadOptions, load};

/// Loads a layer that must be refused, and gives the message.
fn refused(layer: Vec<u8>) -> String {
    let (dir, store) = store();
    let witness = dir.path().join("witness");
    std::fs::write(&witness, "untouched").unwrap();
    let error = load_layers(&store, &[layer]).expect_err("a hostile layer was accepted");
    assert_eq!(leftovers(&store), Vec::<std::path::PathBuf>::new(), "{error}");
    assert_eq!(std::fs::read(&witness).unwrap(), b"untouched");
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        2,
        "something escaped: {error}"
    );
    let text = error.to_string();
    assert!(!text.contains("os error"), "{text}");
    text
}

#[test]
fn paths_that_leave() {
    for path in [
        "../witness",
        "/../witness",
        "a/../../witness",
        "a/..",
        "..",
        "./../../../witness",
    ] {
        let text = refused(Tar::new().file(path, b"owned").end());
        assert!(text.contains("\"..\""), "{path}: {text}");
    }
    assert!(refused(Tar::new().hard_link("a", "../../../witness").end()).contains("\"..\""));
    // The layer's own, which it does not have.
    assert!(refused(Tar::new().hard_link("a", "/etc/passwd").end()).contains("/etc/passwd"));
    assert!(refused(Tar::new().dir("a/../../b").end()).contains("\"..\""));
    assert!(refused(Tar::new().symlink("../witness", "x").end()).contains("\"..\""));
    assert!(refused(Tar::new().file(".", b"x").end()).contains("root directory"));
    assert!(refused(Tar::new().symlink("/", "/etc").end()).contains("root directory"));
}

/// Absolute names are names below the layer's root, as builders of distroless images write them.
#[test]
fn absolute_names_stay_inside() {
    let (dir, store) = store();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("witness"), "untouched").unwrap();
    let path = |name: &str| format!("{}/{name}", outside.to_str().unwrap());
    let layer = Tar::new()
        .dir("/")
        .dir("/usr/")
        .file("/usr/bin/python3", b"1")
        .symlink("/usr/bin/python", "/usr/bin/python3")
        .hard_link("usr/bin/hard", "/usr/bin/python3")
        .file(&path("witness"), b"owned")
        .file(&path(".wh.gone"), b"")
        .end();
    let image = load_layers(&store, std::slice::from_ref(&layer)).unwrap();
    assert_eq!(std::fs::read(outside.join("witness")).unwrap(), b"untouched");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    let root = store.layer_path(&image.layers[0].chain_id);
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    assert_eq!(std::fs::read(below(&path("witness"))).unwrap(), b"owned");
    assert_eq!(std::fs::read(below("usr/bin/hard")).unwrap(), b"1");
    let link = std::fs::read_link(below("usr/bin/python")).unwrap();
    assert_eq!(link, std::path::Path::new("/usr/bin/python3"));
    assert!(common::archive_of(&store, &image, 0) == layer);
}

#[test]
fn links_are_followed_inside_only() {
    let (dir, store) = store();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let up = "../".repeat(20) + outside.to_str().unwrap().trim_start_matches('/');
    // Both kinds of links lead into the layer itself, as they would with chroot.
    let layer = Tar::new()
        .dir(outside.to_str().unwrap().trim_start_matches('/'))
        .symlink("up", &up)
        .file("up/a", b"1")
        .symlink("abs", outside.to_str().unwrap())
        .file("abs/b", b"2")
        .end();
    let image = load_layers(&store, std::slice::from_ref(&layer)).unwrap();
    assert_eq!(
        std::fs::read_dir(&outside).unwrap().count(),
        0,
        "a link led out of the layer"
    );
    let inside = store
        .layer_path(&image.layers[0].chain_id)
        .join(outside.to_str().unwrap().trim_start_matches('/'));
    assert_eq!(std::fs::read(inside.join("a")).unwrap(), b"1");
    assert_eq!(std::fs::read(inside.join("b")).unwrap(), b"2");
    assert!(common::archive_of(&store, &image, 0) == layer);
}

#[test]
fn links_to_the_host_are_not_written_through() {
    // A symlink where a file comes next is replaced, not followed.
    let (dir, store) = store();
    let witness = dir.path().join("witness");
    std::fs::write(&witness, "untouched").unwrap();
    let layer = Tar::new()
        .symlink("a", witness.to_str().unwrap())
        .file("a", b"owned")
        .end();
    let image = load_layers(&store, std::slice::from_ref(&layer)).unwrap();
    assert_eq!(std::fs::read(&witness).unwrap(), b"untouched");
    let path = store.layer_path(&image.layers[0].chain_id).join("a");
    assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
    assert!(common::archive_of(&store, &image, 0) == layer);
    // A hard link to a symlink links the symlink.
    let layer = Tar::new()
        .symlink("a", witness.to_str().unwrap())
        .hard_link("b", "a")
        .file("b", b"owned")
        .end();
    load_layers(&store, &[layer]).unwrap();
    assert_eq!(std::fs::read(&witness).unwrap(), b"untouched");
}

#[test]
fn magic_links_and_devices_of_the_host() {
    let text = refused(
        Tar::new()
            .symlink("p", "/proc/self/root")
            .file("p/witness", b"x")
            .end(),
    );
    assert!(text.contains("cannot open directory"), "{text}");
    assert!(refused(Tar::new().symlink("loop", "loop").file("loop/x", b"").end()).contains("symbolic links"));
    assert!(refused(Tar::new().file("f", b"").file("f/x", b"").end()).contains("not a directory"));
}

#[test]
fn whiteouts_of_nothing() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh."] {
        assert!(
            refused(Tar::new().file(name, b"").end()).contains("whiteout"),
            "{name}"
        );
    }
}

#[test]
fn damaged_archives() {
    let good = Tar::new().file("a", &[7; 5000]).end();
    for cut in [700, 3000, 5200] {
        assert!(refused(good[..cut].to_vec()).contains("truncated"), "{cut}");
    }
    assert!(refused(good[..100].to_vec()).contains("is not a tar archive"));
    let mut bad = good.clone();
    bad[3] ^= 1;
    assert!(refused(bad).contains("is not a tar archive"));
    // A later header is wrong.
    let mut bad = Tar::new().file("a", b"").file("b", b"").end();
    bad[512 + 3] ^= 1;
    assert!(refused(bad).contains("checksum"));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &good).unwrap();
    let gzip = gzip.finish().unwrap();
    assert!(refused(gzip[..gzip.len() - 6].to_vec()).contains("damaged"));
}

#[test]
fn wrong_digests() {
    let (_dir, store) = store();
    let layer = Tar::new().file("a", b"x").end();
    let other = config(&[Tar::new().file("a", b"y").end()]);
    let error = load_bytes(&store, &docker_archive_with(&other, &[layer], "a:1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Digest);
    assert!(error.to_string().contains("diff ID"), "{error}");
    assert!(leftovers(&store).is_empty());
}

#[test]
fn one_bad_image_fails_all() {
    let (_dir, store) = store();
    let good = Tar::new().file("a", b"x").end();
    let good_config = config(std::slice::from_ref(&good));
    let bad_config = config(&[Tar::new().file("a", b"y").end()]);
    let manifest = serde_json::json!([
        {"Config": "good", "RepoTags": ["good:1"], "Layers": ["layer"]},
        {"Config": "bad", "RepoTags": ["bad:1"], "Layers": ["layer"]},
    ]);
    let archive = Tar::new()
        .file("good", &good_config)
        .file("bad", &bad_config)
        .file("layer", &good)
        .file("manifest.json", manifest.to_string().as_bytes())
        .end();
    let error = load_bytes(&store, &archive).unwrap_err();
    assert!(error.to_string().contains("bad:1"), "{error}");
    assert!(leftovers(&store).is_empty());
}

#[test]
fn bombs() {
    let (_dir, store) = store();
    let mut layer = Tar::new();
    for i in 0..100 {
        layer = layer.file(&format!("f{i}"), &[0; 10_000]);
    }
    let layer = layer.end();
    let archive = docker_archive(std::slice::from_ref(&layer), "a:1");
    let bytes = Limits {
        max_bytes: 500_000,
        ..Limits::default()
    };
    let entries = Limits {
        max_entries: 99,
        ..Limits::default()
    };
    for limits in [bytes, entries] {
        let options = LoadOptions {
            limits,
            sync: false,
            ..LoadOptions::default()
        };
        let error = load(&store, &archive[..], &options, &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(leftovers(&store).is_empty());
    }
    // A gzip bomb stops at the limit, long before its 64 MiB of zeros.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 64 << 20), &mut gzip).unwrap();
    let options = LoadOptions {
        limits: Limits {
            max_bytes: 1 << 20,
            ..Limits::default()
        },
        sync: false,
        ..LoadOptions::default()
    };
    let bomb = docker_archive_with(&config(&[vec![]]), &[gzip.finish().unwrap()], "a:1");
    let error = load(&store, &bomb[..], &options, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    assert!(leftovers(&store).is_empty());
}

#[test]
fn metadata_bombs() {
    let long = "x".repeat(5000);
    assert!(refused(Tar::new().pax(&[("path", long.as_bytes())]).file("a", b"").end()).contains("longer"));
    assert!(
        refused(
            Tar::new()
                .entry(b'L', "l", "", &[b'x'; 9000])
                .file("a", b"")
                .end()
        )
        .contains("larger")
    );
    assert!(
        refused(
            Tar::new()
                .entry(b'x', "l", "", &vec![b'x'; 2 << 20])
                .file("a", b"")
                .end()
        )
        .contains("larger")
    );
    let mut many = Tar::new();
    for _ in 0..100 {
        many = many.pax(&[("path", b"x")]);
    }
    assert!(refused(many.file("a", b"").end()).contains("too many"));
    let deep = "d/".repeat(2000);
    assert!(refused(Tar::new().pax(&[("path", deep.as_bytes())]).file("a", b"").end()).contains("nested"));
    // A sparse map that overlaps, and one beyond the file.
    for map in ["0,10,5,10", "0,10,1000,10", "0,18446744073709551615,1,1"] {
        let records: &[(&str, &[u8])] = &[("GNU.sparse.size", b"100"), ("GNU.sparse.map", map.as_bytes())];
        refused(Tar::new().pax(records).file("s", &[1; 20]).end());
    }
}

#[test]
fn what_is_kept_in_memory_is_bounded() {
    // Directories are finished at the end: until then each is remembered with its attributes.
    let attribute = vec![b'x'; 60_000];
    let names: Vec<String> = (0..16).map(|i| format!("SCHILY.xattr.user.{i}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (&name[..], &attribute[..])).collect();
    let directory = Tar::new().pax(&records).dir("d").raw();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..300 {
        std::io::Write::write_all(&mut gzip, &directory).unwrap();
    }
    let (_dir, store) = store();
    let bomb = docker_archive_with(&config(&[vec![]]), &[gzip.finish().unwrap()], "a:1");
    let error = load_bytes(&store, &bomb).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    assert!(error.to_string().contains("too many directories"), "{error}");
    assert!(leftovers(&store).is_empty());

    let names: Vec<String> = (0..2000).map(|i| format!("SCHILY.xattr.user.{i}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (&name[..], &b"x"[..])).collect();
    assert!(refused(Tar::new().pax(&records).file("a", b"").end()).contains("extended attributes"));
    let mut tar = Tar::new();
    // Pieces that come one by one add up over several headers.
    let pieces: Vec<(&str, &[u8])> = (0..40_000)
        .map(|i| match i % 2 {
            0 => ("GNU.sparse.offset", &b"1"[..]),
            _ => ("GNU.sparse.numbytes", &b"0"[..]),
        })
        .collect();
    for _ in 0..8 {
        tar = tar.pax(&pieces);
    }
    assert!(refused(tar.file("a", b"").end()).contains("pieces"));
}

#[test]
fn a_document_is_not_read_as_often_as_it_is_named() {
    let mut large = config(&[]);
    large.truncate(large.len() - 1);
    large.extend_from_slice(br#","x":""#);
    large.resize((4 << 20) - 2, b'x');
    large.extend_from_slice(br#""}"#);
    let list = |count: usize, tags: usize| {
        let tags = vec!["a:1"; tags];
        let item = serde_json::json!({"Config": "c", "RepoTags": tags, "Layers": []});
        serde_json::Value::Array(vec![item; count]).to_string()
    };
    let archive = |config: &[u8], manifest: &str| {
        Tar::new()
            .file("c", config)
            .file("manifest.json", manifest.as_bytes())
            .end()
    };
    let (_dir, store) = store();
    for (config, manifest, why) in [
        (large.clone(), list(500, 0), "64 MiB of documents"),
        (config(&[]), list(5000, 0), "4096 images"),
        (config(&[]), list(10, 2000), "16384 names"),
    ] {
        let error = load_bytes(&store, &archive(&config, &manifest)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    // The same through an index.
    let digest = |data: &[u8]| vessel_image::Digest::sha256(data);
    let descriptor = |data: &[u8]| serde_json::json!({"mediaType": "", "digest": digest(data).to_string(), "size": data.len()});
    let path = |data: &[u8]| format!("blobs/sha256/{}", digest(data).hex());
    let manifest = serde_json::json!({"schemaVersion": 2, "config": descriptor(&large), "layers": []});
    let manifest = manifest.to_string().into_bytes();
    let layout = |count: usize| {
        let manifests = vec![descriptor(&manifest); count];
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        Tar::new()
            .file(&path(&large), &large)
            .file(&path(&manifest), &manifest)
            .file("index.json", index.as_bytes())
            .end()
    };
    let error = load_bytes(&store, &layout(500)).unwrap_err();
    assert!(error.to_string().contains("64 MiB of documents"), "{error}");
    assert!(leftovers(&store).is_empty());
    // Some times is no harm.
    assert_eq!(load_bytes(&store, &layout(10)).unwrap().len(), 1);
    assert_eq!(
        load_bytes(&store, &archive(&large, &list(10, 2))).unwrap().len(),
        1
    );
}

#[test]
fn a_hole_of_terabytes_costs_nothing() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, store) = store();
    let size = 8u64 << 40;
    let (text, map) = (size.to_string(), format!("0,4,{},4", size - 4));
    let layer = Tar::new()
        .pax(&[
            ("GNU.sparse.size", text.as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
        ])
        .file("holes", b"headtail")
        .end();
    match common::load_layers(&store, std::slice::from_ref(&layer)) {
        Ok(image) => {
            let chain = &image.layers[0].chain_id;
            let file = std::fs::metadata(store.layer_path(chain).join("holes")).unwrap();
            assert_eq!(file.len(), size);
            assert!(file.blocks() < 1024, "{} blocks", file.blocks());
            assert_eq!(image.size(), 8);
            assert!(common::archive_of(&store, &image, 0) == layer);
        }
        // Not every file system holds files of this size.
        Err(error) => {
            assert!(error.to_string().contains("holes"), "{error}");
            assert!(leftovers(&store).is_empty());
        }
    }
    let (text, map) = ((1u64 << 60).to_string(), "0,4".to_owned());
    let records: [(&str, &[u8]); 2] = [
        ("GNU.sparse.size", text.as_bytes()),
        ("GNU.sparse.map", map.as_bytes()),
    ];
    assert!(refused(Tar::new().pax(&records).file("s", b"head").end()).contains("too large"));
}

#[test]
fn a_global_header_speaks_of_all_entries_only() {
    let (_dir, store) = store();
    let global = Tar::new()
        .pax(&[
            ("uid", b"5"),
            ("path", b"elsewhere"),
            ("SCHILY.xattr.user.a", b"b"),
        ])
        .raw();
    let mut layer = global;
    layer[156] = b'g';
    // The type is part of the checksum: 'g' is 17 less than 'x'.
    let sum = layer[..512].iter().enumerate().fold(0u32, |sum, (i, &b)| {
        sum + u32::from(if (148..156).contains(&i) { b' ' } else { b })
    });
    layer[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    layer.extend(Tar::new().file("a", b"1").file("b", b"2").end());
    let image = common::load_layers(&store, &[layer]).unwrap();
    let files = store.layer_path(&image.layers[0].chain_id);
    for name in ["a", "b"] {
        let meta = std::fs::metadata(files.join(name)).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&meta), 5);
    }
    assert!(!files.join("elsewhere").exists());
}

#[test]
fn an_archive_that_ends_within_a_layer() {
    let (_dir, store) = store();
    let layer = Tar::new().file("a", &vec![7; 3_000_000]).end();
    let archive = docker_archive(&[layer], "a:1");
    for cut in [1000, 1_000_000, 3_000_500, archive.len() - 2500] {
        assert!(load_bytes(&store, &archive[..cut]).is_err());
        assert!(leftovers(&store).is_empty(), "cut at {cut}");
    }
}

#[test]
fn a_reader_that_fails() {
    struct Broken(usize);
    impl std::io::Read for Broken {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(1)
                .ok_or_else(|| std::io::Error::other("the client hung up"))?;
            let n = out.len().min(512);
            out[..n].fill(0);
            Ok(n)
        }
    }
    let (_dir, store) = store();
    let archive = docker_archive(&[Tar::new().file("a", &vec![7; 300_000]).end()], "a:1");
    let input = std::io::Read::chain(&archive[..200_000], Broken(5));
    let error = load(&store, input, &LoadOptions::default(), &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.to_string().contains("hung up"), "{error}");
    assert!(leftovers(&store).is_empty());
}

#[test]
fn not_an_image_archive() {
    let (_dir, store) = store();
    let text = load_bytes(&store, &Tar::new().dir("etc/").file("etc/passwd", b"root").end())
        .unwrap_err()
        .to_string();
    assert!(text.contains("import"), "{text}");
    assert!(
        load_bytes(&store, b"hello")
            .unwrap_err()
            .to_string()
            .contains("truncated")
    );
    assert!(
        load_bytes(&store, b"")
            .unwrap_err()
            .to_string()
            .contains("no images")
    );
    assert!(
        load_bytes(&store, &[b'x'; 2000])
            .unwrap_err()
            .to_string()
            .contains("tar archive")
    );
    let empty = Tar::new().file("manifest.json", b"[]").end();
    assert!(
        load_bytes(&store, &empty)
            .unwrap_err()
            .to_string()
            .contains("no images")
    );
    let lacking = Tar::new()
        .file(
            "manifest.json",
            br#"[{"Config":"x","RepoTags":null,"Layers":[]}]"#,
        )
        .end();
    assert!(
        load_bytes(&store, &lacking)
            .unwrap_err()
            .to_string()
            .contains("lacks the image configuration")
    );
    assert!(leftovers(&store).is_empty());
}

#[test]
fn attributes_that_mean_something_to_the_host_are_dropped() {
    let (_dir, store) = store();
    let layer = Tar::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.kept", b"yes"),
        ])
        .dir("d/")
        .end();
    let image = load_layers(&store, &[layer]).unwrap();
    let path = store.layer_path(&image.layers[0].chain_id).join("d");
    let mut list = vec![0u8; 4096];
    let n = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    let names: Vec<_> = list[..n]
        .split(|&b| b == 0)
        .filter(|n| !n.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    assert!(names.contains(&b"user.kept".to_vec()), "{names:?}");
    assert!(
        names.iter().all(|n| !n.windows(7).any(|w| w == b"overlay")),
        "{names:?}"
    );
}
