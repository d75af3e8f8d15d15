"""The scenarios, in the order in which they run. Each module has NAME, ABOUT and `measure(bench)`."""

from . import build_cached, build_cold, clients, context, dns, events, exec_true, load, logs, many, oci_run, pull, push, registry_server, run_rm, start_at_once, tcp

ALL = {
    module.NAME: module
    for module in (
        run_rm,
        oci_run,
        exec_true,
        load,
        pull,
        push,
        start_at_once,
        many,
        build_cached,
        build_cold,
        context,
        registry_server,
        logs,
        events,
        clients,
        tcp,
        dns,
    )
}
