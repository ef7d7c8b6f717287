//! Memory of a program's values and of their gradients: one arena each, laid out before anything runs.
//!
//! Values and gradients are of the device's type of values. What comes from the host is f32: where values are narrower, images are
//! rounded on the device at the beginning of each forward, and tokens, which are whole numbers, stay as they are.
use std::ops::Range;

use super::BuildError;
use super::build::allocate;
use super::fuse::Role;
use super::plan::GradientPlan;
use crate::backend::{Backend, Category};
use crate::layer::Wires;
use crate::model::Model;
use crate::tensor::{Dtype, Span};

/// Bytes at multiples of which values begin, so that no two share a cache line.
const ALIGNMENT: usize = 64;

type Result<T> = std::result::Result<T, BuildError>;

/// Spans of all values and gradients, for the maximum batch.
pub(super) struct Values {
    /// f32: what the host fills.
    pub(super) input: Span,
    /// Each value; the first is `input` itself, or what is made of it.
    pub(super) forward: Vec<Span>,
    slots: Vec<Span>,
    sizes: Vec<usize>,
}

impl Values {
    /// Allocates the values of `model`, and the slots of its gradients.
    pub(super) fn allocate(
        backend: &mut dyn Backend,
        model: &Model,
        roles: &[Role],
        plan: &GradientPlan,
        max_batch: usize,
    ) -> Result<Self> {
        // A value within a chain is never written.
        let written = |i: usize| !matches!(roles.get(i + 1), Some(Role::Within(_)));
        let outputs = model.nodes.iter().enumerate();
        let outputs = outputs.map(|(i, node)| {
            if written(i) {
                node.output.elements()
            } else {
                0
            }
        });
        let sizes: Vec<usize> = std::iter::once(model.input.elements())
            .chain(outputs)
            .collect();
        let dtype = backend.values();
        let (kind, tokens) = (Category::Activations, model.vocabulary.is_some());
        let mut held = sizes.clone();
        if dtype != Dtype::F32 && tokens {
            held[0] = 0;
        }
        let mut forward = arena(backend, (kind, dtype), &held, max_batch)?;
        let input = match dtype {
            Dtype::F32 => forward[0],
            _ => {
                let kind = if tokens { kind } else { Category::Workspace };
                arena(backend, (kind, Dtype::F32), &sizes[..1], max_batch)?[0]
            }
        };
        if tokens {
            forward[0] = input;
        }
        let slots = arena(backend, (kind, dtype), &plan.slots, max_batch)?;
        Ok(Self {
            input,
            forward,
            slots,
            sizes,
        })
    }

    /// The gradient of a value: the first elements of its slot, which may be larger.
    pub(super) fn gradient(
        &self,
        plan: &GradientPlan,
        value: usize,
        max_batch: usize,
    ) -> Option<Span> {
        Some(self.slots[plan.values[value]?].first(self.sizes[value] * max_batch))
    }

    /// What node `i` is wired to.
    pub(super) fn wires(
        &self,
        model: &Model,
        roles: &[Role],
        plan: &GradientPlan,
        i: usize,
        max_batch: usize,
    ) -> Wires {
        let (last, shortcut) = match roles[i] {
            Role::Alone | Role::Within(_) => (i, None),
            Role::Head { last, shortcut, .. } => (last, shortcut),
        };
        let inputs = || model.nodes[i].inputs.iter().chain(&shortcut);
        let gradients = inputs().zip(&plan.writes[i]);
        Wires {
            inputs: inputs().map(|value| self.forward[*value]).collect(),
            output: self.forward[last + 1],
            d_output: self
                .gradient(plan, last + 1, max_batch)
                .unwrap_or(Span::EMPTY),
            d_inputs: gradients
                .map(|(value, write)| Some((self.gradient(plan, *value, max_batch)?, (*write)?)))
                .collect(),
            max_batch,
        }
    }
}

/// One arena with a part of `size·times` elements for each size.
pub(super) fn arena(
    backend: &mut dyn Backend,
    (category, dtype): (Category, Dtype),
    sizes: &[usize],
    times: usize,
) -> Result<Vec<Span>> {
    let too_large = BuildError::TooLarge { max_batch: times };
    let mut ranges = Vec::<Range<usize>>::with_capacity(sizes.len());
    let mut next = 0usize;
    for size in sizes {
        let len = size
            .checked_mul(times)
            .filter(|len| *len <= isize::MAX as usize / 8)
            .ok_or(too_large.clone())?;
        ranges.push(next..next + len);
        next = (next + len).next_multiple_of(ALIGNMENT / dtype.size());
        if next > isize::MAX as usize / 8 {
            return Err(too_large);
        }
    }
    let all = allocate(backend, category, dtype, next)?;
    Ok(ranges.into_iter().map(|range| all.slice(range)).collect())
}
