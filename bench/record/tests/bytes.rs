//! The byte formulas against simulations that move single elements between ranks and count.
//!
//! Contract: the simulations know the algorithms' steps, not the formulas.
use proptest::prelude::*;
use syncmark_record::bytes::{Algorithm, Call, Collective, Traffic, split};

/// Counts elements that travel from one rank to another.
struct Wire(Vec<Traffic>);

impl Wire {
    fn new(ranks: u64) -> Self {
        Self(vec![Traffic::default(); ranks as usize])
    }

    fn send(&mut self, from: u64, to: u64, elements: u64) {
        if from != to {
            self.0[from as usize].sent += elements;
            self.0[to as usize].received += elements;
        }
    }
}

/// The owner of an element when `elements` are split over `ranks`.
fn owner(elements: u64, ranks: u64, element: u64) -> u64 {
    let mut end = 0;
    (0..ranks)
        .find(|&rank| {
            end += split(elements, ranks, rank);
            element < end
        })
        .expect("the chunks cover every element")
}

/// Element by element over shared memory.
fn simulate_shared(collective: Collective, elements: u64, ranks: u64) -> Wire {
    let mut wire = Wire::new(ranks);
    for element in 0..elements {
        let owner = owner(elements, ranks, element);
        for rank in 0..ranks {
            match collective {
                Collective::AllReduce => {
                    wire.send(rank, owner, 1);
                    wire.send(owner, rank, 1);
                }
                Collective::ReduceScatter => wire.send(rank, owner, 1),
                Collective::Broadcast { root } => wire.send(root, rank, 1),
                Collective::Reduce { root } => wire.send(rank, root, 1),
                Collective::AllGather => (0..ranks).for_each(|reader| wire.send(rank, reader, 1)),
                Collective::Scatter { root } if rank == owner => wire.send(root, rank, 1),
                Collective::Gather { root } if rank == owner => wire.send(rank, root, 1),
                Collective::SendRecv { from, to } if rank == to => wire.send(from, rank, 1),
                _ => {}
            }
        }
    }
    wire
}

/// Step by step around a ring.
fn simulate_ring(collective: Collective, elements: u64, ranks: u64) -> Wire {
    let mut wire = Wire::new(ranks);
    let next = |rank: u64| (rank + 1) % ranks;
    let chunk = |index: u64| split(elements, ranks, index % ranks);
    for step in 0..ranks - 1 {
        for rank in 0..ranks {
            match collective {
                Collective::AllReduce => {
                    wire.send(rank, next(rank), chunk(rank + 2 * ranks - 1 - step));
                    wire.send(rank, next(rank), chunk(rank + ranks - step));
                }
                Collective::ReduceScatter => {
                    wire.send(rank, next(rank), chunk(rank + 2 * ranks - 1 - step))
                }
                Collective::AllGather => wire.send(rank, next(rank), elements),
                Collective::Broadcast { root } if rank == (root + step) % ranks => {
                    wire.send(rank, next(rank), elements)
                }
                Collective::Reduce { root } if rank == (root + 1 + step) % ranks => {
                    wire.send(rank, next(rank), elements);
                }
                _ => {}
            }
        }
    }
    wire
}

/// Along the edges of a binary tree in heap order.
fn simulate_tree(collective: Collective, elements: u64, ranks: u64) -> Wire {
    let mut wire = Wire::new(ranks);
    for place in 1..ranks {
        let at = |root: u64, place: u64| (place + root) % ranks;
        let parent = (place - 1) / 2;
        match collective {
            Collective::AllReduce => {
                wire.send(place, parent, elements);
                wire.send(parent, place, elements);
            }
            Collective::Broadcast { root } => {
                wire.send(at(root, parent), at(root, place), elements)
            }
            Collective::Reduce { root } => wire.send(at(root, place), at(root, parent), elements),
            _ => {}
        }
    }
    wire
}

fn check(algorithm: Algorithm, collective: Collective, elements: u64, ranks: u64, wire: &Wire) {
    let call = Call {
        collective,
        algorithm,
        elements,
        element_bytes: 4,
        ranks,
    };
    for rank in 0..ranks {
        assert_eq!(
            call.traffic(rank),
            Some(wire.0[rank as usize] * 4),
            "{call:?} rank {rank}"
        );
    }
    let total = call.total().unwrap();
    assert_eq!(
        total.sent, total.received,
        "what is sent is received: {call:?}"
    );
}

fn rooted(root: u64, peer: u64) -> [Collective; 8] {
    [
        Collective::AllReduce,
        Collective::AllGather,
        Collective::ReduceScatter,
        Collective::Broadcast { root },
        Collective::Reduce { root },
        Collective::Scatter { root },
        Collective::Gather { root },
        Collective::SendRecv {
            from: root,
            to: peer,
        },
    ]
}

proptest! {
    #[test]
    fn formulas_match_simulations(elements in 0u64..70, ranks in 1u64..7, root in 0u64..6, peer in 0u64..6) {
        let (root, peer) = (root % ranks, peer % ranks);
        for collective in rooted(root, peer) {
            check(Algorithm::SharedDirect, collective, elements, ranks, &simulate_shared(collective, elements, ranks));
        }
        if ranks > 1 {
            for collective in &rooted(root, peer)[..5] {
                check(Algorithm::Ring, *collective, elements, ranks, &simulate_ring(*collective, elements, ranks));
            }
            for collective in &rooted(root, peer)[5..] {
                check(Algorithm::Ring, *collective, elements, ranks, &simulate_shared(*collective, elements, ranks));
            }
        }
        for collective in [Collective::AllReduce, Collective::Broadcast { root }, Collective::Reduce { root }] {
            check(Algorithm::BinaryTree, collective, elements, ranks, &simulate_tree(collective, elements, ranks));
        }
    }

    #[test]
    fn an_even_all_reduce_moves_the_same_on_a_ring_and_in_shared_memory(chunk in 0u64..50, ranks in 1u64..9) {
        let call = |algorithm| Call {
            collective: Collective::AllReduce, algorithm, elements: chunk * ranks, element_bytes: 4, ranks,
        };
        for rank in 0..ranks {
            let expected = 2 * (ranks - 1) * chunk * 4;
            prop_assert_eq!(call(Algorithm::Ring).traffic(rank).unwrap().sent, expected);
            prop_assert_eq!(call(Algorithm::SharedDirect).traffic(rank).unwrap().sent, expected);
        }
    }
}

#[test]
fn hand_computed_uneven_all_reduce() {
    // 10 elements over 4 ranks: chunks 3, 3, 2, 2. Rank 0 writes 7 for others, others read its 3 three times.
    let call = |algorithm| Call {
        collective: Collective::AllReduce,
        algorithm,
        elements: 10,
        element_bytes: 4,
        ranks: 4,
    };
    assert_eq!(
        call(Algorithm::SharedDirect).traffic(0).unwrap(),
        Traffic {
            sent: 64,
            received: 64
        }
    );
    assert_eq!(
        call(Algorithm::SharedDirect).traffic(3).unwrap(),
        Traffic {
            sent: 56,
            received: 56
        }
    );
    // On the ring rank 0 leaves out chunks 0 (3) and 1 (3), rank 1 chunks 1 (3) and 2 (2): 14 and 15 elements.
    assert_eq!(call(Algorithm::Ring).traffic(0).unwrap().sent, 56);
    assert_eq!(call(Algorithm::Ring).traffic(1).unwrap().sent, 60);
}

#[test]
fn the_root_of_a_naive_all_reduce_sends_and_receives_for_everyone() {
    let call = Call {
        collective: Collective::AllReduce,
        algorithm: Algorithm::Root,
        elements: 10,
        element_bytes: 4,
        ranks: 4,
    };
    assert_eq!(
        call.traffic(0).unwrap(),
        Traffic {
            sent: 120,
            received: 120
        }
    );
    assert_eq!(
        call.traffic(1).unwrap(),
        Traffic {
            sent: 40,
            received: 40
        }
    );
}

#[test]
fn a_barrier_and_a_lone_rank_move_nothing() {
    for collective in rooted(0, 0) {
        let call = Call {
            collective,
            algorithm: Algorithm::Ring,
            elements: 10,
            element_bytes: 4,
            ranks: 1,
        };
        assert_eq!(call.traffic(0), Some(Traffic::default()));
    }
    let barrier = Call {
        collective: Collective::Barrier,
        algorithm: Algorithm::Ring,
        elements: 9,
        element_bytes: 4,
        ranks: 3,
    };
    assert_eq!(barrier.total(), Some(Traffic::default()));
}

#[test]
fn what_an_algorithm_lacks_has_no_figure() {
    let scatter = Call {
        collective: Collective::Scatter { root: 0 },
        algorithm: Algorithm::BinaryTree,
        elements: 9,
        element_bytes: 4,
        ranks: 3,
    };
    assert_eq!(scatter.total(), None);
    assert_eq!(Algorithm::from_name("ring"), Some(Algorithm::Ring));
    assert_eq!(Algorithm::from_name("rings"), None);
}

/// Matrices of 64×576, 10×64 and 8×8, and vectors: by hand.
#[test]
fn powersgd_exchanges_factors_where_they_are_half_as_large() {
    let shapes = [
        vec![64, 64, 3, 3],
        vec![10, 64],
        vec![8, 8],
        vec![64],
        vec![],
    ];
    let of = |rank| syncmark_record::bytes::low_rank_elements(&shapes, rank, 2.0);
    let low_rank = |plain, p, q| syncmark_record::bytes::LowRank { plain, p, q };
    // 2·(8 + 8) is not less than 64 by a factor of more than 2: 32 against 64 is, with rank 1; 64 against 64 is not with rank 2.
    assert_eq!(of(1), low_rank(64 + 1, 64 + 10 + 8, 576 + 64 + 8));
    assert_eq!(of(2), low_rank(64 + 64 + 1, 2 * (64 + 10), 2 * (576 + 64)));
    // (10 + 64)·5 is more than half of 640, (64 + 576)·5 less than half of 36864.
    assert_eq!(of(5), low_rank(640 + 64 + 64 + 1, 5 * 64, 5 * 576));
}
