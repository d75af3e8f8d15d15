//! The specification's keys and what each may hold.

use super::Object;
use super::Type::{
    self, Any, Bool, BoolOrText, Bytes, Command, Duration, Either, Hosts, Int, List, Maybe, Named, Number,
    NumberOrText, Options, Pairs, Set, Text, TextOrList, TextOrNull, Word,
};

const fn object(fields: &'static [(&'static str, Type)], required: &'static [&'static str]) -> Object {
    Object {
        fields,
        required,
        extensible: true,
    }
}

const fn closed(fields: &'static [(&'static str, Type)], required: &'static [&'static str]) -> Object {
    Object {
        fields,
        required,
        extensible: false,
    }
}

/// Texts, each once.
pub(super) const TEXTS: Type = Set(&Text);

pub(in crate::load) static MODEL: Object = object(
    &[
        ("version", Text),
        ("name", Text),
        ("include", List(&Either(&[Text, Type::Object(&INCLUDE)]))),
        ("services", Named(&Type::Object(&SERVICE))),
        ("models", Named(&Type::Object(&LANGUAGE_MODEL))),
        ("networks", Named(&Maybe(&NETWORK))),
        ("volumes", Named(&Maybe(&VOLUME))),
        ("secrets", Named(&Type::Object(&SECRET))),
        ("configs", Named(&Type::Object(&CONFIG))),
    ],
    &[],
);

static INCLUDE: Object = closed(
    &[
        ("path", TextOrList),
        ("env_file", TextOrList),
        ("project_directory", Text),
    ],
    &[],
);

static LANGUAGE_MODEL: Object = object(
    &[
        ("name", Text),
        ("model", Text),
        ("context_size", Int),
        ("runtime_flags", List(&Text)),
    ],
    &["model"],
);

static SERVICE: Object = object(
    &[
        ("annotations", Pairs),
        ("attach", Bool),
        ("blkio_config", Type::Object(&BLKIO)),
        ("build", Either(&[Text, Type::Object(&BUILD)])),
        ("cap_add", TEXTS),
        ("cap_drop", TEXTS),
        ("cgroup", Word(&["host", "private"])),
        ("cgroup_parent", Text),
        ("command", Command),
        ("configs", MOUNTED),
        ("container_name", Text),
        ("cpu_count", Int),
        ("cpu_percent", Number),
        ("cpu_period", Int),
        ("cpu_quota", Int),
        ("cpu_rt_period", NumberOrText),
        ("cpu_rt_runtime", NumberOrText),
        ("cpu_shares", Int),
        ("cpus", Number),
        ("cpuset", Text),
        ("credential_spec", Type::Object(&CREDENTIAL_SPEC)),
        ("depends_on", Either(&[TEXTS, Named(&Type::Object(&DEPENDENCY))])),
        ("deploy", Maybe(&DEPLOY)),
        ("develop", Maybe(&DEVELOP)),
        ("device_cgroup_rules", TEXTS),
        ("devices", List(&Either(&[Text, Type::Object(&DEVICE)]))),
        ("dns", TextOrList),
        ("dns_opt", TEXTS),
        ("dns_search", TextOrList),
        ("domainname", Text),
        ("entrypoint", Command),
        (
            "env_file",
            Either(&[Text, List(&Either(&[Text, Type::Object(&ENV_FILE)]))]),
        ),
        ("environment", Pairs),
        ("expose", Set(&NumberOrText)),
        ("extends", Either(&[Text, Type::Object(&EXTENDS)])),
        ("external_links", TEXTS),
        ("extra_hosts", Hosts),
        ("gpus", Either(&[Word(&["all"]), List(&Type::Object(&GPU))])),
        ("group_add", Set(&NumberOrText)),
        ("healthcheck", Type::Object(&HEALTHCHECK)),
        ("hostname", Text),
        ("image", Text),
        ("init", Bool),
        ("ipc", Text),
        ("isolation", Text),
        ("label_file", TextOrList),
        ("labels", Pairs),
        ("links", TEXTS),
        ("logging", Type::Object(&LOGGING)),
        ("mac_address", Text),
        ("mem_limit", Bytes),
        ("mem_reservation", Bytes),
        ("mem_swappiness", Bytes),
        ("memswap_limit", Bytes),
        ("models", Either(&[TEXTS, Named(&Maybe(&MODEL_USE))])),
        ("network_mode", Text),
        ("networks", Either(&[TEXTS, Named(&Maybe(&ENDPOINT))])),
        ("oom_kill_disable", Bool),
        ("oom_score_adj", Int),
        ("pid", TextOrNull),
        ("pids_limit", Int),
        ("platform", Text),
        ("ports", Set(&Either(&[NumberOrText, Type::Object(&PORT)]))),
        ("post_start", List(&Type::Object(&HOOK))),
        ("pre_start", List(&Type::Object(&PRE_START))),
        ("pre_stop", List(&Type::Object(&HOOK))),
        ("privileged", Bool),
        ("profiles", TEXTS),
        ("provider", Type::Object(&PROVIDER)),
        ("pull_policy", Text),
        ("pull_refresh_after", Text),
        ("read_only", Bool),
        ("restart", Text),
        ("runtime", Text),
        ("scale", Int),
        ("secrets", MOUNTED),
        ("security_opt", TEXTS),
        ("shm_size", Bytes),
        ("stdin_open", Bool),
        ("stop_grace_period", Duration),
        ("stop_signal", Text),
        ("storage_opt", Type::Map(&Any)),
        ("sysctls", Pairs),
        ("tmpfs", TextOrList),
        ("tty", Bool),
        ("ulimits", ULIMITS),
        ("use_api_socket", Bool),
        ("user", Text),
        ("userns_mode", Text),
        ("uts", Text),
        ("volumes", Set(&Either(&[Text, Type::Object(&MOUNT)]))),
        ("volumes_from", TEXTS),
        ("working_dir", Text),
    ],
    &[],
);

const MOUNTED: Type = List(&Either(&[Text, Type::Object(&FILE_MOUNT)]));
const ULIMITS: Type = Type::Map(&Either(&[Int, Type::Object(&ULIMIT)]));

static BUILD: Object = object(
    &[
        ("additional_contexts", Pairs),
        ("args", Pairs),
        ("cache_from", List(&Text)),
        ("cache_to", List(&Text)),
        ("context", Text),
        ("dockerfile", Text),
        ("dockerfile_inline", Text),
        ("entitlements", List(&Text)),
        ("extra_hosts", Hosts),
        ("isolation", Text),
        ("labels", Pairs),
        ("network", Text),
        ("no_cache", Bool),
        ("no_cache_filter", TextOrList),
        ("platforms", List(&Text)),
        ("privileged", Bool),
        ("provenance", BoolOrText),
        ("pull", Bool),
        ("sbom", BoolOrText),
        ("secrets", MOUNTED),
        ("shm_size", Bytes),
        ("ssh", Pairs),
        ("tags", List(&Text)),
        ("target", Text),
        ("ulimits", ULIMITS),
    ],
    &[],
);

static BLKIO: Object = closed(
    &[
        ("device_read_bps", List(&Type::Object(&BLKIO_LIMIT))),
        ("device_read_iops", List(&Type::Object(&BLKIO_LIMIT))),
        ("device_write_bps", List(&Type::Object(&BLKIO_LIMIT))),
        ("device_write_iops", List(&Type::Object(&BLKIO_LIMIT))),
        ("weight", Int),
        ("weight_device", List(&Type::Object(&BLKIO_WEIGHT))),
    ],
    &[],
);
static BLKIO_LIMIT: Object = closed(&[("path", Text), ("rate", Bytes)], &[]);
static BLKIO_WEIGHT: Object = closed(&[("path", Text), ("weight", Int)], &[]);
static CREDENTIAL_SPEC: Object = object(&[("config", Text), ("file", Text), ("registry", Text)], &[]);
static DEPENDENCY: Object = object(
    &[
        ("restart", Bool),
        ("required", Bool),
        (
            "condition",
            Word(&[
                "service_started",
                "service_healthy",
                "service_completed_successfully",
            ]),
        ),
    ],
    &["condition"],
);
static DEVICE: Object = object(
    &[("source", Text), ("target", Text), ("permissions", Text)],
    &["source"],
);
static ENV_FILE: Object = closed(&[("path", Text), ("format", Text), ("required", Bool)], &["path"]);
static EXTENDS: Object = closed(&[("service", Text), ("file", Text)], &["service"]);
static GPU: Object = object(
    &[
        ("capabilities", TEXTS),
        ("count", NumberOrText),
        ("device_ids", TEXTS),
        ("driver", Text),
        ("options", Pairs),
    ],
    &[],
);
static DEVICE_REQUEST: Object = object(GPU.fields, &["capabilities"]);
static HEALTHCHECK: Object = object(
    &[
        ("disable", Bool),
        ("interval", Duration),
        ("retries", Int),
        ("start_interval", Duration),
        ("start_period", Duration),
        ("test", TextOrList),
        ("timeout", Duration),
    ],
    &[],
);
static LOGGING: Object = object(
    &[
        ("driver", Text),
        ("options", Type::Map(&Either(&[NumberOrText, TextOrNull]))),
    ],
    &[],
);
static MODEL_USE: Object = object(&[("endpoint_var", Text), ("model_var", Text)], &[]);
static ENDPOINT: Object = object(
    &[
        ("aliases", TEXTS),
        ("driver_opts", Options),
        ("gw_priority", Int),
        ("interface_name", Text),
        ("ipv4_address", Text),
        ("ipv6_address", Text),
        ("link_local_ips", TEXTS),
        ("mac_address", Text),
        ("priority", Int),
    ],
    &[],
);
static PORT: Object = object(
    &[
        ("app_protocol", Text),
        ("host_ip", Text),
        ("mode", Text),
        ("name", Text),
        ("protocol", Text),
        ("published", NumberOrText),
        ("target", Int),
    ],
    &[],
);
static HOOK: Object = object(
    &[
        ("command", Command),
        ("environment", Pairs),
        ("privileged", Bool),
        ("user", Text),
        ("working_dir", Text),
    ],
    &["command"],
);
static PRE_START: Object = object(
    &[
        ("command", Command),
        ("environment", Pairs),
        ("image", Text),
        ("per_replica", Bool),
        ("privileged", Bool),
        ("user", Text),
        ("working_dir", Text),
    ],
    &[],
);
static PROVIDER: Object = object(&[("type", Text), ("options", Type::Map(&Any))], &["type"]);
static FILE_MOUNT: Object = object(
    &[
        ("gid", Text),
        ("mode", NumberOrText),
        ("source", Text),
        ("target", Text),
        ("uid", Text),
    ],
    &[],
);
static ULIMIT: Object = object(&[("hard", Int), ("soft", Int)], &["soft", "hard"]);
static MOUNT: Object = object(
    &[
        ("bind", Type::Object(&BIND)),
        ("consistency", Text),
        ("image", Type::Object(&IMAGE_MOUNT)),
        ("read_only", Bool),
        ("source", Text),
        ("target", Text),
        ("tmpfs", Type::Object(&TMPFS)),
        (
            "type",
            Word(&["bind", "volume", "tmpfs", "cluster", "npipe", "image"]),
        ),
        ("volume", Type::Object(&VOLUME_MOUNT)),
    ],
    &["type"],
);
static BIND: Object = object(
    &[
        ("create_host_path", Bool),
        ("propagation", Text),
        (
            "recursive",
            Word(&["enabled", "disabled", "writable", "readonly"]),
        ),
        ("selinux", Word(&["z", "Z"])),
    ],
    &[],
);
static IMAGE_MOUNT: Object = object(&[("subpath", Text)], &[]);
static TMPFS: Object = object(&[("mode", NumberOrText), ("size", Bytes)], &[]);
static VOLUME_MOUNT: Object = object(&[("labels", Pairs), ("nocopy", Bool), ("subpath", Text)], &[]);

static DEVELOP: Object = object(&[("watch", List(&Type::Object(&WATCH)))], &[]);
static WATCH: Object = object(
    &[
        (
            "action",
            Word(&["rebuild", "sync", "restart", "sync+restart", "sync+exec"]),
        ),
        ("exec", Type::Object(&HOOK)),
        ("ignore", TextOrList),
        ("include", TextOrList),
        ("initial_sync", Bool),
        ("path", Text),
        ("target", Text),
    ],
    &["path", "action"],
);

static DEPLOY: Object = object(
    &[
        ("endpoint_mode", Text),
        ("labels", Pairs),
        ("mode", Text),
        ("placement", Type::Object(&PLACEMENT)),
        ("replicas", Int),
        ("resources", Type::Object(&RESOURCES)),
        ("restart_policy", Type::Object(&RESTART_POLICY)),
        ("rollback_config", Type::Object(&UPDATE)),
        ("update_config", Type::Object(&UPDATE)),
    ],
    &[],
);
static UPDATE: Object = object(
    &[
        ("delay", Duration),
        ("failure_action", Text),
        ("max_failure_ratio", Number),
        ("monitor", Duration),
        ("order", Word(&["start-first", "stop-first"])),
        ("parallelism", Int),
    ],
    &[],
);
static RESOURCES: Object = object(
    &[
        ("limits", Type::Object(&LIMITS)),
        ("reservations", Type::Object(&RESERVATIONS)),
    ],
    &[],
);
static LIMITS: Object = object(&[("cpus", Number), ("memory", Bytes), ("pids", Int)], &[]);
static RESERVATIONS: Object = object(
    &[
        ("cpus", Number),
        ("devices", List(&Type::Object(&DEVICE_REQUEST))),
        ("generic_resources", List(&Type::Object(&GENERIC))),
        ("memory", Bytes),
    ],
    &[],
);
static GENERIC: Object = object(&[("discrete_resource_spec", Type::Object(&DISCRETE))], &[]);
static DISCRETE: Object = object(&[("kind", Text), ("value", NumberOrText)], &[]);
static RESTART_POLICY: Object = object(
    &[
        ("condition", Text),
        ("delay", Duration),
        ("max_attempts", Int),
        ("window", Duration),
    ],
    &[],
);
static PLACEMENT: Object = object(
    &[
        ("constraints", List(&Text)),
        ("max_replicas_per_node", Int),
        ("preferences", List(&Type::Object(&PREFERENCE))),
    ],
    &[],
);
static PREFERENCE: Object = object(&[("spread", Text)], &[]);

const EXTERNAL: Type = Either(&[Bool, Type::Object(&EXTERNAL_NAME)]);
static EXTERNAL_NAME: Object = object(&[("name", Text)], &[]);
static NETWORK: Object = object(
    &[
        ("attachable", Bool),
        ("driver", Text),
        ("driver_opts", Options),
        ("enable_ipv4", Bool),
        ("enable_ipv6", Bool),
        ("external", EXTERNAL),
        ("internal", Bool),
        ("ipam", Type::Object(&IPAM)),
        ("labels", Pairs),
        ("name", Text),
    ],
    &[],
);
static IPAM: Object = object(
    &[
        ("config", List(&Type::Object(&POOL))),
        ("driver", Text),
        ("options", Type::Map(&Text)),
    ],
    &[],
);
static POOL: Object = object(
    &[
        ("aux_addresses", Type::Map(&Text)),
        ("gateway", Text),
        ("ip_range", Text),
        ("subnet", Text),
    ],
    &[],
);
static VOLUME: Object = object(
    &[
        ("driver", Text),
        ("driver_opts", Options),
        ("external", EXTERNAL),
        ("labels", Pairs),
        ("name", Text),
    ],
    &[],
);
static SECRET: Object = object(
    &[
        ("driver", Text),
        ("driver_opts", Options),
        ("environment", Text),
        ("external", EXTERNAL),
        ("file", Text),
        ("labels", Pairs),
        ("name", Text),
        ("template_driver", Text),
    ],
    &[],
);
static CONFIG: Object = object(
    &[
        ("content", Text),
        ("environment", Text),
        ("external", EXTERNAL),
        ("file", Text),
        ("labels", Pairs),
        ("name", Text),
        ("template_driver", Text),
    ],
    &[],
);
