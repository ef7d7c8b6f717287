//! What collectives do when something goes wrong: an abort, a rank that does not come, one that is gone, ranks that
//! make different calls. Every wait must end, and say why.
mod ranks;
mod trials;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ranks::{PATIENT, Rank, spawn, values};
use syncmark_engine::comm::shared::{Region, Waiting};
use syncmark_engine::comm::{Collective, Reduce};

const SLOT: usize = 4096;
const SHORT: Waiting = Waiting {
    spin: false,
    timeout: Duration::from_millis(200),
};

fn all_reduce(rank: &mut Rank, len: usize) -> Result<(), String> {
    let span = rank.f32(&values(rank.rank, len));
    rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
}

#[test]
fn an_abort_ends_pending_and_later_collectives_and_names_the_rank() {
    let begin = Instant::now();
    spawn(3, SLOT, PATIENT, |mut r| {
        if r.rank == 2 {
            std::thread::sleep(Duration::from_millis(50));
            r.comm.aborter().abort("data ran out");
        }
        let span = r.f32(&values(r.rank, 5));
        for _ in 0..2 {
            let error = r
                .call(Collective::AllReduce, span, span, Reduce::Sum, 0)
                .unwrap_err();
            assert!(
                error.contains("rank 2 aborted the job: data ran out"),
                "{error}"
            );
        }
        assert!(
            r.comm
                .barrier()
                .unwrap_err()
                .to_string()
                .contains("data ran out")
        );
        assert!(r.comm.failure().unwrap().contains("data ran out"));
    });
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "waits must end at once"
    );
}

#[test]
fn a_supervisor_can_abort() {
    let region = Arc::new(Region::for_threads(2, SLOT).unwrap());
    let mut rank = Rank::join(&region, 0, PATIENT);
    let other = Arc::clone(&region);
    let supervisor = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        other.abort(None, "rank 1 was killed by signal 9");
    });
    let error = all_reduce(&mut rank, 5).unwrap_err();
    assert_eq!(
        error,
        "the supervisor aborted the job: rank 1 was killed by signal 9"
    );
    supervisor.join().unwrap();
}

#[test]
fn ranks_that_do_not_come_in_time_are_named() {
    let region = Arc::new(Region::for_threads(4, SLOT).unwrap());
    let errors: Vec<String> = std::thread::scope(|scope| {
        let start = |rank: usize| {
            let region = &region;
            scope.spawn(move || all_reduce(&mut Rank::join(region, rank, SHORT), 5).unwrap_err())
        };
        let ranks: Vec<_> = [0, 2].map(start).into_iter().collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    for error in errors {
        assert!(
            error.contains("all_reduce of 5 elements") && error.contains("ranks 1, 3"),
            "{error}"
        );
    }
}

#[test]
fn a_barrier_has_the_same_time_limit() {
    let region = Arc::new(Region::for_threads(2, SLOT).unwrap());
    let error = Rank::join(&region, 1, SHORT)
        .comm
        .barrier()
        .unwrap_err()
        .to_string();
    assert!(error.contains("barrier for rank 0"), "{error}");
}

#[test]
fn a_rank_that_left_is_noticed_long_before_the_time_limit() {
    let begin = Instant::now();
    spawn(3, SLOT, PATIENT, |mut r| {
        all_reduce(&mut r, 5).unwrap();
        if r.rank == 1 {
            return;
        }
        let error = all_reduce(&mut r, 5).unwrap_err();
        assert!(error.contains("rank 1 left the job"), "{error}");
    });
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn leaving_does_not_disturb_calls_that_all_have_made() {
    for _ in 0..50 {
        spawn(3, SLOT, PATIENT, |mut r| all_reduce(&mut r, 2000).unwrap());
    }
}

#[test]
fn different_calls_are_an_error_and_not_a_wrong_result() {
    let errors = spawn(2, SLOT, PATIENT, |mut r| {
        let len = 5 + r.rank;
        all_reduce(&mut r, len).unwrap_err()
    });
    let told = |error: &String| {
        error.contains("all_reduce of 5 f32") && error.contains("all_reduce of 6 f32")
    };
    assert!(errors.iter().all(told), "{errors:?}");
}

#[test]
fn a_message_of_another_size_is_an_error() {
    let errors = spawn(2, SLOT, PATIENT, |mut r| {
        let span = r.f32(&values(r.rank, 3 + r.rank));
        let collective = if r.rank == 0 {
            Collective::Send
        } else {
            Collective::Receive
        };
        r.call(collective, span, span, Reduce::Sum, 1 - r.rank)
    });
    let error = errors[1].clone().unwrap_err();
    assert!(
        error.contains("receive of 16 bytes") && error.contains("send of 12 bytes"),
        "{error}"
    );
}

#[test]
fn parts_that_do_not_fit_the_roots_total_are_an_error() {
    let errors = spawn(2, SLOT, PATIENT, |mut r| {
        let whole = r.f32(&vec![0.0; if r.rank == 0 { 7 } else { 0 }]);
        let part = r.f32(&[0.0; 4]);
        r.call(Collective::Scatter, whole, part, Reduce::Sum, 0)
    });
    let error = errors[1].clone().unwrap_err();
    assert!(
        error.contains("4 elements for its part of 7, which is 3"),
        "{error}"
    );
}

#[test]
fn a_rank_that_panics_ends_the_others_with_its_number() {
    use syncmark_engine::model::spec::Norm;
    use syncmark_engine::probe::Silent;
    use syncmark_engine::strategy::{DdpOptions, Strategy};
    use trials::{Batch, On, ddp, model};

    let begin = Instant::now();
    let region = Arc::new(Region::for_threads(2, SLOT).unwrap());
    let model = model(Norm::SyncBatch);
    std::thread::scope(|scope| {
        let start = |rank: usize| {
            let (region, model) = (&region, &model);
            scope.spawn(move || {
                let mut ddp = ddp(
                    On::Deferred,
                    model,
                    region,
                    rank,
                    &[3, 3],
                    DdpOptions::default(),
                );
                for step in 0.. {
                    assert!(rank == 0 || step < 3, "this rank was told to panic");
                    let batch = Batch::new(step, 6);
                    if let Err(error) =
                        ddp.step(batch.whole().part(rank * 3..rank * 3 + 3), &mut Silent)
                    {
                        return error.to_string();
                    }
                }
                unreachable!("rank 1 panics, so rank 0 fails")
            })
        };
        let ranks = [0, 1].map(start).map(|rank| rank.join());
        assert!(ranks[1].is_err());
        let error = ranks.into_iter().next().unwrap().unwrap();
        assert!(error.contains("rank 1 panicked"), "{error}");
    });
    assert!(begin.elapsed() < Duration::from_secs(20));
}
