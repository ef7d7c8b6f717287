//! Every way in which a session ends: aborted by a rank, for what NCCL says, for a peer that is gone or has left, or in good order.
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Rank, SOON, run};
use crate::comm::nccl::fake::{Done, Fake};
use crate::comm::{Collective, Communicator, Reduce};

/// Enqueues a call that never ends, and waits for it as a device does.
fn wait_for_ever(rank: &mut Rank) -> String {
    rank.device.done.store(false, Ordering::SeqCst);
    let span = rank.device.span(&[1.0; 6]);
    let begin = Instant::now();
    rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
        .unwrap();
    let error = rank.device.synchronize().unwrap_err().to_string();
    assert!(begin.elapsed() < SOON);
    let again = rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0);
    assert_eq!(again.unwrap_err().to_string(), error);
    assert_eq!(rank.comm.failure(), Some(error.clone()));
    error
}

#[test]
fn an_abort_from_any_thread_ends_what_waits_on_every_rank() {
    for tcp in [false, true] {
        let fake = Arc::new(Fake::default());
        let said = run(&fake, 3, tcp, |rank| {
            rank.connect().unwrap();
            if rank.comm.rank() == 1 {
                let aborter = rank.comm.aborter();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(50));
                    aborter.abort("there is no more");
                });
            }
            wait_for_ever(rank)
        });
        for (rank, said) in said.iter().enumerate() {
            assert_eq!(said, "rank 1 aborted the job: there is no more");
            let done = fake.done(rank);
            assert_eq!(done.last(), Some(&Done::Abort));
            assert_eq!(done.len(), 2, "{done:?}");
        }
    }
}

#[test]
fn what_nccls_threads_say_ends_the_job() {
    let fake = Arc::new(Fake::default());
    let said = run(&fake, 2, false, |rank| {
        rank.connect().unwrap();
        *fake.async_error.lock().unwrap() = Some("NCCL's threads: remote error");
        wait_for_ever(rank)
    });
    for said in said {
        assert!(said.contains("NCCL's threads: remote error"), "{said}");
    }
}

#[test]
fn what_a_call_says_ends_the_job() {
    let fake = Arc::new(Fake {
        no_transfer: Some("ncclAllReduce: invalid usage"),
        ..Fake::default()
    });
    let said = run(&fake, 2, false, |rank| {
        let span = rank.device.span(&[1.0; 6]);
        let called = rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0);
        called.unwrap_err().to_string()
    });
    for (rank, said) in said.iter().enumerate() {
        assert!(said.contains("ncclAllReduce: invalid usage"), "{said}");
        assert_eq!(fake.done(rank), [Done::Abort]);
    }
}

#[test]
fn the_rank_that_is_gone_is_named_before_nccls_own_words() {
    // A rank whose control connection ends without a word, as when its process is killed, is known to the control plane only after NCCL
    // has noticed.
    let fake = Arc::new(Fake::default());
    let said = run(&fake, 2, true, |rank| {
        rank.connect().unwrap();
        if rank.comm.rank() == 1 {
            let aborter = rank.comm.control.aborter();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                aborter.abort("rank 1 was killed by signal 9");
            });
        } else {
            *fake.async_error.lock().unwrap() = Some("NCCL's threads: remote error");
        }
        wait_for_ever(rank)
    });
    for said in said {
        assert!(said.contains("rank 1 was killed by signal 9"), "{said}");
    }
}

#[test]
fn a_rank_that_is_stuck_in_nccl_is_let_out() {
    for revokes in [true, false] {
        let fake = Arc::new(Fake {
            stuck_call: Some(0),
            revokes,
            ..Fake::default()
        });
        let said = run(&fake, 1, false, |rank| {
            rank.connect().unwrap();
            let aborter = rank.comm.aborter();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                aborter.abort("its peer is gone");
            });
            let span = rank.device.span(&[1.0; 6]);
            let called = rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0);
            called.unwrap_err().to_string()
        });
        assert_eq!(said, ["rank 0 aborted the job: its peer is gone"]);
        let expected: &[Done] = if revokes {
            &[Done::Revoke, Done::Abort]
        } else {
            &[Done::Abort]
        };
        assert_eq!(fake.done(0), expected);
    }
}

#[test]
fn a_session_that_ends_waits_for_its_last_call() {
    let fake = Arc::new(Fake::default());
    run(&fake, 1, false, |rank| {
        rank.device.done.store(false, Ordering::SeqCst);
        let span = rank.device.span(&[1.0; 6]);
        rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
            .unwrap();
        let done = Arc::clone(&rank.device.done);
        let fake = Arc::clone(&fake);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            assert!(fake.done(0).iter().all(|done| *done != Done::Destroy));
            done.store(true, Ordering::SeqCst);
        });
        rank.comm.connected = None;
        assert!(rank.device.done.load(Ordering::SeqCst));
    });
    assert_eq!(fake.done(0), [Done::Destroy]);
}

#[test]
fn a_call_that_a_rank_has_left_is_not_waited_for_for_ever() {
    for tcp in [false, true] {
        let fake = Arc::new(Fake::default());
        let said = run(&fake, 2, tcp, |rank| {
            rank.connect().unwrap();
            if rank.comm.rank() == 1 {
                return None;
            }
            Some(wait_for_ever(rank))
        });
        let said = said[0].as_ref().unwrap();
        assert!(
            said.contains("rank 1 left the job while rank 0 waited"),
            "{said}"
        );
        assert!(said.contains("all_reduce of 6 elements"), "{said}");
        assert_eq!(fake.done(1), [Done::Destroy]);
    }
}
