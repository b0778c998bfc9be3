use super::*;

const ATTACK: &str = "<script>alert(\"1\" + '2')</script> & \u{1b}[31m";

/// A report that says the attack wherever it can say anything.
fn hostile() -> Report {
    let text = || ATTACK.to_string();
    let chart = Chart {
        title: text(),
        x_label: text(),
        y_label: text(),
        log_y: true,
        series: vec![Series {
            name: text(),
            points: vec![(0.0, 1.0), (1.0, 0.1)],
        }],
    };
    let table = Table {
        title: text(),
        note: text(),
        columns: vec![text()],
        rows: vec![vec![text()]],
    };
    let conversation = Conversation {
        title: text(),
        turns: vec![(text(), text())],
        verdict: Some(true),
    };
    Report {
        title: text(),
        subtitle: text(),
        facts: vec![(text(), text())],
        sections: vec![
            Section::Chart(chart),
            Section::Table(table),
            Section::Conversations(vec![conversation]),
            Section::Highlights(vec![Highlight {
                name: text(),
                value: text(),
                note: text(),
                better: Some(true),
            }]),
            Section::Samples {
                title: text(),
                note: text(),
                samples: vec![Sample {
                    title: text(),
                    question: text(),
                    expected: text(),
                    answers: vec![Answered {
                        by: text(),
                        text: text(),
                        right: Some(false),
                    }],
                }],
            },
            Section::Details {
                title: text(),
                sections: vec![Section::Grid {
                    title: text(),
                    note: text(),
                    sections: vec![Section::Bars(Bars {
                        title: text(),
                        note: text(),
                        bars: vec![Bar {
                            name: text(),
                            text: text(),
                            ..Bar::default()
                        }],
                    })],
                }],
            },
            Section::Text {
                title: text(),
                body: format!("{ATTACK}\n\n{ATTACK}"),
            },
        ],
    }
}

#[test]
fn all_text_is_escaped() {
    let html = hostile().html().unwrap();
    assert!(!html.contains("<script"), "{html}");
    assert!(!html.contains('\u{1b}'));
    let places = html
        .matches("&lt;script&gt;alert(&quot;1&quot; + &#39;2&#39;)&lt;/script&gt; &amp; ")
        .count();
    assert!(places >= 34, "{places}");
}

#[test]
fn nothing_comes_from_outside() {
    let html = hostile().html().unwrap();
    for outside in ["src=", "href=", "@import", "url(", "<link"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("default-src 'none'"));
    assert_eq!(
        html.matches("http").count(),
        html.matches("http-equiv").count() + html.matches("xmlns").count()
    );
}

#[test]
fn sections_keep_their_order_and_verdicts_show() {
    let said = |verdict| Conversation {
        title: "t".into(),
        turns: vec![("assistant".into(), "a\nb".into())],
        verdict,
    };
    let text = |title: &str| Section::Text {
        title: title.into(),
        body: "one\n\ntwo".into(),
    };
    let report = Report {
        sections: vec![
            text("first"),
            Section::Conversations(vec![said(Some(true)), said(Some(false)), said(None)]),
            text("last"),
        ],
        ..Report::default()
    };
    let html = report.html().unwrap();
    let places = ["<h2>first</h2>", "✓ right", "✗ wrong", "<h2>last</h2>"]
        .map(|part| html.find(part).unwrap());
    assert!(places.is_sorted());
    assert_eq!(html.matches("class=\"verdict").count(), 2);
    assert_eq!(html.matches("class=\"turn model\"").count(), 3);
    assert!(html.contains("<p>one</p>\n<p>two</p>") && html.contains("a\nb"));
    assert!(!html.contains("<dl"));
}

#[test]
fn writing_replaces_the_page_and_leaves_nothing_beside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    std::fs::write(&path, "old").unwrap();
    let report = hostile();
    report.write(&path).unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        report.html().unwrap()
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let absent = folder.path().join("absent").join("report.html");
    let complaint = report.write(&absent).unwrap_err().to_string();
    assert!(
        complaint.starts_with(&format!("{}: ", absent.display())),
        "{complaint}"
    );
}
