//! Who started this process: nobody in particular, or a launcher that gave it a rank.
//!
//! Contract: decided from variables alone, before anything is done. Order of precedence, innermost launcher first, because
//! one is often started by another: RANK and WORLD_SIZE (torchrun or a loop), OMPI_COMM_WORLD_* (Open MPI), SLURM_* of an
//! srun step, PMI_* (MPICH, Intel MPI). A batch script and an interactive shell of Slurm have SLURM_PROCID = 0 as well but
//! no other task: they are not taken for a step, because their run would wait for ranks that nobody starts.
//! A world of one rank is an ordinary run. See "On several machines or under a launcher" in the README.
use std::time::Duration;

use clap::ValueEnum;

use super::job_token;
use super::node_list::first_host;
use super::variables::{Family, Lookup, Names, VariableError, number, port};

/// Port of the meeting where there is no MASTER_PORT: one above torchrun's default of 29500.
const DEFAULT_PORT: u16 = 29501;
/// How long the agents wait for each other at the start.
const MEETING: Duration = Duration::from_secs(60);
/// Step ids of Slurm that are no srun step: the batch script and the shell of `salloc`.
const SLURM_SHELLS: [&str; 2] = ["4294967291", "4294967290"];

/// Values of `--launcher`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LauncherArg {
    /// Whatever the variables show.
    #[default]
    Auto,
    /// None: an ordinary run, whatever the variables say.
    None,
    /// torchrun, or a loop that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    Torchrun,
    /// srun.
    Slurm,
    /// mpirun of Open MPI, MPICH or Intel MPI.
    Mpi,
}

/// The place of this process among those that a launcher started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Who started it.
    pub family: Family,
    /// Its rank.
    pub rank: u32,
    /// Number of ranks.
    pub world_size: u32,
    /// Rank among those of this host, where it is told.
    pub local_rank: Option<u32>,
    /// Whether all ranks are known to be on this host.
    pub one_host: bool,
    /// Host of rank 0.
    pub master: String,
    /// Port at which the agents meet.
    pub port: u16,
    /// What the agents of one job share, so that a stranger does not join by accident.
    pub token: String,
    /// How long the agents wait for each other.
    pub patience: Duration,
}

impl Place {
    /// Where the agents meet.
    pub fn address(&self) -> String {
        format!("{}:{}", self.master, self.port)
    }
}

/// What the variables say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// An ordinary run; with a note where variables of a launcher were seen and not followed.
    Ordinary(Option<&'static str>),
    /// One of several agents.
    Agent(Place),
}

/// Finds out who started this process.
///
/// # Errors
/// [`VariableError`] when a launcher's variables are incomplete, no numbers or contradict each other.
pub fn find(wanted: LauncherArg, lookup: Lookup) -> Result<Start, VariableError> {
    let family = match wanted {
        LauncherArg::None => return Ok(Start::Ordinary(None)),
        LauncherArg::Auto => match seen(lookup) {
            Some(family) => family,
            None => return Ok(Start::Ordinary(slurm_note(lookup))),
        },
        LauncherArg::Torchrun => Family::Torchrun,
        LauncherArg::Slurm => Family::Slurm,
        LauncherArg::Mpi
            if lookup("OMPI_COMM_WORLD_RANK").is_none() && lookup("PMI_RANK").is_some() =>
        {
            Family::Pmi
        }
        LauncherArg::Mpi => Family::OpenMpi,
    };
    let names = family.names(lookup);
    let (rank, world_size) = rank_and_size(wanted, family, &names, lookup)?;
    if world_size == 1 {
        return Ok(Start::Ordinary(None));
    }
    place(family, &names, rank, world_size, lookup).map(Start::Agent)
}

/// The innermost launcher whose variables are set.
fn seen(lookup: Lookup) -> Option<Family> {
    let any = |names: &[&str]| names.iter().any(|name| lookup(name).is_some());
    if any(&["RANK", "WORLD_SIZE"]) {
        Some(Family::Torchrun)
    } else if any(&["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"]) {
        Some(Family::OpenMpi)
    } else if is_slurm_step(lookup) {
        Some(Family::Slurm)
    } else if any(&["PMI_RANK", "PMI_SIZE"]) {
        Some(Family::Pmi)
    } else {
        None
    }
}

/// Whether srun started this very process as one of several tasks.
fn is_slurm_step(lookup: Lookup) -> bool {
    let Some(procid) = lookup("SLURM_PROCID") else {
        return false;
    };
    let shell = lookup("SLURM_STEP_ID").is_some_and(|id| SLURM_SHELLS.contains(&id.as_str()));
    let set_by_srun = [
        "SLURM_STEP_NUM_TASKS",
        "SLURM_STEP_NODELIST",
        "SLURM_LAUNCH_NODE_IPADDR",
    ];
    let step = set_by_srun.iter().any(|name| lookup(name).is_some());
    !shell && (step || procid != "0")
}

fn slurm_note(lookup: Lookup) -> Option<&'static str> {
    let several = lookup("SLURM_NTASKS").is_some_and(|tasks| tasks != "1");
    (several && lookup("SLURM_PROCID").is_some()).then_some(
        "SLURM_PROCID is set but this is no srun step, so this is an ordinary run on one host; \
         start it with srun for a rank per task",
    )
}

fn rank_and_size(
    wanted: LauncherArg,
    family: Family,
    names: &Names,
    lookup: Lookup,
) -> Result<(u32, u32), VariableError> {
    let rank = number(
        lookup,
        family,
        names.rank,
        "the rank of the process, from 0",
    )?;
    let size = number(lookup, family, names.size, "the number of processes")?;
    let incomplete = |present: &str, missing| {
        let value = lookup(present).unwrap_or_default();
        Err(VariableError::Incomplete {
            present: format!("{present} is set to \"{value}\""),
            missing,
            launcher: family.name(),
        })
    };
    match (rank, size) {
        (Some(rank), Some(size)) if rank < size => Ok((rank, size)),
        (Some(rank), Some(size)) => Err(VariableError::Contradiction {
            name: names.rank,
            value: rank,
            limit_name: names.size,
            limit: size,
            rule: "ranks count from 0 to one below the number of processes",
            launcher: family.name(),
        }),
        (Some(_), None) => incomplete(names.rank, names.size),
        (None, Some(_)) => incomplete(names.size, names.rank),
        (None, None) => Err(VariableError::NotStarted {
            wanted: match wanted {
                LauncherArg::Slurm => "slurm",
                LauncherArg::Mpi => "mpi",
                _ => "torchrun",
            },
            missing: names.rank,
            launcher: family.name(),
        }),
    }
}

fn place(
    family: Family,
    names: &Names,
    rank: u32,
    world_size: u32,
    lookup: Lookup,
) -> Result<Place, VariableError> {
    let local_rank = number(
        lookup,
        family,
        names.local_rank,
        "the rank among those of its host",
    )?;
    let local_size = match names.local_size {
        Some(name) => number(lookup, family, name, "the number of processes on its host")?,
        None => None,
    };
    if let (Some(local_rank), Some(size), Some(limit_name)) =
        (local_rank, local_size, names.local_size)
        && local_rank >= size
    {
        return Err(VariableError::Contradiction {
            name: names.local_rank,
            value: local_rank,
            limit_name,
            limit: size,
            rule: "local ranks count from 0 to one below the number of processes on the host",
            launcher: family.name(),
        });
    }
    let one_host = local_size == Some(world_size) || slurm_nodes(family, lookup) == Some(1);
    let (master, port) = (master(family, one_host, lookup)?, meeting_port(lookup)?);
    Ok(Place {
        family,
        rank,
        world_size,
        local_rank,
        one_host,
        token: job_token::derive(family, lookup),
        master,
        port,
        patience: patience(lookup)?,
    })
}

fn slurm_nodes(family: Family, lookup: Lookup) -> Option<u32> {
    let nodes = lookup("SLURM_STEP_NUM_NODES").or_else(|| lookup("SLURM_NNODES"));
    nodes.filter(|_| family == Family::Slurm)?.parse().ok()
}

/// MASTER_ADDR; without it this host where all ranks are here, or the first host of Slurm's list.
fn master(family: Family, one_host: bool, lookup: Lookup) -> Result<String, VariableError> {
    if let Some(address) = lookup("MASTER_ADDR").filter(|address| !address.trim().is_empty()) {
        return Ok(address.trim().to_owned());
    }
    if one_host {
        return Ok("127.0.0.1".to_owned());
    }
    let list = lookup("SLURM_STEP_NODELIST").filter(|_| family == Family::Slurm);
    let host = list.as_deref().and_then(first_host);
    host.ok_or_else(|| VariableError::NoMaster {
        why: match (list, family) {
            (Some(list), _) => {
                format!(" and no host can be read from SLURM_STEP_NODELIST, which is \"{list}\"")
            }
            (None, Family::Slurm) => " and neither is SLURM_STEP_NODELIST".to_owned(),
            (None, _) => " and not all processes are known to be on this host".to_owned(),
        },
    })
}

/// SYNCMARK_MASTER_PORT; else one above MASTER_PORT, on which torchrun itself listens; else the default.
fn meeting_port(lookup: Lookup) -> Result<u16, VariableError> {
    if let Some(port) = port(lookup, "SYNCMARK_MASTER_PORT", u16::MAX, "")? {
        return Ok(port);
    }
    let note =
        ": syncmark's agents meet at the port above it, unless SYNCMARK_MASTER_PORT names another";
    let master = port(lookup, "MASTER_PORT", u16::MAX - 1, note)?;
    Ok(master.map_or(DEFAULT_PORT, |port| port + 1))
}

fn patience(lookup: Lookup) -> Result<Duration, VariableError> {
    let Some(text) = lookup("SYNCMARK_MEETING_TIMEOUT") else {
        return Ok(MEETING);
    };
    match text.trim().parse::<u32>() {
        Ok(seconds @ 1..) => Ok(Duration::from_secs(seconds.into())),
        _ => Err(VariableError::Timeout(text)),
    }
}

#[cfg(test)]
mod tests;
