//! The passes of a measured repeat: warm-up, window, the paired arm without synchronization, tracing.
//!
//! What may bias the figures, and what is done about it, stands in METHODOLOGY.md; the rules that this file keeps are:
//! every pass starts from the same snapshot of parameters and with the same lead-in; no pass but the traced one records
//! an event or synchronizes inside a step; a pass is timed from a barrier until this rank's device has finished.
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use syncmark_engine::comm::{Collective, Count};
use syncmark_engine::probe::{Phase, PhaseSpan, Probe, Silent, Track, now_ns};
use syncmark_record::rows::Pass;

use super::build::Participant;
use super::witness::Witness;
use super::{RankError, choices, dispatch, say};
use crate::run::protocol::{Assignment, Message};
use crate::run::recorder::{ALGORITHMS, COLLECTIVES, pass_number};
use crate::run::spool::{CommEvent, Event, Writer};
use crate::scenario::file::Compression;

/// By how much a window is planned longer than `min_time` asks: a clock that rises after the warm-up may not cut it short.
const MARGIN: f64 = 1.05;

/// Steps before each pass that are not counted: caches and branch predictors see the pass's own code.
const LEAD_IN_STEPS: u64 = 3;

/// Steps whose compressed gradients are compared with exact ones.
const CHECKED_STEPS: u64 = 5;

/// Runs all passes.
///
/// # Errors
/// The first failure of this rank.
pub fn run(
    assignment: &Assignment,
    mut participant: Participant,
    unsynchronized_first: bool,
) -> Result<(), RankError> {
    let measure = &assignment.trial.measure;
    let steps = plan_window(assignment, &mut participant)?;
    let mut passes = vec![Pass::Window];
    if measure.unsynchronized {
        passes.insert(usize::from(!unsynchronized_first), Pass::Unsynchronized);
    }
    let mut witness = Witness::new(assignment, participant.device);
    for pass in passes {
        timed_pass(&mut participant, pass, steps, &mut witness)?;
    }
    // A graph is one piece: nobody could tell phases within it, and a step without it is another one.
    if measure.trace_steps > 0 && !assignment.trial.cuda_graph {
        traced_pass(&mut participant, measure.trace_steps as u64)?;
    }
    if dispatch::is_told(assignment) {
        dispatch::pass(&mut participant, measure.trace_steps as u64)?;
    }
    // Before the pass that holds exact gradients beside compressed ones, which no training does.
    memory(&mut participant);
    if compression(assignment) != Compression::None {
        checked_pass(assignment, &mut participant)?;
    }
    choices::tell(&mut participant);
    Ok(())
}

/// Warms up, and gives the steps of a window.
pub(super) fn plan_window(
    assignment: &Assignment,
    participant: &mut Participant,
) -> Result<u64, RankError> {
    let measure = &assignment.trial.measure;
    let step_time = warm_up(assignment, participant)?;
    let window_ns = MARGIN * measure.min_time_ns as f64;
    let planned = (window_ns / step_time.as_nanos().max(1) as f64).ceil() as u64;
    participant.agree(planned.max(measure.steps as u64))
}

/// Steps before the snapshot that every pass begins with: a number that no clock has a say in, so that losses and errors of
/// gradients are of the same moment of training in every repeat. PowerSGD is at work by then.
fn steps_before_snapshot(assignment: &Assignment) -> u64 {
    let start = match compression(assignment) {
        Compression::Powersgd(power) => power.start_step,
        Compression::None | Compression::Fp16 | Compression::Bf16 => 0,
    };
    assignment.trial.measure.warmup_steps.max(3).max(start) as u64
}

/// Steps until `warmup_steps` and `warmup_time` are both reached; returns the shortest time of a step in it, so that a
/// window planned with it is rather too long than too short. Rank 0 alone looks at the clock, so that all ranks take
/// equally many steps.
fn warm_up(assignment: &Assignment, participant: &mut Participant) -> Result<Duration, RankError> {
    let measure = &assignment.trial.measure;
    let began = now_ns();
    let (mut done, mut steps) = (0, participant.agree(steps_before_snapshot(assignment))?);
    let mut shortest = u64::MAX;
    while steps > 0 {
        let begin = now_ns();
        let mut last = begin;
        let mut quickest = u64::MAX;
        for _ in 0..steps {
            participant.step(&mut Silent)?;
            let now = now_ns();
            quickest = quickest.min(now - last);
            last = now;
        }
        participant.strategy.finish()?;
        let now = now_ns();
        if done == 0 {
            participant.remember()?;
        }
        let mean = ((now - begin) / steps).max(1);
        // Where steps are enqueued, the host is done with one long before the device is: half the mean bounds that.
        shortest = shortest.min(quickest.max(mean / 2));
        done += steps;
        participant.spool.beat(now);
        let left = measure.warmup_time_ns.saturating_sub(now - began);
        // At most as many again as were taken so far: the first steps are slow and would mislead the estimate.
        steps = participant.agree(left.div_ceil(mean).min(done))?;
    }
    participant.spool.push(Event::Warmup { steps: done });
    Ok(Duration::from_nanos(shortest))
}

/// A timed pass: the window, or its arm without synchronization.
pub(super) fn timed_pass(
    participant: &mut Participant,
    pass: Pass,
    steps: u64,
    witness: &mut Witness,
) -> Result<(), RankError> {
    let synchronized = pass == Pass::Window;
    lead_in(participant, pass, steps, synchronized)?;
    let number = pass_number(pass);
    let before = witness.begin(number);
    participant.barrier()?;
    let (start, mut samples) = (now_ns(), 0);
    let mut begin = start;
    for step in 0..steps {
        let batch = participant.step(&mut Silent)?;
        let end = now_ns();
        samples += batch;
        participant.spool.push(Event::Step {
            pass: number,
            step,
            start_ns: begin,
            end_ns: end,
            samples: batch,
        });
        participant.spool.beat(end);
        begin = end;
    }
    participant.strategy.finish()?;
    participant.spool.push(Event::Pass {
        pass: number,
        steps,
        samples,
        start_ns: start,
        end_ns: now_ns(),
    });
    let used = witness.end(&before);
    used.into_iter()
        .for_each(|event| participant.spool.push(event));
    if synchronized {
        after_window(participant, steps)?;
    } else {
        // Arithmetic with NaN has another speed: the arm's time would say nothing about the window's.
        finite(participant.strategy.loss()?, pass, steps)?;
    }
    participant.strategy.set_synchronize(true);
    Ok(())
}

/// Whether training stayed within the numbers.
fn finite(loss: f32, pass: Pass, step: u64) -> Result<(), RankError> {
    let pass = match pass {
        Pass::Unsynchronized => " of the arm without synchronization",
        _ => "",
    };
    if loss.is_finite() {
        Ok(())
    } else {
        Err(RankError::Diverged { loss, step, pass })
    }
}

/// Back to the snapshot, a few uncounted steps, counters to zero: all that is left to do is to meet at the starting line.
pub(super) fn lead_in(
    participant: &mut Participant,
    pass: Pass,
    steps: u64,
    synchronized: bool,
) -> Result<(), RankError> {
    if participant.first_rank {
        let name = serde_json::to_value(pass)
            .expect("a pass has a name")
            .as_str()
            .unwrap_or_default()
            .to_owned();
        say(&Message::Pass { name, steps });
    }
    participant.go_back()?;
    participant.strategy.set_synchronize(synchronized);
    participant.capture_ahead()?;
    for _ in 0..LEAD_IN_STEPS {
        participant.step(&mut Silent)?;
    }
    participant.strategy.finish()?;
    participant.strategy.reset_counts();
    Ok(())
}

/// What is read back once the window is over: its counters, the loss, and whether the ranks still agree.
fn after_window(participant: &mut Participant, steps: u64) -> Result<(), RankError> {
    counts(participant, steps);
    let loss = participant.strategy.loss()?;
    participant.spool.push(Event::Loss {
        step: steps,
        loss: f64::from(loss),
    });
    if let Some(equal) = participant.strategy.parameters_equal()? {
        participant.spool.push(Event::ParametersEqual { equal });
    }
    finite(loss, Pass::Window, steps)
}

fn counts(participant: &mut Participant, steps: u64) {
    let counts = participant.strategy.counts();
    let (copies, calls): (Vec<_>, Vec<_>) = counts
        .into_iter()
        .partition(|(_, c)| c.collective == Collective::Copy);
    for (device, count) in calls {
        let measured = count.measured_sent_bytes;
        participant
            .spool
            .push(Event::Comm(comm_event(device, count, steps)));
        if let Some(sent_bytes) = measured {
            participant.spool.push(Event::Measured { sent_bytes });
        }
    }
    for (device, count) in by_phase(copies, steps) {
        participant
            .spool
            .push(Event::Comm(comm_event(device, count, steps)));
    }
}

/// DP moves a phase in pieces between several pairs of devices; what counts is a device's total of a phase. The payload is
/// that of a step.
fn by_phase(copies: Vec<(usize, Count)>, steps: u64) -> Vec<(usize, Count)> {
    let mut totals: BTreeMap<(Phase, usize), Count> = BTreeMap::new();
    let mut payloads: BTreeMap<Phase, u64> = BTreeMap::new();
    for (device, count) in copies {
        // Copies between devices are counted; only they come here.
        *payloads.entry(count.phase).or_default() += count.sent_bytes.unwrap_or(0);
        match totals.entry((count.phase, device)) {
            Entry::Vacant(place) => {
                // Times of single copies mean nothing beside the payload of a step; phases.csv has the phase's.
                place.insert(Count {
                    wait_ns: Vec::new(),
                    transfer_ns: Vec::new(),
                    ..count
                });
            }
            Entry::Occupied(mut place) => {
                let total = place.get_mut();
                total.calls += count.calls;
                let sum = |one: Option<u64>, other: Option<u64>| Some(one? + other?);
                total.sent_bytes = sum(total.sent_bytes, count.sent_bytes);
                total.received_bytes = sum(total.received_bytes, count.received_bytes);
            }
        }
    }
    let total = |((phase, device), count)| {
        (
            device,
            Count {
                root: 0,
                size_bytes: payloads[&phase] / steps.max(1),
                ..count
            },
        )
    };
    totals.into_iter().map(total).collect()
}

fn comm_event(device: usize, count: Count, steps: u64) -> CommEvent {
    CommEvent {
        device: device as u16,
        phase: count.phase as u8,
        collective: COLLECTIVES
            .iter()
            .position(|c| *c == count.collective)
            .expect("every collective is listed") as u8,
        algorithm: ALGORITHMS
            .iter()
            .position(|a| *a == count.algorithm)
            .expect("every algorithm is listed") as u8,
        element_bytes: count.element_bytes as u8,
        root: count.root as u32,
        size_bytes: count.size_bytes,
        calls: count.calls as u32,
        steps: steps as u32,
        sent_bytes: count.sent_bytes,
        received_bytes: count.received_bytes,
        wait_ns: quantiles(count.wait_ns),
        transfer_ns: quantiles(count.transfer_ns),
    }
}

/// p50 and p90, by the nearest rank; `u32::MAX` for no sample or more than four seconds.
fn quantiles(mut samples: Vec<u64>) -> [u32; 2] {
    samples.sort_unstable();
    let at = |share: f64| {
        let rank = (share * samples.len() as f64).ceil() as usize;
        samples
            .get(rank.saturating_sub(1))
            .map_or(u32::MAX, |ns| u32::try_from(*ns).unwrap_or(u32::MAX))
    };
    [at(0.5), at(0.9)]
}

fn traced_pass(participant: &mut Participant, steps: u64) -> Result<(), RankError> {
    lead_in(participant, Pass::Traced, steps, true)?;
    participant.barrier()?;
    let number = pass_number(Pass::Traced);
    let mut probe = SpanBuffer::new();
    let (start, mut samples) = (now_ns(), 0);
    for step in 0..steps {
        let begin = now_ns();
        let batch = participant.step(&mut probe)?;
        let end = now_ns();
        samples += batch;
        participant.spool.push(Event::Step {
            pass: number,
            step,
            start_ns: begin,
            end_ns: end,
            samples: batch,
        });
        probe.flush(step, &mut participant.spool);
        participant.spool.beat(end);
    }
    participant.strategy.finish()?;
    participant.spool.push(Event::Pass {
        pass: number,
        steps,
        samples,
        start_ns: start,
        end_ns: now_ns(),
    });
    Ok(())
}

/// Keeps the spans of one step until the step is over.
pub(super) struct SpanBuffer {
    spans: Vec<PhaseSpan>,
}

impl Probe for SpanBuffer {
    fn tracing(&self) -> bool {
        true
    }
    fn span(&mut self, span: PhaseSpan) {
        self.spans.push(span);
    }
}

impl SpanBuffer {
    pub(super) fn new() -> Self {
        Self {
            spans: Vec::with_capacity(4096),
        }
    }

    /// Forgets the step's spans.
    pub(super) fn clear(&mut self) {
        self.spans.clear();
    }

    /// Spools the step's spans.
    pub(super) fn flush(&mut self, step: u64, spool: &mut Writer) {
        for span in self.spans.drain(..) {
            spool.push(Event::Span {
                device: span.device,
                track: match span.track {
                    Track::Host => 0,
                    Track::Compute => 1,
                    Track::Communication => 2,
                },
                phase: span.phase as u8,
                bucket: span.bucket.unwrap_or(u16::MAX),
                step,
                host_ns: span.host_ns,
                device_ns: span.device_ns,
            });
        }
    }
}

/// What the gradients of a trial are exchanged as.
fn compression(assignment: &Assignment) -> Compression {
    let ddp = assignment.trial.strategy.ddp();
    ddp.map_or(Compression::None, |ddp| ddp.compression)
}

/// How far compressed gradients are from exact ones, in steps whose time means nothing. All ranks hold the same
/// gradients: rank 0 tells.
fn checked_pass(assignment: &Assignment, participant: &mut Participant) -> Result<(), RankError> {
    let taken = steps_before_snapshot(assignment) + LEAD_IN_STEPS;
    participant.go_back()?;
    for _ in 0..LEAD_IN_STEPS {
        participant.step(&mut Silent)?;
    }
    for step in 0..CHECKED_STEPS {
        let batch = participant.loader.next_batch();
        let buckets = participant.strategy.checked_step(batch)?;
        if participant.device > 0 {
            continue;
        }
        let whole = buckets.iter().copied().sum();
        let each = (0..).zip(&buckets);
        for (bucket, found) in each.chain([(u16::MAX, &whole)]) {
            participant.spool.push(Event::Compression {
                bucket,
                step: taken + step,
                relative_error: found.relative_error(),
                cosine: found.cosine(),
                sent_bytes: found.sent_bytes,
                uncompressed_bytes: found.uncompressed_bytes,
            });
        }
        participant.spool.beat(now_ns());
    }
    Ok(())
}

/// What the devices hold at the end, when nothing more is allocated.
pub(super) fn memory(participant: &mut Participant) {
    let first = participant.device;
    for (index, bytes) in participant.strategy.memory().into_iter().enumerate() {
        participant.spool.push(Event::Memory {
            device: (first + index) as u16,
            bytes: bytes.map(|b| b as u64),
        });
    }
}

impl Participant {
    /// One step by the boundary of METHODOLOGY.md: from asking for a batch until the strategy has enqueued its
    /// optimizer. Returns the samples of this rank.
    pub fn step(&mut self, probe: &mut dyn Probe) -> Result<u64, RankError> {
        let (device, asked) = (self.device, asked(probe));
        let batch = self.loader.next_batch();
        answered(probe, device, asked);
        let samples = batch.len as u64;
        self.strategy.step(batch, probe)?;
        Ok(samples)
    }
}

/// When the step asks for its batch, if anybody wants to know.
pub(super) fn asked(probe: &dyn Probe) -> u64 {
    if probe.tracing() { now_ns() } else { 0 }
}

/// Hands over how long the step has waited for its batch.
pub(super) fn answered(probe: &mut dyn Probe, device: usize, asked: u64) {
    if !probe.tracing() {
        return;
    }
    let ready = [asked, now_ns()];
    probe.span(PhaseSpan {
        device: device as u16,
        track: Track::Host,
        phase: Phase::Data,
        bucket: None,
        host_ns: ready,
        device_ns: ready,
    });
}
