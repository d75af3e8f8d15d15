//! The routes, by object.

pub mod absent;
pub mod build;
pub mod commit;
pub mod containers;
pub mod copy;
pub mod exec;
pub mod image_explain;
pub mod images;
pub mod networks;
pub mod operations;
pub mod registries;
pub mod streams;
pub mod system;
pub mod usage;
pub mod volumes;
