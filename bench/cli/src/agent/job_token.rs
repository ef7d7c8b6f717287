//! The token by which the agents of one job know each other.
//!
//! Contract: it keeps strangers out by accident only: a second job on the same port, a port scanner, an agent of
//! yesterday. It is no authentication: it travels in the clear, and whoever can read the job's variables knows it. Run on a
//! network that you trust.
use super::variables::{Family, Lookup};

/// SYNCMARK_JOB_TOKEN or what the launcher calls the job, hashed.
pub fn derive(family: Family, lookup: Lookup) -> String {
    if let Some(token) = lookup("SYNCMARK_JOB_TOKEN") {
        return hash(&format!("token {token}"));
    }
    let ids = job_ids(family).iter();
    let ids: Vec<String> = ids
        .filter_map(|name| Some(format!("{name}={}", lookup(name)?)))
        .collect();
    hash(&format!("{} {}", family.name(), ids.join(" ")))
}

/// Variables that say which job this is and that are equal for all its ranks.
fn job_ids(family: Family) -> &'static [&'static str] {
    match family {
        Family::Torchrun => &["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"],
        Family::OpenMpi => &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
        Family::Slurm => &["SLURM_JOB_ID", "SLURM_STEP_ID"],
        Family::Pmi => &["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"],
    }
}

/// A token of the same job for one of its trials.
pub fn of_trial(token: &str, job: u64) -> String {
    hash(&format!("{token} {job}"))
}

fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}
