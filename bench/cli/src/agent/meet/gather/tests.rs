//! Meetings over the loopback interface: who is let in, who is turned away, who ends them.
use std::io::Read;
use std::thread::JoinHandle;

use super::super::join;
use super::*;
use crate::agent::machine::Machine;
use crate::agent::variables::Family;
use crate::run::signals::tests::by_hand;

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn place(port: u16, rank: u32, world_size: u32) -> Place {
    Place {
        family: Family::Torchrun,
        rank,
        world_size,
        local_rank: Some(rank),
        one_host: true,
        master: "127.0.0.1".into(),
        port,
        token: "token".into(),
        patience: Duration::from_secs(20),
    }
}

fn hello(place: &Place) -> Hello {
    Hello {
        protocol_version: AGENT_PROTOCOL_VERSION,
        syncmark_version: "1.2.3".into(),
        token: place.token.clone(),
        rank: place.rank,
        world_size: place.world_size,
        local_rank: place.local_rank,
        process: 100 + place.rank,
        machine: Machine {
            host: format!("host{}", place.rank),
            boot_id: "boot".into(),
            process_namespace: "pid:[1]".into(),
            cpu_model: "test".into(),
            cores: vec![0],
        },
        work: Work::Planned {
            verb: "run".into(),
            plans: vec![("quickstart".into(), "digest".into())],
        },
    }
}

/// What a meeting came to: the ranks that were seated, or a complaint.
type Met = Result<Vec<u32>, String>;

/// Starts a meeting of `world` ranks and lets `visit` come to it.
fn meeting(
    world: u32,
    change: impl FnOnce(&mut Place, &mut Hello),
    visit: impl FnOnce(u16),
) -> Met {
    let port = free_port();
    let mut own = place(port, 0, world);
    let mut introduction = hello(&own);
    change(&mut own, &mut introduction);
    let rank_0 = std::thread::spawn(move || {
        let (signals, _write) = by_hand();
        let met = gather(&own, &introduction, &signals);
        met.map(|links| links.iter().map(|link| link.hello().rank).collect())
            .map_err(|error| error.to_string())
    });
    visit(port);
    rank_0.join().unwrap()
}

/// An agent that comes to the meeting, and what it is told.
fn visitor(
    port: u16,
    rank: u32,
    world: u32,
    change: impl FnOnce(&mut Hello),
) -> JoinHandle<Result<(), String>> {
    let place = place(port, rank, world);
    let mut hello = hello(&place);
    change(&mut hello);
    std::thread::spawn(move || {
        let (signals, _write) = by_hand();
        join(&place, &hello, &signals)
            .map(drop)
            .map_err(|error| error.to_string())
    })
}

fn none(_: &mut Place, _: &mut Hello) {}

#[test]
fn agents_are_welcomed_in_the_order_of_their_ranks() {
    let met = meeting(4, none, |port| {
        let visitors = [3, 1, 2].map(|rank| visitor(port, rank, 4, |_| {}));
        for visitor in visitors {
            assert_eq!(visitor.join().unwrap(), Ok(()));
        }
    });
    assert_eq!(met, Ok(vec![1, 2, 3]));
}

#[test]
fn strangers_are_turned_away_and_disturb_nothing() {
    let met = meeting(2, none, |port| {
        let mut web = loop {
            // The listener may need a moment.
            if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                break stream;
            }
        };
        web.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap());
        let _silent = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let foreign = visitor(port, 1, 2, |hello| hello.token = "another".into());
        let told = foreign.join().unwrap().unwrap_err();
        assert!(
            told.contains("rank 0 refused rank 1: another job meets here"),
            "{told}"
        );
        assert_eq!(visitor(port, 1, 2, |_| {}).join().unwrap(), Ok(()));
        let mut answer = Vec::new();
        // All that a stranger sees is the preamble, or the end of its connection.
        if web.read_to_end(&mut answer).is_ok() {
            assert_eq!(answer, PREAMBLE);
        }
    });
    assert_eq!(met, Ok(vec![1]));
}

type Change = fn(&mut Hello);

#[test]
fn an_agent_that_differs_is_named_to_all() {
    let cases: [(Change, &str); 7] = [
        (
            |hello| hello.syncmark_version = "9.9.9".into(),
            "the agent of rank 2 (process 102 on host2) is syncmark 9.9.9 with agent protocol 1, but rank 0 is syncmark 1.2.3 with agent protocol 1",
        ),
        (
            |hello| hello.protocol_version = 2,
            "the agent of rank 2 (process 102 on host2) is syncmark 1.2.3 with agent protocol 2, but rank 0 is syncmark 1.2.3 with agent protocol 1",
        ),
        (
            |hello| hello.world_size = 4,
            "the agent of rank 2 (process 102 on host2) was told of 4 processes, but rank 0 of 3",
        ),
        (
            |hello| {
                hello.work = Work::Planned {
                    verb: "run".into(),
                    plans: vec![("quickstart".into(), "other".into())],
                }
            },
            "the agent of rank 2 (process 102 on host2) plans other trials than rank 0: its scenario `quickstart` or its options differ",
        ),
        (
            |hello| {
                hello.work = Work::Planned {
                    verb: "verify".into(),
                    plans: Vec::new(),
                }
            },
            "the agent of rank 2 (process 102 on host2) was started as `syncmark verify`, but rank 0 as `syncmark run`",
        ),
        (
            |hello| {
                hello.work = Work::Failed {
                    reason: "no such scenario".into(),
                }
            },
            "the agent of rank 2 (process 102 on host2) cannot take part: no such scenario",
        ),
        (
            |hello| hello.rank = 0,
            "the agent of rank 0 (process 102 on host2) claims a rank that the agent of rank 0 (process 100 on host0) has",
        ),
    ];
    for (change, wanted) in cases {
        let met = meeting(3, none, |port| {
            let (other, differing) = (visitor(port, 1, 3, |_| {}), visitor(port, 2, 3, change));
            assert_eq!(
                differing.join().unwrap().unwrap_err(),
                format!("rank 0 refused rank 2: {wanted}")
            );
            assert_eq!(
                other.join().unwrap().unwrap_err(),
                format!("rank 0 refused rank 1: {wanted}")
            );
        });
        assert_eq!(met, Err(wanted.to_owned()));
    }
}

#[test]
fn a_rank_can_be_claimed_once() {
    let met = meeting(3, none, |port| {
        let twins = [0, 1].map(|_| visitor(port, 1, 3, |_| {}));
        for twin in twins {
            let told = twin.join().unwrap().unwrap_err();
            assert!(told.contains("two processes claim rank 1"), "{told}");
        }
    });
    assert!(
        met.unwrap_err()
            .starts_with("two processes claim rank 1: the agent of rank 1 (process 101")
    );
}

#[test]
fn rank_0_that_cannot_plan_tells_the_others_at_once() {
    let fail = |_: &mut Place, own: &mut Hello| {
        own.work = Work::Failed {
            reason: "no such scenario".into(),
        };
    };
    let met = meeting(2, fail, |port| {
        let told = visitor(port, 1, 2, |_| {}).join().unwrap();
        assert_eq!(
            told.unwrap_err(),
            "rank 0 refused rank 1: rank 0 cannot take part: no such scenario"
        );
    });
    assert_eq!(met, Err("rank 0 cannot take part: no such scenario".into()));
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let hurry = |own: &mut Place, _: &mut Hello| own.patience = Duration::from_secs(1);
    let met = meeting(4, hurry, |port| {
        let told = visitor(port, 2, 4, |_| {}).join().unwrap().unwrap_err();
        assert!(told.contains("ranks 1 and 3 did not come"), "{told}");
    });
    let complaint = met.unwrap_err();
    assert!(
        complaint.starts_with("ranks 1 and 3 did not come to 127.0.0.1:"),
        "{complaint}"
    );
    assert!(complaint.ends_with("within 1 s"), "{complaint}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let met = meeting(2, |own, _| own.port = port, |_| {});
    let complaint = met.unwrap_err();
    assert!(
        complaint.starts_with(&format!(
            "rank 0 cannot listen on port {port}, where the agents are to meet"
        )),
        "{complaint}"
    );
}

#[test]
fn whoever_listens_but_is_no_rank_0_is_told_of() {
    let web = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = web.local_addr().unwrap().port();
    let visitor = visitor(port, 1, 2, |_| {});
    let (mut stream, _) = web.accept().unwrap();
    // It reads first: closing a connection with unread bytes resets it.
    stream.read_exact(&mut [0; PREAMBLE.len()]).unwrap();
    stream
        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .unwrap();
    let told = visitor.join().unwrap().unwrap_err();
    assert_eq!(
        told,
        format!(
            "rank 1 could not join rank 0 at 127.0.0.1:{port}: it does not speak syncmark's agent protocol"
        )
    );
}
