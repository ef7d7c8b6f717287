//! Rows of `gpus.csv`, and what of them a repeat is judged by.
//!
//! Contract: pure. Of the repeat's row the worst GPU in its worst pass counts, as with cores: ranks wait for each other, and exposed
//! communication is the difference of the two passes.
use syncmark_engine::backend::cuda::discovery::PciPlace;
use syncmark_record::rows::{GpuRow, Pass};

use super::{PASSES, RepeatFacts, core_list, pass_number};
use crate::environment::gpus::REASONS;
use crate::run::binding::Unbound;
use crate::run::spool::{Event, GpuPlace, GpuState, GpuTraffic, name_of};

/// A row for every timed pass of every device on a GPU; one of the window without figures where nothing was sampled.
pub(super) fn gpu_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<GpuRow> {
    let events = || ranks.iter().flatten();
    let mut places: Vec<GpuPlace> = Vec::new();
    for event in events() {
        if let Event::GpuPlace(place) = event
            && !places.iter().any(|known| known.device == place.device)
        {
            places.push(*place);
        }
    }
    let mut rows = Vec::new();
    for place in places {
        let own = located(facts, place, ranks);
        let before = rows.len();
        for pass in PASSES {
            let number = pass_number(pass);
            let state = events().find_map(|event| match event {
                Event::GpuState(state) => {
                    ((state.device, state.pass) == (place.device, number)).then_some(state)
                }
                _ => None,
            });
            let traffic = events().find_map(|event| match event {
                Event::GpuTraffic(traffic) => {
                    ((traffic.device, traffic.pass) == (place.device, number)).then_some(traffic)
                }
                _ => None,
            });
            if let (Some(state), Some(traffic)) = (state, traffic) {
                rows.push(seen(own.clone(), pass, state, traffic));
            }
        }
        if rows.len() == before {
            rows.push(own);
        }
    }
    rows
}

/// Where the GPU sits.
fn located(facts: &RepeatFacts<'_>, place: GpuPlace, ranks: &[Vec<Event>]) -> GpuRow {
    let device = place.device as usize;
    let (domain, bus, on_bus) = place.place;
    let place_on_bus = PciPlace {
        domain,
        bus,
        device: on_bus,
    };
    let (network, rdma) = (name_of(&place.network), name_of(&place.rdma));
    let network: Vec<String> = network.into_iter().chain(rdma).collect();
    let unbound = Unbound::numbered(place.unbound);
    GpuRow {
        trial: facts.trial.to_owned(),
        repeat: facts.repeat,
        device: u32::from(place.device),
        pci_bus_id: place_on_bus.to_string(),
        numa_node: place.node.map(u32::from),
        cores: facts
            .cores
            .get(device)
            .map_or_else(String::new, |cores| core_list(cores)),
        bound: unbound.is_none(),
        unbound_because: unbound.map(|reason| reason.words().to_owned()),
        network: (!network.is_empty()).then(|| network.join(" ")),
        peers_direct: peers(ranks, place.device, true),
        peers_through_host: peers(ranks, place.device, false),
        ..GpuRow::default()
    }
}

/// `1+2`.
fn peers(ranks: &[Vec<Event>], device: u16, wanted: bool) -> Option<String> {
    let peers = ranks.iter().flatten().filter_map(|event| match *event {
        Event::GpuPeer { from, to, directly } => {
            (from == device && directly == wanted).then(|| to.to_string())
        }
        _ => None,
    });
    let peers: Vec<String> = peers.collect();
    (!peers.is_empty()).then(|| peers.join("+"))
}

/// What NVML told of it in a pass.
fn seen(row: GpuRow, pass: Pass, state: &GpuState, traffic: &GpuTraffic) -> GpuRow {
    let told = |mhz: u16| (mhz > 0).then_some(u32::from(mhz));
    let rounded = |watts: f32| (f64::from(watts) * 10.0).round() / 10.0;
    GpuRow {
        pass,
        watched_ns: Some(state.watched_ns),
        samples: Some(u64::from(state.samples)),
        sm_clock_median_mhz: told(state.sm_mhz[0]),
        sm_clock_min_mhz: told(state.sm_mhz[1]),
        sm_clock_spread: state.spread.map(f64::from),
        temperature_max_celsius: state.celsius.map(u32::from),
        power_mean_watts: state.watts.map(|watts| rounded(watts[0])),
        power_max_watts: state.watts.map(|watts| rounded(watts[1])),
        held_back_by: held_back(state, false),
        slowdown_share: state.held_back.map(|_| f64::from(state.slowed) / 1000.0),
        slowdown: held_back(state, true).filter(|_| state.slowed > 0),
        foreign_processes: state.foreign.map(u64::from),
        foreign_memory_bytes: state.foreign_bytes,
        nvlink_sent_bytes: traffic.nvlink_bytes[0],
        nvlink_received_bytes: traffic.nvlink_bytes[1],
        pcie_sent_bytes: traffic.pcie_bytes[0],
        pcie_received_bytes: traffic.pcie_bytes[1],
        pcie_replays: traffic.pcie_replays,
        ..row
    }
}

/// `the power cap 96 %, heat 2 %`; of those alone that disturb, their names.
fn held_back(state: &GpuState, disturbing: bool) -> Option<String> {
    let shares = state.held_back?;
    let there = shares.into_iter().zip(REASONS);
    let words = there.filter(|(share, (.., disturbs))| *share > 0 && (!disturbing || *disturbs));
    let words: Vec<String> = words
        .map(|(share, (_, words, _))| match disturbing {
            true => words.to_owned(),
            false => format!("{words} {:.0} %", f64::from(share) / 10.0),
        })
        .collect();
    Some(match words.as_slice() {
        [] => "nothing".to_owned(),
        words => words.join(if disturbing { " and " } else { ", " }),
    })
}

/// The worst of a repeat's rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Worst {
    pub(super) samples: Option<u64>,
    pub(super) spread: Option<f64>,
    pub(super) slowdown_share: Option<f64>,
    pub(super) slowdown: Option<String>,
    pub(super) foreign: Option<u64>,
}

pub(super) fn worst(rows: &[GpuRow]) -> Worst {
    let slowest = rows
        .iter()
        .filter(|row| row.slowdown_share.is_some())
        .max_by(|a, b| {
            let shares = [a, b].map(|row| row.slowdown_share.unwrap_or(0.0));
            shares[0].total_cmp(&shares[1])
        });
    Worst {
        // The GPU that was slowed down is judged by its own samples.
        samples: slowest
            .and_then(|row| row.samples)
            .or_else(|| rows.iter().filter_map(|row| row.samples).min()),
        spread: rows
            .iter()
            .filter_map(|row| row.sm_clock_spread)
            .reduce(f64::max),
        slowdown_share: slowest.and_then(|row| row.slowdown_share),
        slowdown: slowest.and_then(|row| row.slowdown.clone()),
        foreign: rows.iter().filter_map(|row| row.foreign_processes).max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::config::{StrategyConfig, TrialConfig};
    use crate::run::mock::{config, ddp, dp};
    use crate::run::recorder::record;
    use crate::run::spool::name_bytes;
    use crate::scenario::file::{DpLoss, Launch};
    use syncmark_record::Outcome;
    use syncmark_record::disturbance::disturbance;
    use syncmark_record::rows::RepeatRow;

    fn place(device: u16, unbound: u8) -> Event {
        Event::GpuPlace(GpuPlace {
            device,
            place: (0, 0x3b + device as u8, 0),
            node: Some(1),
            unbound,
            network: name_bytes(Some("ib0")),
            rdma: name_bytes(Some("mlx5_0")),
        })
    }

    fn state(device: u16, pass: u8) -> GpuState {
        GpuState {
            pass,
            device,
            watched_ns: 5_000_000_000,
            samples: 50,
            sm_mhz: [1980, 1965],
            spread: Some(0.001),
            celsius: Some(61),
            watts: Some([512.34, 690.0]),
            held_back: Some([0, 960, 0, 0, 0, 0, 0, 0]),
            slowed: 0,
            foreign: Some(0),
            foreign_bytes: Some(0),
        }
    }

    fn traffic(device: u16, pass: u8) -> Event {
        Event::GpuTraffic(GpuTraffic {
            pass,
            device,
            nvlink_bytes: [Some(7), Some(8)],
            pcie_bytes: [None; 2],
            pcie_replays: Some(0),
        })
    }

    fn fold(config: &TrialConfig, ranks: &[Vec<Event>]) -> (RepeatRow, Vec<GpuRow>) {
        let facts = RepeatFacts {
            trial: "id",
            config,
            repeat: 2,
            order: 0,
            started: String::new(),
            outcome: Outcome::Passed,
            reason: None,
            unsynchronized_first: None,
            cores: &[vec![0, 1, 2, 3], vec![8]],
            clocks: &[],
            nccl: None,
        };
        let record = record(&facts, ranks);
        (record.repeat, record.gpus)
    }

    /// Two ranks, of which the second one's window was another.
    fn with(change: fn(&mut GpuState)) -> (RepeatRow, Vec<GpuRow>) {
        let mut odd = state(1, 0);
        change(&mut odd);
        let rank = |device, window| {
            vec![
                place(device, 0),
                Event::GpuState(state(device, 1)),
                traffic(device, 1),
                place(device, 0),
                Event::GpuState(window),
                traffic(device, 0),
            ]
        };
        fold(
            &config(ddp(Launch::Processes), 2),
            &[rank(0, state(0, 0)), rank(1, odd)],
        )
    }

    #[test]
    fn a_row_for_each_device_and_pass_says_where_and_how_it_was() {
        let (repeat, rows) = with(|_| {});
        assert_eq!(rows.len(), 4);
        let expected = GpuRow {
            trial: "id".into(),
            repeat: 2,
            pass: Pass::Window,
            device: 1,
            pci_bus_id: "0000:3c:00.0".into(),
            numa_node: Some(1),
            cores: "8".into(),
            bound: true,
            network: Some("ib0 mlx5_0".into()),
            watched_ns: Some(5_000_000_000),
            samples: Some(50),
            sm_clock_median_mhz: Some(1980),
            sm_clock_min_mhz: Some(1965),
            sm_clock_spread: Some(f64::from(0.001f32)),
            temperature_max_celsius: Some(61),
            power_mean_watts: Some(512.3),
            power_max_watts: Some(690.0),
            held_back_by: Some("the power cap 96 %".into()),
            slowdown_share: Some(0.0),
            foreign_processes: Some(0),
            foreign_memory_bytes: Some(0),
            nvlink_sent_bytes: Some(7),
            nvlink_received_bytes: Some(8),
            pcie_replays: Some(0),
            ..GpuRow::default()
        };
        assert_eq!(rows[2], expected);
        assert_eq!((rows[3].pass, rows[3].device), (Pass::Unsynchronized, 1));
        assert_eq!(
            disturbance(&repeat),
            None,
            "the power cap is what a GPU runs at"
        );
    }

    #[test]
    fn a_clock_that_moved_disturbs() {
        let (repeat, _) = with(|odd| odd.spread = Some(0.07));
        assert_eq!(
            disturbance(&repeat).unwrap(),
            "a GPU's clock was 7.0 % lower in one third of a timed pass than in another"
        );
        let (repeat, _) = with(|odd| odd.spread = Some(0.04));
        assert_eq!(disturbance(&repeat), None);
    }

    #[test]
    fn heat_disturbs_and_a_moment_of_it_does_not() {
        fn hot(odd: &mut GpuState, share: u16) {
            odd.held_back = Some([0, 0, share, 0, 0, share, 0, 0]);
            odd.slowed = share;
        }
        let (repeat, rows) = with(|odd| hot(odd, 200));
        assert_eq!(
            disturbance(&repeat).unwrap(),
            "a GPU's clock was held back by a hardware slowdown and heat, by the hardware in 20 % of a timed pass"
        );
        assert_eq!(
            rows[2].held_back_by.as_deref(),
            Some("a hardware slowdown 20 %, heat, by the hardware 20 %")
        );
        let (repeat, _) = with(|odd| hot(odd, 20));
        assert_eq!(disturbance(&repeat), None, "one sample of fifty");
    }

    #[test]
    fn another_process_disturbs() {
        let (repeat, _) = with(|odd| odd.foreign = Some(2));
        let reason = disturbance(&repeat).unwrap();
        assert!(reason.starts_with("2 other processes"), "{reason}");
    }

    #[test]
    fn what_nvml_does_not_tell_is_empty_and_disturbs_nothing() {
        let (repeat, rows) = fold(&config(StrategyConfig::Single, 1), &[vec![place(0, 2)]]);
        assert_eq!(disturbance(&repeat), None);
        assert_eq!((repeat.gpu_samples, repeat.gpu_clock_spread), (None, None));
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!(
            (row.bound, row.samples, row.foreign_processes),
            (false, None, None)
        );
        assert!(
            row.unbound_because
                .as_deref()
                .unwrap()
                .contains("NUMA node")
        );
        let (_, none) = fold(&config(StrategyConfig::Single, 1), &[vec![]]);
        assert_eq!(none, [], "a trial on CPUs");
    }

    #[test]
    fn peers_are_listed_by_how_they_are_reached() {
        let peer = |from, to, directly| Event::GpuPeer { from, to, directly };
        let events = vec![
            peer(0, 1, true),
            peer(0, 2, true),
            peer(1, 0, false),
            place(0, 0),
            place(1, 0),
        ];
        let (_, rows) = fold(&config(dp(DpLoss::Gathered, 2), 2), &[events]);
        assert_eq!(rows[0].peers_direct.as_deref(), Some("1+2"));
        assert_eq!(rows[1].peers_through_host.as_deref(), Some("0"));
        assert_eq!(rows[0].peers_through_host, None);
    }
}
