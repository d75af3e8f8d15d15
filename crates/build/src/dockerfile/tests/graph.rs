use std::collections::BTreeMap;

use super::*;

fn graph(text: &str, target: Option<&str>) -> Result<Graph, Diagnostic> {
    let dockerfile = parse(text);
    let globals = Globals::of(&dockerfile, [], &BTreeMap::new())?;
    dockerfile.graph(&globals, target, &|_| false)
}

#[test]
fn only_what_the_target_needs_is_built() {
    let text = "FROM scratch AS a\nFROM scratch AS b\nFROM a AS c\nCOPY --from=1 / /\nFROM scratch AS d\n\
                RUN --mount=from=c true\n";
    let order = |target| graph(text, target).unwrap().order;
    assert_eq!(order(None), [0, 1, 2, 3]);
    assert_eq!(order(Some("C")), [0, 1, 2]);
    assert_eq!(order(Some("b")), [1]);
    assert_eq!(order(Some("1")), [1]);
    let error = graph(text, Some("bb")).unwrap_err();
    assert_eq!(
        error.message,
        "target stage \"bb\" could not be found (did you mean b?)"
    );
}

#[test]
fn names_of_bases_are_expanded_and_looked_up() {
    let graph = graph(
        "ARG v=2\nFROM debian:$v AS base\nFROM base\nCOPY --from=busybox / /\n",
        None,
    )
    .unwrap();
    assert_eq!(graph.nodes[0].base, Base::Image("debian:2".to_owned()));
    assert_eq!(graph.nodes[1].base, Base::Stage(0));
    assert_eq!(graph.nodes[1].needs, [0]);
}

#[test]
fn a_platform_with_a_misspelt_argument_is_told_which_was_meant() {
    let text = "ARG MY_ARCH=amd64\nFROM --platform=linux/${MYARCH} scratch\n";
    assert_eq!(
        graph(text, None).unwrap_err().message,
        "failed to parse platform linux/${MYARCH}: \"linux/\" is not one (did you mean MY_ARCH?)"
    );
}

#[test]
fn cycles_later_stages_and_blank_bases_are_refused() {
    let error = graph("FROM scratch AS a\nCOPY --from=b / /\nFROM a AS b\n", None).unwrap_err();
    assert_eq!(error.message, "circular dependency detected on stage: a");
    assert_eq!(&*error.help.unwrap(), "Each needs the next: a, b, a.");
    let itself = graph("FROM scratch AS a\nCOPY --from=a / /\n", None).unwrap_err();
    assert_eq!(itself.message, "circular dependency detected on stage: a");
    let later = graph(
        "FROM scratch AS a\nCOPY --from=1 / /\nFROM scratch AS b\n",
        Some("a"),
    )
    .unwrap_err();
    assert_eq!(
        later.message,
        "stage a needs stage b, which has to be defined before it"
    );
    // Nobody asked for it.
    graph("FROM scratch AS a\nCOPY --from=1 / /\nFROM scratch AS b\n", None).unwrap();
    let blank = graph("FROM $nothing\n", None).unwrap_err();
    assert_eq!(blank.message, "base name ($nothing) should not be blank");
    let index = graph("FROM scratch\nCOPY --from=3 / /\n", None).unwrap_err();
    assert_eq!(index.message, "invalid stage index 3");
}

#[test]
fn triggers_of_a_base_stage_bring_what_they_need() {
    let text = "FROM scratch AS tools\nFROM scratch AS base\nONBUILD COPY --from=tools / /\nFROM base\n";
    let graph = graph(text, None).unwrap();
    assert_eq!(graph.nodes[2].needs, [1, 0]);
    assert_eq!(graph.nodes[2].triggers.len(), 1);
    assert_eq!(graph.order, [0, 1, 2]);
}
