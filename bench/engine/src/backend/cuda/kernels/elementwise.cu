// Elementwise kernels: fills, copies, rectifiers, GELU, dropout, transposes.
#include "common.cuh"

extern "C" {

__global__ void fill(float* to, u64 n, float value) { EACH(i, n) to[i] = value; }

__global__ void copy(const float* from, float* to, u64 n, int accumulate) {
    EACH(i, n) to[i] = accumulate ? to[i] + from[i] : from[i];
}

__global__ void add_two(const float* a, const float* b, float* to, u64 n) { EACH(i, n) to[i] = a[i] + b[i]; }

__global__ void scale(float* to, u64 n, float factor) { EACH(i, n) to[i] *= factor; }

__global__ void subtract(const float* from, float* to, u64 n) { EACH(i, n) to[i] -= from[i]; }

__global__ void relu_forward(const float* x, float* y, u64 n) {
    // NaN stays NaN, as on the host.
    EACH(i, n) y[i] = x[i] < 0.0f ? 0.0f : x[i];
}

__global__ void relu_backward(const float* y, const float* d_y, float* d_x, u64 n, int accumulate) {
    EACH(i, n) {
        const float value = y[i] > 0.0f ? d_y[i] : 0.0f;
        d_x[i] = accumulate ? d_x[i] + value : value;
    }
}

__global__ void gate(const float* y, float* d_y, u64 n) {
    EACH(i, n) if (!(y[i] > 0.0f)) d_y[i] = 0.0f;
}

__device__ __forceinline__ float phi(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }

__device__ __forceinline__ float inner(float x) { return 0.79788456080286536f * (x + 0.044715f * x * x * x); }

__global__ void gelu_forward(const float* x, float* y, u64 n, int tanh_formula) {
    EACH(i, n) {
        const float v = x[i];
        y[i] = tanh_formula ? 0.5f * v * (1.0f + tanhf(inner(v))) : v * phi(v);
    }
}

__global__ void gelu_backward(const float* x, const float* d_y, float* d_x, u64 n, int tanh_formula, int accumulate) {
    EACH(i, n) {
        const float v = x[i];
        float slope;
        if (tanh_formula) {
            const float t = tanhf(inner(v));
            const float d_inner = 0.79788456080286536f * (1.0f + 3.0f * 0.044715f * v * v);
            slope = 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * d_inner;
        } else {
            slope = phi(v) + v * 0.39894228040143268f * expf(-0.5f * v * v);
        }
        const float value = d_y[i] * slope;
        d_x[i] = accumulate ? d_x[i] + value : value;
    }
}

// A thread draws four numbers of one sample; `size` elements a sample, `blocks` = ceil(size / 4).
__global__ void dropout(
    const float* x, float* y, u64 size, u64 blocks, u64 batch, float p, u64 seed, u32 node, const int* state, int accumulate
) {
    const u32 step = (u32)state[0], first = (u32)state[1];
    const float factor = p < 1.0f ? 1.0f / (1.0f - p) : 0.0f;
    EACH(i, batch * blocks) {
        const u64 sample = i / blocks, block = i % blocks;
        const Words words = philox(seed, (u32)block, first + (u32)sample, step, 1u | node << 8);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            const u64 element = 4 * block + j;
            if (element >= size) break;
            const u64 at = sample * size + element;
            const float value = uniform(words.at[j]) >= p ? x[at] * factor : 0.0f;
            y[at] = accumulate ? y[at] + value : value;
        }
    }
}

// 32 × 32 tiles through shared memory; grid (column tiles, row tiles, batch), block (32, 8).
__global__ void transpose(const float* from, float* to, u32 rows, u32 columns, int accumulate) {
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
__global__ void add_bias(float* y, const float* bias, u64 n, u32 columns) { EACH(i, n) y[i] += bias[i % columns]; }
}
