//! A registry server: the OCI distribution specification.
