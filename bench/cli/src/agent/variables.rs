//! The variables by which launchers tell a process its rank, and what can be wrong with them.
//!
//! Contract: a family is a set of names that one launcher sets together. An error names the variable, what it holds and
//! who sets it. References: torchrun, "Environment Variables"; srun(1), "OUTPUT ENVIRONMENT VARIABLES"; mpirun(1) of
//! Open MPI 4 and 5; Hydra's PMI variables (MPICH, Intel MPI).

/// Looks a variable up.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Who sets which names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// torchrun, or a loop that sets the same variables.
    Torchrun,
    /// Open MPI's mpirun.
    OpenMpi,
    /// Slurm's srun.
    Slurm,
    /// MPICH's or Intel's mpirun.
    Pmi,
}

/// The names of a family.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Rank.
    pub rank: &'static str,
    /// Number of ranks.
    pub size: &'static str,
    /// Rank among those of this host.
    pub local_rank: &'static str,
    /// Number of ranks on this host, where the family says it.
    pub local_size: Option<&'static str>,
}

impl Family {
    /// As users call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI's mpirun",
            Self::Slurm => "srun",
            Self::Pmi => "mpirun of MPICH or Intel MPI",
        }
    }

    /// What it sets.
    pub fn names(self, lookup: Lookup) -> Names {
        match self {
            Self::Torchrun => Names {
                rank: "RANK",
                size: "WORLD_SIZE",
                local_rank: "LOCAL_RANK",
                local_size: Some("LOCAL_WORLD_SIZE"),
            },
            Self::OpenMpi => Names {
                rank: "OMPI_COMM_WORLD_RANK",
                size: "OMPI_COMM_WORLD_SIZE",
                local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
                local_size: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
            },
            // The step's own number of tasks: SLURM_NTASKS can be that of the whole allocation.
            Self::Slurm => Names {
                rank: "SLURM_PROCID",
                size: match lookup("SLURM_STEP_NUM_TASKS") {
                    Some(_) => "SLURM_STEP_NUM_TASKS",
                    None => "SLURM_NTASKS",
                },
                local_rank: "SLURM_LOCALID",
                local_size: None,
            },
            Self::Pmi => Names {
                rank: "PMI_RANK",
                size: "PMI_SIZE",
                local_rank: "MPI_LOCALRANKID",
                local_size: Some("MPI_LOCALNRANKS"),
            },
        }
    }
}

/// What is wrong with the variables of a launcher.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// One of a set is missing.
    #[error("{present} but {missing} is not set; {launcher} sets both")]
    Incomplete {
        /// `RANK is set to "1"`.
        present: String,
        /// The name.
        missing: &'static str,
        /// Who sets them.
        launcher: &'static str,
    },
    /// `--launcher` names a launcher that did not start this process.
    #[error(
        "--launcher {wanted} was given but {missing} is not set; {launcher} sets it for each process that it starts"
    )]
    NotStarted {
        /// What was given.
        wanted: &'static str,
        /// The name.
        missing: &'static str,
        /// Who would set it.
        launcher: &'static str,
    },
    /// No whole number.
    #[error("{name} is \"{value}\", not a whole number; {launcher} sets it to {meaning}")]
    Number {
        /// The name.
        name: &'static str,
        /// What it holds.
        value: String,
        /// Who sets it.
        launcher: &'static str,
        /// What it should be.
        meaning: &'static str,
    },
    /// Two of a set contradict each other.
    #[error("{name} is {value} but {limit_name} is {limit}: {rule}; {launcher} sets both")]
    Contradiction {
        /// The name.
        name: &'static str,
        /// What it holds.
        value: u32,
        /// The other name.
        limit_name: &'static str,
        /// What that one holds.
        limit: u32,
        /// What should hold.
        rule: &'static str,
        /// Who sets them.
        launcher: &'static str,
    },
    /// No port.
    #[error("{name} is \"{value}\", not a port between 1 and {largest}{note}")]
    Port {
        /// The name.
        name: &'static str,
        /// What it holds.
        value: String,
        /// Largest that can be used.
        largest: u16,
        /// Why it is not 65535.
        note: &'static str,
    },
    /// Nobody says where rank 0 is.
    #[error(
        "MASTER_ADDR is not set{why}: it names the host of rank 0, where the processes of the other hosts find it"
    )]
    NoMaster {
        /// ` and SLURM_STEP_NODELIST is "x["`, where there is more to say.
        why: String,
    },
    /// A number of seconds.
    #[error("SYNCMARK_MEETING_TIMEOUT is \"{0}\", not a number of seconds of at least 1")]
    Timeout(String),
}

impl VariableError {
    /// What to do instead.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Incomplete { .. } | Self::Number { .. } | Self::Contradiction { .. } => {
                "set them as the launcher would, or pass --launcher none for an ordinary run in this process"
            }
            Self::NotStarted { .. } => {
                "start syncmark with that launcher, or leave --launcher out: what started it is found by itself"
            }
            Self::Port { .. } => {
                "choose a port that is free on the host of rank 0; the default is MASTER_PORT + 1, or 29501"
            }
            Self::NoMaster { .. } => {
                "export MASTER_ADDR with the address of the host that runs rank 0 (mpirun: -x MASTER_ADDR)"
            }
            Self::Timeout(_) => "leave it out for 60 seconds",
        }
    }
}

/// Reads the number that `name` holds, if it is set.
///
/// # Errors
/// [`VariableError::Number`].
pub fn number(
    lookup: Lookup,
    family: Family,
    name: &'static str,
    meaning: &'static str,
) -> Result<Option<u32>, VariableError> {
    let Some(value) = lookup(name) else {
        return Ok(None);
    };
    match value.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(VariableError::Number {
            name,
            value,
            launcher: family.name(),
            meaning,
        }),
    }
}

/// Reads the port that `name` holds, if it is set.
///
/// # Errors
/// [`VariableError::Port`].
pub fn port(
    lookup: Lookup,
    name: &'static str,
    largest: u16,
    note: &'static str,
) -> Result<Option<u16>, VariableError> {
    let Some(value) = lookup(name) else {
        return Ok(None);
    };
    match value.trim().parse() {
        Ok(port) if (1..=largest).contains(&port) => Ok(Some(port)),
        _ => Err(VariableError::Port {
            name,
            value,
            largest,
            note,
        }),
    }
}
