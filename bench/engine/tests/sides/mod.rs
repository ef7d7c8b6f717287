//! Collectives over two transports side by side: what one gives the other must give, bit by bit.
use syncmark_engine::backend::{Backend, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::comm::{Collective, CollectiveCall, Communicator, Reduce, chunk};
use syncmark_engine::half::{Bf16, F16, Half};
use syncmark_engine::probe::Phase;
use syncmark_engine::tensor::{Dtype, Span};

/// A rank on one of the transports.
pub struct Side {
    pub backend: Box<dyn Backend>,
    pub comm: Box<dyn Communicator>,
}

impl Side {
    pub fn new(backend: Box<dyn Backend>, comm: Box<dyn Communicator>) -> Self {
        Self { backend, comm }
    }

    pub fn put(&mut self, dtype: Dtype, values: &[f32]) -> Span {
        let span = self
            .backend
            .allocate(Category::Workspace, dtype, values.len())
            .unwrap();
        self.write(span, values);
        span
    }

    fn write(&mut self, span: Span, values: &[f32]) {
        let of = |f: fn(f32) -> F16| values.iter().map(|v| f(*v)).collect::<Vec<_>>();
        let f16 = of(F16::narrow);
        let bf16: Vec<_> = values.iter().map(|v| Bf16::narrow(*v)).collect();
        let i32: Vec<_> = values.iter().map(|v| *v as i32).collect();
        let i64: Vec<_> = values.iter().map(|v| (*v as i64) << 40).collect();
        let from = match span.dtype() {
            Dtype::F32 => HostSlice::F32(values),
            Dtype::F16 => HostSlice::F16(&f16),
            Dtype::Bf16 => HostSlice::Bf16(&bf16),
            Dtype::I32 => HostSlice::I32(&i32),
            Dtype::I64 => HostSlice::I64(&i64),
        };
        self.backend.upload(Stream::Compute, from, span).unwrap();
    }

    /// The bits of a span, widened.
    fn bits(&mut self, span: Span) -> Vec<i64> {
        let len = span.len();
        macro_rules! read {
            ($kind:ident, $zero:expr, $bits:expr) => {{
                let mut values = vec![$zero; len];
                let to = HostSliceMut::$kind(&mut values);
                self.backend.download(span, to).unwrap();
                values.into_iter().map($bits).collect()
            }};
        }
        match span.dtype() {
            Dtype::F32 => read!(F32, 0.0, |v: f32| i64::from(v.to_bits())),
            Dtype::F16 => read!(F16, F16(0), |v: F16| i64::from(v.0)),
            Dtype::Bf16 => read!(Bf16, Bf16(0), |v: Bf16| i64::from(v.0)),
            Dtype::I32 => read!(I32, 0, i64::from),
            Dtype::I64 => read!(I64, 0, |v: i64| v),
        }
    }

    pub fn call(
        &mut self,
        collective: Collective,
        from: Span,
        to: Span,
        reduce: Reduce,
        root: usize,
    ) -> Result<(), String> {
        let call = CollectiveCall {
            collective,
            phase: Phase::AllReduce,
            from,
            to,
            reduce,
            root,
        };
        let after = self.backend.record(Stream::Compute);
        let done = self.comm.enqueue(&mut *self.backend, call, after);
        done.and_then(|event| self.backend.wait(Stream::Compute, event))
            .and_then(|()| self.backend.synchronize())
            .map_err(|error| error.to_string())
    }
}

/// Small integers: their sums are exact in every data type, so that the order of a sum does not show.
fn values(rank: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 7 + rank * 5) % 23) as f32 - 11.0)
        .collect()
}

/// What calls are made with.
#[derive(Clone, Copy)]
pub struct Extent {
    dtypes: &'static [Dtype],
    lengths: &'static [usize],
}

/// One element, an equal split, and one that is not, in every data type.
pub const ALL: Extent = Extent {
    dtypes: &[Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I32, Dtype::I64],
    lengths: &[1, 4096, 4099],
};

/// For ranks that wait long for each other.
pub const FEW: Extent = Extent {
    dtypes: &[Dtype::F32, Dtype::Bf16],
    lengths: &[1, 4099],
};

/// Every collective in every combination, and each data type and length of `extent`, on both sides; results must be bit-equal. The
/// number of calls.
pub fn compare(over: &mut [Side; 2], extent: Extent) -> usize {
    let mut calls = 0;
    for &dtype in extent.dtypes {
        for &len in extent.lengths {
            let world = over[0].comm.world_size();
            let spans: Vec<_> = over
                .iter_mut()
                .map(|side| {
                    let zeros = vec![0.0; len * world];
                    (side.put(dtype, &zeros[..len]), side.put(dtype, &zeros))
                })
                .collect();
            let scaled = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16);
            let reduces = [Reduce::Sum, Reduce::Max, Reduce::ScaledSum(0.5)];
            for reduce in &reduces[..if scaled { 3 } else { 2 }] {
                for case in CASES
                    .iter()
                    .filter(|case| case.reduces || *reduce == Reduce::Sum)
                {
                    let found = [0, 1].map(|side| {
                        let (own, all) = spans[side];
                        one(&mut over[side], case, (own, all), *reduce)
                    });
                    let [nccl, shared] = &found;
                    let what = (case.collective, case.in_place, dtype, len, *reduce);
                    assert_eq!(nccl, shared, "{what:?}");
                    calls += 1;
                }
            }
        }
    }
    over[0].comm.barrier().unwrap();
    calls
}

struct Case {
    collective: Collective,
    in_place: bool,
    reduces: bool,
}

const fn case(collective: Collective, in_place: bool, reduces: bool) -> Case {
    Case {
        collective,
        in_place,
        reduces,
    }
}

const CASES: [Case; 11] = [
    case(Collective::AllReduce, true, true),
    case(Collective::Reduce, true, true),
    case(Collective::ReduceScatter, false, true),
    case(Collective::ReduceScatter, true, true),
    case(Collective::Broadcast, true, false),
    case(Collective::AllGather, false, false),
    case(Collective::AllGather, true, false),
    case(Collective::Scatter, false, false),
    case(Collective::Gather, false, false),
    case(Collective::Send, true, false),
    case(Collective::Barrier, false, false),
];

/// One call, the last rank being the root, and the bits of its result, and of what was not to be changed.
fn one(side: &mut Side, case: &Case, (own, all): (Span, Span), reduce: Reduce) -> Vec<i64> {
    let (rank, world) = (side.comm.rank(), side.comm.world_size());
    let (len, root) = (own.len(), world - 1);
    side.write(own, &values(rank, len));
    side.write(all, &vec![0.0; len * world]);
    let part = chunk(len, world, rank);
    let (from, to) = match (case.collective, case.in_place) {
        (Collective::Barrier, _) => (Span::EMPTY, Span::EMPTY),
        (Collective::AllGather, true) => {
            side.write(all, &values(rank, len * world));
            (all.slice(rank * len..(rank + 1) * len), all)
        }
        (Collective::AllGather, false) => (own, all),
        (Collective::ReduceScatter, true) => (own, own.slice(part)),
        (Collective::ReduceScatter | Collective::Scatter, _) => (own, all.first(part.len())),
        (Collective::Gather, _) => (own.first(part.len()), all.first(len)),
        _ => (own, own),
    };
    let (collective, peer) = match case.collective {
        // From the last rank to the first; alone, nobody sends.
        Collective::Send if world == 1 => return Vec::new(),
        Collective::Send if rank == root => (Collective::Send, 0),
        Collective::Send if rank == 0 => (Collective::Receive, root),
        Collective::Send => return Vec::new(),
        other => (other, root),
    };
    let done = side.call(collective, from, to, reduce, peer);
    done.unwrap_or_else(|error| panic!("{collective:?}: {error}"));
    let input = if case.in_place || from.is_empty() {
        Vec::new()
    } else {
        side.bits(from)
    };
    if to.is_empty() {
        return input;
    }
    [input, side.bits(to)].concat()
}
