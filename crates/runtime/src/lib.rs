//! The OCI runtime and the shim.
