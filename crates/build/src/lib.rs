//! Dockerfiles to images: the language, the stage graph, the cache.
