//! What builds give.

use std::sync::Arc;
use std::time::Duration;

use vessel_build::session::NoSession;

use crate::world::{World, build};
use crate::{checks, conformance, copies, faults, mounts, remotes, squash};

pub const ALL: &[(&str, fn())] = &[
    ("thin_path", thin_path),
    ("failures_point_at_the_line", failures_point_at_the_line),
    ("cancelling_kills", cancelling_kills),
    ("secrets_leave_nothing", mounts::secrets_leave_nothing),
    ("caches_are_kept_and_pruned", mounts::caches_are_kept_and_pruned),
    ("one_layer_remains", squash::one_layer_remains),
    ("binds_write_for_themselves", mounts::binds_write_for_themselves),
    ("no_cache_begins_mounts_anew", mounts::no_cache_begins_mounts_anew),
    ("binds_and_agents", mounts::binds_and_agents),
    ("stages_and_owners", copies::stages_and_owners),
    ("archives_are_unpacked", copies::archives_are_unpacked),
    ("configurations", copies::configurations),
    ("reproducible_with_an_epoch", copies::reproducible_with_an_epoch),
    ("outputs_and_contexts", copies::outputs_and_contexts),
    (
        "transfers_that_go_on_keep_their_context",
        faults::transfers_that_go_on_keep_their_context,
    ),
    (
        "binds_show_what_ignore_files_leave",
        faults::binds_show_what_ignore_files_leave,
    ),
    (
        "mounted_contexts_are_remembered",
        faults::mounted_contexts_are_remembered,
    ),
    ("one_lock_twice_in_a_step", faults::one_lock_twice_in_a_step),
    (
        "triggers_of_images_wait_for_no_later_stage",
        faults::triggers_of_images_wait_for_no_later_stage,
    ),
    (
        "parents_count_and_what_is_excluded_does_not",
        faults::parents_count_and_what_is_excluded_does_not,
    ),
    (
        "many_warnings_and_variables_are_bounded",
        checks::many_warnings_and_variables_are_bounded,
    ),
    (
        "stages_that_begin_alike_share_their_steps",
        faults::stages_that_begin_alike_share_their_steps,
    ),
    ("records_count_a_layer_once", faults::records_count_a_layer_once),
    (
        "copies_of_everything_and_of_names",
        faults::copies_of_everything_and_of_names,
    ),
    (
        "warnings_go_along_and_fail_when_they_must",
        checks::warnings_go_along_and_fail_when_they_must,
    ),
    (
        "ignore_files_that_list_what_stays",
        conformance::ignore_files_that_list_what_stays,
    ),
    ("pivots_with_wildcards", conformance::pivots_with_wildcards),
    (
        "the_host_has_the_name_that_an_argument_gives",
        conformance::the_host_has_the_name_that_an_argument_gives,
    ),
    (
        "archives_that_lead_through_links",
        conformance::archives_that_lead_through_links,
    ),
    (
        "scratch_has_a_working_directory",
        conformance::scratch_has_a_working_directory,
    ),
    (
        "dockerfiles_may_be_links_and_in_lower_case",
        conformance::dockerfiles_may_be_links_and_in_lower_case,
    ),
    (
        "caches_of_other_owners_are_others",
        conformance::caches_of_other_owners_are_others,
    ),
    (
        "destinations_that_are_links_to_nothing",
        conformance::destinations_that_are_links_to_nothing,
    ),
    (
        "paths_as_they_were_written",
        conformance::paths_as_they_were_written,
    ),
    ("scripts_of_their_own", conformance::scripts_of_their_own),
    ("proxies_have_two_names", conformance::proxies_have_two_names),
    ("urls", remotes::urls),
    ("repositories", remotes::repositories),
];

fn thin_path() {
    let world = World::new();
    world.write("hello.txt", "hello\n");
    world.write("dir/nested", "x");
    let dockerfile = "FROM base\nENV A=1\nWORKDIR /work\nCOPY hello.txt .\nCOPY dir /work/dir/\nRUN cat hello.txt && echo $A > made && test -f dir/nested\nCMD [\"cat\", \"made\"]\n";
    world.run(async |engine| {
        let built = world.build(&engine, dockerfile).await;
        let id = built.id();
        assert_eq!(built.output(), "hello\n");
        assert_eq!(built.cached(), (0, 4));
        let config = built.config();
        assert_eq!(config.config.working_dir.as_deref(), Some("/work"));
        let steps: Vec<&str> = config
            .history
            .iter()
            .filter_map(|step| step.created_by.as_deref())
            .collect();
        assert!(
            steps
                .contains(&"RUN /bin/sh -c cat hello.txt && echo $A > made && test -f dir/nested # buildkit"),
            "{steps:?}"
        );
        assert!(steps.contains(&"COPY hello.txt . # buildkit"), "{steps:?}");
        assert_eq!(engine.image_inspect("result").await.unwrap().id, id);
        // Nothing but what the step wrote is in its layer.
        let top = config.chain().pop().unwrap();
        let layer = engine.images().content().layer_path(&top);
        assert_eq!(std::fs::read_to_string(layer.join("work/made")).unwrap(), "1\n");
        let names: Vec<_> = std::fs::read_dir(&layer)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["work"]);
        let again = world.build(&engine, dockerfile).await;
        assert_eq!(again.id(), id);
        assert_eq!(again.cached(), (4, 0));
        // A change of content, not of time, makes the step and those after it anew.
        world.write("hello.txt", "hello\n");
        assert_eq!(world.build(&engine, dockerfile).await.cached(), (4, 0));
        world.write("hello.txt", "hallo\n");
        let changed = world.build(&engine, dockerfile).await;
        assert_eq!(changed.cached(), (1, 3));
        assert_ne!(changed.id(), id);
    });
    // The cache outlives the engine.
    world.run(async |engine| {
        assert_eq!(world.build(&engine, dockerfile).await.cached(), (4, 0));
    });
}

fn failures_point_at_the_line() {
    let world = World::new();
    world.run(async |engine| {
        let failed = world
            .build(&engine, "FROM base\nRUN echo before\nRUN exit 7\n")
            .await;
        let error = failed.result.as_ref().unwrap_err();
        assert_eq!(
            error.to_string(),
            "process \"/bin/sh -c exit 7\" did not complete successfully: exit code: 7"
        );
        assert_eq!(error.process().map(|process| process.code), Some(7));
        assert_eq!(error.located().unwrap().location.start_line, 3);
        assert!(failed.output().contains("before"));
        let missing = world.build(&engine, "FROM base\nCOPY nothing /\n").await;
        assert!(
            missing.error().contains("\"/nothing\": not found"),
            "{}",
            missing.error()
        );
        assert_eq!(
            missing.result.unwrap_err().located().unwrap().location.start_line,
            2
        );
        let denied = world
            .build(&engine, "FROM base\nRUN --security=insecure true\n")
            .await;
        assert!(
            denied.error().contains("--allow security.insecure"),
            "{}",
            denied.error()
        );
        assert_eq!(
            std::fs::read_dir(world.path().join("root/build/tmp"))
                .unwrap()
                .count(),
            0
        );
    });
}

fn cancelling_kills() {
    let world = World::new();
    world.run(async |engine| {
        let request = world.request("FROM base\nRUN echo started; sleep 1000\n");
        let task = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { build(&engine, request, Arc::new(NoSession)).await }
        });
        let shims = world.path().join("run/shims");
        let running = || std::fs::read_dir(&shims).unwrap().count() > 0;
        for _ in 0..500 {
            if running() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        task.abort();
        for _ in 0..500 {
            if !running()
                && std::fs::read_dir(world.path().join("root/build/tmp"))
                    .unwrap()
                    .count()
                    == 0
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "the step is still there: {:?}",
            std::fs::read_dir(&shims).unwrap().collect::<Vec<_>>()
        );
    });
}
