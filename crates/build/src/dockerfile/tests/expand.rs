use super::*;

fn lookup(name: &str) -> Option<String> {
    let value = match name {
        "a" => "value",
        "empty" => "",
        "path" => "/usr/local/lib/x.tar.gz",
        "words" => "one  two",
        _ => return None,
    };
    Some(value.to_owned())
}

fn word(text: &str) -> Result<String, String> {
    let expanded = Lexer::new('\\').word(text, &mut lookup);
    expanded
        .map(|expanded| expanded.text)
        .map_err(|error| error.reason)
}

#[test]
fn all_modifiers() {
    for (text, expected) in [
        ("$a", "value"),
        ("${a}b$a", "valuebvalue"),
        ("$unset.", "."),
        ("$", "$"),
        (
            "${a:-x} ${empty:-x} ${empty-x} ${unset:-x} ${unset-x}",
            "value x  x x",
        ),
        ("${a:+x} ${empty:+x} ${empty+x} ${unset:+x} ${unset+x}", "x  x  "),
        ("${a:?x}${a?x}${empty?x}", "valuevalue"),
        ("${path#*/} ${path##*/}", "usr/local/lib/x.tar.gz x.tar.gz"),
        ("${path%.*} ${path%%.*}", "/usr/local/lib/x.tar /usr/local/lib/x"),
        (
            "${path/l/L} ${path//l/L}",
            "/usr/Local/lib/x.tar.gz /usr/LocaL/Lib/x.tar.gz",
        ),
        (
            "${path/\\/usr/X} ${path//[/]/} ${a/?l/_}",
            "X/local/lib/x.tar.gz /usr/local/lib/x.tar.gz v_ue",
        ),
        ("${unset:-${a:-${unset}}} ${unset:-\"a b\"}", "value a b"),
        ("\"$a '$a'\" '$a' \\$a \"\\$a\" \\\"", "value 'value' $a $a $a \""),
        ("a\\b \"a\\b\" 'a\\b'", "ab a\\b a\\b"),
        ("${words}", "one  two"),
        ("$1$@$# ${10}", " "),
    ] {
        assert_eq!(word(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_wrong_says_so() {
    for (text, expected) in [
        ("${", "syntax error: missing '}'"),
        ("${a", "syntax error: missing '}'"),
        ("${a:-b", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${:-x}", "syntax error: bad substitution"),
        ("${a!b}", "unsupported modifier (!) in substitution"),
        ("${a:#b}", "unsupported modifier (:#) in substitution"),
        ("${a:=b}", "unsupported modifier (:=) in substitution"),
        ("${a/b}", "syntax error: missing '/' in ${}"),
        ("${unset:?has to be set}", "unset: has to be set"),
        ("${unset?}", "unset: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        (
            "'a",
            "unexpected end of statement while looking for matching single-quote",
        ),
        (
            "\"a",
            "unexpected end of statement while looking for matching double-quote",
        ),
        (
            "${a#\\x}",
            "invalid pattern (\\x) in substitution: invalid escape '\\x'",
        ),
    ] {
        assert_eq!(
            word(text).as_ref().map_err(String::as_str),
            Err(expected),
            "{text}"
        );
    }
    assert!(
        word(&"${a:-".repeat(1000))
            .unwrap_err()
            .contains("64 substitutions")
    );
    let doubled = "$a".repeat(MAX / 4);
    assert!(word(&doubled).unwrap_err().contains("is longer than"));
}

const MAX: usize = crate::dockerfile::expand::MAX_EXPANDED;

#[test]
fn words_fall_apart_where_nothing_is_quoted() {
    let words = |text| Lexer::new('\\').words(text, &mut lookup).unwrap();
    assert_eq!(
        words("80 $words \"$words\" x${empty:-y}z"),
        ["80", "one", "two", "one  two", "xyz"]
    );
    assert_eq!(words("<< EOF cat"), ["<< EOF", "cat"]);
}

#[test]
fn what_was_asked_for_is_told() {
    let expanded = Lexer::new('`')
        .word("$a `$b ${c:-$d} ${e:+$f}", &mut lookup)
        .unwrap();
    assert_eq!(expanded.text, "value $b  ");
    assert_eq!(expanded.used.into_iter().collect::<Vec<_>>(), ["a"]);
    assert_eq!(
        expanded.undefined.into_iter().collect::<Vec<_>>(),
        ["c", "d", "e", "f"]
    );
    let heredoc = Lexer::heredoc().word("'$a' \"$a\" \\$a", &mut lookup).unwrap();
    assert_eq!(heredoc.text, "'value' \"value\" $a");
}

#[test]
fn instructions_expand_what_buildkit_expands() {
    let text = "ENV k$a=$a x=$k\nRUN $a\nCMD $a\nUSER $a\nEXPOSE $words 80\nONBUILD RUN $a\n\
                COPY --from=x --chown=$a --exclude=$a $a <<f <<'g' /$a\n$a\nf\n$a\ng\nVOLUME $a [$a]\nHEALTHCHECK CMD $a\n";
    let expanded: Vec<Command> = commands(text)
        .iter()
        .map(|command| command.expanded(&Lexer::new('\\'), &mut lookup).unwrap().command)
        .collect();
    let literal = commands(
        "ENV kvalue=value x=\nRUN $a\nCMD $a\nUSER value\nEXPOSE one two 80\nONBUILD RUN $a\n\
         COPY --from=x --chown=value --exclude=$a value <<f <<'g' /value\nvalue\nf\n$a\ng\nVOLUME value [value]\n\
         HEALTHCHECK CMD $a\n",
    );
    let mut sorted = expanded;
    for command in &mut sorted {
        if let Command::Expose(ports) = command {
            ports.sort();
        }
    }
    assert_eq!(sorted, literal);
}
