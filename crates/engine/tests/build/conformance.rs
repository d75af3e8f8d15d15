//! What the fixtures of Buildah's and BuildKit's tests found.

use std::sync::Arc;

use vessel_build::request::{DockerfileSource, NamedContext};
use vessel_build::session::NoSession;

use crate::world::{Built, World, build};

/// An ignore file that leaves everything out and takes something back in.
pub fn ignore_files_that_list_what_stays() {
    let world = World::new();
    world.write(".dockerignore", "**\n!folder/kept\n!folder/deep/kept\n");
    world.write("folder/kept", "kept");
    world.write("folder/left", "left");
    world.write("folder/deep/kept", "kept");
    world.write("empty/left", "left");
    world.run(async |engine| {
        let content = engine.images().content();
        let top = |built: &Built| content.layer_path(built.config().chain().last().unwrap());
        let built = world.build(&engine, "FROM scratch\nCOPY folder /f/\n").await;
        let (kept, left) = (top(&built).join("f/kept"), top(&built).join("f/left"));
        assert!(kept.exists() && top(&built).join("f/deep/kept").exists() && !left.exists());
        let built = world.build(&engine, "FROM scratch\nCOPY fold* /f/\n").await;
        assert!(top(&built).join("f/kept").exists());
        for gone in ["empty", "folder/left"] {
            let refused = world
                .build(&engine, &format!("FROM scratch\nCOPY {gone} /f/\n"))
                .await;
            let expected = format!("\"/{gone}\": not found; .dockerignore leaves it out");
            assert!(refused.error().contains(&expected), "{}", refused.error());
        }
    });
}

/// A path of an archive may lead through a link of the same archive, to where nothing is yet. The destination is its root.
pub fn archives_that_lead_through_links() {
    let world = World::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "link", "..").unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    tar.append_data(&mut header, "link/etc/file", &b"file"[..])
        .unwrap();
    world.write("a.tar", tar.into_inner().unwrap());
    world.run(async |engine| {
        let built = world.build(&engine, "FROM scratch\nADD a.tar /below\n").await;
        let config = built.config();
        let layer = engine
            .images()
            .content()
            .layer_path(config.chain().last().unwrap());
        assert_eq!(
            std::fs::read_to_string(layer.join("below/etc/file")).unwrap(),
            "file"
        );
        assert!(layer.join("below/link").is_symlink());
    });
}

/// Copying into a link makes what it leads to.
pub fn destinations_that_are_links_to_nothing() {
    let world = World::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "link", "../not/yet/there").unwrap();
    world.write("a.tar", tar.into_inner().unwrap());
    world.write("file", "file");
    world.run(async |engine| {
        let built = world
            .build(&engine, "FROM scratch\nADD a.tar /\nCOPY file /link/\n")
            .await;
        let config = built.config();
        let layer = engine
            .images()
            .content()
            .layer_path(config.chain().last().unwrap());
        assert_eq!(
            std::fs::read_to_string(layer.join("not/yet/there/file")).unwrap(),
            "file"
        );
    });
}

/// A working directory is said as it was written; `**` goes deep with `--parents` only.
pub fn paths_as_they_were_written() {
    let world = World::new();
    world.write("top.txt", "x");
    world.write("a/one.txt", "x");
    world.write("a/b/two.txt", "x");
    world.run(async |engine| {
        let dockerfile =
            "FROM base\nWORKDIR /tmp/\nWORKDIR sub/\nRUN pwd\nWORKDIR /tmp/\nCOPY **/*.txt /t/\n";
        let built = world.build(&engine, dockerfile).await;
        assert_eq!(built.output(), "/tmp/sub\n");
        let config = built.config();
        assert_eq!(config.config.working_dir.as_deref(), Some("/tmp/"));
        let layer = engine
            .images()
            .content()
            .layer_path(config.chain().last().unwrap());
        let there = |name: &str| layer.join("t").join(name).exists();
        assert!(there("one.txt") && !there("two.txt") && !there("top.txt"));
    });
}

/// A here-document that begins with `#!` is a program of its own.
pub fn scripts_of_their_own() {
    let world = World::new();
    world.run(async |engine| {
        let built = world
            .build(&engine, "FROM base\nRUN <<EOF\n#!/bin/sh -e\necho $0\nEOF\n")
            .await;
        assert_eq!(built.output(), "/dev/pipes/EOF\n");
    });
}

/// Where processes of `FROM scratch` begin is said, also when a named context is that.
pub fn scratch_has_a_working_directory() {
    let world = World::new();
    world.run(async |engine| {
        let built = world.build(&engine, "FROM scratch\nCOPY <<EOF /f\nEOF\n").await;
        assert_eq!(built.config().config.working_dir.as_deref(), Some("/"));
        let mut request = world.request("FROM nowhere.invalid/x\nCOPY <<EOF /f\nEOF\n");
        let scratch = NamedContext::Image("scratch".to_owned());
        request.contexts.insert("nowhere.invalid/x".to_owned(), scratch);
        let built = build(&engine, request, Arc::new(NoSession)).await;
        assert_eq!(built.config().chain().len(), 1);
    });
}

pub fn dockerfiles_may_be_links_and_in_lower_case() {
    let world = World::new();
    world.write("dockerfile", "FROM base\nRUN echo lower\n");
    world.run(async |engine| {
        let mut request = world.request("");
        let (source, path) = (None, String::new());
        request.dockerfile = DockerfileSource::File { source, path };
        let built = build(&engine, request.clone(), Arc::new(NoSession)).await;
        assert_eq!(built.output(), "lower\n");
        world.write("real", "FROM base\nRUN echo linked\n");
        std::os::unix::fs::symlink("real", world.context().join("Dockerfile")).unwrap();
        let built = build(&engine, request, Arc::new(NoSession)).await;
        assert_eq!(built.output(), "linked\n");
    });
}

/// However a proxy is spelled, programs that look for the other spelling find it.
pub fn proxies_have_two_names() {
    let world = World::new();
    world.run(async |engine| {
        let mut request = world.request("FROM base\nRUN echo $http_proxy $HTTP_PROXY $NO_PROXY $no_proxy\n");
        for (name, value) in [("http_proxy", "a"), ("NO_PROXY", "b"), ("no_proxy", "c")] {
            request.args.insert(name.to_owned(), Some(value.to_owned()));
        }
        let built = build(&engine, request, Arc::new(NoSession)).await;
        assert_eq!(built.output(), "a a b c\n");
    });
}

pub fn caches_of_other_owners_are_others() {
    let world = World::new();
    world.run(async |engine| {
        let dockerfile = "FROM base\nRUN --mount=type=cache,target=/cache touch /cache/root\nRUN --mount=type=cache,uid=10,target=/cache ls /cache && stat -c %u /cache\n";
        let built = world.build(&engine, dockerfile).await;
        assert_eq!(built.output(), "10\n");
    });
}

/// What stands before `/./` may have wildcards; each directory it stands for is a beginning.
pub fn pivots_with_wildcards() {
    let world = World::new();
    world.run(async |engine| {
        let dockerfile = "FROM base AS tree\nRUN mkdir -p /t/a/b/c/d/e /t/a/b2/c/d/e && echo 1 > /t/a/b/c/d/e/one && echo 2 > /t/a/b2/c/d/e/two\n\
            FROM base\nCOPY --from=tree --parents /t/a/b*/./c/**/e /out/\nCOPY --from=tree --parents /t/a/./*/c /deep/\n\
            COPY --from=tree --parents t/*/b/./c/d/e/one /file/\nRUN find /out /deep /file -type f && cat /file/c/d/e/one\n";
        let built = world.build(&engine, dockerfile).await;
        built.id();
        let mut lines: Vec<_> = built.output().lines().map(str::to_owned).collect();
        lines.sort();
        let expected = ["1", "/deep/b/c/d/e/one", "/deep/b2/c/d/e/two", "/file/c/d/e/one", "/out/c/d/e/one", "/out/c/d/e/two"];
        let mut expected: Vec<_> = expected.map(str::to_owned).to_vec();
        expected.sort();
        assert_eq!(lines, expected);
    });
}

/// The build argument that names the host of processes.
pub fn the_host_has_the_name_that_an_argument_gives() {
    let world = World::new();
    world.run(async |engine| {
        let alone = world
            .build(&engine, "FROM base\nRUN --network=none cat /etc/hosts\n")
            .await;
        assert!(
            alone.output().contains("127.0.0.1\tbuildkitsandbox\n"),
            "{}",
            alone.output()
        );
        let mut request = world.request("FROM base\nRUN hostname && cat /etc/hosts\n");
        request
            .args
            .insert("BUILDKIT_SANDBOX_HOSTNAME".to_owned(), Some("named".to_owned()));
        let built = build(&engine, request, Arc::new(NoSession)).await;
        assert!(
            built.output().starts_with("named\n") && built.output().contains("\tnamed"),
            "{}",
            built.output()
        );
    });
}
