//! The HTTP server of the Docker Engine API.
