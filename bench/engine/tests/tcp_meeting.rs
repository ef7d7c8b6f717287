//! How ranks meet over TCP when something is in the way: a busy port, a rank that never comes or comes twice, another job,
//! strangers. Everyone ends within the time limit with words that say what to do, or meets in spite of it.
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use syncmark_engine::comm::Communicator;
use syncmark_engine::comm::tcp::{JoinError, Settings, TcpCommunicator};

const TOKEN: u64 = 77;
/// How long ranks wait for each other where one must not come.
const SHORT: Duration = Duration::from_secs(1);
/// By then every rank must have ended, on a machine that does other things as well.
const ENDED: Duration = Duration::from_secs(15);

/// An address on which rank 0 listens already, so that no other test can take the port.
fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn settings(rank: usize, world: usize, address: SocketAddr) -> Settings {
    Settings {
        join_timeout: SHORT,
        ..Settings::new(rank, world, address, TOKEN)
    }
}

fn rank_0(world: usize, (listener, address): (TcpListener, SocketAddr)) -> Settings {
    Settings {
        listener: Some(listener),
        ..settings(0, world, address)
    }
}

type Joining = JoinHandle<Result<TcpCommunicator, JoinError>>;

fn join(settings: Settings) -> Joining {
    std::thread::spawn(move || TcpCommunicator::join(settings))
}

fn refused(joining: Joining) -> String {
    let joined = joining.join().unwrap();
    joined
        .err()
        .expect("this rank must not get through")
        .to_string()
}

/// All of them meet: each passes a barrier.
fn meet(joining: Vec<Joining>) {
    let ranks = joining.into_iter().map(|rank| {
        std::thread::spawn(move || {
            let mut comm = rank.join().unwrap().unwrap();
            comm.barrier().unwrap();
        })
    });
    let ranks: Vec<_> = ranks.collect();
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
}

#[test]
fn a_busy_port_is_named_with_the_remedy() {
    let (_busy, address) = listener();
    let error = refused(join(settings(0, 2, address)));
    assert_eq!(
        error,
        format!(
            "failed to listen on {address}: the port is in use: end the program or job that listens there, or choose another \
             port (0 lets the system choose)"
        )
    );
}

#[test]
fn an_address_of_another_host_is_named() {
    // From the range that is reserved for documentation.
    let elsewhere = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 4000));
    let error = refused(join(settings(0, 2, elsewhere)));
    assert!(
        error.contains("no interface of this host has this address"),
        "{error}"
    );
}

#[test]
fn without_rank_0_the_others_give_up_in_time() {
    let begin = Instant::now();
    let (held, address) = listener();
    drop(held);
    let error = refused(join(settings(1, 2, address)));
    assert!(
        error.starts_with(&format!(
            "rank 1 tried for 1 s to reach rank 0 at {address}:"
        )),
        "{error}"
    );
    assert!(error.contains("is rank 0 running"), "{error}");
    assert!(begin.elapsed() < ENDED);
}

#[test]
fn a_rank_that_never_comes_is_named_to_all_that_did() {
    let begin = Instant::now();
    let point = listener();
    let address = point.1;
    let zero = join(rank_0(4, point));
    let two = join(settings(2, 4, address));
    let expected = format!("rank 0 waited 1 s at {address} for ranks 1, 3");
    assert_eq!(refused(zero), expected);
    let error = refused(two);
    assert_eq!(
        error,
        format!("rank 0 at {address} refused rank 2: {expected}")
    );
    assert!(begin.elapsed() < ENDED);
}

#[test]
fn a_rank_that_comes_late_is_waited_for() {
    let point = listener();
    let address = point.1;
    let zero = join(rank_0(2, point));
    std::thread::sleep(SHORT / 4);
    meet(vec![zero, join(settings(1, 2, address))]);
}

#[test]
fn ranks_that_do_not_fit_fail_the_job_on_all() {
    let twice = |address| vec![settings(1, 3, address), settings(1, 3, address)];
    let of_another_size = |address| vec![settings(1, 2, address)];
    type Others<'a> = &'a dyn Fn(SocketAddr) -> Vec<Settings>;
    let cases: [(Others, &str); 2] = [
        (
            &twice,
            "both claim to be rank 1: give each rank its own number",
        ),
        (
            &of_another_size,
            "was told of 2 ranks, rank 0 of 3: start all with the same world size",
        ),
    ];
    for (others, expected) in cases {
        let point = listener();
        let address = point.1;
        let zero = join(rank_0(3, point));
        // All knock before anyone's answer is waited for.
        let others: Vec<Joining> = others(address).into_iter().map(join).collect();
        for rank in std::iter::once(zero).chain(others) {
            let error = refused(rank);
            assert!(error.contains(expected), "{error}");
        }
    }
}

#[test]
fn a_rank_of_another_job_is_turned_away_and_the_job_meets_without_it() {
    let point = listener();
    let address = point.1;
    let zero = join(rank_0(2, point));
    let lost = refused(join(Settings {
        token: TOKEN + 1,
        ..settings(1, 2, address)
    }));
    assert!(
        lost.contains(&format!(
            "two jobs use {address}, give each a port of its own"
        )),
        "{lost}"
    );
    meet(vec![zero, join(settings(1, 2, address))]);
}

#[test]
fn strangers_hold_nobody_up() {
    let point = listener();
    let address = point.1;
    let zero = join(rank_0(3, point));
    let _silent = TcpStream::connect(address).unwrap();
    let mut browser = TcpStream::connect(address).unwrap();
    let request = [b"GET / HTTP/1.1\r\n".as_slice(), &[b'x'; 200]].concat();
    browser.write_all(&request).unwrap();
    drop(TcpStream::connect(address).unwrap());
    let others = [1, 2].map(|rank| join(settings(rank, 3, address)));
    meet(std::iter::once(zero).chain(others).collect());
}

#[test]
fn strangers_are_mentioned_when_a_rank_is_missing() {
    let point = listener();
    let address = point.1;
    let zero = join(rank_0(2, point));
    let mut browser = TcpStream::connect(address).unwrap();
    browser.write_all(&[b'x'; 200]).unwrap();
    let error = refused(zero);
    assert!(
        error.contains("for rank 1; 1 other connection(s) did not speak the protocol"),
        "{error}"
    );
}

#[test]
fn settings_that_cannot_be_meant_are_refused_at_once() {
    let (_listener, address) = listener();
    let port_0 = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let cases = [
        (settings(0, 0, address), "0 ranks cannot meet"),
        (
            settings(2, 2, address),
            "rank 2 is not below the world size 2",
        ),
        (settings(1, 2, port_0), "rank 0 cannot be reached at port 0"),
        (
            Settings {
                join_timeout: Duration::ZERO,
                ..settings(1, 2, address)
            },
            "a time limit of 0",
        ),
    ];
    for (settings, expected) in cases {
        let error = refused(join(settings));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_rank_alone_needs_no_port() {
    let (_busy, address) = listener();
    meet(vec![join(settings(0, 1, address))]);
}
