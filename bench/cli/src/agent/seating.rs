//! Which core each rank gets, when every agent has an affinity mask of its own.
//!
//! Contract: a rank's core is one of its agent's mask. Ranks of one host do not share a core as long as there is any way to
//! give each its own; where there is none, the ranks left over take the core of their mask that serves the fewest.
//! Reference: augmenting paths, as in Kuhn's algorithm for bipartite matching.
use std::collections::HashMap;

use super::machine::Machine;

/// What is known of one rank.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its agent's machine.
    pub machine: &'a Machine,
    /// Rank among those of its host, where the launcher says it.
    pub local_rank: Option<u32>,
}

/// A core of a host.
type Core<'a> = (&'a str, usize);

/// The cores of the ranks of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seats {
    /// By rank.
    pub cores: Vec<Vec<usize>>,
    /// Ranks that have a core of their own.
    pub own: usize,
}

/// Gives each rank a core.
pub fn assign(ranks: &[Candidate]) -> Seats {
    let mut order: Vec<usize> = (0..ranks.len()).collect();
    order.sort_by_key(|&rank| (ranks[rank].local_rank.unwrap_or(u32::MAX), rank));
    let mut taken: HashMap<Core, usize> = HashMap::new();
    for &rank in &order {
        seat(rank, ranks, &mut taken, &mut Vec::new());
    }
    let mut cores = vec![None; ranks.len()];
    let mut load: HashMap<Core, usize> = HashMap::new();
    for (&core, &rank) in &taken {
        cores[rank] = Some(core.1);
        load.insert(core, 1);
    }
    let own = taken.len();
    for rank in order {
        cores[rank].get_or_insert_with(|| least_loaded(ranks[rank].machine, &mut load));
    }
    Seats {
        cores: cores
            .into_iter()
            .map(|core| core.into_iter().collect())
            .collect(),
        own,
    }
}

/// Finds a core for a rank: a free one, or else one whose rank can move to another of its own cores.
fn seat<'a>(
    rank: usize,
    ranks: &[Candidate<'a>],
    taken: &mut HashMap<Core<'a>, usize>,
    tried: &mut Vec<Core<'a>>,
) -> bool {
    let machine = ranks[rank].machine;
    let cores: Vec<Core> = machine
        .cores
        .iter()
        .map(|&core| (machine.boot_id.as_str(), core))
        .collect();
    if let Some(&free) = cores.iter().find(|core| !taken.contains_key(*core)) {
        taken.insert(free, rank);
        return true;
    }
    for core in cores {
        if tried.contains(&core) {
            continue;
        }
        tried.push(core);
        if seat(taken[&core], ranks, taken, tried) {
            taken.insert(core, rank);
            return true;
        }
    }
    false
}

fn least_loaded<'a>(machine: &'a Machine, load: &mut HashMap<Core<'a>, usize>) -> usize {
    let on = |core: usize| (machine.boot_id.as_str(), core);
    let ranks_of = |core: &usize| load.get(&on(*core)).copied().unwrap_or(0);
    // A process that may run nowhere does not run, so there is a first core.
    let core = machine
        .cores
        .iter()
        .copied()
        .min_by_key(ranks_of)
        .unwrap_or(0);
    *load.entry(on(core)).or_default() += 1;
    core
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(boot_id: &str, cores: &[usize]) -> Machine {
        Machine {
            host: boot_id.into(),
            boot_id: boot_id.into(),
            process_namespace: "pid:[1]".into(),
            cpu_model: "test".into(),
            cores: cores.to_vec(),
        }
    }

    fn seats(machines: &[Machine]) -> (Vec<usize>, usize) {
        let ranks: Vec<Candidate> = machines
            .iter()
            .map(|machine| Candidate {
                machine,
                local_rank: None,
            })
            .collect();
        let seats = assign(&ranks);
        (seats.cores.concat(), seats.own)
    }

    #[test]
    fn ranks_of_one_host_take_its_cores_in_turn() {
        let host = machine("a", &[4, 6, 7]);
        assert_eq!(seats(&[host.clone(), host.clone()]), (vec![4, 6], 2));
        let three_and_one_more = vec![host; 4];
        let (cores, own) = seats(&three_and_one_more);
        assert_eq!((cores.len(), own), (4, 3));
        assert_eq!(cores[..3], [4, 6, 7]);
    }

    #[test]
    fn hosts_have_cores_of_their_own() {
        assert_eq!(
            seats(&[machine("a", &[0]), machine("b", &[0])]),
            (vec![0, 0], 2)
        );
    }

    #[test]
    fn a_wide_mask_makes_room_for_a_narrow_one() {
        assert_eq!(
            seats(&[machine("a", &[0, 1]), machine("a", &[0])]),
            (vec![1, 0], 2)
        );
        let chain = [
            machine("a", &[0, 1]),
            machine("a", &[0, 2]),
            machine("a", &[0]),
        ];
        assert_eq!(seats(&chain), (vec![1, 2, 0], 3));
    }

    #[test]
    fn masks_of_one_core_are_shared_and_counted() {
        assert_eq!(
            seats(&[machine("a", &[3]), machine("a", &[3])]),
            (vec![3, 3], 1)
        );
    }

    #[test]
    fn local_ranks_say_who_takes_the_first_core() {
        let host = machine("a", &[0, 1]);
        let ranks = [1, 0].map(|local| Candidate {
            machine: &host,
            local_rank: Some(local),
        });
        assert_eq!(assign(&ranks).cores, [[1], [0]]);
    }
}
