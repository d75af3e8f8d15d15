//! `--squash`: one layer over the base, with the same files.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use vessel_build::session::NoSession;

use crate::world::{World, build};

pub fn one_layer_remains() {
    let world = World::new();
    world.run(async |engine| {
        let named = |name: &str| vessel_build::request::Output::Image {
            names: vec![name.to_owned()],
            store: true,
            push: false,
            style: Default::default(),
        };
        // Made and removed, replaced by other kinds, hidden from the base, linked, with an owner and a mode.
        let steps = "RUN mkdir -p /d/sub /e && echo 1 > /a && echo 2 > /d/old && echo 3 > /e/f && echo 4 > /gone\n\
            RUN rm /gone /etc/group && rm -r /d && mkdir /d && echo 5 > /d/new\n\
            RUN rm -r /e && echo 6 > /e && rm /a && mkdir -p /a/b && echo 7 > /a/b/c\n\
            RUN echo 8 > /x && ln /x /y && chmod 640 /x && mkdir /own && chmod 711 /own && rm -r /tmp && mkdir /tmp && echo 9 > /tmp/t\n\
            RUN rm -r /a && ln -s /d /a && rm /bin/md5sum && mkdir /bin/md5sum\n\
            ENV K=v\n";
        let plain = world.build(&engine, &format!("FROM base\n{steps}")).await;
        let mut request = world.request(&format!("FROM base\n{steps}"));
        request.squash = true;
        let squashed = build(&engine, request.clone(), Arc::new(NoSession)).await;
        squashed.id();
        let (before, after) = (plain.config(), squashed.config());
        assert_eq!((before.chain().len(), after.chain().len()), (6, 2));
        assert_eq!(after.chain()[0], before.chain()[0]);
        assert_eq!(after.config.env, before.config.env);

        // The same files, seen from a step on top.
        let look = "RUN find / -xdev ! -path '/proc/*' ! -path '/sys/*' ! -path '/dev/*' -exec stat -c '%n %F %a %u %h %s %N %Y' {} + | grep -v -e '^/ ' -e /etc/host -e /etc/resolv\n";
        let one = world.build(&engine, &format!("FROM base\n{steps}{look}")).await;
        let mut other = world.request(&format!("FROM squashed\n{look}"));
        request.outputs = vec![named("squashed")];
        let again = build(&engine, request, Arc::new(NoSession)).await;
        assert_eq!(again.config().chain(), after.chain(), "the second time it comes from the cache");
        other.no_cache = vessel_build::request::NoCache::All;
        let other = build(&engine, other, Arc::new(NoSession)).await;
        other.id();
        let seen = |text: String| {
            let kernel = |line: &&str| ["/proc ", "/sys ", "/dev "].iter().any(|path| line.starts_with(path));
            let mut lines: Vec<_> = text.lines().filter(|line| !kernel(line)).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert!(one.output().lines().count() > 20, "{}", one.output());
        assert_eq!(seen(one.output()), seen(other.output()));

        // Of what came and went between the steps nothing is told.
        let layer = engine.images().content().layer_path(&after.chain()[1]);
        assert!(layer.join("gone").symlink_metadata().is_err());
        assert!(layer.join("etc/group").symlink_metadata().unwrap().file_type().is_char_device());
        assert_eq!(layer.join("x").metadata().unwrap().ino(), layer.join("y").metadata().unwrap().ino());

        // The history keeps the steps, which have no layers, and says what was done.
        let steps = &after.history[before.history.len() - 6..];
        assert_eq!(steps.len(), 7);
        assert!(steps[..6].iter().all(|step| step.empty_layer == Some(true) && step.created_by.is_some()));
        let merged = &steps[6];
        assert_eq!(merged.empty_layer, None);
        let comment = merged.comment.as_deref().unwrap();
        assert!(comment.starts_with(&format!("merge {} to sha256:", plain.id())), "{comment}");

        // What a step hides far below its layer's top stays hidden when others come over it.
        let mut request = world.request("FROM base\nRUN mkdir -p /srv/lib/app && echo 1 > /srv/lib/app/secret\n");
        request.outputs = vec![named("deep")];
        build(&engine, request, Arc::new(NoSession)).await.id();
        let steps = "RUN rm -r /srv/lib/app && mkdir /srv/lib/app && echo 2 > /srv/lib/app/new\nRUN echo 3 > /srv/lib/other\n";
        let mut request = world.request(&format!("FROM deep\n{steps}"));
        request.squash = true;
        request.outputs = vec![named("flat")];
        build(&engine, request, Arc::new(NoSession)).await.id();
        let shown = world.build(&engine, "FROM flat\nRUN find /srv | sort\n").await;
        shown.id();
        let shown = shown.output().lines().map(str::to_owned).collect::<Vec<_>>().join(" ");
        assert_eq!(shown, "/srv /srv/lib /srv/lib/app /srv/lib/app/new /srv/lib/other");

        let mut request = world.request("FROM scratch\nCOPY <<EOF /f\nx\nEOF\nCOPY <<EOF /f\ny\nEOF\n");
        request.squash = true;
        let built = build(&engine, request, Arc::new(NoSession)).await;
        let config = built.config();
        assert_eq!(config.chain().len(), 1);
        let layer = engine.images().content().layer_path(&config.chain()[0]);
        assert_eq!(std::fs::read_to_string(layer.join("f")).unwrap(), "y\n");
        let last = config.history.last().unwrap().comment.clone().unwrap();
        assert!(last.starts_with("create new from sha256:"), "{last}");
    });
}
