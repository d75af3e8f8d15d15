//! Containers, images and their life cycles.
