//! Plans of `--profile`: what becomes of a scenario whose models are profiled.
use syncmark::args::ScenarioArgs;
use syncmark::cmd::plan::describe;
use syncmark::error::Status;
use syncmark::plan::backend::Choice;
use syncmark::plan::build::{Request, build};
use syncmark::plan::config::Work;
use syncmark::plan::{Plan, plans};
use syncmark::scenario::preset::SCENARIOS;

fn profile(name: &str, overrides: &[&str]) -> Plan {
    let args = ScenarioArgs {
        scenarios: vec![name.to_owned()],
        overrides: overrides.iter().map(|text| (*text).to_owned()).collect(),
        ..ScenarioArgs::default()
    };
    let plans = plans(&args, true, &|_| Choice::cpu("is a test"));
    plans
        .unwrap_or_else(|error| panic!("{name}: {}", error.render(false)))
        .remove(0)
}

#[test]
fn strategies_and_devices_become_one_profile_of_each_model() {
    let plan = profile("dp-vs-ddp-smoke", &[]);
    insta::assert_snapshot!(describe(&plan));
    assert_eq!(plan.scenario.name, "dp-vs-ddp-smoke-profile");
    assert!(plan.scenario.answer.is_none());
    for trial in &plan.trials {
        assert_eq!(
            (trial.config.work == Work::LayerCost, trial.config.devices),
            (true, 1)
        );
    }
}

#[test]
fn every_shipped_training_scenario_can_be_profiled_and_its_text_reads_back() {
    for (name, text) in SCENARIOS {
        if !text.contains("kind = \"train\"") {
            continue;
        }
        let plan = profile(name, &[]);
        assert!(!plan.trials.is_empty(), "{name}");
        let again = build(&Request {
            name: "again.toml".to_owned(),
            text: plan.toml.clone(),
            ..Request::default()
        })
        .unwrap_or_else(|error| panic!("{name}: {}\n{}", error.render(false), plan.toml));
        let mut ids = [&plan, &again].map(|plan| {
            let ids = plan.trials.iter().map(|trial| trial.id.clone());
            ids.collect::<Vec<_>>()
        });
        ids.iter_mut().for_each(|ids| ids.sort_unstable());
        assert_eq!(ids[0], ids[1], "{name}");
    }
}

#[test]
fn what_is_set_is_set_in_the_profile_too() {
    let plan = profile("quickstart", &["data.batch_size=7", "model.norm=group"]);
    assert_eq!(plan.trials.len(), 1);
    assert_eq!(plan.trials[0].config.batch.global, 7);
    assert!(
        plan.toml
            .starts_with("# quickstart.toml (shipped), as run with --profile --set"),
        "{}",
        plan.toml
    );
}

#[test]
fn only_training_can_be_profiled() {
    for name in ["collectives-smoke", "layer-cost-smoke"] {
        let args = ScenarioArgs {
            scenarios: vec![name.to_owned()],
            ..ScenarioArgs::default()
        };
        let error =
            plans(&args, true, &|_| Choice::cpu("is a test")).expect_err("it does not train");
        assert_eq!(error.status(), Status::Usage);
        let text = error.render(false);
        assert!(
            text.contains("only a scenario of kind `train` can be profiled")
                && text.contains("leave --profile out"),
            "{text}"
        );
    }
}
