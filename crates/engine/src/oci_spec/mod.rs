//! From Docker's words to an OCI configuration.
