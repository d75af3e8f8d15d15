use super::*;

#[test]
fn what_is_wrong_is_shown_with_a_caret_and_what_to_do() {
    let error = error("FROM scratch\nRUM echo hello\nCMD [\"true\"]\n");
    assert_eq!(
        error.to_string(),
        "Dockerfile:2: unknown instruction: RUM (did you mean RUN?)"
    );
    let expected = "Dockerfile:2\n--------------------\n   1 |     FROM scratch\n   2 | >>> RUM echo hello\n     \
                    |     ^^^\n   3 |     CMD [\"true\"]\n--------------------\n";
    assert!(
        error.excerpt(false).starts_with(expected),
        "{}",
        error.excerpt(false)
    );
    assert!(error.excerpt(true).contains("\x1b[1;31m^^^\x1b[0m"));
    let flag = super::error("FROM scratch\nCOPY --form=a \\\n  b c\n");
    assert_eq!(flag.message, "unknown flag: --form (did you mean from?)");
    assert!(
        flag.excerpt(false)
            .contains("| >>> COPY --form=a \\\n     |          ^^^^^^\n"),
        "{}",
        flag.excerpt(false)
    );
}
