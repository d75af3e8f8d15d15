//! End to end: the real binary, a daemon on a private root, run directory, socket and bridge for each test, so that all
//! of them run in parallel and none touches the machine's own state.
//!
//! They need root and a static busybox; without either they say so and pass.

#![allow(clippy::print_stderr, reason = "a test that is skipped says why")]

#[path = "e2e/harness.rs"]
mod harness;

#[path = "e2e/api_versions.rs"]
mod api_versions;
#[path = "e2e/build_caches.rs"]
mod build_caches;
#[path = "e2e/build_protocols.rs"]
mod build_protocols;
#[path = "e2e/cdi.rs"]
mod cdi;
#[path = "e2e/commit.rs"]
mod commit;
#[path = "e2e/compose.rs"]
mod compose;
#[path = "e2e/compose_commands.rs"]
mod compose_commands;
#[path = "e2e/contexts.rs"]
mod contexts;
#[path = "e2e/daemon_death.rs"]
mod daemon_death;
#[path = "e2e/explain.rs"]
mod explain;
#[path = "e2e/failures.rs"]
mod failures;
#[path = "e2e/health.rs"]
mod health;
#[path = "e2e/images.rs"]
mod images;
#[path = "e2e/isolation_vm.rs"]
mod isolation_vm;
#[path = "e2e/kernels.rs"]
mod kernels;
#[path = "e2e/life.rs"]
mod life;
#[path = "e2e/limits.rs"]
mod limits;
#[path = "e2e/links.rs"]
mod links;
#[path = "e2e/log_drivers.rs"]
mod log_drivers;
#[path = "e2e/mounts.rs"]
mod mounts;
#[path = "e2e/network.rs"]
mod network;
#[path = "e2e/networks.rs"]
mod networks;
#[path = "e2e/networks_direct.rs"]
mod networks_direct;
#[path = "e2e/networks_ipv6.rs"]
mod networks_ipv6;
#[path = "e2e/operation_log.rs"]
mod operation_log;
#[path = "e2e/page.rs"]
mod page;
#[path = "e2e/platforms.rs"]
mod platforms;
#[path = "e2e/raw_streams.rs"]
mod raw_streams;
#[path = "e2e/registries.rs"]
mod registries;
#[path = "e2e/undo.rs"]
mod undo;
#[path = "e2e/volume_plugins.rs"]
mod volume_plugins;
#[path = "e2e/volumes.rs"]
mod volumes;
