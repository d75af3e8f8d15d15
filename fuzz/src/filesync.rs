//! File trees over packets.

use std::os::fd::AsFd;

use prost::Message;
use tokio::sync::mpsc;
use vessel_filesync::{Packet, ReceiveOptions, receive};

use crate::files::directory;

/// A receiver of length-delimited packets writes nothing outside its directory and leaves nothing half done.
pub fn filesync(data: &[u8]) {
    let base = directory();
    let to = base.path().join("to");
    if std::fs::create_dir(&to).is_err() {
        return;
    }
    let mut rest = data;
    let mut packets = Vec::new();
    while let Ok(packet) = Packet::decode_length_delimited(&mut rest) {
        // Devices are the sender's right; here they would be made.
        let device = packet
            .stat
            .as_ref()
            .is_some_and(|stat| stat.mode & (1 << 26) != 0);
        if !device {
            packets.push(packet);
        }
    }
    let (sender, mut incoming) = mpsc::channel(packets.len().max(1));
    let (requests, _wanted) = mpsc::unbounded_channel();
    for packet in packets {
        let _ = sender.try_send(packet);
    }
    drop(sender);
    let target = std::fs::File::open(&to).expect("the directory that was made");
    let options = ReceiveOptions {
        mirror: true,
        owner: None,
    };
    let _ = receive(target.as_fd(), options, &mut incoming, &requests, &mut |_| {});
    let names: Vec<_> = std::fs::read_dir(base.path())
        .expect("the base")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(names, ["to"]);
    assert!(!to.join(".vessel-sync").exists());
}
