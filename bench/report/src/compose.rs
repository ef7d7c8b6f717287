//! Puts the report together: the order of its sections and what each says.
//!
//! Contract: pure; the same [`RunData`] gives the same [`Document`]. The answer comes first, warnings before the
//! figures that they weaken, and every trial of the plan is listed, whatever became of it.
mod algorithms;
mod ceilings;
mod definitions;
pub(crate) mod dispatch;
mod environment;
mod gates;
mod gpus;
pub(crate) mod kinds;
pub(crate) mod learning;
pub(crate) mod nodes;
pub(crate) mod norm_cost;
mod tables;

use environment::gpus as machine_gpus;
use syncmark_record::{Outcome, rows::RepeatRow};

use crate::{
    analyse::{trains, warnings},
    answer::{Answer, answer},
    chart::{
        collectives::collectives,
        compression::accuracy,
        layers::layers,
        memory::memory,
        norm_cost::norm_cost,
        scaling::{efficiency, throughput},
        series::{Facet, facets, series},
        sweeps::sweeps,
        time::time_by_phase,
        timeline::timeline,
        traffic::bytes,
        weak_strong::weak_beside_strong,
    },
    document::{Block, Document, Figure},
    format::count,
    run_data::{RunData, excluded_reason},
    scenario::NORM_COST,
};

type Chart = fn(&RunData, &Facet<'_>) -> Option<Figure>;

/// Composes the whole report.
pub fn compose(data: &RunData) -> Document {
    let answer = answer(data);
    let mut blocks = cautions(data);
    let training: Vec<_> = data.trials.iter().filter(|trial| trains(trial)).collect();
    let facets = facets(&training);
    // Collectives and layers have sections of their own.
    if !facets.is_empty() {
        blocks.push(Block::heading(1, "Results"));
    }
    blocks.extend(
        facets
            .iter()
            .map(|facet| Block::Table(tables::headline(facet))),
    );
    if !facets.is_empty() {
        blocks.push(Block::note(tables::SPREAD_NOTE));
    }
    blocks.extend(comparisons(&answer));
    blocks.extend(beside_training(data, &facets));
    blocks.extend(charts(data, &facets));
    blocks.extend(tables::bytes_section(data, &facets));
    blocks.extend(tables::trials_section(data, &shared_warnings(data)));
    blocks.extend(gates::section(data));
    blocks.extend(gpus::section(data));
    blocks.extend(algorithms::section(data));
    blocks.extend(environment::section(data));
    blocks.extend(definitions::section());
    blocks.extend(reproduce(data));
    Document {
        title: title(data),
        subtitle: subtitle(data),
        question: data.scenario.question.clone(),
        answer: answer.sentences,
        blocks,
    }
}

fn title(data: &RunData) -> String {
    let from_environment = || data.environment.as_ref().map(|e| e.scenario.clone());
    let from_trials = || data.trials.first().map(|trial| trial.scenario.clone());
    let name = Some(data.scenario.name.clone()).filter(|name| !name.is_empty());
    let name = name
        .or_else(from_environment)
        .or_else(from_trials)
        .filter(|name| !name.is_empty());
    name.unwrap_or_else(|| "run without a scenario".into())
}

fn subtitle(data: &RunData) -> String {
    data.environment.as_ref().map_or_else(
        || "environment not recorded".into(),
        |e| {
            let gpus = machine_gpus::named(e.cuda.as_ref(), &data.trials);
            let processors = gpus.into_iter().chain([e.cpu_model.clone()]);
            format!(
                "{} · {} · {} · syncmark {}",
                e.host,
                e.started,
                processors.collect::<Vec<_>>().join(" · "),
                e.syncmark_version
            )
        },
    )
}

/// What a reader must know before any figure.
fn cautions(data: &RunData) -> Vec<Block> {
    let gaps = data.gaps.words().into_iter();
    let mut cautions: Vec<Block> = gaps.map(Block::warning).collect();
    let environment = data.environment.as_ref();
    cautions.extend(machine_gpus::accepted(
        environment.and_then(|e| e.acceptance.as_ref()),
        environment.and_then(|e| e.cuda.as_ref()),
        &data.trials,
    ));
    let excluded = data
        .trials
        .iter()
        .filter(|trial| excluded_reason(trial).is_some())
        .count();
    if excluded > 0 {
        let trials = count(data.trials.len(), "trial");
        cautions.push(Block::warning(format!(
            "No figures of {excluded} of {trials}, which did not end well. The section Trials gives every reason."
        )));
    }
    if data.measured().any(|trial| trial.oversubscribed) {
        cautions.push(Block::warning(
            "Some trials are oversubscribed: more compute threads than cores. Their times show contention for cores, not how a strategy scales; \
             every chart labels them.",
        ));
    }
    if data
        .measured()
        .any(|trial| trial.spread.as_deref() == Some("range"))
    {
        cautions.push(Block::warning(
            "Some trials have fewer than 6 repeats. Their spread is the range of the repeats, not an interval, and no verdict is drawn from it.",
        ));
    }
    cautions.extend(
        shared_warnings(data)
            .into_iter()
            .map(|text| Block::warning(format!("All trials: {text}."))),
    );
    cautions.extend(shaky(data));
    if let Some(load) = data
        .environment
        .as_ref()
        .and_then(syncmark_record::Environment::load_per_core)
        && load > 0.3
    {
        cautions.push(Block::warning(format!(
            "The machine was not idle when the run started: its load average was {load:.2} per usable core.",
        )));
    }
    cautions
}

/// Trials whose figures are shown with a label, and what could not be seen.
fn shaky(data: &RunData) -> Vec<Block> {
    let count = |wanted| data.measured().filter(|t| t.outcome == wanted).count();
    let were = |count: usize| match count {
        1 => "1 trial was".to_owned(),
        _ => format!("{count} trials were"),
    };
    let mut cautions = Vec::new();
    let (unsteady, disturbed) = (count(Outcome::Unsteady), count(Outcome::Disturbed));
    if unsteady > 0 {
        cautions.push(Block::warning(format!(
            "{} unsteady: figures are shown, and the column outcome says which.",
            were(unsteady)
        )));
    }
    if disturbed > 0 {
        cautions.push(Block::warning(format!(
            "{} disturbed: in more than a third of the repeats, other programs or the hypervisor used the ranks' cores, or a GPU was shared or slowed down. Figures are shown \
             with that label, and no verdict is drawn from them.",
            were(disturbed)
        )));
    }
    let mut finished = data
        .repeats
        .iter()
        .filter(|r| r.outcome.has_figures() && times(data, r))
        .peekable();
    if finished.peek().is_some() && finished.all(|repeat| repeat.watched_ns.is_none()) {
        cautions.push(Block::warning(
            "Nobody watched for other load on the ranks' cores: it would be in these figures without a label.",
        ));
    }
    cautions
}

/// Whether a repeat has times that other load could have changed.
fn times(data: &RunData, repeat: &RepeatRow) -> bool {
    let own = data.trials.iter().find(|trial| trial.trial == repeat.trial);
    own.is_none_or(|trial| trial.kind != "learning")
}

/// Warnings that every measured trial carries, such as that of a smoke size.
fn shared_warnings(data: &RunData) -> Vec<&str> {
    let mut all = data.measured().map(warnings);
    let first = all.next().unwrap_or_default();
    all.fold(first, |shared, own| {
        shared
            .into_iter()
            .filter(|text| own.contains(text))
            .collect()
    })
}

fn comparisons(answer: &Answer<'_>) -> Vec<Block> {
    if answer.comparisons.is_empty() {
        return Vec::new();
    }
    vec![
        Block::heading(1, "Comparisons"),
        Block::Table(tables::comparisons(&answer.comparisons)),
    ]
}

/// The kind `norm-cost` is about norms; its other nodes stand in `layers.csv`.
fn cost(data: &RunData) -> (&'static str, Vec<Figure>, Vec<Block>) {
    if data.scenario.kind == NORM_COST {
        ("Cost of norms", norm_cost(data), norm_cost::norms(data))
    } else {
        ("Cost by node", layers(data), nodes::layers(data))
    }
}

/// What belongs to no facet: collectives, nodes, settings that were swept.
fn beside_training(data: &RunData, facets: &[Facet<'_>]) -> Vec<Block> {
    let sections: [(&str, Vec<Figure>, Vec<Block>); 7] = [
        ("Collectives", collectives(data), kinds::collectives(data)),
        cost(data),
        ("Host and device", Vec::new(), dispatch::blocks(data)),
        (
            "Learning",
            crate::chart::learning::learning(data),
            learning::blocks(data),
        ),
        (
            "Weak and strong scaling",
            weak_beside_strong(data, facets),
            Vec::new(),
        ),
        ("What was swept", sweeps(data, facets), Vec::new()),
        (
            "Compressed gradients",
            facets
                .iter()
                .filter_map(|facet| Some(titled(accuracy(data, facet)?, facet)))
                .collect(),
            kinds::compression(data, facets),
        ),
    ];
    let mut blocks = Vec::new();
    for (heading, figures, tables) in sections {
        if figures.is_empty() && tables.is_empty() {
            continue;
        }
        blocks.push(Block::heading(1, heading));
        blocks.extend(figures.into_iter().map(Block::Figure));
        blocks.extend(tables);
    }
    blocks
}

/// More ways to run a model than this on one axis cannot be told apart; the tables have them all.
const MOST_SERIES: usize = 10;

fn charts(data: &RunData, facets: &[Facet<'_>]) -> Vec<Block> {
    const CHARTS: [(&str, Chart); 6] = [
        ("Throughput", throughput),
        ("Efficiency", efficiency),
        ("Time by phase", time_by_phase),
        ("Bytes by phase and direction", bytes),
        ("Timeline of a step", timeline),
        ("Memory", memory),
    ];
    let mut blocks = Vec::new();
    for (heading, chart) in CHARTS {
        let crowded = |facet: &&Facet<'_>| {
            matches!(heading, "Throughput" | "Efficiency") && series(facet).len() > MOST_SERIES
        };
        let figures: Vec<Figure> = facets
            .iter()
            .filter(|facet| !crowded(facet))
            .filter_map(|facet| Some(titled(chart(data, facet)?, facet)))
            .collect();
        if !figures.is_empty() {
            blocks.push(Block::heading(1, heading));
            blocks.extend(figures.into_iter().map(Block::Figure));
        }
    }
    blocks
}

/// Names the facet in a figure's title where there are several.
fn titled(figure: Figure, facet: &Facet<'_>) -> Figure {
    let title = if facet.short.is_empty() {
        figure.title
    } else {
        format!("{}, {}", figure.title, facet.short)
    };
    Figure { title, ..figure }
}

fn reproduce(data: &RunData) -> Vec<Block> {
    let mut blocks = vec![Block::heading(1, "Reproduce")];
    if let Some(environment) = &data.environment {
        blocks.push(Block::paragraph("The run was started with:"));
        let words: Vec<String> = environment
            .command
            .iter()
            .map(|word| quoted(word))
            .collect();
        blocks.push(Block::Code {
            language: Some("sh".into()),
            text: words.join(" "),
        });
    }
    blocks.push(Block::paragraph(
        "This report can be rendered again from the run folder alone, on any machine, with syncmark report and the folder's path. The scenario as run, \
         with every override applied:"
    ));
    if !data.scenario.text.is_empty() {
        blocks.push(Block::Code {
            language: Some("toml".into()),
            text: data.scenario.text.trim_end().into(),
        });
    }
    blocks
}

/// A word as a shell would need it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_for_a_shell_only_where_needed() {
        assert_eq!(
            quoted("scenarios/quickstart.toml"),
            "scenarios/quickstart.toml"
        );
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
