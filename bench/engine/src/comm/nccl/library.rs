//! What is used of NCCL: a table of its functions, found at run time, and what it says of its failures.
//!
//! Contract: nothing panics, whatever the library lacks. [`Nccl`] is what the rest of the transport sees, so that tests put their own in
//! its place. Statuses and operators are plain integers: a later NCCL returns statuses that the enumerations of its bindings lack, and an
//! operator that was made (`ncclRedOpCreatePreMulSum`) is none of those that are named.
//! Reference: `nccl.h`; NCCL user guide, "NCCL API".
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

use cudarc::nccl::sys::{self, ncclDataType_t as DataType, ncclUniqueId as UniqueId};
use libloading::os::unix::Library as File;

use super::transfer::{Kind, Transfer};
use crate::backend::cuda::library::{self, Library, Missing};
use crate::comm::Reduce;
use crate::half::{Bf16, F16, Half};
use crate::tensor::Dtype;

/// A communicator of NCCL's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle(pub(super) *mut c_void);

// SAFETY: a communicator may be used on any thread, by one at a time, which `Session` sees to.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// A stream of CUDA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawStream(pub(super) *mut c_void);

/// How NCCL combines: one of its own operators, or one that was made for a communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operator(pub(super) c_int);

impl Operator {
    pub(super) const SUM: Self = Self(sys::ncclRedOp_t::ncclSum as c_int);
    pub(super) const MAX: Self = Self(sys::ncclRedOp_t::ncclMax as c_int);
}

/// What is used of NCCL. Failures are sentences, in its own words.
pub(super) trait Nccl: Send + Sync {
    /// Its version, as one number: 22809 is 2.28.9.
    fn version(&self) -> Result<u64, String>;
    /// What the ranks of a new communicator find each other by.
    fn unique_id(&self) -> Result<UniqueId, String>;
    /// Makes this rank's end of a communicator, on the GPU whose context is the thread's. Blocks until all ranks have come.
    fn init(&self, id: UniqueId, world: usize, rank: usize) -> Result<Handle, String>;
    /// Makes all `world` ends of a communicator on this thread, each on the GPU whose context `enter` makes the thread's. Blocks until they
    /// are connected.
    fn init_together(
        &self,
        id: UniqueId,
        world: usize,
        enter: &dyn Fn(usize) -> Result<(), String>,
    ) -> Result<Vec<Handle>, String>;
    /// What has failed since, on the threads that NCCL has for itself.
    ///
    /// # Safety
    /// The communicator is alive and nobody else is using it.
    unsafe fn async_error(&self, comm: Handle) -> Result<(), String>;
    /// Tells kernels and threads to leave, waits for them and frees the communicator.
    ///
    /// # Safety
    /// The communicator is alive, and nobody will use it after.
    unsafe fn abort(&self, comm: Handle) -> Result<(), String>;
    /// Tells kernels and threads to leave, and keeps the communicator. None where this NCCL cannot.
    ///
    /// # Safety
    /// The communicator is alive; another thread may be in a call of it.
    unsafe fn revoke(&self, comm: Handle) -> Option<Result<(), String>>;
    /// Frees a communicator whose work is done.
    ///
    /// # Safety
    /// As [`Nccl::abort`].
    unsafe fn destroy(&self, comm: Handle) -> Result<(), String>;
    /// An operator that scales what each rank brings by `factor`, as a number of `dtype`, and sums; it lives as long as `comm`.
    ///
    /// # Safety
    /// As [`Nccl::async_error`].
    unsafe fn scaled_sum(
        &self,
        comm: Handle,
        dtype: Dtype,
        factor: f32,
    ) -> Result<Operator, String>;
    /// Enqueues one transfer on `stream`.
    ///
    /// # Safety
    /// As [`Nccl::async_error`]; the addresses are of this rank's GPU and hold as much as the transfer says until the stream has done it.
    unsafe fn transfer(
        &self,
        comm: Handle,
        stream: RawStream,
        transfer: &Transfer,
    ) -> Result<(), String>;
    /// What this thread enqueues from here on is one operation; it begins at [`Nccl::group_end`].
    fn group_start(&self) -> Result<(), String>;
    /// As [`Nccl::group_start`].
    fn group_end(&self) -> Result<(), String>;
}

type Status = c_int;
type Comm = *mut c_void;
type Stream = *mut c_void;
type Input = *const c_void;
type Output = *mut c_void;

macro_rules! table {
    ($($field:ident = $name:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// Functions of a library that stays loaded.
        struct Table {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// Since NCCL 2.28.
            revoke: Option<unsafe extern "C" fn(Comm, c_int) -> Status>,
        }

        impl Table {
            fn of(file: &File) -> Result<Self, Missing> {
                // SAFETY: the types are those of `nccl.h`.
                unsafe {
                    Ok(Self {
                        $($field: symbol(file, $name)?,)*
                        revoke: symbol(file, "ncclCommRevoke").ok(),
                    })
                }
            }
        }
    };
}

table! {
    get_version = "ncclGetVersion": fn(*mut c_int) -> Status;
    get_unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> Status;
    init_rank = "ncclCommInitRank": fn(*mut Comm, c_int, UniqueId, c_int) -> Status;
    get_async_error = "ncclCommGetAsyncError": fn(Comm, *mut Status) -> Status;
    abort = "ncclCommAbort": fn(Comm) -> Status;
    destroy = "ncclCommDestroy": fn(Comm) -> Status;
    error_string = "ncclGetErrorString": fn(Status) -> *const c_char;
    last_error = "ncclGetLastError": fn(Comm) -> *const c_char;
    make_scaled_sum = "ncclRedOpCreatePreMulSum": fn(*mut c_int, *mut c_void, DataType, sys::ncclScalarResidence_t, Comm) -> Status;
    group_start = "ncclGroupStart": fn() -> Status;
    group_end = "ncclGroupEnd": fn() -> Status;
    broadcast = "ncclBroadcast": fn(Input, Output, usize, DataType, c_int, Comm, Stream) -> Status;
    reduce = "ncclReduce": fn(Input, Output, usize, DataType, c_int, c_int, Comm, Stream) -> Status;
    all_reduce = "ncclAllReduce": fn(Input, Output, usize, DataType, c_int, Comm, Stream) -> Status;
    all_gather = "ncclAllGather": fn(Input, Output, usize, DataType, Comm, Stream) -> Status;
    reduce_scatter = "ncclReduceScatter": fn(Input, Output, usize, DataType, c_int, Comm, Stream) -> Status;
    send = "ncclSend": fn(Input, usize, DataType, c_int, Comm, Stream) -> Status;
    receive = "ncclRecv": fn(Output, usize, DataType, c_int, Comm, Stream) -> Status;
}

/// # Safety
/// `T` is the symbol's type.
unsafe fn symbol<T: Copy>(file: &File, name: &str) -> Result<T, Missing> {
    // SAFETY: the caller's promise.
    let found = unsafe { file.get::<T>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|_| Missing {
        library: Library::Nccl,
        reason: format!("it has no function {name}"),
    })
}

/// NCCL, as found on this machine.
///
/// # Errors
/// Why it cannot be used: [`crate::backend::BackendError::Library`].
pub(super) fn load() -> crate::backend::Result<Arc<dyn Nccl>> {
    let loaded = library::load(Library::Nccl)?;
    Ok(Arc::new(Table::of(loaded.handle)?))
}

/// NCCL's name of a data type.
fn data_type(dtype: Dtype) -> DataType {
    match dtype {
        Dtype::F32 => DataType::ncclFloat32,
        Dtype::F16 => DataType::ncclFloat16,
        Dtype::Bf16 => DataType::ncclBfloat16,
        Dtype::I32 => DataType::ncclInt32,
        Dtype::I64 => DataType::ncclInt64,
    }
}

/// The bits of `factor` as a number of `dtype`, in the first bytes of the word; integers cannot be scaled, which `check` refuses.
fn scalar(dtype: Dtype, factor: f32) -> u64 {
    match dtype {
        Dtype::F16 => u64::from(F16::narrow(factor).0),
        Dtype::Bf16 => u64::from(Bf16::narrow(factor).0),
        Dtype::F32 | Dtype::I32 | Dtype::I64 => u64::from(factor.to_bits()),
    }
    .to_le()
}

impl Table {
    /// What NCCL says of `status`, as a failure of the function `name`.
    fn check(&self, name: &str, status: Status) -> Result<(), String> {
        if status == sys::ncclResult_t::ncclSuccess as Status {
            return Ok(());
        }
        // SAFETY: both return a string that NCCL keeps, or null; the communicator is not looked at.
        let (error, last) = unsafe {
            (
                text((self.error_string)(status)),
                text((self.last_error)(std::ptr::null_mut())),
            )
        };
        let error = error.unwrap_or_else(|| format!("status {status}"));
        Err(match last {
            Some(last) => format!("{name}: {error}: {last}"),
            None => format!("{name}: {error}"),
        })
    }
}

/// # Safety
/// The pointer is null or a string.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) }.to_string_lossy();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

impl Nccl for Table {
    fn version(&self) -> Result<u64, String> {
        let mut version = 0;
        // SAFETY: the call writes a number.
        let status = unsafe { (self.get_version)(&mut version) };
        self.check("ncclGetVersion", status)?;
        Ok(version as u64)
    }

    fn unique_id(&self) -> Result<UniqueId, String> {
        let mut id = UniqueId { internal: [0; 128] };
        // SAFETY: the call fills the identity.
        let status = unsafe { (self.get_unique_id)(&mut id) };
        self.check("ncclGetUniqueId", status).map(|()| id)
    }

    fn init(&self, id: UniqueId, world: usize, rank: usize) -> Result<Handle, String> {
        let mut comm = std::ptr::null_mut();
        // SAFETY: the call writes a handle, and copies the identity.
        let status = unsafe { (self.init_rank)(&mut comm, world as c_int, id, rank as c_int) };
        self.check("ncclCommInitRank", status)?;
        Ok(Handle(comm))
    }

    fn init_together(
        &self,
        id: UniqueId,
        world: usize,
        enter: &dyn Fn(usize) -> Result<(), String>,
    ) -> Result<Vec<Handle>, String> {
        // NCCL writes to these until the group has ended.
        let mut comms = vec![std::ptr::null_mut(); world];
        self.group_start()?;
        let begun = comms.iter_mut().enumerate().try_for_each(|(rank, comm)| {
            enter(rank)?;
            // SAFETY: the call writes a handle, at the latest when the group ends, and copies the identity.
            let status = unsafe { (self.init_rank)(comm, world as c_int, id, rank as c_int) };
            self.check("ncclCommInitRank", status)
        });
        // What did not come up is left behind, as after `ncclCommInitRank`: the process has nothing else to do.
        begun.and(self.group_end())?;
        Ok(comms.into_iter().map(Handle).collect())
    }

    unsafe fn async_error(&self, comm: Handle) -> Result<(), String> {
        let mut found = 0;
        // SAFETY: the caller's promise; the call writes a number.
        let status = unsafe { (self.get_async_error)(comm.0, &mut found) };
        self.check("ncclCommGetAsyncError", status)?;
        if found == sys::ncclResult_t::ncclInProgress as Status {
            return Ok(());
        }
        self.check("NCCL's threads", found)
    }

    unsafe fn abort(&self, comm: Handle) -> Result<(), String> {
        // SAFETY: the caller's promise.
        self.check("ncclCommAbort", unsafe { (self.abort)(comm.0) })
    }

    unsafe fn revoke(&self, comm: Handle) -> Option<Result<(), String>> {
        let revoke = self.revoke?;
        // SAFETY: the caller's promise; 0 is the only flag there is.
        Some(self.check("ncclCommRevoke", unsafe { revoke(comm.0, 0) }))
    }

    unsafe fn destroy(&self, comm: Handle) -> Result<(), String> {
        // SAFETY: the caller's promise.
        self.check("ncclCommDestroy", unsafe { (self.destroy)(comm.0) })
    }

    unsafe fn scaled_sum(
        &self,
        comm: Handle,
        dtype: Dtype,
        factor: f32,
    ) -> Result<Operator, String> {
        let (mut operator, mut scalar) = (0, scalar(dtype, factor));
        // SAFETY: the caller's promise; the scalar is read before the call returns, and is as long as any data type.
        let status = unsafe {
            (self.make_scaled_sum)(
                &mut operator,
                (&raw mut scalar).cast(),
                data_type(dtype),
                sys::ncclScalarResidence_t::ncclScalarHostImmediate,
                comm.0,
            )
        };
        self.check("ncclRedOpCreatePreMulSum", status)?;
        Ok(Operator(operator))
    }

    unsafe fn transfer(
        &self,
        comm: Handle,
        stream: RawStream,
        transfer: &Transfer,
    ) -> Result<(), String> {
        let (comm, stream, count) = (comm.0, stream.0, transfer.count);
        let (from, to) = (transfer.from as Input, transfer.to as Output);
        let dtype = data_type(transfer.dtype);
        // SAFETY: the caller's promise.
        unsafe {
            match transfer.kind {
                Kind::Broadcast { root } => self.check(
                    "ncclBroadcast",
                    (self.broadcast)(from, to, count, dtype, root as c_int, comm, stream),
                ),
                Kind::Reduce { operator, root } => self.check(
                    "ncclReduce",
                    (self.reduce)(
                        from,
                        to,
                        count,
                        dtype,
                        operator.0,
                        root as c_int,
                        comm,
                        stream,
                    ),
                ),
                Kind::AllReduce { operator } => self.check(
                    "ncclAllReduce",
                    (self.all_reduce)(from, to, count, dtype, operator.0, comm, stream),
                ),
                Kind::AllGather => self.check(
                    "ncclAllGather",
                    (self.all_gather)(from, to, count, dtype, comm, stream),
                ),
                Kind::ReduceScatter { operator } => self.check(
                    "ncclReduceScatter",
                    (self.reduce_scatter)(from, to, count, dtype, operator.0, comm, stream),
                ),
                Kind::Send { peer } => self.check(
                    "ncclSend",
                    (self.send)(from, count, dtype, peer as c_int, comm, stream),
                ),
                Kind::Receive { peer } => self.check(
                    "ncclRecv",
                    (self.receive)(to, count, dtype, peer as c_int, comm, stream),
                ),
            }
        }
    }

    fn group_start(&self) -> Result<(), String> {
        // SAFETY: the call counts, on this thread.
        self.check("ncclGroupStart", unsafe { (self.group_start)() })
    }

    fn group_end(&self) -> Result<(), String> {
        // SAFETY: as above; what is begun was promised by who enqueued it.
        self.check("ncclGroupEnd", unsafe { (self.group_end)() })
    }
}

/// The operators of one communicator, each made when it is first needed.
#[derive(Default)]
pub(super) struct Operators {
    scaled: Vec<(Dtype, u32, Operator)>,
}

impl Operators {
    /// NCCL's operator for `reduce` of `dtype`.
    ///
    /// # Safety
    /// As [`Nccl::scaled_sum`]; all calls are of one communicator.
    pub(super) unsafe fn of(
        &mut self,
        nccl: &dyn Nccl,
        comm: Handle,
        dtype: Dtype,
        reduce: Reduce,
    ) -> Result<Operator, String> {
        let factor = match reduce {
            Reduce::Sum => return Ok(Operator::SUM),
            Reduce::Max => return Ok(Operator::MAX),
            Reduce::ScaledSum(factor) => factor,
        };
        let same =
            |known: &&(Dtype, u32, Operator)| (known.0, known.1) == (dtype, factor.to_bits());
        if let Some(known) = self.scaled.iter().find(same) {
            return Ok(known.2);
        }
        // SAFETY: the caller's promise.
        let made = unsafe { nccl.scaled_sum(comm, dtype, factor)? };
        self.scaled.push((dtype, factor.to_bits(), made));
        Ok(made)
    }
}
