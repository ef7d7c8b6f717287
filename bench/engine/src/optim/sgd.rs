//! Stochastic gradient descent with momentum and weight decay, as PyTorch's `torch.optim.SGD` (no dampening, no Nesterov).
//!
//! The learning rate is read on the device, so that a schedule changes no kernel. A first buffer of zeros gives the
//! same first step as PyTorch's copy of the gradient.
use crate::backend::{Backend, Category, Result, Stream};
use crate::kernel::Kernel;
use crate::program::transfer::{ImportError, OPTIMIZER_PREFIX};
use crate::program::{NamedTensor, Program};
use crate::tensor::{Dtype, Span};

/// Settings of [`Sgd`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdSettings {
    /// Learning rate: the strategy writes it to the device's rates.
    pub learning_rate: f32,
    /// Momentum; 0 keeps no buffer.
    pub momentum: f32,
    /// Weight decay: added to the gradient as wd·p.
    pub weight_decay: f32,
}

/// The optimizer of one program.
pub struct Sgd {
    settings: SgdSettings,
    parameters: Span,
    gradients: Span,
    buffer: Span,
}

impl Sgd {
    /// An optimizer for `program`, with a momentum buffer of zeros where there is momentum.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        backend: &mut dyn Backend,
        program: &Program,
        settings: SgdSettings,
    ) -> Result<Self> {
        let (parameters, gradients) = (program.parameters(), program.gradients());
        let buffer = if settings.momentum == 0.0 || parameters.is_empty() {
            Span::EMPTY
        } else {
            backend.allocate(Category::Optimizer, Dtype::F32, parameters.len())?
        };
        Ok(Self {
            settings,
            parameters,
            gradients,
            buffer,
        })
    }

    /// Its settings.
    pub fn settings(&self) -> SgdSettings {
        self.settings
    }
    /// The momentum buffer, laid out like the parameters; empty without momentum.
    pub fn buffer(&self) -> Span {
        self.buffer
    }

    /// Enqueues an update of all parameters on the compute stream; `rates` is [`crate::layer::State::rates`].
    ///
    /// # Errors
    /// The backend's failure.
    pub fn step(&mut self, backend: &mut dyn Backend, rates: Span) -> Result<()> {
        if self.parameters.is_empty() {
            return Ok(());
        }
        let SgdSettings {
            momentum,
            weight_decay,
            ..
        } = self.settings;
        let (parameter, gradient, buffer) = (self.parameters, self.gradients, self.buffer);
        backend.launch(
            Stream::Compute,
            Kernel::Sgd {
                parameter,
                gradient,
                buffer,
                rates,
                momentum,
                weight_decay,
            },
        )
    }

    /// Enqueues zeroing of all gradients on the compute stream.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn zero_gradients(&mut self, backend: &mut dyn Backend) -> Result<()> {
        if self.gradients.is_empty() {
            return Ok(());
        }
        backend.launch(
            Stream::Compute,
            Kernel::Fill {
                to: self.gradients,
                value: 0.0,
            },
        )
    }

    /// The momentum as `momentum.<parameter>`; empty without momentum. Blocks.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn export(&self, backend: &mut dyn Backend, program: &Program) -> Result<Vec<NamedTensor>> {
        if self.buffer.is_empty() {
            return Ok(Vec::new());
        }
        program.export_arena(backend, self.buffer, OPTIMIZER_PREFIX)
    }

    /// Takes over what [`Sgd::export`] gave; other tensors are passed over.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import(
        &self,
        backend: &mut dyn Backend,
        program: &Program,
        tensors: &[NamedTensor],
    ) -> std::result::Result<(), ImportError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        program.import_arena(backend, self.buffer, tensors, OPTIMIZER_PREFIX)
    }
}
