//! Numbers at the ends of what 128 bits hold, divisions as Python does them, and what wide texts cost.

use super::*;

/// The smallest whole number of 128 bits, which no literal can say.
const LEAST: &str = "(-170141183460469231731687303715884105727 - 1)";

fn reason(source: &str) -> String {
    render(source, &[]).unwrap_err().to_string()
}

#[test]
fn divisions_are_pythons() {
    let cases = [
        ("1.0", "//", "0.1", "9.0"),
        ("-7.5", "//", "2", "-4.0"),
        ("6.0", "//", "2", "3.0"),
        ("-1.0", "//", "3.0", "-1.0"),
        ("0.0", "//", "-3.0", "-0.0"),
        ("-4.0", "%", "2.0", "0.0"),
        ("4.0", "%", "-2.0", "-0.0"),
        ("5.5", "%", "-2", "-0.5"),
        ("-7", "//", "2", "-4"),
        ("-7", "%", "3", "2"),
        ("7", "%", "-3", "-2"),
    ];
    for (left, operator, right, expected) in cases {
        // The engine itself computes what stands there as numbers.
        let source = format!(
            "{{% set left = {left} %}}{{% set right = {right} %}}{{{{ left {operator} right }}}}"
        );
        assert_eq!(text(&source), expected, "{left} {operator} {right}");
    }
}

#[test]
fn numbers_at_the_ends_are_right() {
    let cases = [
        (format!("{LEAST} % 3"), "1"),
        (format!("{LEAST} % -1"), "0"),
        (
            format!("{LEAST} // 1"),
            "-170141183460469231731687303715884105728",
        ),
        (
            "(9 * 10 ** 37)|round(-38)".to_owned(),
            "100000000000000000000000000000000000000",
        ),
        (
            "'170141183460469231731687303715884105727'|int".to_owned(),
            "170141183460469231731687303715884105727",
        ),
        ("'12.9'|int".to_owned(), "12"),
        ("'inf'|int(7)".to_owned(), "7"),
        ("'-z'|int(7, 36)".to_owned(), "-35"),
    ];
    for (expression, expected) in cases {
        assert_eq!(
            text(&format!("{{{{ {expression} }}}}")),
            expected,
            "{expression}"
        );
    }
}

#[test]
fn what_128_bits_do_not_hold_is_an_error() {
    let too_large = [
        format!("{LEAST} // -1"),
        format!("{LEAST} - 1"),
        format!("{LEAST}|round(-38)"),
        "'170141183460469231731687303715884105728'|int".to_owned(),
        "1e39|int".to_owned(),
        "'1e39'|int".to_owned(),
        "'%d' % 1e39".to_owned(),
        "10 ** 39".to_owned(),
    ];
    for expression in too_large {
        let reason = reason(&format!("{{{{ {expression} }}}}"));
        assert!(reason.contains("beyond 128 bits"), "{expression}: {reason}");
    }
    assert!(reason("{% set ten = 10.0 %}{{ ten ** 400 }}").contains("beyond the largest number"));
    assert!(reason("{{ 1e300|round(20, 'ceil') }}").contains("cannot be rounded"));
    assert!(reason("{{ range(-9223372036854775807, 9223372036854775807) }}").contains("too large"));
}

#[test]
fn items_of_lists_are_found_between_places() {
    assert_eq!(text("{{ ['a', 'b', 'a'].index('a', 1) }}"), "2");
    assert_eq!(text("{{ ['a', 'b', 'a'].index('a', -1, 3) }}"), "2");
    assert_eq!(text("{{ [none, 1].index(none) }}"), "0");
    assert!(reason("{{ ['a', 'b'].index('a', 1, 2) }}").contains("no such item"));
}

#[test]
fn what_is_wide_is_paid_for_once() {
    let many =
        |body: &str| format!("{{% for i in range(60000) %}}{{% set x = {body} %}}{{% endfor %}}ok");
    let costly = "more than any conversation asks for";
    assert!(reason(&many("'1'.zfill(9999)")).contains(costly));
    assert!(reason(&many("'{:9999}'.format('a')")).contains(costly));
    assert!(reason(&many("'%9999s' % 'a'")).contains(costly));
    let large = "{% set a = range(10000)|list %}{% set b = [a, a] %}";
    let looked = many("[b, b].count(1)").replace("60000", "2000");
    assert!(reason(&format!("{large}{looked}")).contains(costly));
    // A short field costs what it writes, not what the widest one could take.
    assert_eq!(text(&many("'{}: {}'.format('a', i)")), "ok");
    assert_eq!(text(&many("'%s: %s' % ('a', i)")), "ok");
}
