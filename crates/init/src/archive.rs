//! The embedded image `hello:latest` as a docker-archive, made in memory.
//!
//! The format is that of `docker save`: a tar with `manifest.json`, the image's configuration named by
//! its SHA-256, and one uncompressed layer. The same binary makes the same bytes every time: times are
//! zero, owners root, and nothing depends on the machine.

use sha2::{Digest, Sha256};

use crate::HELLO;

/// The name the embedded image carries in its manifest.
pub const HELLO_REFERENCE: &str = "hello:latest";

const BLOCK: usize = 512;

/// A docker-archive with the image [`HELLO_REFERENCE`]: one layer, `/hello`, which is also its command.
#[must_use]
pub fn hello_archive() -> Vec<u8> {
    let layer = tar(&[("hello", 0o755, HELLO)]);
    let diff_id = hex(&layer);
    let config = format!(
        concat!(
            r#"{{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z","#,
            r#""config":{{"Cmd":["/hello"],"WorkingDir":"/","#,
            r#""Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"#,
            r#""Labels":{{"org.opencontainers.image.title":"hello","#,
            r#""org.opencontainers.image.description":"Says that containers work and what to try next","#,
            r#""org.opencontainers.image.licenses":"Apache-2.0"}}}},"#,
            r#""rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}},"#,
            r#""history":[{{"created":"1970-01-01T00:00:00Z","created_by":"embedded in vessel"}}]}}"#,
        ),
        diff_id = diff_id
    );
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let layer_name = format!("{diff_id}/layer.tar");
    let manifest = format!(
        r#"[{{"Config":"{config_name}","RepoTags":["{HELLO_REFERENCE}"],"Layers":["{layer_name}"]}}]"#
    );
    tar(&[
        ("manifest.json", 0o644, manifest.as_bytes()),
        (&config_name, 0o644, config.as_bytes()),
        (&layer_name, 0o644, &layer),
    ])
}

/// A tar (POSIX ustar) of regular files owned by root. Names must be shorter than 100 bytes; all that
/// come here are.
fn tar(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, mode, content) in files {
        out.extend_from_slice(&header(name, *mode, content.len()));
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    // Two blocks of zeros end the archive.
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

fn header(name: &str, mode: u32, size: usize) -> [u8; BLOCK] {
    debug_assert!(name.len() < 100, "{name} is too long for a ustar header");
    let mut block = [0; BLOCK];
    put(&mut block, 0, name);
    put(&mut block, 100, &format!("{mode:07o}"));
    put(&mut block, 108, "0000000");
    put(&mut block, 116, "0000000");
    put(&mut block, 124, &format!("{size:011o}"));
    put(&mut block, 136, "00000000000");
    // The checksum is summed up with its own field filled with spaces.
    put(&mut block, 148, "        ");
    put(&mut block, 156, "0");
    put(&mut block, 257, "ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut block, 148, &format!("{sum:06o}\0 "));
    block
}

fn put(block: &mut [u8; BLOCK], at: usize, text: &str) {
    for (slot, byte) in block.iter_mut().skip(at).zip(text.bytes()) {
        *slot = byte;
    }
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::io::Read;

    fn read(archive: &[u8]) -> HashMap<String, (u32, Vec<u8>)> {
        let mut files = HashMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(name, (entry.header().mode().unwrap(), content));
        }
        files
    }

    #[test]
    fn holds_what_its_manifest_names() {
        let files = read(&hello_archive());
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"].1).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], HELLO_REFERENCE);
        let config_name = manifest[0]["Config"].as_str().unwrap();
        let config_bytes = &files[config_name].1;
        assert_eq!(config_name, format!("{}.json", hex(config_bytes)));

        let config: serde_json::Value = serde_json::from_slice(config_bytes).unwrap();
        assert_eq!(config["config"]["Cmd"][0], "/hello");
        let layer = &files[manifest[0]["Layers"][0].as_str().unwrap()].1;
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(layer)));

        let root = read(layer);
        assert_eq!(root.len(), 1);
        assert_eq!(root["hello"].0, 0o755);
        assert!(root["hello"].1 == HELLO);
    }

    #[test]
    fn is_the_same_every_time() {
        assert!(hello_archive() == hello_archive());
    }
}
