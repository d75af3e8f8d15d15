//! Compose: Compose files become projects, and projects become containers.
//!
//! [`load`] reads files as the Compose specification has them and gives a [`Project`]. [`act`] makes the world match a
//! project, through [`vessel_client`], with Vessel's daemon or any other that speaks the Docker Engine API: what exists
//! is found by the labels that Docker Compose gives, so that both see each other's projects.
//!
//! Nothing is printed here: what happens is told to an [`act::Observer`].
#![warn(missing_docs)]

pub mod act;
mod error;
pub mod load;
pub mod project;
pub mod yaml;

pub use error::{Error, FileFault, Result};
pub use load::{Options, load};
pub use project::Project;
