//! The build checks during builds.

use std::sync::Arc;

use vessel_build::progress::Event;
use vessel_build::request::{Goal, NoCache};
use vessel_build::session::NoSession;

use crate::world::{Built, World, build};

fn warnings(built: &Built) -> Vec<String> {
    let told = built.events.iter().filter_map(|event| match event {
        Event::Warning(warning) => Some(warning.short.clone()),
        _ => None,
    });
    told.collect()
}

pub fn warnings_go_along_and_fail_when_they_must() {
    let world = World::new();
    world.run(async |engine| {
        let text = "from base AS one\nENV A=$PAHT B=$PATH\nRUN echo ran\nFROM one AS unused\nENV C=$NOTHING\nFROM one\nCMD echo hello\n";
        let built = world.build(&engine, text).await;
        built.id();
        let expected = [
            "FromAsCasing: 'AS' and 'from' keywords' casing do not match (line 1)",
            "ConsistentInstructionCasing: Command 'from' should match the case of the command majority (uppercase) (line 1)",
            "UndefinedVar: Usage of undefined variable '$PAHT' (did you mean $PATH?) (line 2)",
            "JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals (line 7)",
        ];
        let mut found = warnings(&built);
        found.sort_by_key(|text| expected.iter().position(|known| known == text));
        assert_eq!(found, expected);
        // They belong to a vertex that was told of, or clients do not show them.
        let of = built.events.iter().find_map(|event| match event {
            Event::Warning(warning) => Some(warning.vertex.clone()),
            _ => None,
        });
        assert!(built.events.iter().any(|event| matches!(event, Event::Vertex(vertex) if Some(&vertex.digest) == of.as_ref())));
        let refused = |text: &str| {
            let mut request = world.request(text);
            request.no_cache = NoCache::All;
            request
        };
        let fatal = build(&engine, refused(&format!("# check=error=true;skip=JSONArgsRecommended\n{text}")), Arc::new(NoSession)).await;
        assert_eq!(fatal.error(), "lint violation found for rules: ConsistentInstructionCasing, FromAsCasing, UndefinedVar");
        assert_eq!((fatal.output(), warnings(&fatal).len()), (String::new(), 3), "nothing runs");
        let mut by_argument = refused(text);
        by_argument.args.insert("BUILDKIT_DOCKERFILE_CHECK".into(), Some("skip=all;error=true".into()));
        let skipped = build(&engine, by_argument, Arc::new(NoSession)).await;
        skipped.id();
        assert!(warnings(&skipped).is_empty());
        // A question sees the image that is here, too.
        let mut request = world.request("FROM base\nENV A=$PAHT\n");
        request.goal = Goal::Check;
        let answer = build(&engine, request, Arc::new(NoSession)).await.result.unwrap().answer.unwrap();
        assert!(answer.text.contains("UndefinedVar") && answer.findings == 1, "{}", answer.text);
    });
}

pub fn many_warnings_and_variables_are_bounded() {
    let world = World::new();
    world.run(async |engine| {
        let secrets: String = (0..210).map(|number| format!("ENV TOKEN_{number}=x\n")).collect();
        let built = world.build(&engine, &format!("FROM base\n{secrets}")).await;
        built.id();
        let told = warnings(&built);
        assert_eq!(told.len(), 201);
        assert!(told[200].starts_with("10 more warnings"), "{}", told[200]);
        let doubled = format!("FROM base\nENV A=0123456789abcdef\n{}", "ENV A=$A$A\n".repeat(30));
        let refused = world.build(&engine, &doubled).await;
        assert!(refused.error().contains("4194304 bytes"), "{}", refused.error());
        let mut stages = format!(
            "FROM base AS s0\nENV A=0123456789abcdef\n{}",
            "ENV A=$A$A\n".repeat(17)
        );
        for number in 1..200 {
            stages += &format!("FROM s{} AS s{number}\n", number - 1);
        }
        for goal in [Goal::Build, Goal::Check, Goal::Outline] {
            let mut request = world.request(&stages);
            request.goal = goal;
            let built = build(&engine, request, Arc::new(NoSession)).await;
            let text = match &built.result {
                Ok(result) => result.answer.clone().unwrap().text,
                Err(error) => error.to_string(),
            };
            assert!(
                text.contains("of all stages"),
                "{}",
                text.chars().take(500).collect::<String>()
            );
        }
    });
}
