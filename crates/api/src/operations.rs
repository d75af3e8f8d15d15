//! Vessel's extensions below `/vessel`: where things come from, who did what, what can be undone.

use crate::json::{Map, empty, model};

model! {
    /// Where everything comes from that the engine has on its host.
    pub struct Explanation {
        /// By kind, in the order of [`ExplainedItem::kind`]'s values, then by name.
        pub items: Vec<ExplainedItem>,
        /// Bytes on disk of all files.
        pub size: u64,
        /// How many items nothing explains.
        pub unknown: u64,
    }

    /// One thing on the host.
    pub struct ExplainedItem {
        /// `file`, `mount`, `interface`, `rule`, `cgroup` or `process`.
        pub kind: String,
        /// A path, an interface, a rule's place, a process ID.
        pub name: String,
        /// Bytes on disk; of a directory with all that is in it and is no item itself.
        #[serde(skip_serializing_if = "empty")]
        pub size: u64,
        /// What it belongs to: `container web`, `volume data`, `engine`; empty: that is not known.
        pub owner: String,
        /// What it is for.
        pub purpose: String,
        /// The command after which it is gone; empty: it stays as long as there is an engine.
        #[serde(skip_serializing_if = "empty")]
        pub free: String,
        /// Whether a record explains it.
        pub known: bool,
    }
}

model! {
    /// A command that changed something, as the operation log has it.
    pub struct Operation {
        /// Twelve hexadecimal digits; what `undo` takes.
        pub id: String,
        /// When it began, RFC 3339.
        pub time: String,
        /// Who: `unix`, `tcp`, `tls`, `page` or `daemon`.
        pub via: String,
        /// The user of the process that asked over a Unix socket.
        pub uid: Option<u32>,
        /// That process.
        pub pid: i32,
        /// The name of its program.
        pub program: String,
        /// The name in the client's certificate.
        pub client: String,
        /// The client's address.
        pub address: String,
        /// What was done: `container remove`.
        pub action: String,
        /// To what, as the client called it.
        pub object: String,
        /// What else the command said, as far as it is no secret.
        pub details: Map<String>,
        /// The status of the answer; 0: the client did not wait for it.
        pub status: u16,
        /// Why it was refused, or what went wrong later.
        pub error: String,
        /// How long it took.
        pub milliseconds: u64,
    }
}

model! {
    /// What is in the bin.
    pub struct BinList {
        /// The newest first.
        pub items: Vec<BinItem>,
        /// Bytes of all of it.
        pub size: u64,
        /// Bytes at most.
        pub limit: u64,
        /// Whether what is removed comes here.
        pub enabled: bool,
    }

    /// Something removed that can be brought back.
    pub struct BinItem {
        /// Names what one command removed; what `undo` takes.
        pub command: String,
        /// `container`, `image`, `volume` or `network`.
        pub kind: String,
        pub name: String,
        #[serde(rename = "ID")]
        pub id: String,
        /// When it was removed, RFC 3339.
        pub removed: String,
        /// When it goes for good, at the latest.
        pub expires: String,
        /// Bytes that are free then.
        pub size: u64,
    }

    /// What emptying the bin did.
    pub struct BinEmptied {
        /// How many things went.
        pub removed: u64,
        /// Bytes.
        pub space_reclaimed: u64,
    }

    /// What to bring back.
    pub struct UndoRequest {
        /// An ID of the operation log, a name or an ID of something removed; empty: what the last command removed.
        pub operation: String,
    }

    /// What was brought back.
    pub struct UndoReport {
        /// The command that was undone.
        pub command: String,
        pub restored: Vec<Undone>,
        /// What stays in the bin.
        pub failed: Vec<Undone>,
    }

    /// Something that was brought back, or could not be.
    pub struct Undone {
        pub kind: String,
        pub name: String,
        #[serde(rename = "ID")]
        pub id: String,
        /// What is not as it was, or why it could not be.
        #[serde(skip_serializing_if = "empty")]
        pub note: String,
    }
}
