//! What a plan says, and what it refuses.

use espalier_models::{source::Seed, spec::ModelSpec};
use espalier_train::token_count::TokenCount;

use super::{telling::say_plan, *};
use crate::stages::Voice;

struct Said(Vec<String>);

impl Voice for Said {
    fn say(&mut self, line: &str) {
        self.0.push(line.to_owned());
    }

    fn progress(&mut self, _: &str, _: usize, _: usize, _: &str) {}
}

fn planned(memory: u64, activations: u64) -> Plan {
    Plan {
        parameters: 1000,
        trainable: 1000,
        samples: 100,
        steps: 10,
        tokens: TokenCount {
            real: 100,
            learned: 100,
            padding: 100,
        },
        memory,
        activations,
        data: 0,
        largest_batch: [64, 300],
        seconds: 1.0,
    }
}

#[test]
fn like_lengths_are_advised_where_batches_have_several_rows() {
    let advised = |options: TrainOptions| {
        let mut said = Said(Vec::new());
        say_plan(&planned(0, 0), &options, &mut said);
        said.0.iter().any(|line| line.contains("group_by_length"))
    };
    let usual = TrainOptions::default();
    assert!(advised(usual.clone()));
    for options in [
        TrainOptions {
            batch: 1,
            ..usual.clone()
        },
        TrainOptions {
            packing: true,
            ..usual.clone()
        },
        TrainOptions {
            group_by_length: true,
            ..usual
        },
    ] {
        assert!(!advised(options));
    }
}

#[test]
fn a_plan_beyond_the_memory_is_refused_with_what_takes_it() {
    let device = Device::flex();
    let spec = ModelSpec::llama(64, 16, 1, 2, 1, 32, 32);
    let mut model = LanguageModel::build(spec, &mut Seed(0), &device).unwrap();
    model.set_trainable(|_| true);
    let options = TrainOptions {
        batch: 4096,
        ..TrainOptions::default()
    };
    let refused = |plan: Plan| {
        let error = check_memory(&plan, &model, &options, &device).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    assert!(check_memory(&planned(1 << 20, 1 << 19), &model, &options, &device).is_ok());
    let said = refused(planned(1 << 60, 1 << 60));
    assert!(
        said.starts_with(
            "`batch` = 4096: a forward pass of 64 rows of up to 300 tokens takes about 1024 PiB of memory, but this machine has "
        ),
        "{said}"
    );
    let said = refused(Plan {
        largest_batch: [1, 300],
        ..planned(1 << 60, 1 << 60)
    });
    assert!(
        said.starts_with("`length` = 1024: a forward pass of one text of 300 tokens takes about"),
        "{said}"
    );
    let said = refused(planned(1 << 60, 1 << 20));
    assert!(
        said.starts_with(
            "training 1.00 k parameters, with gradients and the optimiser's state, takes about"
        ),
        "{said}"
    );
    // What is frozen may stay in its file.
    model.set_trainable(|_| false);
    let frozen = model.parameters().iter().map(|p| p.bytes()).sum::<usize>() as u64;
    let total = memory::MachineMemory::look().total;
    let plan = planned(total + frozen, 0);
    assert!(check_memory(&plan, &model, &options, &device).is_ok());
}
