//! Rotary keys in all their forms.

use super::*;

fn parse(text: &str) -> Result<RotarySpec> {
    read(&Config::parse("config.json".as_ref(), text)?, 8, 2048)
}

#[test]
fn old_and_new_forms_agree() {
    let new =
        parse(r#"{"rope_parameters":{"rope_theta":5e5,"rope_type":"linear","factor":2}}"#).unwrap();
    for scaling in [
        r#"{"type":"linear","factor":2.0}"#,
        r#"{"rope_type":"linear","factor":2.0}"#,
    ] {
        assert_eq!(
            parse(&format!(
                r#"{{"rope_theta":500000,"rope_scaling":{scaling}}}"#
            ))
            .unwrap(),
            new
        );
    }
    let nested = r#"{"rope_parameters":{"full_attention":{"rope_theta":5e5,"rope_type":"linear","factor":2}}}"#;
    assert_eq!(parse(nested).unwrap(), new);
    assert_eq!(
        parse(r#"{"rope_scaling":null}"#).unwrap(),
        RotarySpec {
            dim: 8,
            theta: 1e4,
            interleaved: false,
            scaling: RotaryScaling::None
        }
    );
}

#[test]
fn a_share_of_the_head_counts_where_the_family_has_one() {
    let both = r#"{"partial_rotary_factor":0.25,"rope_parameters":{"rope_type":"default","partial_rotary_factor":0.5}}"#;
    let config = Config::parse("config.json".as_ref(), both).unwrap();
    assert_eq!(read(&config, 8, 2048).unwrap().dim, 4);
    assert_eq!(read_whole(&config, 8, 2048).unwrap().dim, 8);
    config.refuse_unread().unwrap();
}

#[test]
fn yarn_resolves_its_attention_factor() {
    let factor = |extra: &str| {
        let text = format!(
            r#"{{"rope_scaling":{{"type":"yarn","original_max_position_embeddings":512{extra}}}}}"#
        );
        match parse(&text).unwrap().scaling {
            RotaryScaling::Yarn {
                factor,
                attention_factor,
                ..
            } => (factor, attention_factor),
            other => panic!("{other:?}"),
        }
    };
    let near = |left: f64, right: f64| (left - right).abs() < 1e-7;
    assert_eq!(factor("").0, 4.0);
    assert!(near(factor("").1, 1.138_629_4));
    assert_eq!(factor(r#","factor":4,"attention_factor":0.5"#), (4.0, 0.5));
    assert!(near(factor(r#","mscale":1,"mscale_all_dim":1"#).1, 1.0));
    assert!(near(
        factor(r#","mscale":0.707,"mscale_all_dim":0"#).1,
        1.138_629_4
    ));
    assert!(near(
        factor(r#","mscale":2,"mscale_all_dim":1"#).1,
        1.277_258_87 / 1.138_629_44
    ));
    assert_eq!(factor(r#","factor":1"#), (1.0, 1.0));
}

#[test]
fn the_outer_original_length_wins() {
    let text = r#"{"original_max_position_embeddings":64,"rope_scaling":{"type":"yarn","original_max_position_embeddings":512}}"#;
    assert!(matches!(
        parse(text).unwrap().scaling,
        RotaryScaling::Yarn {
            original_context: 64,
            ..
        }
    ));
    let text =
        r#"{"rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4}}"#;
    assert!(matches!(
        parse(text).unwrap().scaling,
        RotaryScaling::Llama3 {
            original_context: 2048,
            ..
        }
    ));
}

#[test]
fn shares_lead_back_to_their_channels() {
    for head_dim in 1..=300 {
        for dim in 1..=head_dim {
            assert_eq!((head_dim as f64 * share(dim, head_dim)) as usize, dim);
        }
    }
}

#[test]
fn wrong_parameters_name_their_key() {
    let cases = [
        (
            r#"{"rope_scaling":{"type":"dynamic"}}"#,
            "key `rope_scaling.factor`: missing",
        ),
        (
            r#"{"rope_parameters":{"rope_type":"longrope"}}"#,
            "`rope_parameters.short_factor`: expected 4 numbers",
        ),
        (
            r#"{"rope_scaling":{"type":"liner","factor":2}}"#,
            "unknown rope_type `liner`",
        ),
        (
            r#"{"rope_scaling":{"type":"linear"}}"#,
            "key `rope_scaling.factor`: missing",
        ),
        (
            r#"{"rope_scaling":{"type":"linear","factor":-2}}"#,
            "expected a positive number, found -2",
        ),
        (
            r#"{"rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4}}"#,
            "must be above",
        ),
        (r#"{"rope_theta":1}"#, "key `rope_theta`"),
        (
            r#"{"partial_rotary_factor":0.4}"#,
            "even number of channels",
        ),
        (
            r#"{"partial_rotary_factor":1e300}"#,
            "even number of channels",
        ),
        (r#"{"rope_parameters":[1]}"#, "expected an object"),
    ];
    for (text, part) in cases {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let original_context = 512;
    let scalings = [
        RotaryScaling::None,
        RotaryScaling::Linear { factor: 3.5 },
        RotaryScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context,
        },
        RotaryScaling::Yarn {
            factor: 4.0,
            original_context,
            beta_fast: 16.0,
            beta_slow: 2.0,
            attention_factor: 1.25,
            truncate: false,
        },
        RotaryScaling::Dynamic {
            factor: 2.0,
            original_context: 2048,
        },
        RotaryScaling::LongRope {
            short: vec![1.0, 1.5],
            long: vec![2.0, 3.0],
            original_context,
            attention_factor: 1.19,
        },
    ];
    for (dim, scaling) in [8, 4, 8, 2, 8, 4].into_iter().zip(scalings) {
        let rotary = RotarySpec {
            dim,
            theta: 1e6,
            interleaved: false,
            scaling,
        };
        let map = Map::from_iter([("rope_parameters".to_owned(), write(&rotary, 8))]);
        assert_eq!(
            read(&Config::from_map("config.json".as_ref(), map), 8, 2048).unwrap(),
            rotary
        );
    }
}
