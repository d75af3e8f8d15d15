//! Archives made by hand, for the tests.
#![allow(dead_code, reason = "each test uses some of it")]

use std::io::Read;

use vessel_image::{Digest, LoadOptions, LoadedImage, Result, Store, load};

pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// An entry with any name: nothing is checked or cleaned.
    pub fn entry(mut self, kind: u8, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.payload(data)
    }

    pub fn header(mut self, header: &tar::Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.payload(data)
    }

    fn payload(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name, "", data)
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"")
    }

    pub fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(b'2', name, to, b"")
    }

    pub fn hard_link(self, name: &str, to: &str) -> Self {
        self.entry(b'1', name, to, b"")
    }

    pub fn char_device(self, name: &str, major: u32, minor: u32) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::Char);
        header.set_mode(0o620);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self.header(&header, b"")
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(b'x', "pax", "", &data)
    }

    pub fn raw(self) -> Vec<u8> {
        self.0
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|layer| Digest::sha256(layer).to_string())
        .collect();
    serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// A docker-archive, `manifest.json` last, with one image of these layers.
pub fn docker_archive(layers: &[Vec<u8>], tag: &str) -> Vec<u8> {
    docker_archive_with(&config(layers), layers, tag)
}

pub fn docker_archive_with(config: &[u8], layers: &[Vec<u8>], tag: &str) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut names = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let name = format!("{i}/layer.tar");
        tar = tar.file(&name, layer);
        names.push(name);
    }
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]);
    tar.file("config.json", config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .end()
}

pub fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

pub fn load_bytes(store: &Store, archive: &[u8]) -> Result<Vec<LoadedImage>> {
    let options = LoadOptions {
        sync: false,
        ..LoadOptions::default()
    };
    load(store, archive, &options, &mut |_| {})
}

pub fn load_layers(store: &Store, layers: &[Vec<u8>]) -> Result<LoadedImage> {
    load_bytes(store, &docker_archive(layers, "test:1")).map(|mut images| images.remove(0))
}

/// Everything below a store's root, to see that a failed load left nothing.
pub fn leftovers(store: &Store) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for directory in ["blobs/sha256", "layers"] {
        for entry in std::fs::read_dir(store.root().join(directory)).unwrap() {
            found.push(entry.unwrap().path());
        }
    }
    found
}

pub fn archive_of(store: &Store, image: &LoadedImage, layer: usize) -> Vec<u8> {
    let mut out = Vec::new();
    store
        .layer_archive(&image.layers[layer].chain_id)
        .unwrap()
        .read_to_end(&mut out)
        .unwrap();
    out
}
