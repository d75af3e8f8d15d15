//! References, content store, layers and archives.
