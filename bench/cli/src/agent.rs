//! Started by a launcher: torchrun, srun, mpirun, or a loop that sets the same variables.
//!
//! Contract: each process of the launcher becomes an *agent*. The agent of rank 0 holds the plan, lets the conductor run it
//! and alone writes the run folder; the others start the children that it asks them for and print nothing on stdout.
//! [`launcher`] finds out who one is, [`meet`] brings the agents together, [`crew`] is what rank 0 knows of the others,
//! [`serve`] is what the others do. CONTRIBUTING.md documents what they say to each other.
pub mod crew;
pub mod job_token;
pub mod launcher;
pub mod link;
pub mod machine;
pub mod meet;
pub mod message;
pub mod node_list;
pub mod parcel;
pub mod remote;
pub mod seating;
pub mod serve;
pub mod variables;
pub mod wire;
