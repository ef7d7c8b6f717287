// Elementwise kernels: fills, copies, rectifiers, GELU, dropout, transposes. What they work on may be values, so each is there for both types of
// those; biases and factors are floats.
// Reference: kernel.rs; philox.rs for what dropout draws.
#include "common.cuh"

extern "C" {

__global__ void fill(value_t* __restrict__ to, u64 n, float value) {
    each(n, [&](u64 i) { to[i] = value; });
}

__global__ void copy(const value_t* __restrict__ from, value_t* __restrict__ to, u64 n, int accumulate) {
    if (accumulate)
        each(n, [&](u64 i) { to[i] += from[i]; });
    else
        each(n, [&](u64 i) { to[i] = from[i]; });
}

__global__ void add_two(const value_t* __restrict__ a, const value_t* __restrict__ b, value_t* __restrict__ to, u64 n) {
    each(n, [&](u64 i) { to[i] = a[i] + b[i]; });
}

__global__ void scale(value_t* __restrict__ to, u64 n, float factor) {
    each(n, [&](u64 i) { to[i] = to[i] * factor; });
}

// to[i] = from[i]·factor[0].
__global__ void scale_by(const value_t* __restrict__ from, const float* __restrict__ factor, value_t* __restrict__ to, u64 n, int accumulate) {
    const float by = factor[0];
    each(n, [&](u64 i) { to[i] = accumulate ? to[i] + from[i] * by : from[i] * by; });
}

__global__ void subtract(const value_t* __restrict__ from, value_t* __restrict__ to, u64 n) {
    each(n, [&](u64 i) { to[i] = to[i] - from[i]; });
}

__global__ void relu_forward(const value_t* __restrict__ x, value_t* __restrict__ y, u64 n) {
    each(n, [&](u64 i) { y[i] = rectified(x[i], 1); });
}

__global__ void relu_backward(const value_t* __restrict__ y, const value_t* __restrict__ d_y, value_t* __restrict__ d_x, u64 n, int accumulate) {
    if (accumulate)
        each(n, [&](u64 i) { d_x[i] += y[i] > 0.0f ? d_y[i] : 0.0f; });
    else
        each(n, [&](u64 i) { d_x[i] = y[i] > 0.0f ? d_y[i] : 0.0f; });
}

__global__ void gate(const value_t* __restrict__ y, value_t* __restrict__ d_y, u64 n) {
    each(n, [&](u64 i) {
        if (!(y[i] > 0.0f)) d_y[i] = 0.0f;
    });
}

// y = max(y + shortcut, 0) in place; no shortcut for none.
__global__ void rectify(value_t* __restrict__ y, const value_t* __restrict__ shortcut, u64 n) {
    if (shortcut)
        each(n, [&](u64 i) { y[i] = rectified(y[i] + shortcut[i], 1); });
    else
        each(n, [&](u64 i) { y[i] = rectified(y[i], 1); });
}

// Φ(x). The complement of the error function has the digits that 1 + erf loses where x is far below zero.
__device__ __forceinline__ float phi(float x) { return 0.5f * erfcf(x * -0.70710678118654752f); }

// σ(2u) = (1 + tanh u)/2 of the approximation, without its cancellation.
__device__ __forceinline__ float share(float x) {
    const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return 1.0f / (1.0f + expf(-2.0f * u));
}

__global__ void gelu_forward(const value_t* __restrict__ x, value_t* __restrict__ y, u64 n, int tanh_formula) {
    each(n, [&](u64 i) {
        const float v = x[i];
        y[i] = v * (tanh_formula ? share(v) : phi(v));
    });
}

__global__ void gelu_backward(
    const value_t* __restrict__ x, const value_t* __restrict__ d_y, value_t* __restrict__ d_x, u64 n, int tanh_formula, int accumulate
) {
    each(n, [&](u64 i) {
        const float v = x[i];
        float slope;
        if (tanh_formula) {
            // With s = σ(2u): s + x·s′, and s′ = 2·s·(1 − s)·u′.
            const float s = share(v), d_u = 0.79788456080286536f * (1.0f + 3.0f * 0.044715f * v * v);
            slope = s + v * (2.0f * s * (1.0f - s) * d_u);
        } else {
            slope = phi(v) + v * 0.39894228040143268f * expf(-0.5f * v * v);
        }
        const float value = d_y[i] * slope;
        d_x[i] = accumulate ? d_x[i] + value : value;
    });
}

// A thread draws four numbers of one sample; `size` elements a sample, `blocks` = ceil(size / 4). A dropped element is 0 even where x is no number.
__global__ void dropout(
    const value_t* __restrict__ x, value_t* __restrict__ y, u64 size, u64 blocks, u64 batch, float p, u64 seed, u32 node, const int* __restrict__ state,
    int accumulate
) {
    const u32 step = (u32)state[0], first = (u32)state[1];
    EACH(i, batch * blocks) {
        const u64 sample = i / blocks, block = i % blocks;
        const Factors factors = drop(p, seed, node, step, first + (u32)sample, (u32)block);
        const u64 base = sample * size + 4 * block;
        float from[4];
#pragma unroll
        for (u32 j = 0; j < 4; ++j) from[j] = 4 * block + j < size ? x[base + j] : 0.0f;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            if (4 * block + j >= size) break;
            const float value = factors.at[j] != 0.0f ? from[j] * factors.at[j] : 0.0f;
            y[base + j] = accumulate ? y[base + j] + value : value;
        }
    }
}

// 32 × 32 tiles through shared memory; grid (column tiles, row tiles, batch), block (32, 8).
__global__ void transpose(const value_t* __restrict__ from, value_t* __restrict__ to, u32 rows, u32 columns, int accumulate) {
    __shared__ float tile[32][33];
    const u64 base = (u64)blockIdx.z * rows * columns;
    const u32 column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32;
    for (u32 j = threadIdx.y; j < 32; j += blockDim.y)
        if (row + j < rows && column < columns) tile[j][threadIdx.x] = from[base + (u64)(row + j) * columns + column];
    __syncthreads();
    const u32 to_column = row + threadIdx.x, to_row = blockIdx.x * 32;
    for (u32 j = threadIdx.y; j < 32; j += blockDim.y)
        if (to_row + j < columns && to_column < rows) {
            const u64 at = base + (u64)(to_row + j) * rows + to_column;
            to[at] = accumulate ? to[at] + tile[threadIdx.x][j] : tile[threadIdx.x][j];
        }
}

// y[r, c] += bias[c].
__global__ void add_bias(value_t* __restrict__ y, const float* __restrict__ bias, u64 n, u32 columns) {
    each(n, [&](u64 i) { y[i] += bias[split(i, columns).rest]; });
}
}
