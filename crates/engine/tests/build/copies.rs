//! `COPY`, `ADD`, stages, configurations, outputs.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vessel_build::request::{Goal, NamedContext, Output, Source};
use vessel_build::session::NoSession;

use crate::mounts::Client;
use crate::world::{World, build};

pub fn stages_and_owners() {
    let world = World::new();
    world.write("a.txt", "a");
    world.write("b.txt", "b");
    world.write("ignored.txt", "x");
    world.write(".dockerignore", "ignored.txt\ndeep/out\n");
    world.write("deep/er/file", "deep");
    world.write("deep/ignored.txt", "not the one of the root");
    world.write("deep/out/file", "x");
    world.run(async |engine| {
        let dockerfile = "FROM base AS one\nRUN echo one > /one\nFROM base AS two\nRUN exit 1\nFROM scratch\nCOPY --from=one /one /\nCOPY --chown=7:8 --chmod=640 *.txt /text/\nCOPY --parents deep/./er/file /parents/\nCOPY <<EOF /inline\nhello $UNSET\nEOF\nCOPY --from=base --chown=web /etc/group /group\n";
        let dockerfile = dockerfile.replace("--chown=web ", "--chown=33:44 ");
        let built = world.build(&engine, &dockerfile).await;
        let config = built.config();
        let content = engine.images().content();
        let layers: Vec<_> = config.chain().iter().map(|chain| content.layer_path(chain)).collect();
        assert_eq!(layers.len(), 5);
        assert_eq!(std::fs::read_to_string(layers[0].join("one")).unwrap(), "one\n");
        let text = layers[1].join("text/a.txt").metadata().unwrap();
        assert_eq!((text.uid(), text.gid(), text.mode() & 0o7777), (7, 8, 0o640));
        assert!(layers[1].join("text/b.txt").exists() && !layers[1].join("text/ignored.txt").exists());
        assert_eq!(std::fs::read_to_string(layers[2].join("parents/er/file")).unwrap(), "deep");
        assert_eq!(std::fs::read_to_string(layers[3].join("inline")).unwrap(), "hello \n");
        assert_eq!(layers[4].join("group").metadata().unwrap().uid(), 33);
        let refused = world.build(&engine, "FROM scratch\nCOPY ignored.txt /\n").await;
        assert!(refused.error().contains(".dockerignore leaves it out"), "{}", refused.error());
        // Patterns of the ignore file are for paths from the context's root, whatever is copied.
        let below = world.build(&engine, "FROM scratch\nCOPY deep /x/\n").await;
        let top = |built: &crate::world::Built| content.layer_path(built.config().chain().last().unwrap());
        assert!(top(&below).join("x/ignored.txt").exists() && top(&below).join("x/er/file").exists());
        assert!(!top(&below).join("x/out").exists());
        let parents = world.build(&engine, "FROM scratch\nCOPY --parents deep /x/\n").await;
        assert!(top(&parents).join("x/deep/er/file").exists());
        assert!(!top(&parents).join("x/deep/out").exists());
        // The same files on another base are not copied again with --link.
        let linked = |base: &str| format!("FROM base\nRUN echo {base} > /base\nCOPY --link a.txt /linked\n");
        world.build(&engine, &linked("x")).await.id();
        let other = world.build(&engine, &linked("y")).await;
        assert_eq!(other.cached(), (1, 1));
    });
}

pub fn archives_are_unpacked() {
    let world = World::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    header.set_uid(5);
    tar.append_data(&mut header, "in/file", &b"tar"[..]).unwrap();
    let plain = tar.into_inner().unwrap();
    world.write("plain.tar", &plain);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    world.write("packed.tgz", gzip.finish().unwrap());
    world.write("not.tar", "just text");
    // Its first entry is a file without a name.
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    header.set_cksum();
    let nameless = [header.as_bytes().as_slice(), b"empty", &[0; 507], &plain].concat();
    world.write("nameless.tar", nameless);
    world.run(async |engine| {
        let built = world.build(&engine, "FROM scratch\nADD plain.tar /plain/\nADD packed.tgz /packed\nADD not.tar /not/\nCOPY plain.tar /\nADD nameless.tar /nameless/\n").await;
        let config = built.config();
        let content = engine.images().content();
        let layers: Vec<_> = config.chain().iter().map(|chain| content.layer_path(chain)).collect();
        assert_eq!(layers[0].join("plain/in/file").metadata().unwrap().uid(), 5);
        assert_eq!(std::fs::read_to_string(layers[1].join("packed/in/file")).unwrap(), "tar");
        assert!(layers[2].join("not/not.tar").is_file());
        assert!(layers[3].join("plain.tar").is_file());
        assert_eq!(std::fs::read_to_string(layers[4].join("nameless/in/file")).unwrap(), "tar");
        assert_eq!(std::fs::read_dir(layers[4].join("nameless")).unwrap().count(), 1);
    });
}

pub fn configurations() {
    let world = World::new();
    world.run(async |engine| {
        let dockerfile = "ARG GLOBAL=g\nFROM base\nARG GLOBAL\nARG LOCAL=l$GLOBAL\nENV E=$LOCAL PATH=$PATH:/x\nLABEL k=v\nEXPOSE 80 53/udp\nVOLUME /data\nUSER web\nSTOPSIGNAL SIGINT\nSHELL [\"/bin/sh\", \"-ec\"]\nHEALTHCHECK --interval=5s CMD true\nONBUILD RUN echo triggered\nRUN id -u\nENTRYPOINT [\"/bin/echo\"]\nCMD hello\n";
        let mut request = world.request(dockerfile);
        request.labels.insert("given".into(), "too".into());
        let built = build(&engine, request, Arc::new(NoSession)).await;
        assert_eq!(built.output(), "33\n", "{:?}", built.result);
        let config = built.config();
        let inner = &config.config;
        let env = inner.env.clone().unwrap();
        assert!(env.contains(&"E=lg".to_owned()) && env.iter().any(|pair| pair.ends_with("/bin:/x")), "{env:?}");
        assert_eq!(inner.cmd.as_deref().unwrap(), ["/bin/sh", "-ec", "hello"]);
        assert_eq!(inner.labels.as_ref().unwrap().len(), 2);
        assert_eq!(inner.on_build.as_deref().unwrap(), ["RUN echo triggered"]);
        let steps: Vec<String> = config.history.iter().filter_map(|step| step.created_by.clone()).collect();
        for wanted in [
            "ARG GLOBAL=g",
            "ARG LOCAL=lg",
            "EXPOSE [53/udp 80/tcp]",
            "VOLUME [/data]",
            "RUN |2 GLOBAL=g LOCAL=lg /bin/sh -ec id -u # buildkit",
            "HEALTHCHECK {Test:[CMD-SHELL true] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
            "CMD [\"/bin/sh\" \"-ec\" \"hello\"]",
        ] {
            assert!(steps.iter().any(|step| step == wanted), "{wanted}: {steps:#?}");
        }
        let child = world.build(&engine, "FROM result\nRUN true\n").await;
        assert_eq!(child.output(), "triggered\n");
        assert_eq!(child.config().config.on_build, None);
        let mut request = world.request("FROM base\nRUM true\n");
        request.goal = Goal::Check;
        let answer = build(&engine, request, Arc::new(NoSession)).await.result.unwrap().answer.unwrap();
        assert!(answer.findings > 0 && answer.text.contains("RUM"), "{}", answer.text);
    });
}

pub fn reproducible_with_an_epoch() {
    let dockerfile = "FROM base\nARG SOURCE_DATE_EPOCH\nWORKDIR /w\nCOPY f .\nRUN echo x > y\n";
    let ids: Vec<String> = (0..2)
        .map(|_| {
            let world = World::new();
            world.write("f", "f");
            world.run(async |engine| {
                let mut request = world.request(dockerfile);
                request
                    .args
                    .insert("SOURCE_DATE_EPOCH".into(), Some("1500000000".into()));
                let built = build(&engine, request, Arc::new(NoSession)).await;
                let config = built.config();
                assert_eq!(config.created.as_deref(), Some("2017-07-14T02:40:00Z"));
                // The base was imported now, so only what was built is compared.
                let diffs = config.rootfs.diff_ids.clone();
                format!("{:?}", &diffs[1..])
            })
        })
        .collect();
    assert_eq!(ids[0], ids[1]);
}

pub fn outputs_and_contexts() {
    let world = World::new();
    world.write("f", "context");
    let other = world.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("g"), "named").unwrap();
    world.run(async |engine| {
        let client = Arc::new(Client {
            directory: world.context(),
        });
        let mut request = world.request("FROM scratch\nCOPY f /\nCOPY --from=extra g /\n");
        request.context = Source::Session("context".into());
        request.contexts.insert(
            "extra".into(),
            NamedContext::Files(Source::Directory(other.clone())),
        );
        request.outputs = vec![
            Output::Tar {
                exporter: "files.tar".into(),
                platform_split: None,
            },
            Output::Archive {
                exporter: "image.tar".into(),
                format: vessel_image::Format::Oci,
                names: vec!["x:y".into()],
            },
        ];
        let built = build(&engine, request, client).await;
        built.id();
        let names = |file: &str| -> Vec<String> {
            let mut archive = tar::Archive::new(std::fs::File::open(world.path().join(file)).unwrap());
            let entries = archive.entries().unwrap();
            entries
                .map(|entry| entry.unwrap().path().unwrap().display().to_string())
                .collect()
        };
        assert_eq!(names("files.tar"), ["f", "g"]);
        // One archive with the files of several platforms.
        let mut several = world.request("FROM scratch AS stage-amd64\nCOPY f /amd\nFROM scratch AS stage-arm64\nCOPY f /arm\nFROM stage-$TARGETARCH\n");
        let platform = |text: &str| vessel_image::Platform::parse(text).unwrap();
        several.platforms = vec![platform("linux/amd64"), platform("linux/arm64")];
        several.outputs = vec![Output::Tar { exporter: "several.tar".into(), platform_split: None }];
        build(&engine, several, Arc::new(Client { directory: world.context() })).await.result.unwrap();
        let found: Vec<_> = names("several.tar").into_iter().filter(|name| !name.ends_with('/')).collect();
        assert_eq!(found, ["linux_amd64/amd", "linux_arm64/arm"]);
        assert!(names("image.tar").contains(&"index.json".to_owned()));
        let mut request = world.request("FROM base\nRUN true\n");
        request.platforms = vec![vessel_image::Platform::parse("linux/s390x").unwrap()];
        let refused = build(&engine, request, Arc::new(NoSession)).await;
        assert!(refused.result.is_err());
        let mut request = world.request("FROM scratch\nCOPY f /\n");
        request.platforms = vec![vessel_image::Platform::parse("linux/s390x").unwrap()];
        let built = build(&engine, request, Arc::new(NoSession)).await;
        assert_eq!(built.config().architecture, "s390x");
    });
}
