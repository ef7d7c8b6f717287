//! Host data as bytes, on its way to a GPU and back.
use crate::backend::{HostSlice, HostSliceMut};
use crate::half::{Bf16, F16};
use crate::tensor::Dtype;

/// Bytes of host data.
fn bytes<T>(values: &[T]) -> &[u8] {
    // SAFETY: the element types of `HostSlice` are plain numbers.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Its type and bytes.
pub(super) fn of_slice(slice: HostSlice<'_>) -> (Dtype, &[u8]) {
    match slice {
        HostSlice::F32(values) => (Dtype::F32, bytes(values)),
        HostSlice::I32(values) => (Dtype::I32, bytes(values)),
        HostSlice::I64(values) => (Dtype::I64, bytes(values)),
        HostSlice::F16(values) => (Dtype::F16, bytes::<F16>(values)),
        HostSlice::Bf16(values) => (Dtype::Bf16, bytes::<Bf16>(values)),
    }
}

/// Its type, where it lies, and how many bytes it takes.
pub(super) fn of_slice_mut(slice: HostSliceMut<'_>) -> (Dtype, *mut std::ffi::c_void, usize) {
    fn of<T>(dtype: Dtype, values: &mut [T]) -> (Dtype, *mut std::ffi::c_void, usize) {
        (dtype, values.as_mut_ptr().cast(), size_of_val(values))
    }
    match slice {
        HostSliceMut::F32(values) => of(Dtype::F32, values),
        HostSliceMut::I32(values) => of(Dtype::I32, values),
        HostSliceMut::I64(values) => of(Dtype::I64, values),
        HostSliceMut::F16(values) => of(Dtype::F16, values),
        HostSliceMut::Bf16(values) => of(Dtype::Bf16, values),
    }
}
