//! What ends the devices of one controller, and how it is told.
use super::*;

/// The error of a step, and that every communicator was aborted for it and every device knows why.
fn ends(fake: &Fake, dp: &mut Dp, facts: &[Facts]) -> String {
    let begin = Instant::now();
    let error = loop {
        if let Err(error) = step(dp, 0, 4) {
            break error.to_string();
        }
        assert!(begin.elapsed() < SOON, "it goes on as if all were well");
    };
    let again = step(dp, 0, 4).unwrap_err().to_string();
    while facts.iter().any(|facts| facts.loss.get().is_none()) {
        assert!(begin.elapsed() < SOON, "not every device was told");
        std::thread::sleep(Duration::from_millis(1));
    }
    for (rank, facts) in facts.iter().enumerate() {
        let mut aborted = fake.done(rank).contains(&Done::Abort);
        while !aborted {
            assert!(begin.elapsed() < SOON, "rank {rank} was not aborted");
            std::thread::sleep(Duration::from_millis(1));
            aborted = fake.done(rank).contains(&Done::Abort);
        }
        assert!(again.contains(facts.loss.get().unwrap()), "{again}");
    }
    error
}

fn two(fake: &Arc<Fake>) -> (Dp, Arc<Vec<Facts>>) {
    let model = model(NET, Norm::Batch);
    over(fake, &model, 2, &settings(4, DpLoss::Gathered))
}

#[test]
fn what_a_call_says_ends_all_devices() {
    let fake = Arc::new(Fake {
        no_transfer: Some("ncclBroadcast: invalid usage"),
        ..Fake::default()
    });
    let (mut dp, facts) = two(&fake);
    let said = ends(&fake, &mut dp, &facts);
    assert_eq!(said, "device 0 (GPU 10): ncclBroadcast: invalid usage");
}

#[test]
fn what_the_end_of_a_group_says_is_told_with_the_device_that_nccl_blames() {
    for blamed in [None, Some(1)] {
        let fake = Arc::new(Fake::default());
        *fake.no_group.lock().unwrap() = Some("ncclGroupEnd: unhandled cuda error");
        let (mut dp, facts) = two(&fake);
        if blamed.is_some() {
            *fake.failing.lock().unwrap() = blamed;
            *fake.async_error.lock().unwrap() = Some("NCCL's threads: remote error");
        }
        let said = ends(&fake, &mut dp, &facts);
        let expected = match blamed {
            None => "ncclGroupEnd: unhandled cuda error",
            Some(_) => "device 1 (GPU 11): NCCL's threads: remote error",
        };
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn what_nccls_threads_say_of_one_device_ends_all() {
    let fake = Arc::new(Fake::default());
    let (mut dp, facts) = two(&fake);
    step(&mut dp, 0, 4).unwrap();
    *fake.failing.lock().unwrap() = Some(1);
    *fake.async_error.lock().unwrap() = Some("NCCL's threads: remote error");
    let said = ends(&fake, &mut dp, &facts);
    let expected = "device 1 (GPU 11): NCCL's threads: remote error";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_device_that_has_failed_while_the_controller_waits_for_another_ends_all() {
    let fake = Arc::new(Fake::default());
    let (mut dp, facts) = two(&fake);
    step(&mut dp, 0, 4).unwrap();
    let words = "failed on the GPU: an illegal memory access was encountered";
    *facts[1].failed.lock().unwrap() = Some(words.into());
    let said = ends(&fake, &mut dp, &facts);
    assert!(
        said.contains(&format!("device 1 (GPU 11): {words}")),
        "{said}"
    );
}

#[test]
fn a_controller_that_is_stuck_in_nccl_is_let_out_when_a_device_has_failed() {
    for revokes in [true, false] {
        let fake = Arc::new(Fake {
            stuck_call: Some(1),
            revokes,
            ..Fake::default()
        });
        let (mut dp, facts) = two(&fake);
        *fake.released.lock().unwrap() = true;
        step(&mut dp, 0, 4).unwrap();
        *fake.released.lock().unwrap() = false;
        let failed = Arc::clone(&facts[1].failed);
        let failing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            *failed.lock().unwrap() = Some("failed on the GPU: a launch failed".into());
        });
        let said = ends(&fake, &mut dp, &facts);
        failing.join().unwrap();
        assert!(
            said.contains("device 1 (GPU 11): failed on the GPU"),
            "{said}"
        );
    }
}

#[test]
fn what_keeps_nccl_from_starting_is_told() {
    let fakes = [
        (
            Fake {
                no_identity: Some("ncclGetUniqueId: no network"),
                ..Fake::default()
            },
            "no network",
        ),
        (
            Fake {
                no_init: Some((1, "ncclCommInitRank: no memory")),
                ..Fake::default()
            },
            "no memory",
        ),
    ];
    for (fake, words) in fakes {
        let (mut dp, _) = two(&Arc::new(fake));
        for _ in 0..2 {
            let said = step(&mut dp, 0, 4).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
    }
}

#[test]
fn two_devices_on_one_gpu_are_refused_with_what_to_write_instead() {
    let mut backends = backends(3);
    let copies: Box<dyn Links> = Box::new(copies(&backends));
    let facts = Facts::default();
    let refused = NcclLinks::over(
        Arc::new(Fake::default()),
        Box::new(move |device, backend, work| {
            work(&mut OnHost {
                backend,
                facts: &facts,
                gpu: device % 2,
            })
        }),
        backends.iter_mut().map(|backend| &mut **backend as _),
        copies,
    );
    let said = refused.err().unwrap().to_string();
    assert!(said.contains("devices 0 and 2 are both on GPU 0"), "{said}");
    assert!(said.contains("dp_transport = \"peer-copy\""), "{said}");
}

#[test]
fn devices_that_are_no_gpus_are_refused() {
    let mut backends = backends(2);
    let copies: Box<dyn Links> = Box::new(copies(&backends));
    let devices = backends.iter_mut().map(|backend| &mut **backend as _);
    let said = NcclLinks::new(devices, copies).err().unwrap().to_string();
    // On a machine without NCCL that is what is said first.
    assert!(
        said.contains("NCCL without a GPU") || said.contains("libnccl"),
        "{said}"
    );
}
