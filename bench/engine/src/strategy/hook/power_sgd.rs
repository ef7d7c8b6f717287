//! PowerSGD: matrices travel as two thin factors that one step of a power iteration finds.
//!
//! Contract: the order of operations is PyTorch's. Per bucket three all-reduces: the tensors that are not compressed, all P, all Q; one
//! that would carry nothing is left out. Gradients are *not* divided before the error of the step before is added; the sum of P needs no
//! division, for its columns are made orthonormal; Q and the uncompressed sums are divided by N. With error feedback the
//! whole bucket's error is kept, input − output, also of tensors that are not compressed. Columns that are zero throughout
//! become NaN with rank 1 and 2, since PyTorch's default epsilon is 0.
//! What differs: Q starts from Philox numbers instead of `torch.randn`; one arena serves as both the copy of the input and the error.
//! Reference: `powerSGD_hook.py`; Vogels, Karimireddy and Jaggi, *PowerSGD*, NeurIPS 2019.
use std::ops::Range;

use super::factors::{Division, Factored, Form, Tensor};
use super::{Bucket, HookPlace, Lane, PowerSgdSettings};
use crate::backend::{Backend, BackendError, Category, Event, HostSlice, HostSliceMut, Stream};
use crate::comm::Reduce;
use crate::kernel::{Kernel, Write};
use crate::program::{NamedTensor, TensorData};
use crate::strategy::{Result, StrategyError};
use crate::tensor::{Dtype, Span};

/// First step at which state may be kept: PyTorch rebuilds its buckets after the first, and so do we.
const EARLIEST_WITH_STATE: u64 = 2;

pub(super) struct PowerSgd {
    settings: PowerSgdSettings,
    gradients: Span,
    scale: f32,
    seed: u64,
    state: Span,
    tensors: Vec<Tensor>,
    plain: Span,
    p: Span,
    q: Span,
    /// As the gradient arena; empty without error feedback.
    error: Span,
    /// For orthogonalizing on the compute and on the communication stream, which run at the same time.
    workspaces: [Span; 2],
    /// Synchronized steps so far.
    step: u64,
    /// Whether Q holds the last step's factors.
    warm: bool,
    saved: Option<Saved>,
}

struct Saved {
    step: u64,
    warm: bool,
    error: Vec<f32>,
    q: Vec<f32>,
}

impl PowerSgd {
    pub(super) fn new(
        backend: &mut dyn Backend,
        settings: PowerSgdSettings,
        place: &HookPlace<'_>,
    ) -> Result<Self> {
        check(&settings)?;
        let division = Division::new(place.parameters, &settings);
        let mut floats = |len| backend.allocate(Category::Workspace, Dtype::F32, len);
        let with_error = if settings.error_feedback {
            place.gradients.len()
        } else {
            0
        };
        Ok(Self {
            settings,
            gradients: place.gradients,
            scale: 1.0 / place.world_size as f32,
            seed: place.seed,
            state: place.state,
            plain: floats(division.plain)?,
            p: floats(division.p)?,
            q: floats(division.q)?,
            error: floats(with_error)?,
            workspaces: [
                floats(2 * division.largest_rank)?,
                floats(2 * division.largest_rank)?,
            ],
            tensors: division.tensors,
            step: 0,
            warm: false,
            saved: None,
        })
    }

    pub(super) fn reduce(
        &mut self,
        lane: &mut Lane<'_>,
        bucket: &Bucket,
    ) -> std::result::Result<Event, BackendError> {
        let gradients = self.gradients.slice(bucket.range.clone());
        let event = if self.started() {
            self.compressed(lane, bucket)?
        } else {
            lane.plain(gradients, self.scale)?
        };
        if bucket.last {
            self.end_step();
        }
        Ok(event)
    }

    /// Whether the present step compresses.
    fn started(&self) -> bool {
        self.step >= self.settings.start_step
    }

    /// 0 while gradients are reduced as they are, 1 in steps that draw Q anew, 2 in those that have it from the step before.
    pub(super) fn stage(&self) -> u8 {
        match (self.started(), self.warm) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        }
    }

    pub(super) fn end_step(&mut self) {
        if self.started() {
            self.warm = self.settings.warm_start;
        }
        self.step += 1;
    }

    fn compressed(
        &self,
        lane: &mut Lane<'_>,
        bucket: &Bucket,
    ) -> std::result::Result<Event, BackendError> {
        let parts = self.parts(&bucket.range);
        self.compress(lane, bucket, &parts)?;
        let after = lane.backend.record(Stream::Compute);
        lane.all_reduce(parts.plain, Reduce::Sum, after)?;
        if !parts.plain.is_empty() {
            lane.then(|communication| {
                communication.run(self.mean(parts.plain))?;
                for (tensor, at) in parts.uncompressed() {
                    communication.run(copied(self.plain.slice(at), self.matrix(tensor)))?;
                }
                Ok(())
            })?;
        }
        lane.all_reduce(parts.p, Reduce::Sum, after)?;
        lane.then(|communication| {
            for (tensor, factored) in parts.factored() {
                let (p, q) = self.factors(factored);
                communication.run(self.orthogonalized(Stream::Communication, p, factored))?;
                communication.run(factored.project_back(self.matrix(tensor), p, q))?;
            }
            Ok(())
        })?;
        lane.all_reduce(parts.q, Reduce::Sum, after)?;
        lane.then(|communication| {
            if !parts.q.is_empty() {
                communication.run(self.mean(parts.q))?;
            }
            for (tensor, factored) in parts.factored() {
                let (p, q) = self.factors(factored);
                communication.run(factored.multiply(p, q, self.matrix(tensor)))?;
            }
            if self.settings.error_feedback {
                communication.run(Kernel::Subtract {
                    from: self.gradients.slice(bucket.range.clone()),
                    to: self.error.slice(bucket.range.clone()),
                })?;
            }
            Ok(())
        })
    }

    /// What precedes the first collective: the error of the step before, the tensors that stay as they are, and P = M·Q.
    fn compress(
        &self,
        lane: &mut Lane<'_>,
        bucket: &Bucket,
        parts: &Parts<'_>,
    ) -> std::result::Result<(), BackendError> {
        if self.settings.error_feedback {
            let gradients = self.gradients.slice(bucket.range.clone());
            let error = self.error.slice(bucket.range.clone());
            lane.compute(Kernel::Copy {
                from: error,
                to: gradients,
                write: Write::Accumulate,
            })?;
            lane.compute(copied(gradients, error))?;
        }
        for (tensor, at) in parts.uncompressed() {
            lane.compute(copied(self.matrix(tensor), self.plain.slice(at)))?;
        }
        for (tensor, factored) in parts.factored() {
            let (p, q) = self.factors(factored);
            if !self.warm {
                lane.compute(Kernel::FillNormal {
                    to: q,
                    seed: self.seed,
                    stream: factored.stream,
                    state: self.state,
                })?;
            }
            lane.compute(self.orthogonalized(Stream::Compute, q, factored))?;
            lane.compute(factored.project(self.matrix(tensor), q, p))?;
        }
        Ok(())
    }

    /// The tensors of a bucket, and their contiguous parts of each memory.
    fn parts(&self, range: &Range<usize>) -> Parts<'_> {
        let begins = |at: usize| {
            self.tensors
                .partition_point(|tensor| tensor.range.start < at)
        };
        let tensors = &self.tensors[begins(range.start)..begins(range.end)];
        let (mut plain, mut p, mut q) = (Joined::default(), Joined::default(), Joined::default());
        for tensor in tensors {
            match &tensor.form {
                Form::Plain(at) => plain.add(at),
                Form::Factored(factored) => {
                    p.add(&factored.p);
                    q.add(&factored.q);
                }
            }
        }
        Parts {
            tensors,
            plain: self.plain.slice(plain.0),
            p: self.p.slice(p.0),
            q: self.q.slice(q.0),
        }
    }

    fn matrix(&self, tensor: &Tensor) -> Span {
        self.gradients.slice(tensor.range.clone())
    }

    fn factors(&self, factored: &Factored) -> (Span, Span) {
        (
            self.p.slice(factored.p.clone()),
            self.q.slice(factored.q.clone()),
        )
    }

    fn mean(&self, sum: Span) -> Kernel {
        Kernel::Scale {
            to: sum,
            factor: self.scale,
        }
    }

    fn orthogonalized(&self, on: Stream, matrix: Span, factored: &Factored) -> Kernel {
        Kernel::Orthogonalize {
            matrix,
            columns: factored.rank,
            workspace: self.workspaces[on as usize],
        }
    }

    pub(super) fn snapshot(&mut self, backend: &mut dyn Backend) -> Result<()> {
        self.saved = Some(Saved {
            step: self.step,
            warm: self.warm,
            error: download(backend, self.error)?,
            q: download(backend, self.q)?,
        });
        Ok(())
    }

    pub(super) fn restore(&mut self, backend: &mut dyn Backend) -> Result<()> {
        let saved = self.saved.as_ref().ok_or(StrategyError::NoSnapshot)?;
        for (from, to) in [(&saved.error, self.error), (&saved.q, self.q)] {
            if !to.is_empty() {
                backend.upload(Stream::Compute, HostSlice::F32(from), to)?;
            }
        }
        (self.step, self.warm) = (saved.step, saved.warm);
        Ok(backend.synchronize()?)
    }

    pub(super) fn export(&self, backend: &mut dyn Backend) -> Result<Vec<NamedTensor>> {
        let (error, p, q) = (
            download(backend, self.error)?,
            download(backend, self.p)?,
            download(backend, self.q)?,
        );
        let mut all = Vec::new();
        let mut add = |kind: &str, tensor: &Tensor, shape: Vec<usize>, values: Vec<f32>| {
            all.push(NamedTensor {
                name: format!("{kind}.{}", tensor.name),
                shape,
                data: TensorData::F32(values),
            });
        };
        for tensor in &self.tensors {
            if self.settings.error_feedback {
                let mut file = vec![0.0; tensor.range.len()];
                tensor
                    .layout
                    .to_file(&error[tensor.range.clone()], &mut file);
                add("error", tensor, tensor.shape.clone(), file);
            }
            if let Form::Factored(factored) = &tensor.form {
                let rank = factored.rank;
                let rows = &q[factored.q.clone()];
                let mut file = vec![0.0; rows.len()];
                for (row, values) in rows.chunks_exact(rank).enumerate() {
                    let at = factored.row_in_file(tensor.layout, row) * rank;
                    file[at..at + rank].copy_from_slice(values);
                }
                add("q", tensor, vec![factored.m, rank], file);
                let values = p[factored.p.clone()].to_vec();
                add("p", tensor, vec![factored.n, rank], values);
            }
        }
        Ok(all)
    }

    pub(super) fn import_factors(
        &mut self,
        backend: &mut dyn Backend,
        tensors: &[NamedTensor],
    ) -> Result<()> {
        for tensor in &self.tensors {
            let Form::Factored(factored) = &tensor.form else {
                continue;
            };
            let rank = factored.rank;
            let found = tensors
                .iter()
                .find(|other| other.name.strip_prefix("q.") == Some(tensor.name.as_str()));
            let file = match found.map(|found| &found.data) {
                Some(TensorData::F32(values)) if values.len() == factored.q.len() => values,
                _ => return Err(no_factors(tensor)),
            };
            let rows = (0..factored.m).flat_map(|row| {
                let at = factored.row_in_file(tensor.layout, row) * rank;
                file[at..at + rank].iter().copied()
            });
            let memory: Vec<f32> = rows.collect();
            let to = self.q.slice(factored.q.clone());
            backend.upload(Stream::Compute, HostSlice::F32(&memory), to)?;
        }
        self.warm = true;
        Ok(backend.synchronize()?)
    }
}

/// A bucket's tensors and its part of each memory.
struct Parts<'a> {
    tensors: &'a [Tensor],
    plain: Span,
    p: Span,
    q: Span,
}

impl<'a> Parts<'a> {
    fn uncompressed(&self) -> impl Iterator<Item = (&'a Tensor, Range<usize>)> + use<'a> {
        self.tensors.iter().filter_map(|tensor| match &tensor.form {
            Form::Plain(at) => Some((tensor, at.clone())),
            Form::Factored(_) => None,
        })
    }

    fn factored(&self) -> impl Iterator<Item = (&'a Tensor, &'a Factored)> + use<'a> {
        self.tensors.iter().filter_map(|tensor| match &tensor.form {
            Form::Factored(factored) => Some((tensor, factored)),
            Form::Plain(_) => None,
        })
    }
}

/// Ranges that follow each other, as one.
#[derive(Default)]
struct Joined(Range<usize>);

impl Joined {
    fn add(&mut self, next: &Range<usize>) {
        if self.0.is_empty() {
            self.0 = next.clone();
        } else {
            debug_assert_eq!(
                self.0.end, next.start,
                "parts of a bucket follow each other"
            );
            self.0.end = next.end;
        }
    }
}

fn copied(from: Span, to: Span) -> Kernel {
    Kernel::Copy {
        from,
        to,
        write: Write::Overwrite,
    }
}

fn download(backend: &mut dyn Backend, span: Span) -> std::result::Result<Vec<f32>, BackendError> {
    let mut values = vec![0.0; span.len()];
    if !span.is_empty() {
        backend.download(span, HostSliceMut::F32(&mut values))?;
    }
    Ok(values)
}

fn check(settings: &PowerSgdSettings) -> Result<()> {
    let wrong = |setting, value: String, expected| {
        Err(StrategyError::Setting {
            setting,
            value,
            expected,
        })
    };
    let with_state = settings.error_feedback || settings.warm_start;
    if settings.rank == 0 {
        return wrong("rank of PowerSGD", "0".to_owned(), "at least 1");
    }
    if with_state && settings.start_step < EARLIEST_WITH_STATE {
        return wrong(
            "start_step of PowerSGD",
            settings.start_step.to_string(),
            "2 or more with error feedback or warm start, since buckets are rebuilt after the first step",
        );
    }
    if settings.min_compression_rate.is_nan() || settings.min_compression_rate < 0.0 {
        return wrong(
            "min_compression_rate of PowerSGD",
            settings.min_compression_rate.to_string(),
            "0 or more",
        );
    }
    Ok(())
}

fn no_factors(tensor: &Tensor) -> StrategyError {
    StrategyError::Setting {
        setting: "first factors of PowerSGD",
        value: format!("without q.{}", tensor.name),
        expected: "f32 [m, rank] for every compressed tensor",
    }
}
