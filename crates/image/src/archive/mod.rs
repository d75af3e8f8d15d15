//! Images in archives: `load`, `save`, `import`.

mod contents;
mod docker;
mod import;
mod load;
mod oci;
mod save;

pub use import::{ImportOptions, import};
pub use load::{LoadOptions, LoadedImage, Progress, load};
pub use save::{Format, SaveImage, save, save_platforms};
