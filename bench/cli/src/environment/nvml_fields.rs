//! Fields of GPUs that NVML tells by number, a scope each: the wrapper's own call fills no scope, and gets the first link's.
//!
//! Reference: NVIDIA's NVML API Reference Guide, "Field Value Queries".
use std::ffi::{c_int, c_uint};

use nvml_wrapper::{Device, Nvml};

/// Bytes of a field that counts kibibytes of NVLink, the sum over all links of the GPU.
pub fn over_all_links(nvml: &Nvml, device: &Device<'_>, id: u32) -> Option<u64> {
    field(nvml, device, id, c_uint::MAX)?.checked_mul(1024)
}

/// `nvmlFieldValue_t`.
#[repr(C)]
#[derive(Default)]
struct FieldValue {
    field: c_uint,
    scope: c_uint,
    timestamp: i64,
    latency_us: i64,
    /// `nvmlValueType_t`.
    kind: c_uint,
    status: c_uint,
    value: u64,
}

/// Kinds of values that are whole numbers without a sign: 32 bits, and 64 under two names.
const UNSIGNED: [c_uint; 3] = [1, 2, 3];

/// A field of a GPU, or of a part of it.
pub fn field(nvml: &Nvml, device: &Device<'_>, id: u32, scope: c_uint) -> Option<u64> {
    let ask = *nvml.lib().nvmlDeviceGetFieldValues.as_ref().ok()?;
    let mut value = FieldValue {
        field: id,
        scope,
        ..FieldValue::default()
    };
    // SAFETY: the layout is that of NVIDIA's header, of one element, and NVML writes to nothing else; the handle is of the same NVML,
    // which lives as long as the device.
    let status = unsafe {
        let pointer: *mut FieldValue = &mut value;
        ask(device.handle(), 1 as c_int, pointer.cast())
    };
    let told = status == 0 && value.status == 0 && UNSIGNED.contains(&value.kind);
    told.then_some(value.value)
}
