//! What NVIDIA's libraries took for a rank's operations, told at the end of its repeat.
//!
//! Contract: after the last pass that uses them and outside of all that is timed, so that making words of it costs nothing that counts.
use syncmark_engine::backend::cuda::choice::Choice;

use super::build::Participant;
use crate::run::spool::{Event, pieces};

/// Spools what each device's libraries took; nothing on CPUs.
pub(super) fn tell(participant: &mut Participant) {
    let first = participant.device;
    let devices = participant.strategy.choices();
    for (index, choices) in devices.into_iter().enumerate() {
        for (number, choice) in (0..u16::MAX).zip(&choices) {
            for piece in pieces((first + index) as u16, number, &text(choice)) {
                participant.spool.push(Event::Choice(piece));
            }
        }
    }
}

/// As [`Event::Choice`] has it. Names of libraries have no tabs.
pub(in crate::run) fn text(choice: &Choice) -> String {
    let workspace = choice.workspace_bytes.to_string();
    let deterministic = match choice.deterministic {
        true => "deterministic",
        false => "",
    };
    let fields = [
        choice.library,
        choice.operation,
        &choice.shape,
        &choice.algorithm,
        &workspace,
        deterministic,
        &choice.math,
    ];
    fields.join("\t") + "\n"
}
