//! Schedules against the rates that PyTorch's schedulers give, and a fixture's optimizer and schedule as the engine's.
use serde_json::Value;
use syncmark_engine::optim::{AdamwSettings, OptimizerSettings, Schedule, SgdSettings};

use crate::fixture::{self, Fixture};

/// PyTorch multiplies its rates step by step in f64, ours is a closed form that is rounded to f32 once, from a base rate
/// that was rounded to f32: two roundings of f32, and nothing of f64's.
const TOLERANCE: f64 = 2.0 * f32::EPSILON as f64;

/// The optimizer of a fixture.
pub fn optimizer(fixture: &Fixture) -> OptimizerSettings {
    let (learning_rate, weight_decay) =
        (fixture.json("learning_rate"), fixture.json("weight_decay"));
    let settings = if fixture.says("optimizer") {
        assert_eq!(fixture.text("optimizer"), "adamw", "{}", fixture.name);
        OptimizerSettings::adamw(AdamwSettings {
            learning_rate,
            beta1: fixture.json("beta1"),
            beta2: fixture.json("beta2"),
            eps: fixture.json("eps"),
            weight_decay,
        })
    } else {
        OptimizerSettings::sgd(SgdSettings {
            learning_rate,
            momentum: fixture.json("momentum"),
            weight_decay,
            nesterov: fixture.says("nesterov"),
        })
    };
    OptimizerSettings {
        schedule: schedule(fixture),
        ..settings
    }
}

/// The schedule of a fixture; constant where it names none.
fn schedule(fixture: &Fixture) -> Schedule {
    if !fixture.says("schedule") {
        return Schedule::Constant;
    }
    let value: Value = fixture.json("schedule");
    if value == "constant" {
        return Schedule::Constant;
    }
    let (kind, keys) = value
        .as_object()
        .and_then(|object| object.iter().next())
        .expect("a kind of schedule");
    let count = |key: &str| keys[key].as_u64().expect("a count");
    let number = |key: &str| keys[key].as_f64().expect("a number");
    match kind.as_str() {
        "warm-up" => Schedule::WarmUp {
            steps: count("steps"),
            start: number("start"),
        },
        "step" => Schedule::Step {
            every: count("every"),
            factor: number("factor"),
        },
        "cosine" => Schedule::Cosine {
            steps: count("steps"),
            warm_up_steps: count("warm_up_steps"),
            minimum: number("minimum"),
        },
        other => panic!("{}: schedule {other}", fixture.name),
    }
}

#[test]
fn rates_are_those_of_pytorchs_schedulers() {
    for fixture in fixture::of_kind("schedule") {
        let (base, schedule): (f32, _) = (fixture.json("learning_rate"), schedule(&fixture));
        let expected = &fixture.tensor("rates").values;
        assert!(expected.len() >= 40, "{}", fixture.name);
        for (step, expected) in expected.iter().enumerate() {
            let rate = f64::from(schedule.rate(base, step as u64));
            assert!(
                (rate - expected).abs() <= TOLERANCE * f64::from(base),
                "{}[{step}]: {rate} is not {expected}",
                fixture.name
            );
        }
    }
}
