//! Static PID 1 programs, embedded as bytes.
