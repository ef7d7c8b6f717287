//! Who is to blame when a job fails: one cause out of everything that its processes said and how they ended.
//!
//! Contract: when one rank dies the others fail as well, because their collectives are aborted; the report must name the
//! first cause and not an echo of it. So a death that nobody asked for comes first, then the earliest error that is not
//! an abort, then an abort.
use std::time::Instant;

use syncmark_record::Outcome;

use super::protocol::{ErrorKind, Message};
use super::watched::Watched;

/// Lines of a dead child's standard error that its reason quotes.
const QUOTED_LINES: usize = 3;

/// Why a job was stopped from outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Stopped {
    /// By the user.
    Interrupted,
    /// It took too long; says which rank was silent for how long.
    Timeout(String),
}

/// What is known about one child for the sake of blaming.
#[derive(Clone, Debug)]
pub struct Account {
    /// `rank 1 (process 4711)`.
    pub name: String,
    /// How it ended, unless it ended well or was stopped by us: `was killed by signal 9 (SIGKILL)`.
    pub death: Option<(String, Instant)>,
    /// The error that it reported.
    pub error: Option<(ErrorKind, u32, String)>,
    /// Whether it said that it was done.
    pub done: bool,
    /// Last lines of its standard error.
    pub tail: Vec<String>,
}

impl Account {
    /// The account of a child that has ended. `stopped_at` is when the supervisor began to send signals: a child that
    /// ends by a signal after that did not die by itself.
    pub fn of(child: &dyn Watched, name: String, stopped_at: Option<Instant>) -> Self {
        let error = child.messages().iter().find_map(|message| match message {
            Message::Error {
                kind,
                rank,
                message,
            } => Some((*kind, *rank, message.clone())),
            _ => None,
        });
        let by_itself = |at: Instant| stopped_at.is_none_or(|stopped| at < stopped);
        let death = child
            .ended()
            .filter(|(end, at)| !end.is_success() && by_itself(*at));
        Self {
            name,
            death: death.map(|(end, at)| (end.describe(), at)),
            error,
            done: child.messages().contains(&Message::Done),
            tail: child.tail().iter().cloned().collect(),
        }
    }

    /// Whether it ended otherwise than the protocol wants, without having said why.
    fn died(&self) -> bool {
        self.death.is_some() && self.error.is_none()
    }
}

/// The outcome of a job and its reason.
pub fn blame(stopped: Option<&Stopped>, accounts: &[Account]) -> (Outcome, Option<String>) {
    match stopped {
        Some(Stopped::Interrupted) => {
            return (Outcome::Interrupted, Some("the run was interrupted".into()));
        }
        Some(Stopped::Timeout(reason)) => return (Outcome::Timeout, Some(reason.clone())),
        None => {}
    }
    if let Some(dead) = accounts
        .iter()
        .filter(|account| account.died())
        .min_by_key(|account| account.death.as_ref().map(|d| d.1))
    {
        let (how, _) = dead.death.as_ref().expect("the dead have died");
        return (
            Outcome::RankFailed,
            Some(format!("{} {how}{}", dead.name, quote(&dead.tail))),
        );
    }
    let errors = || accounts.iter().filter_map(|account| account.error.as_ref());
    let first = errors()
        .filter(|(kind, ..)| *kind != ErrorKind::Aborted)
        .min_by_key(|(_, rank, _)| *rank);
    if let Some((kind, rank, message)) = first.or_else(|| errors().next()) {
        return (outcome(*kind), Some(format!("rank {rank}: {message}")));
    }
    if let Some(silent) = accounts.iter().find(|account| !account.done) {
        let reason = format!(
            "{} ended without saying that it was done{}",
            silent.name,
            quote(&silent.tail)
        );
        return (Outcome::RankFailed, Some(reason));
    }
    (Outcome::Passed, None)
}

fn outcome(kind: ErrorKind) -> Outcome {
    match kind {
        ErrorKind::OutOfMemory => Outcome::OutOfMemory,
        ErrorKind::Diverged => Outcome::Diverged,
        ErrorKind::Aborted | ErrorKind::Failed => Outcome::Failed,
    }
}

fn quote(tail: &[String]) -> String {
    let lines = &tail[tail.len().saturating_sub(QUOTED_LINES)..];
    if lines.is_empty() {
        String::new()
    } else {
        format!("; it last said: {}", lines.join(" / "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(rank: usize) -> Account {
        Account {
            name: format!("rank {rank} (process {})", 100 + rank),
            death: None,
            error: None,
            done: false,
            tail: Vec::new(),
        }
    }

    fn done(rank: usize) -> Account {
        Account {
            done: true,
            ..account(rank)
        }
    }

    fn failed(rank: u32, kind: ErrorKind, message: &str) -> Account {
        let death = Some(("ended with exit status 1".into(), Instant::now()));
        Account {
            error: Some((kind, rank, message.into())),
            death,
            ..account(rank as usize)
        }
    }

    fn killed(rank: usize) -> Account {
        Account {
            death: Some(("was killed by signal 9 (SIGKILL)".into(), Instant::now())),
            ..account(rank)
        }
    }

    #[test]
    fn all_done_passes() {
        assert_eq!(blame(None, &[done(0), done(1)]), (Outcome::Passed, None));
    }

    #[test]
    fn the_killed_rank_is_to_blame_and_not_those_it_left_waiting() {
        let aborted = failed(0, ErrorKind::Aborted, "aborted: rank 1 was killed");
        let (outcome, reason) = blame(None, &[aborted, killed(1), done(2)]);
        assert_eq!(outcome, Outcome::RankFailed);
        assert_eq!(
            reason.unwrap(),
            "rank 1 (process 101) was killed by signal 9 (SIGKILL)"
        );
    }

    #[test]
    fn an_error_comes_before_the_aborts_that_it_caused() {
        let accounts = [
            failed(0, ErrorKind::Aborted, "aborted"),
            failed(1, ErrorKind::OutOfMemory, "no room for 8 bytes"),
        ];
        assert_eq!(
            blame(None, &accounts),
            (
                Outcome::OutOfMemory,
                Some("rank 1: no room for 8 bytes".into())
            )
        );
        assert_eq!(blame(None, &accounts[..1]).0, Outcome::Failed);
        assert_eq!(
            blame(None, &[failed(0, ErrorKind::Diverged, "loss is NaN")]).0,
            Outcome::Diverged
        );
    }

    #[test]
    fn a_panic_is_quoted() {
        let mut panicked = account(0);
        panicked.death = Some(("ended with exit status 101".into(), Instant::now()));
        panicked.tail = vec![
            "thread 'main' panicked at x.rs:1".into(),
            "index out of bounds".into(),
        ];
        let reason = blame(None, &[panicked]).1.unwrap();
        assert_eq!(
            reason,
            "rank 0 (process 100) ended with exit status 101; it last said: thread 'main' panicked at x.rs:1 / index out of bounds"
        );
    }

    #[test]
    fn silence_is_no_success() {
        let (outcome, reason) = blame(None, &[done(0), account(1)]);
        assert_eq!(outcome, Outcome::RankFailed);
        assert_eq!(
            reason.unwrap(),
            "rank 1 (process 101) ended without saying that it was done"
        );
    }

    #[test]
    fn a_stop_from_outside_explains_everything_else() {
        let accounts = [killed(0), failed(1, ErrorKind::Aborted, "aborted")];
        assert_eq!(
            blame(Some(&Stopped::Interrupted), &accounts).0,
            Outcome::Interrupted
        );
        assert_eq!(
            blame(Some(&Stopped::Timeout("late".into())), &accounts),
            (Outcome::Timeout, Some("late".into()))
        );
    }
}
