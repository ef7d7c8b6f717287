//! Calls that are captured with their device's work: counted and compared launch by launch, and watched as calls are that were made one by one.
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Rank, SOON, run};
use crate::backend::{BackendError, Captured};
use crate::comm::nccl::fake::{Done, Fake, FakeDevice};
use crate::comm::{Collective, Communicator, Reduce};
use crate::tensor::Span;

const GRAPH: Captured = Captured(7);

fn all_reduce(rank: &mut Rank, span: Span) {
    rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
        .unwrap();
}

/// Two calls as one graph.
fn capture(rank: &mut Rank, span: Span) {
    rank.comm.begin_capture();
    all_reduce(rank, span);
    all_reduce(rank, span.first(4));
    rank.comm.end_capture(Some(GRAPH));
}

fn launch(rank: &mut Rank) -> crate::backend::Result<()> {
    let end = FakeDevice::after();
    rank.comm.replayed_on(&mut rank.device, GRAPH, end)
}

#[test]
fn captured_calls_count_when_they_are_launched_and_have_no_times() {
    let fake = Arc::new(Fake::default());
    run(&fake, 2, false, |rank| {
        let span = rank.device.span(&[1.0; 6]);
        all_reduce(rank, span);
        capture(rank, span);
        let counted = |rank: &Rank| {
            let counts = rank.comm.counts();
            let each = counts
                .iter()
                .map(|count| (count.size_bytes, count.calls, count.transfer_ns.len()));
            each.collect::<Vec<_>>()
        };
        assert_eq!(counted(rank), [(24, 1, 1)], "nothing was launched");
        for _ in 0..3 {
            launch(rank).unwrap();
        }
        assert_eq!(counted(rank), [(24, 4, 1), (16, 3, 0)]);
        rank.comm.reset_counts();
        launch(rank).unwrap();
        assert_eq!(counted(rank), [(24, 1, 0), (16, 1, 0)]);
        rank.comm.barrier().unwrap();
    });
    // What was captured was handed to NCCL once.
    let groups = fake.done(0);
    let groups = groups.iter().filter(|done| matches!(done, Done::Group(_)));
    assert_eq!(groups.count(), 3);
}

#[test]
fn a_rank_that_makes_the_calls_of_a_graph_is_told_from_those_that_launch_it() {
    let said = run(&Arc::new(Fake::default()), 2, false, |rank| {
        let span = rank.device.span(&[1.0; 6]);
        all_reduce(rank, span);
        capture(rank, span);
        if rank.comm.rank() == 0 {
            launch(rank).unwrap();
        } else {
            all_reduce(rank, span);
            all_reduce(rank, span.first(4));
        }
        let first = rank.comm.barrier().map_err(|error| error.to_string());
        // Whoever came through learns it from its watching thread, or from the next barrier.
        first.and_then(|()| rank.comm.barrier().map_err(|error| error.to_string()))
    });
    for said in said {
        let said = said.unwrap_err();
        assert!(said.contains("rank 1 called 3 collectives, "), "{said}");
    }
}

#[test]
fn a_capture_that_failed_leaves_no_calls_and_a_new_one_may_begin() {
    run(&Arc::new(Fake::default()), 2, false, |rank| {
        let span = rank.device.span(&[1.0; 6]);
        all_reduce(rank, span);
        rank.comm.begin_capture();
        all_reduce(rank, span);
        rank.comm.end_capture(None);
        launch(rank).unwrap();
        assert_eq!(rank.comm.counts()[0].calls, 1);
        capture(rank, span);
        launch(rank).unwrap();
        assert_eq!(rank.comm.counts()[0].calls, 2);
        rank.comm.barrier().unwrap();
    });
}

#[test]
fn nccl_is_not_connected_while_a_step_is_captured() {
    run(&Arc::new(Fake::default()), 1, false, |rank| {
        let span = rank.device.span(&[1.0; 6]);
        rank.comm.begin_capture();
        let called = rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0);
        assert!(matches!(called, Err(BackendError::Unsupported(_))));
    });
}

/// Launches what never ends, and waits for it as a device does.
fn wait_for_ever(rank: &mut Rank) -> String {
    let begin = Instant::now();
    launch(rank).unwrap();
    let error = rank.device.synchronize().unwrap_err().to_string();
    assert!(begin.elapsed() < SOON);
    let again = launch(rank).unwrap_err().to_string();
    assert_eq!(again, error);
    error
}

/// A rank that has left is noticed, and named, by one whose graph waits for it.
#[test]
fn a_graph_that_a_rank_does_not_launch_is_not_waited_for_for_ever() {
    for tcp in [false, true] {
        let fake = Arc::new(Fake::default());
        let said = run(&fake, 2, tcp, |rank| {
            let span = rank.device.span(&[1.0; 6]);
            all_reduce(rank, span);
            capture(rank, span);
            rank.device
                .done
                .store(rank.comm.rank() == 1, Ordering::SeqCst);
            (rank.comm.rank() == 0).then(|| wait_for_ever(rank))
        });
        let said = said[0].as_ref().unwrap();
        for words in [
            "rank 1 left the job while rank 0 waited",
            "a graph of 2 collectives, the last all_reduce of 4 elements (all_reduce)",
        ] {
            assert!(said.contains(words), "{said}");
        }
        assert!(fake.done(0).contains(&Done::Abort));
    }
}

#[test]
fn an_abort_ends_a_graph_that_waits() {
    let fake = Arc::new(Fake::default());
    let said = run(&fake, 2, false, |rank| {
        let span = rank.device.span(&[1.0; 6]);
        all_reduce(rank, span);
        capture(rank, span);
        rank.comm.barrier().unwrap();
        rank.device.done.store(false, Ordering::SeqCst);
        if rank.comm.rank() == 1 {
            rank.comm.aborter().abort("there is no more");
        }
        match launch(rank) {
            Ok(()) => rank.device.synchronize().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    });
    for said in said {
        assert_eq!(said, "rank 1 aborted the job: there is no more");
    }
}
