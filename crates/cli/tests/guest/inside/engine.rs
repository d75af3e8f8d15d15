//! The daemon and Docker's command line.

use super::Check;

pub const CHECKS: [Check; 0] = [];
