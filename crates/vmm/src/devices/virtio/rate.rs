//! Rate limits: how many bytes and operations a device may do in a second, with bursts.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A limit for something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// So many in a second, in the long run.
    pub per_second: u64,
    /// So many at once, after a pause. By default as many as in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// Limits of a device, or of one direction of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimits {
    /// Of bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Limit>,
    /// Of operations: requests or packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Limit>,
}

impl RateLimits {
    /// One of `count` equal shares.
    pub fn share(self, count: u64) -> Self {
        let part = |limit: Limit| Limit {
            per_second: (limit.per_second / count.max(1)).max(1),
            burst: limit.burst.map(|burst| (burst / count.max(1)).max(1)),
        };
        Self {
            bytes: self.bytes.map(part),
            operations: self.operations.map(part),
        }
    }
}

/// A bucket that fills by itself. It may go below empty, by one request: a request larger than the bucket waits no longer than its size needs.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    burst: i128,
    /// Billionths of tokens, so that nothing is lost between two looks at the clock.
    level: i128,
    seen: Instant,
}

const PARTS: i128 = 1_000_000_000;

impl Bucket {
    fn new(limit: Limit, now: Instant) -> Self {
        let burst = i128::from(limit.burst.unwrap_or(limit.per_second).max(1)) * PARTS;
        Self {
            // Nothing at all would never end.
            per_second: limit.per_second.max(1),
            burst,
            level: burst,
            seen: now,
        }
    }

    /// How long until the bucket is not below empty.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.seen).as_nanos();
        self.seen = now;
        let gained = i128::try_from(passed)
            .unwrap_or(i128::MAX)
            .saturating_mul(self.per_second.into());
        self.level = self.level.saturating_add(gained).min(self.burst);
        if self.level > 0 {
            return None;
        }
        let nanos = (1 - self.level).div_euclid(i128::from(self.per_second)) + 1;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn take(&mut self, count: u64) {
        self.level -= i128::from(count) * PARTS;
    }
}

/// Limits at work.
#[derive(Debug)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl RateLimiter {
    /// Full buckets.
    pub fn new(limits: RateLimits) -> Self {
        let now = Instant::now();
        Self {
            bytes: limits.bytes.map(|limit| Bucket::new(limit, now)),
            operations: limits.operations.map(|limit| Bucket::new(limit, now)),
        }
    }

    /// How long to wait before the next operation; `None`: it can be done now.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let bytes = self.bytes.as_mut().and_then(|bucket| bucket.wait(now));
        let operations = self.operations.as_mut().and_then(|bucket| bucket.wait(now));
        bytes.max(operations)
    }

    /// An operation of so many bytes was begun.
    pub fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Operations of `size` bytes that are begun within `time`.
    fn count(limits: RateLimits, size: u64, time: Duration) -> u64 {
        let mut limiter = RateLimiter::new(limits);
        let start = Instant::now();
        let mut now = start;
        let mut done = 0;
        while now < start + time {
            if let Some(wait) = limiter.wait(now) {
                now += wait;
            } else {
                limiter.take(size);
                done += 1;
            }
        }
        done
    }

    fn limit(per_second: u64, burst: u64) -> Option<Limit> {
        Some(Limit {
            per_second,
            burst: Some(burst),
        })
    }

    #[test]
    fn in_the_long_run_the_rate_is_kept() {
        let bytes = RateLimits {
            bytes: limit(1 << 20, 4096),
            operations: None,
        };
        let seconds = Duration::from_secs(10);
        assert!((2560..2570).contains(&count(bytes, 4096, seconds)));
        assert!(
            (10..12).contains(&count(bytes, 1 << 20, seconds)),
            "requests beyond the bucket come through"
        );
        let both = RateLimits {
            operations: limit(100, 1),
            ..bytes
        };
        assert!((1000..1005).contains(&count(both, 512, seconds)));
        assert!((2560..2570).contains(&count(bytes, 4096, seconds)));
    }

    proptest! {
        #[test]
        fn any_limits(rate in any::<u64>(), burst in any::<u64>(), sizes in prop::collection::vec(any::<u32>(), 1..50)) {
            let mut limiter = RateLimiter::new(RateLimits { bytes: limit(rate, burst), operations: limit(burst, rate) });
            let now = Instant::now();
            for size in sizes {
                limiter.take(size.into());
                let _ = limiter.wait(now);
            }
        }
    }
}
