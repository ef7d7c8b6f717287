//! Running a plan: the conductor, the processes that it starts, what they say, and how it becomes records.
//!
//! The conductor ([`conductor`]) orders gates and blocks and knows nothing of processes; the supervisor ([`supervise`])
//! knows one job's processes and nothing of plans. Between them stands [`job::Executor`]. A child ([`rank`]) speaks
//! [`protocol`] and writes events to a [`spool`], which [`recorder`] folds into rows.
pub mod agreement;
pub mod backend;
pub mod binding;
pub mod blame;
pub mod child;
pub mod collectives_summary;
pub mod conductor;
pub mod cores;
pub mod data_folder;
pub mod gate;
pub mod gating;
pub mod job;
pub mod layers_summary;
pub mod learning_summary;
pub mod ledger;
pub mod meeting;
pub mod nccl_choices;
pub mod norms_summary;
pub mod predict;
pub mod progress;
pub mod protocol;
pub mod rank;
pub mod recorder;
pub mod resume;
pub mod signals;
pub mod silence;
pub mod spool;
pub mod spool_folder;
pub mod standing;
pub mod summary;
pub mod supervise;
pub mod trial_row;
pub mod verification;
pub mod watch;
pub mod watched;

#[cfg(test)]
pub(crate) mod mock;
