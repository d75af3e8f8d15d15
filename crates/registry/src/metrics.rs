//! Counters, in the text format of Prometheus.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::route::Kind;

/// A number that others may add to.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// More of it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Less of it.
    pub fn subtract(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// How much.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the histogram, in milliseconds.
const BUCKETS: [u64; 8] = [1, 5, 25, 100, 500, 2_500, 10_000, 60_000];

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By kind of route and class of status (1xx to 5xx).
    requests: [[AtomicU64; 5]; Kind::ALL.len()],
    /// By kind of route: time until the head of the answer.
    durations: [Durations; Kind::ALL.len()],
    /// Bytes written to plain connections and of bodies on others.
    pub sent: Counter,
    /// Bytes of bodies that came in.
    pub received: Counter,
    /// Open connections.
    pub connections: Counter,
    /// Requests without or with wrong credentials.
    pub refused: Counter,
    /// Answers from the cache of another registry.
    pub proxy_hits: Counter,
    /// What had to be asked of the other registry.
    pub proxy_misses: Counter,
    /// Bytes that left the disk by collection.
    pub collected_bytes: Counter,
    /// Collections.
    pub collections: Counter,
}

#[derive(Debug, Default)]
struct Durations {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    microseconds: AtomicU64,
}

/// What is asked of the storage when the metrics are read.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Bytes on disk.
    pub disk: u64,
    /// Uploads in progress.
    pub uploads: usize,
    /// Limit and use of each quota, by prefix.
    pub quotas: Vec<(String, u64, u64)>,
}

impl Metrics {
    /// Counts an answer.
    pub fn answered(&self, kind: Kind, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.requests[kind as usize][class].fetch_add(1, Ordering::Relaxed);
        let durations = &self.durations[kind as usize];
        let millis = took.as_millis() as u64;
        if let Some(bucket) = BUCKETS.iter().position(|bound| millis <= *bound) {
            durations.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        durations.count.fetch_add(1, Ordering::Relaxed);
        durations
            .microseconds
            .fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// All of it as text.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut out = String::with_capacity(8 << 10);
        let mut family = |name: &str, kind: &str, help: &str, lines: &mut dyn FnMut(&mut String, &str)| {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            lines(&mut out, name);
        };
        family(
            "vessel_registry_requests_total",
            "counter",
            "Answered requests by kind and class of status.",
            &mut |out, name| {
                for kind in Kind::ALL {
                    for (class, count) in self.requests[kind as usize].iter().enumerate() {
                        let count = count.load(Ordering::Relaxed);
                        if count > 0 {
                            let _ = writeln!(
                                out,
                                "{name}{{kind=\"{}\",status=\"{}xx\"}} {count}",
                                kind.name(),
                                class + 1
                            );
                        }
                    }
                }
            },
        );
        family(
            "vessel_registry_request_duration_seconds",
            "histogram",
            "Time until an answer begins.",
            &mut |out, name| {
                for kind in Kind::ALL {
                    let durations = &self.durations[kind as usize];
                    let count = durations.count.load(Ordering::Relaxed);
                    if count == 0 {
                        continue;
                    }
                    let kind = kind.name();
                    let mut sum = 0;
                    for (bound, bucket) in BUCKETS.iter().zip(&durations.buckets) {
                        sum += bucket.load(Ordering::Relaxed);
                        let bound = *bound as f64 / 1e3;
                        let _ = writeln!(out, "{name}_bucket{{kind=\"{kind}\",le=\"{bound}\"}} {sum}");
                    }
                    let seconds = durations.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
                    let _ = writeln!(out, "{name}_bucket{{kind=\"{kind}\",le=\"+Inf\"}} {count}");
                    let _ = writeln!(out, "{name}_sum{{kind=\"{kind}\"}} {seconds}");
                    let _ = writeln!(out, "{name}_count{{kind=\"{kind}\"}} {count}");
                }
            },
        );
        for (name, kind, help, value) in [
            (
                "vessel_registry_sent_bytes_total",
                "counter",
                "Bytes sent to clients.",
                self.sent.get(),
            ),
            (
                "vessel_registry_received_bytes_total",
                "counter",
                "Bytes of bodies received.",
                self.received.get(),
            ),
            (
                "vessel_registry_connections",
                "gauge",
                "Open connections.",
                self.connections.get(),
            ),
            (
                "vessel_registry_refused_total",
                "counter",
                "Requests refused for lack of rights.",
                self.refused.get(),
            ),
            (
                "vessel_registry_uploads",
                "gauge",
                "Uploads in progress.",
                gauges.uploads as u64,
            ),
            (
                "vessel_registry_disk_bytes",
                "gauge",
                "Bytes of content on disk.",
                gauges.disk,
            ),
            (
                "vessel_registry_proxy_hits_total",
                "counter",
                "Answers from the pull-through cache.",
                self.proxy_hits.get(),
            ),
            (
                "vessel_registry_proxy_misses_total",
                "counter",
                "Requests to the registry behind.",
                self.proxy_misses.get(),
            ),
            (
                "vessel_registry_collections_total",
                "counter",
                "Garbage collections.",
                self.collections.get(),
            ),
            (
                "vessel_registry_collected_bytes_total",
                "counter",
                "Bytes removed by them.",
                self.collected_bytes.get(),
            ),
        ] {
            family(name, kind, help, &mut |out, name| {
                let _ = writeln!(out, "{name} {value}");
            });
        }
        if !gauges.quotas.is_empty() {
            for (name, help, limit) in [
                (
                    "vessel_registry_quota_limit_bytes",
                    "Limits of space by prefix.",
                    true,
                ),
                ("vessel_registry_quota_used_bytes", "Their use.", false),
            ] {
                family(name, "gauge", help, &mut |out, name| {
                    for (prefix, quota, used) in &gauges.quotas {
                        let value = if limit { quota } else { used };
                        let _ = writeln!(out, "{name}{{prefix=\"{prefix}\"}} {value}");
                    }
                });
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_for_prometheus() {
        let metrics = Metrics::default();
        metrics.answered(Kind::Blob, 200, Duration::from_millis(3));
        metrics.answered(Kind::Blob, 404, Duration::from_millis(300));
        let text = metrics.render(&Gauges {
            disk: 7,
            uploads: 1,
            quotas: vec![("team".into(), 10, 4)],
        });
        for line in [
            "vessel_registry_requests_total{kind=\"blob\",status=\"2xx\"} 1",
            "vessel_registry_request_duration_seconds_bucket{kind=\"blob\",le=\"0.005\"} 1",
            "vessel_registry_request_duration_seconds_bucket{kind=\"blob\",le=\"+Inf\"} 2",
            "vessel_registry_disk_bytes 7",
            "vessel_registry_quota_used_bytes{prefix=\"team\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(
            text.lines()
                .all(|line| line.starts_with('#') || line.split(' ').count() == 2)
        );
    }
}
