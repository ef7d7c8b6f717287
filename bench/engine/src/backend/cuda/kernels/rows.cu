// Norms whose group is one run of memory: layer norm over features, group norm of one pixel, RMS norm. A block takes a run.
//
// Layout: x is [runs, length]; run r belongs to group r % groups of its sample. γ and β: `place` of element i of run r is
// affine 0: none, 1: per channel, (group·length + i) % channels, 2: per element of a sample, group·length + i.
// Up to KEPT elements a thread stay in registers, so that short runs are read once; longer ones are read again from the cache.
// Reference: kernel.rs, GroupNormForward and RmsNormForward; Zhang and Sennrich 2019 for RMS norm.
#include "common.cuh"

constexpr int KEPT = 8;

__device__ __forceinline__ u64 place(u64 run, u64 i, u64 length, u32 groups, u32 channels, int affine) {
    const u64 element = (run % groups) * length + i;
    return affine == 1 ? element % channels : element;
}

extern "C" {

__global__ void run_forward(
    const float* x, const float* gamma, const float* beta, const float* shortcut, float* y, float* mean, float* rstd, u64 length, u32 groups, u32 channels,
    int affine, float eps, int relu
) {
    __shared__ float shared[32];
    const u64 run = blockIdx.x, base = run * length;
    float kept[KEPT], total = 0.0f;
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        const u64 i = threadIdx.x + (u64)k * blockDim.x;
        kept[k] = i < length ? x[base + i] : 0.0f;
        total += kept[k];
    }
    for (u64 i = threadIdx.x + (u64)KEPT * blockDim.x; i < length; i += blockDim.x) total += x[base + i];
    const float centre = block_sum(total, shared) / (float)length;
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        const float distance = threadIdx.x + (u64)k * blockDim.x < length ? kept[k] - centre : 0.0f;
        squares += distance * distance;
    }
    for (u64 i = threadIdx.x + (u64)KEPT * blockDim.x; i < length; i += blockDim.x) {
        const float distance = x[base + i] - centre;
        squares += distance * distance;
    }
    const float deviation = 1.0f / sqrtf(block_sum(squares, shared) / (float)length + eps);
    if (threadIdx.x == 0) {
        mean[run] = centre;
        rstd[run] = deviation;
    }
    auto write = [&](u64 i, float from) {
        float value = (from - centre) * deviation;
        if (affine != 0) {
            const u64 at = place(run, i, length, groups, channels, affine);
            value = value * gamma[at] + beta[at];
        }
        if (shortcut != nullptr) value += shortcut[base + i];
        y[base + i] = relu && value < 0.0f ? 0.0f : value;
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        const u64 i = threadIdx.x + (u64)k * blockDim.x;
        if (i < length) write(i, kept[k]);
    }
    for (u64 i = threadIdx.x + (u64)KEPT * blockDim.x; i < length; i += blockDim.x) write(i, x[base + i]);
}

__global__ void rms_forward(
    const float* x, const float* gamma, const float* shortcut, float* y, float* rstd, u64 length, u32 channels, int affine, float eps, int relu
) {
    __shared__ float shared[32];
    const u64 run = blockIdx.x, base = run * length;
    float squares = 0.0f;
    for (u64 i = threadIdx.x; i < length; i += blockDim.x) squares += x[base + i] * x[base + i];
    const float deviation = 1.0f / sqrtf(block_sum(squares, shared) / (float)length + eps);
    if (threadIdx.x == 0) rstd[run] = deviation;
    for (u64 i = threadIdx.x; i < length; i += blockDim.x) {
        float value = x[base + i] * deviation;
        if (affine != 0) value *= gamma[place(0, i, length, 1, channels, affine)];
        if (shortcut != nullptr) value += shortcut[base + i];
        y[base + i] = relu && value < 0.0f ? 0.0f : value;
    }
}

// `mean` null: RMS norm, whose x̂ has no centre and whose gradient no mean. An empty `d_x` is not wanted.
__global__ void run_backward(
    const float* x, const float* d_y, const float* y, const float* gamma, const float* mean, const float* rstd, float* d_x, u64 length, u32 groups, u32 channels,
    int affine, int accumulate
) {
    __shared__ float shared[32];
    const u64 run = blockIdx.x, base = run * length;
    const float centre = mean ? mean[run] : 0.0f, deviation = rstd[run];
    auto slope = [&](u64 i) {
        float value = y == nullptr || y[base + i] > 0.0f ? d_y[base + i] : 0.0f;
        if (affine != 0) value *= gamma[place(run, i, length, groups, channels, affine)];
        return value;
    };
    float g_kept[KEPT], hat_kept[KEPT], a = 0.0f, b = 0.0f;
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        const u64 i = threadIdx.x + (u64)k * blockDim.x;
        g_kept[k] = i < length ? slope(i) : 0.0f;
        hat_kept[k] = i < length ? (x[base + i] - centre) * deviation : 0.0f;
        a += g_kept[k];
        b += g_kept[k] * hat_kept[k];
    }
    for (u64 i = threadIdx.x + (u64)KEPT * blockDim.x; i < length; i += blockDim.x) {
        const float g = slope(i);
        a += g;
        b += g * ((x[base + i] - centre) * deviation);
    }
    const float mean_g = mean ? block_sum(a, shared) / (float)length : 0.0f;
    const float mean_product = block_sum(b, shared) / (float)length;
    auto write = [&](u64 i, float g, float hat) {
        const float value = deviation * (g - mean_g - hat * mean_product);
        d_x[base + i] = accumulate ? d_x[base + i] + value : value;
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        const u64 i = threadIdx.x + (u64)k * blockDim.x;
        if (i < length) write(i, g_kept[k], hat_kept[k]);
    }
    for (u64 i = threadIdx.x + (u64)KEPT * blockDim.x; i < length; i += blockDim.x) write(i, slope(i), (x[base + i] - centre) * deviation);
}

// Gradients of γ and β over runs: x is [samples, spatial, elements] with an element for each γ (per channel: elements = channels; per element:
// spatial = 1). Threads (32, 8) take 32 elements and a slab of rows each; partial [slabs, 2, elements], added up by `finish_run_affine`.
__global__ void run_affine(
    const float* x, const float* d_y, const float* y, const float* mean, const float* rstd, float* partial, u64 rows, u64 spatial, u32 elements, u32 groups,
    u64 rows_a_slab
) {
    __shared__ float shared[2][8][33];
    const u32 element = blockIdx.x * 32 + threadIdx.x;
    const u64 begin = blockIdx.y * rows_a_slab, end = min(begin + rows_a_slab, rows);
    float gamma = 0.0f, beta = 0.0f;
    if (element < elements) {
        const u32 group = element / (elements / groups);
        for (u64 row = begin + threadIdx.y; row < end; row += blockDim.y) {
            const u64 at = row * elements + element, run = row / spatial * groups + group;
            const float value = y == nullptr || y[at] > 0.0f ? d_y[at] : 0.0f;
            beta += value;
            gamma += value * ((x[at] - (mean ? mean[run] : 0.0f)) * rstd[run]);
        }
    }
    shared[0][threadIdx.y][threadIdx.x] = gamma;
    shared[1][threadIdx.y][threadIdx.x] = beta;
    __syncthreads();
    if (threadIdx.y == 0 && element < elements) {
        for (u32 r = 1; r < blockDim.y; ++r) {
            gamma += shared[0][r][threadIdx.x];
            beta += shared[1][r][threadIdx.x];
        }
        float* to = partial + (u64)blockIdx.y * 2 * elements + element;
        to[0] = gamma;
        to[elements] = beta;
    }
}

__global__ void finish_run_affine(const float* partial, u32 slabs, u32 elements, float* d_gamma, float* d_beta) {
    EACH(e, elements) {
        float gamma = 0.0f, beta = 0.0f;
        for (u32 s = 0; s < slabs; ++s) {
            gamma += partial[(u64)s * 2 * elements + e];
            beta += partial[((u64)s * 2 + 1) * elements + e];
        }
        if (d_gamma != nullptr) d_gamma[e] += gamma;
        if (d_beta != nullptr) d_beta[e] += beta;
    }
}
}
