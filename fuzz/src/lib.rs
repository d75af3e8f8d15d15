//! Fuzz targets: one function per parser of hostile input. Each takes any bytes and panics when a promise is broken:
//! that nothing panics, that what is accepted survives a round trip, that nothing is written outside a root, and that
//! a failed load leaves nothing behind.

mod build;
mod compose;
mod files;
mod filesync;
#[allow(
    dead_code,
    reason = "the command line's file, of which not everything is needed here"
)]
#[path = "../../crates/cli/src/output/template.rs"]
mod go_template;
mod registry;
mod registry_server;
mod text;

pub use build::{build_cache, cache_import, dockerfile, expand, ignore};
pub use compose::compose;
pub use files::{journal, layer, load, logs, unpack, user};
pub use filesync::filesync;
pub use registry::{challenge, registry};
pub use registry_server::registry_server;
pub use text::{client, create, dns, names, oci, ports, protocol, resolv, seccomp, template};

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("build_cache", build_cache),
    ("cache_import", cache_import),
    ("challenge", challenge),
    ("client", client),
    ("compose", compose),
    ("create", create),
    ("dns", dns),
    ("dockerfile", dockerfile),
    ("expand", expand),
    ("filesync", filesync),
    ("ignore", ignore),
    ("journal", journal),
    ("layer", layer),
    ("load", load),
    ("logs", logs),
    ("names", names),
    ("oci", oci),
    ("ports", ports),
    ("protocol", protocol),
    ("registry", registry),
    ("registry_server", registry_server),
    ("resolv", resolv),
    ("seccomp", seccomp),
    ("template", template),
    ("unpack", unpack),
    ("user", user),
];
