//! Docker Engine API types and Vessel's own extensions, shared by client, daemon and engine.
