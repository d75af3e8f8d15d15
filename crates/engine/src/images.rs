//! Placeholder until its author's first commit.
