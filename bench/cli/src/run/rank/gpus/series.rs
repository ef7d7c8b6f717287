//! From samples of a GPU over a pass to what is recorded of it.
//!
//! Contract: pure; memory is bounded, whatever a pass lasts: clocks are kept up to a number, then every second of them, then every fourth.
use super::kin::Foreign;
use super::source::{Counters, Sample};
use crate::environment::gpus;
use crate::run::spool::{GpuState, GpuTraffic, REASONS};

/// Clocks that are kept: seven minutes of samples, and then half as many for as long again.
const MOST: usize = 4096;
/// Fewest clocks of which thirds are compared: two each.
const FEWEST: usize = 6;

/// What was seen of a GPU since a pass began.
#[derive(Debug)]
pub(super) struct Series {
    before: Counters,
    samples: u32,
    clocks: Vec<u16>,
    /// Every so many-th clock is kept.
    stride: u32,
    hottest: Option<u32>,
    power: Tally,
    most_milliwatts: u32,
    /// Samples that told reasons, and those with each.
    told: u32,
    reasons: [u32; REASONS],
    slowed: u32,
    foreign: Option<Foreign>,
}

/// A sum and how many were added.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sum: u64,
    count: u32,
}

impl Series {
    /// Begins with what the GPU's counters show. All memory is taken now.
    pub(super) fn new(before: Counters) -> Self {
        Self {
            before,
            samples: 0,
            clocks: Vec::with_capacity(MOST),
            stride: 1,
            hottest: None,
            power: Tally::default(),
            most_milliwatts: 0,
            told: 0,
            reasons: [0; REASONS],
            slowed: 0,
            foreign: None,
        }
    }

    pub(super) fn add(&mut self, sample: Sample) {
        if let Some(mhz) = sample
            .sm_mhz
            .filter(|_| self.samples.is_multiple_of(self.stride))
        {
            self.keep(u16::try_from(mhz).unwrap_or(u16::MAX));
        }
        self.samples += 1;
        self.hottest = self.hottest.max(sample.celsius);
        if let Some(milliwatts) = sample.milliwatts {
            self.power.sum += u64::from(milliwatts);
            self.power.count += 1;
            self.most_milliwatts = self.most_milliwatts.max(milliwatts);
        }
        if let Some(bits) = sample.reasons {
            self.told += 1;
            let mut slowed = false;
            for (count, (reason, _, disturbs)) in self.reasons.iter_mut().zip(gpus::REASONS) {
                let there = bits & reason.bits() != 0;
                *count += u32::from(there);
                slowed |= there && disturbs;
            }
            self.slowed += u32::from(slowed);
        }
    }

    fn keep(&mut self, mhz: u16) {
        if self.clocks.len() == MOST {
            let mut index = 0;
            self.clocks.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
        self.clocks.push(mhz);
    }

    /// Others on the GPU: the most at a time, with what those held.
    pub(super) fn see(&mut self, foreign: Option<Foreign>) {
        let more = |known: Foreign| foreign.is_some_and(|now| now.processes > known.processes);
        if self.foreign.is_none_or(more) {
            self.foreign = foreign.or(self.foreign);
        }
    }

    pub(super) fn state(&self, pass: u8, device: u16, watched_ns: u64) -> GpuState {
        let of_thousand =
            |count: u32| (u64::from(count) * 1000 / u64::from(self.told.max(1))) as u16;
        let mut sorted = self.clocks.clone();
        sorted.sort_unstable();
        let watts = |milliwatts: f64| (milliwatts / 1000.0) as f32;
        let mean = self.power.sum as f64 / f64::from(self.power.count.max(1));
        GpuState {
            pass,
            device,
            watched_ns,
            samples: self.samples,
            sm_mhz: [sorted.len() / 2, 0].map(|at| sorted.get(at).copied().unwrap_or(0)),
            spread: spread(&self.clocks),
            celsius: self.hottest.map(|celsius| celsius as u16),
            watts: (self.power.count > 0)
                .then(|| [watts(mean), watts(f64::from(self.most_milliwatts))]),
            held_back: (self.told > 0).then(|| self.reasons.map(of_thousand)),
            slowed: of_thousand(self.slowed),
            foreign: self
                .foreign
                .map(|found| u16::try_from(found.processes).unwrap_or(u16::MAX - 1)),
            foreign_bytes: self.foreign.and_then(|found| found.memory_bytes),
        }
    }

    /// What the GPU moved since the beginning; `None` for a counter that is smaller now: it began again.
    pub(super) fn traffic(&self, pass: u8, device: u16, after: Counters) -> GpuTraffic {
        let moved = |before: Option<u64>, after: Option<u64>| after?.checked_sub(before?);
        let both = |before: [Option<u64>; 2], after: [Option<u64>; 2]| {
            [moved(before[0], after[0]), moved(before[1], after[1])]
        };
        GpuTraffic {
            pass,
            device,
            nvlink_bytes: both(self.before.nvlink_bytes, after.nvlink_bytes),
            pcie_bytes: both(self.before.pcie_bytes, after.pcie_bytes),
            pcie_replays: moved(self.before.pcie_replays, after.pcie_replays),
        }
    }
}

/// By how much the mean of one third of the clocks is below that of another. Means, because a clock at its power cap flutters from one
/// sample to the next; what has changed for a third of a pass has changed.
fn spread(clocks: &[u16]) -> Option<f32> {
    if clocks.len() < FEWEST {
        return None;
    }
    let mean = |part: usize| {
        let (from, to) = (part * clocks.len() / 3, (part + 1) * clocks.len() / 3);
        let own = &clocks[from..to];
        own.iter().map(|&mhz| f64::from(mhz)).sum::<f64>() / own.len() as f64
    };
    let thirds = [mean(0), mean(1), mean(2)];
    let (low, high) = (
        thirds.into_iter().fold(f64::MAX, f64::min),
        thirds.into_iter().fold(0.0, f64::max),
    );
    (high > 0.0).then(|| (1.0 - low / high) as f32)
}

#[cfg(test)]
mod tests {
    use nvml_wrapper::bitmasks::device::ThrottleReasons;

    use super::*;

    fn clock(mhz: u32) -> Sample {
        Sample {
            sm_mhz: Some(mhz),
            ..Sample::default()
        }
    }

    fn of(samples: impl IntoIterator<Item = Sample>) -> GpuState {
        let mut series = Series::new(Counters::default());
        samples.into_iter().for_each(|sample| series.add(sample));
        series.state(0, 3, 7)
    }

    #[test]
    fn a_clock_that_falls_for_a_third_shows_and_one_that_flutters_does_not() {
        let fallen = of((0..30).map(|at| clock(if at < 20 { 1980 } else { 1485 })));
        assert_eq!((fallen.spread, fallen.sm_mhz), (Some(0.25), [1980, 1485]));
        let flutter = of((0..30).map(|at| clock(if at % 2 == 0 { 1980 } else { 1485 })));
        assert_eq!((flutter.spread, flutter.sm_mhz[1]), (Some(0.0), 1485));
        let short = of((0..5).map(|at| clock(2000 - 100 * at)));
        assert_eq!((short.spread, short.samples), (None, 5));
    }

    #[test]
    fn reasons_are_shares_of_the_samples_that_told_some() {
        let with = |reasons: ThrottleReasons| Sample {
            reasons: Some(reasons.bits()),
            ..Sample::default()
        };
        let hot = ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_THERMAL_SLOWDOWN;
        let state = of([
            with(ThrottleReasons::GPU_IDLE),
            with(ThrottleReasons::SW_POWER_CAP),
            with(hot),
            with(hot),
            Sample::default(),
        ]);
        assert_eq!(state.held_back, Some([0, 750, 0, 0, 0, 500, 0, 0]));
        assert_eq!((state.slowed, state.samples), (500, 5));
    }

    #[test]
    fn what_was_not_told_stays_empty() {
        let state = of([Sample::default(), Sample::default()]);
        assert_eq!((state.sm_mhz, state.spread), ([0; 2], None));
        assert_eq!((state.celsius, state.watts), (None, None));
        assert_eq!((state.held_back, state.foreign), (None, None));
    }

    #[test]
    fn power_and_heat() {
        let state = of([(300_000, 61), (700_500, 84), (500_000, 70)].map(
            |(milliwatts, celsius)| Sample {
                milliwatts: Some(milliwatts),
                celsius: Some(celsius),
                ..Sample::default()
            },
        ));
        assert_eq!(
            (state.watts, state.celsius),
            (Some([500.166_66, 700.5]), Some(84))
        );
    }

    #[test]
    fn memory_is_bounded_and_the_whole_pass_is_kept() {
        let mut series = Series::new(Counters::default());
        let room = series.clocks.capacity();
        for at in 0..100_000u32 {
            series.add(clock(if at < 66_666 { 1000 } else { 500 }));
        }
        assert_eq!(series.clocks.capacity(), room);
        let state = series.state(0, 0, 0);
        let spread = state.spread.unwrap();
        assert!((spread - 0.5).abs() < 0.01, "{spread}");
        assert_eq!((state.sm_mhz, state.samples), ([1000, 500], 100_000));
    }

    #[test]
    fn a_counter_that_began_again_says_nothing() {
        let counters = |nvlink: u64, pcie: Option<u64>| Counters {
            nvlink_bytes: [Some(nvlink), Some(2 * nvlink)],
            pcie_bytes: [pcie, pcie],
            pcie_replays: Some(3),
        };
        let series = Series::new(counters(1000, Some(9)));
        let traffic = series.traffic(0, 0, counters(1500, Some(8)));
        assert_eq!(traffic.nvlink_bytes, [Some(500), Some(1000)]);
        assert_eq!(traffic.pcie_bytes, [None, None]);
        assert_eq!(traffic.pcie_replays, Some(0));
    }

    #[test]
    fn the_most_others_count() {
        let foreign = |processes| {
            Some(Foreign {
                processes,
                memory_bytes: Some(processes * 10),
            })
        };
        let mut series = Series::new(Counters::default());
        for seen in [None, foreign(0), foreign(2), foreign(1), None] {
            series.see(seen);
        }
        let state = series.state(0, 0, 0);
        assert_eq!((state.foreign, state.foreign_bytes), (Some(2), Some(20)));
    }
}
