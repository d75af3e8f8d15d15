//! Build checks: what `vessel build --check` objects to, under the names and in the words of BuildKit's linter.

pub mod rules;
