//! What goes in comes out: files as tar makes them, archives byte for byte.

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use common::{Tar, archive_of, config, docker_archive, load_bytes, load_layers, store};
use vessel_image::{
    ContainerConfig, Digest, Format, ImageConfig, ImportOptions, LiveSet, Platform, Reference, SaveImage,
    import, save,
};

fn every_kind() -> Vec<u8> {
    let mut suid = tar::Header::new_gnu();
    suid.set_path("bin/su").unwrap();
    suid.set_mode(0o4755);
    suid.set_uid(7);
    suid.set_gid(8);
    suid.set_mtime(1_600_000_000);
    suid.set_size(3);
    suid.set_cksum();
    // VFS_CAP_REVISION_2 with CAP_NET_RAW permitted and effective.
    let capability = [1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    Tar::new()
        .dir("./")
        .dir("bin/")
        .header(&suid, b"su!")
        .hard_link("bin/sudo", "bin/su")
        .symlink("bin/sh", "/bin/busybox")
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("mtime", b"1500000000.25"),
        ])
        .file("bin/ping", b"ping")
        .entry(b'6', "fifo", "", b"")
        .char_device("tty", 5, 1)
        .dir("empty/")
        .file("deep/er/file", &vec![b'x'; 300_000])
        .file("zero", b"")
        .end()
}

#[test]
fn files_are_as_in_the_archive() {
    let (_dir, store) = store();
    let layer = every_kind();
    let image = load_layers(&store, std::slice::from_ref(&layer)).unwrap();
    let root = store.layer_path(&image.layers[0].chain_id);
    let su = std::fs::metadata(root.join("bin/su")).unwrap();
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid(), su.mtime(), su.nlink()),
        (0o4755, 7, 8, 1_600_000_000, 2)
    );
    assert_eq!(std::fs::metadata(root.join("bin/sudo")).unwrap().ino(), su.ino());
    assert_eq!(
        std::fs::read_link(root.join("bin/sh")).unwrap().to_str(),
        Some("/bin/busybox")
    );
    let ping = std::fs::metadata(root.join("bin/ping")).unwrap();
    assert_eq!((ping.mtime(), ping.mtime_nsec()), (1_500_000_000, 250_000_000));
    let mut value = [0u8; 64];
    assert_eq!(
        rustix::fs::getxattr(root.join("bin/ping"), "security.capability", &mut value[..]),
        Ok(20)
    );
    assert!(
        std::fs::metadata(root.join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    let tty = std::fs::metadata(root.join("tty")).unwrap();
    assert!(tty.file_type().is_char_device());
    assert_eq!(
        (tty.rdev(), tty.mode() & 0o777),
        (rustix::fs::makedev(5, 1), 0o620)
    );
    assert_eq!(
        std::fs::metadata(root.join("bin")).unwrap().mtime(),
        1_700_000_000
    );
    assert_eq!(
        std::fs::metadata(&root).unwrap().permissions().mode() & 0o7777,
        0o755
    );
    assert_eq!(image.layers[0].size, 3 + 4 + 300_000);
    assert!(
        archive_of(&store, &image, 0) == layer,
        "the archive is not what it was"
    );
}

#[test]
fn whiteouts_become_overlayfs_ones() {
    let (_dir, store) = store();
    let layer = Tar::new()
        .file("a/.wh.gone", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/new", b"x")
        .file(".wh.c", b"")
        .dir("c/")
        .dir("d/")
        .file(".wh.d", b"")
        .file("f", b"kept")
        .file(".wh.f", b"")
        .end();
    let image = load_layers(&store, std::slice::from_ref(&layer)).unwrap();
    let root = store.layer_path(&image.layers[0].chain_id);
    let gone = std::fs::metadata(root.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for opaque in ["b", "c", "d"] {
        let mut value = [0u8; 4];
        let n = rustix::fs::getxattr(root.join(opaque), "trusted.overlay.opaque", &mut value[..]);
        assert_eq!((n, value[0]), (Ok(1), b'y'), "{opaque}");
    }
    assert_eq!(std::fs::read(root.join("f")).unwrap(), b"kept");
    assert!(archive_of(&store, &image, 0) == layer);
}

#[test]
fn replaced_entries_still_rebuild_the_archive() {
    let (_dir, store) = store();
    let layer = Tar::new()
        .file("a", b"first")
        .file("a", b"second")
        .dir("d/")
        .file("d/x", b"in a directory that goes")
        .file("d/x", b"twice")
        .file("d", b"now a file")
        .dir("real/")
        .symlink("link", "real")
        .file("link/y", b"through a link")
        .file("link", b"the link goes")
        .dir("a/")
        .file("a/z", b"last")
        .end();
    let image = load_layers(&store, std::slice::from_ref(&layer)).unwrap();
    let root = store.layer_path(&image.layers[0].chain_id);
    assert_eq!(std::fs::read(root.join("a/z")).unwrap(), b"last");
    assert_eq!(std::fs::read(root.join("d")).unwrap(), b"now a file");
    assert_eq!(std::fs::read(root.join("real/y")).unwrap(), b"through a link");
    assert_eq!(std::fs::read(root.join("link")).unwrap(), b"the link goes");
    assert!(archive_of(&store, &image, 0) == layer);
}

#[test]
fn sparse_files_keep_their_holes() {
    let (_dir, store) = store();
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"10485760"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.map", b"0,4,10485756,4"),
    ];
    let map = b"2\n0\n4\n10485756\n4\n";
    let mut one = vec![0u8; 512];
    one[..map.len()].copy_from_slice(map);
    one.extend_from_slice(b"headtail");
    let version_1: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"v1"),
        ("GNU.sparse.realsize", b"10485760"),
    ];
    let mut old = tar::Header::new_gnu();
    old.set_path("old").unwrap();
    old.set_entry_type(tar::EntryType::GNUSparse);
    old.set_mode(0o644);
    old.set_uid(0);
    old.set_gid(0);
    old.set_mtime(0);
    old.set_size(8);
    let bytes = old.as_mut_bytes();
    for (at, value) in [
        (386, 0u64),
        (398, 4),
        (410, 10_485_756),
        (422, 4),
        (483, 10_485_760),
    ] {
        bytes[at..at + 11].copy_from_slice(format!("{value:011o}").as_bytes());
    }
    old.set_cksum();
    let layer = Tar::new()
        .pax(records)
        .file("v01", b"headtail")
        .pax(version_1)
        .file("GNUSparseFile.0/v1", &one)
        .header(&old, b"headtail")
        .end();
    let image = load_layers(&store, std::slice::from_ref(&layer)).unwrap();
    let root = store.layer_path(&image.layers[0].chain_id);
    for name in ["v01", "v1", "old"] {
        let file = std::fs::read(root.join(name)).unwrap();
        assert_eq!(
            (file.len(), &file[..4], &file[file.len() - 4..]),
            (10_485_760, &b"head"[..], &b"tail"[..]),
            "{name}"
        );
        let blocks = std::fs::metadata(root.join(name)).unwrap().blocks();
        assert!(blocks < 100, "{name} takes {blocks} blocks");
    }
    assert!(archive_of(&store, &image, 0) == layer);
}

#[test]
fn saved_archives_load_again_and_are_reproducible() {
    let (_dir, first) = store();
    let layers = [
        every_kind(),
        Tar::new().file("second", b"layer").end(),
        Tar::new().end(),
    ];
    let image = load_layers(&first, &layers).unwrap();
    let reference = Reference::parse("localhost:5000/some/image:tag").unwrap();
    let images = [SaveImage {
        id: image.id.clone(),
        references: vec![reference.clone()],
    }];
    for format in [Format::Docker, Format::Oci] {
        let (mut archive, mut again) = (Vec::new(), Vec::new());
        save(&first, &images, format, &mut archive).unwrap();
        save(&first, &images, format, &mut again).unwrap();
        assert!(archive == again, "two archives of the same image differ");
        let (_dir, second) = store();
        let loaded = load_bytes(&second, &archive).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].id, image.id);
        assert_eq!(loaded[0].references, std::slice::from_ref(&reference));
        assert_eq!(loaded[0].layers, image.layers);
        assert_eq!(loaded[0].raw_config, image.raw_config);
        // Nothing is stored that no record will mention.
        let blobs: Vec<_> = second
            .blobs()
            .unwrap()
            .into_iter()
            .map(|blob| blob.digest)
            .collect();
        assert_eq!(blobs, std::slice::from_ref(&image.id));
        for (i, layer) in layers.iter().enumerate() {
            assert!(archive_of(&second, &loaded[0], i) == *layer);
        }
        // The archive as a whole may be compressed.
        let (_dir, third) = store();
        let zstd = zstd::encode_all(&archive[..], 1).unwrap();
        assert_eq!(load_bytes(&third, &zstd).unwrap()[0].id, image.id);
    }
}

#[test]
fn the_same_layer_twice_and_on_another_parent() {
    let (_dir, store) = store();
    let (a, b) = (Tar::new().file("a", b"1").end(), Tar::new().file("b", b"2").end());
    let layers = [a.clone(), b.clone(), a.clone(), a.clone()];
    let image = load_layers(&store, &layers).unwrap();
    for (i, layer) in layers.iter().enumerate() {
        assert!(archive_of(&store, &image, i) == *layer);
    }
    // One file in the archive, named by several layers, partly through links.
    let manifest = serde_json::json!([{
        "Config": "c", "RepoTags": ["x:1"], "Layers": ["l/layer.tar", "m/layer.tar", "l/layer.tar"]
    }]);
    let archive = Tar::new()
        .file("l/layer.tar", &b)
        .symlink("m/layer.tar", "../l/layer.tar")
        .file("c", &config(&[b.clone(), b.clone(), b.clone()]))
        .file("manifest.json", manifest.to_string().as_bytes())
        .end();
    let image = load_bytes(&store, &archive).unwrap().remove(0);
    assert_eq!(image.layers.len(), 3);
    assert!(archive_of(&store, &image, 2) == b);
}

#[test]
fn oci_layouts_with_compressed_layers_and_platforms() {
    let (_dir, store) = store();
    let layer = every_kind();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &layer).unwrap();
    let blobs = [gzip.finish().unwrap(), zstd::encode_all(&layer[..], 3).unwrap()];
    let host = Platform::host();
    let mut archive = Tar::new().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let put = |archive: &mut Option<Tar>, data: &[u8]| {
        let digest = Digest::sha256(data);
        *archive = archive
            .take()
            .map(|tar| tar.file(&format!("blobs/sha256/{}", digest.hex()), data));
        serde_json::json!({"mediaType": "", "digest": digest.to_string(), "size": data.len()})
    };
    let mut tar = Some(archive);
    let layers: Vec<_> = blobs.iter().map(|blob| put(&mut tar, blob)).collect();
    let config = config(&[layer.clone(), layer.clone()]);
    let config = put(&mut tar, &config);
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    let mut ours = put(&mut tar, manifest.as_bytes());
    ours["platform"] = serde_json::json!({"os": host.os, "architecture": host.architecture});
    let mut other = ours.clone();
    other["platform"]["architecture"] = "s390x".into();
    other["digest"] = Digest::sha256(b"absent").to_string().into();
    let inner = serde_json::json!({"schemaVersion": 2, "manifests": [other, ours]}).to_string();
    let mut inner = put(&mut tar, inner.as_bytes());
    inner["annotations"] = serde_json::json!({"io.containerd.image.name": "docker.io/library/multi:1"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
    archive = tar.take().unwrap().file("index.json", index.as_bytes());
    let archive = archive.end();
    let images = load_bytes(&store, &archive).unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].references[0].familiar(), "multi:1");
    assert_eq!(images[0].layers.len(), 2);
    assert!(archive_of(&store, &images[0], 1) == layer);
    // Asked for a platform that is not there, it says which ones are.
    let options = vessel_image::LoadOptions {
        platform: Some(Platform {
            architecture: "riscv64".into(),
            ..host
        }),
        ..vessel_image::LoadOptions::default()
    };
    let error = vessel_image::load(&store, &archive[..], &options, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("riscv64") && error.contains("s390x"), "{error}");
    // A blob that is not what its name says.
    let mut broken = archive.clone();
    let at = broken.windows(10).position(|w| w == b"schemaVers").unwrap();
    broken[at] = b'S';
    assert!(load_bytes(&store, &broken).is_err());
}

#[test]
fn images_for_another_platform_are_loaded_when_asked_for() {
    let (_dir, store) = store();
    let layer = Tar::new().file("a", b"1").end();
    let config = String::from_utf8(config(std::slice::from_ref(&layer))).unwrap();
    let arm = config.replace("amd64", "arm64");
    let platform = |architecture: &str| Platform {
        architecture: architecture.into(),
        ..Platform::host()
    };
    let load_for = |archive: &[u8], architecture: Option<&str>| {
        let options = vessel_image::LoadOptions {
            platform: architecture.map(platform),
            ..vessel_image::LoadOptions::default()
        };
        vessel_image::load(&store, archive, &options, &mut |_| {})
    };
    let docker = common::docker_archive_with(arm.as_bytes(), &[layer], "arm:1");
    let image = load_for(&docker, None).unwrap().remove(0);
    assert_eq!(load_for(&docker, Some("arm64")).unwrap()[0].id, image.id);
    let mut layout = Vec::new();
    let references = vec![Reference::parse("arm:1").unwrap()];
    let id = image.id.clone();
    save(&store, &[SaveImage { id, references }], Format::Oci, &mut layout).unwrap();
    assert_eq!(load_for(&layout, Some("arm64")).unwrap()[0].id, image.id);
    for (archive, architecture) in [
        (&docker, Some("riscv64")),
        (&layout, Some("riscv64")),
        (&layout, None),
    ] {
        if architecture.is_none() && Platform::host() == platform("arm64") {
            continue;
        }
        let error = load_for(archive, architecture).unwrap_err();
        assert!(error.to_string().contains("only for linux/arm64"), "{error}");
    }
}

#[test]
fn imports_a_root_in_every_compression() {
    let (_dir, store) = store();
    let root = every_kind();
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    std::io::Write::write_all(&mut xz, &root).unwrap();
    let mut ids = Vec::new();
    for archive in [
        root.clone(),
        zstd::encode_all(&root[..], 1).unwrap(),
        xz.finish().unwrap(),
    ] {
        let options = ImportOptions {
            config: ContainerConfig {
                cmd: Some(vec!["sh".into()]),
                ..ContainerConfig::default()
            },
            message: Some("imported".into()),
            created: "2026-01-01T00:00:00Z".into(),
            sync: false,
            ..ImportOptions::default()
        };
        let image = import(&store, &archive[..], &options).unwrap();
        assert_eq!(image.layers[0].diff_id.0, Digest::sha256(&root));
        assert_eq!(store.blob(&image.id).unwrap(), *image.raw_config);
        ids.push(image.id);
    }
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert!(import(&store, &b"junk"[..], &ImportOptions::default()).is_err());
}

#[test]
fn collection_respects_leases_and_records() {
    let (_dir, store) = store();
    let kept = load_bytes(&store, &docker_archive(&[every_kind()], "kept:1"))
        .unwrap()
        .remove(0);
    let both = [every_kind(), Tar::new().file("top", b"x").end()];
    let leased = load_bytes(&store, &docker_archive(&both, "leased:1"))
        .unwrap()
        .remove(0);
    let mut live = LiveSet::default();
    live.add_image(&kept.id, &ImageConfig::parse(&kept.raw_config).unwrap());
    let live = || live.clone();
    assert_eq!(store.collect(live).unwrap(), vessel_image::Collected::default());
    // Released while the collection reads its records, it stays this time.
    let (top, id) = (leased.layers[1].chain_id.clone(), leased.id.clone());
    let collected = store.collect(|| {
        drop(leased);
        live()
    });
    assert_eq!(collected.unwrap().layers, []);
    let collected = store.collect(live).unwrap();
    assert_eq!((collected.layers, collected.blobs), (vec![top.clone()], vec![id]));
    assert!(!store.layer_path(&top).exists());
    assert!(store.layer_path(&kept.layers[0].chain_id).exists());
    // A live layer keeps what is below it, and nothing temporary stays.
    drop(kept);
    store.collect(LiveSet::default).unwrap();
    assert!(common::leftovers(&store).is_empty());
}

#[test]
fn damage_on_disk_is_noticed() {
    let (_dir, store) = store();
    let image = load_layers(&store, &[every_kind()]).unwrap();
    let chain = &image.layers[0].chain_id;
    std::fs::write(store.layer_path(chain).join("bin/ping"), b"pong").unwrap();
    let error = std::io::copy(&mut store.layer_archive(chain).unwrap(), &mut std::io::sink()).unwrap_err();
    assert!(error.to_string().contains("changed on disk"), "{error}");
    let blob = store.root().join("blobs/sha256").join(image.id.hex());
    std::fs::write(&blob, b"{}").unwrap();
    assert_eq!(
        store.blob(&image.id).unwrap_err().kind(),
        vessel_image::ErrorKind::Digest
    );
    // Loading it again repairs the blob.
    load_layers(&store, &[every_kind()]).unwrap();
    assert_eq!(store.blob(&image.id).unwrap(), *image.raw_config);
}

#[test]
fn leftovers_of_a_crash_are_swept() {
    let (_dir, store) = store();
    std::fs::create_dir_all(store.root().join("layers/.tmp-1-1/diff")).unwrap();
    std::fs::write(store.root().join("blobs/sha256/.tmp-1-2"), b"x").unwrap();
    assert_eq!(store.sweep_temporary().unwrap(), 2);
    assert!(common::leftovers(&store).is_empty());
}

#[test]
fn a_power_failure_costs_only_what_was_not_flushed() {
    let (_dir, store) = store();
    let flushed = load_layers(&store, &[every_kind()]).unwrap();
    store.sync().unwrap();
    let unflushed = load_layers(&store, &[Tar::new().file("x", b"y").end()]).unwrap();
    // A new process in the same boot keeps both.
    assert_eq!(store.discard_unflushed().unwrap(), []);
    for image in [&flushed, &unflushed] {
        let json = store
            .layer_path(&image.layers[0].chain_id)
            .with_file_name("layer.json");
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let text = std::fs::read_to_string(&json).unwrap();
        assert!(text.contains(boot.trim()));
        std::fs::write(&json, text.replace(boot.trim(), "another")).unwrap();
    }
    assert_eq!(
        store.discard_unflushed().unwrap(),
        [unflushed.layers[0].chain_id.clone()]
    );
    assert_eq!(store.layers().unwrap().len(), 1);
    // A layer whose description was cut short is not trusted either.
    let again = load_layers(&store, &[Tar::new().file("x", b"y").end()]).unwrap();
    let path = store.layer_path(&again.layers[0].chain_id);
    std::fs::write(path.with_file_name("layer.json"), b"").unwrap();
    assert_eq!(store.discard_unflushed().unwrap().len(), 1);
    assert!(!path.exists());
}

#[test]
fn many_loads_of_the_same_image_at_once() {
    let (_dir, store) = store();
    let archive = docker_archive(&[every_kind(), Tar::new().file("x", b"y").end()], "same:1");
    let ids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| load_bytes(&store, &archive).unwrap().remove(0).id))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(store.layers().unwrap().len(), 2);
    assert_eq!(common::leftovers(&store).len(), 3);
}
