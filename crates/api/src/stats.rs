//! `GET /containers/{id}/stats`: what a container uses, and what it used one reading earlier.

use crate::json::{Map, empty, model};

model! {
    /// One reading.
    pub struct Stats {
        #[serde(rename = "read")]
        pub read: String,
        /// The reading before.
        #[serde(rename = "preread")]
        pub preread: String,
        #[serde(rename = "pids_stats")]
        pub pids_stats: PidsStats,
        #[serde(rename = "blkio_stats")]
        pub blkio_stats: BlkioStats,
        /// Windows only.
        #[serde(rename = "num_procs")]
        pub num_procs: u32,
        /// Windows only.
        #[serde(rename = "storage_stats")]
        pub storage_stats: StorageStats,
        #[serde(rename = "cpu_stats")]
        pub cpu_stats: CpuStats,
        #[serde(rename = "precpu_stats")]
        pub precpu_stats: CpuStats,
        #[serde(rename = "memory_stats")]
        pub memory_stats: MemoryStats,
        /// With a leading `/`.
        #[serde(rename = "name")]
        pub name: String,
        #[serde(rename = "id")]
        pub id: String,
        /// `linux`; from version 1.52.
        #[serde(rename = "os_type", skip_serializing_if = "empty")]
        pub os_type: String,
        /// By interface; absent without a network namespace of its own.
        #[serde(rename = "networks", skip_serializing_if = "empty")]
        pub networks: Map<InterfaceStats>,
    }

    /// Processes and threads.
    pub struct PidsStats {
        #[serde(rename = "current", skip_serializing_if = "empty")]
        pub current: u64,
        /// 0 for none.
        #[serde(rename = "limit", skip_serializing_if = "empty")]
        pub limit: u64,
    }

    /// Block I/O; the lists other than the first are empty on cgroup v2.
    pub struct BlkioStats {
        #[serde(rename = "io_service_bytes_recursive")]
        pub io_service_bytes_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_serviced_recursive")]
        pub io_serviced_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_queue_recursive")]
        pub io_queue_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_service_time_recursive")]
        pub io_service_time_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_wait_time_recursive")]
        pub io_wait_time_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_merged_recursive")]
        pub io_merged_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_time_recursive")]
        pub io_time_recursive: Vec<BlkioEntry>,
        #[serde(rename = "sectors_recursive")]
        pub sectors_recursive: Vec<BlkioEntry>,
    }

    /// One counter of one device.
    pub struct BlkioEntry {
        #[serde(rename = "major")]
        pub major: u64,
        #[serde(rename = "minor")]
        pub minor: u64,
        /// `Read`, `Write`, ...; lower case on cgroup v2.
        #[serde(rename = "op")]
        pub op: String,
        #[serde(rename = "value")]
        pub value: u64,
    }

    /// Windows only.
    pub struct StorageStats {
        #[serde(rename = "read_count_normalized", skip_serializing_if = "empty")]
        pub read_count_normalized: u64,
        #[serde(rename = "read_size_bytes", skip_serializing_if = "empty")]
        pub read_size_bytes: u64,
        #[serde(rename = "write_count_normalized", skip_serializing_if = "empty")]
        pub write_count_normalized: u64,
        #[serde(rename = "write_size_bytes", skip_serializing_if = "empty")]
        pub write_size_bytes: u64,
    }

    /// Processor time in nanoseconds.
    pub struct CpuStats {
        #[serde(rename = "cpu_usage")]
        pub cpu_usage: CpuUsage,
        /// The whole host's.
        #[serde(rename = "system_cpu_usage", skip_serializing_if = "empty")]
        pub system_cpu_usage: u64,
        #[serde(rename = "online_cpus", skip_serializing_if = "empty")]
        pub online_cpus: u32,
        #[serde(rename = "throttling_data")]
        pub throttling_data: ThrottlingData,
    }

    /// Processor time of the container in nanoseconds.
    pub struct CpuUsage {
        #[serde(rename = "total_usage")]
        pub total_usage: u64,
        /// cgroup v1 only.
        #[serde(rename = "percpu_usage", skip_serializing_if = "empty")]
        pub percpu_usage: Vec<u64>,
        #[serde(rename = "usage_in_kernelmode")]
        pub usage_in_kernelmode: u64,
        #[serde(rename = "usage_in_usermode")]
        pub usage_in_usermode: u64,
    }

    /// How often and how long the quota held the container back.
    pub struct ThrottlingData {
        #[serde(rename = "periods")]
        pub periods: u64,
        #[serde(rename = "throttled_periods")]
        pub throttled_periods: u64,
        /// Nanoseconds.
        #[serde(rename = "throttled_time")]
        pub throttled_time: u64,
    }

    /// Memory in bytes.
    pub struct MemoryStats {
        /// Page cache included.
        #[serde(rename = "usage", skip_serializing_if = "empty")]
        pub usage: u64,
        /// cgroup v1 only.
        #[serde(rename = "max_usage", skip_serializing_if = "empty")]
        pub max_usage: u64,
        /// The kernel's `memory.stat`.
        #[serde(rename = "stats", skip_serializing_if = "empty")]
        pub stats: Map<u64>,
        #[serde(rename = "failcnt", skip_serializing_if = "empty")]
        pub failcnt: u64,
        /// The host's memory when there is none.
        #[serde(rename = "limit", skip_serializing_if = "empty")]
        pub limit: u64,
    }

    /// Traffic of one interface.
    pub struct InterfaceStats {
        #[serde(rename = "rx_bytes")]
        pub rx_bytes: u64,
        #[serde(rename = "rx_packets")]
        pub rx_packets: u64,
        #[serde(rename = "rx_errors")]
        pub rx_errors: u64,
        #[serde(rename = "rx_dropped")]
        pub rx_dropped: u64,
        #[serde(rename = "tx_bytes")]
        pub tx_bytes: u64,
        #[serde(rename = "tx_packets")]
        pub tx_packets: u64,
        #[serde(rename = "tx_errors")]
        pub tx_errors: u64,
        #[serde(rename = "tx_dropped")]
        pub tx_dropped: u64,
    }
}
