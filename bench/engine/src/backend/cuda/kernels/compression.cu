// Compression of gradients: rounding to half the bits, normal numbers, orthonormal columns.
// Reference: kernel.rs; philox.rs for what is drawn; PyTorch's PowerSGD hook; LAPACK's `sgeqr2` and `sorg2r` for the signs of columns.
#include "common.cuh"

__device__ __forceinline__ u16 to_f16(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float from_f16(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// As `to_bf16`, and a number that is none keeps its sign, as the host has it.
__device__ __forceinline__ u16 to_signed_bf16(float value) {
    const u32 bits = (u32)__float_as_int(value);
    return (bits & 0x7fffffffu) > 0x7f800000u ? (u16)(bits >> 16 | 0x40u) : to_bf16(value);
}

extern "C" {

__global__ void narrow_f16(const float* __restrict__ from, u16* __restrict__ to, u64 n, float divisor) {
    each(n, [&](u64 i) { to[i] = to_f16(from_f16(to_f16(from[i])) / divisor); });
}

__global__ void narrow_bf16(const float* __restrict__ from, u16* __restrict__ to, u64 n, float divisor) {
    each(n, [&](u64 i) { to[i] = to_signed_bf16(from_bf16(to_signed_bf16(from[i])) / divisor); });
}

__global__ void widen_f16(const u16* __restrict__ from, float* __restrict__ to, u64 n) {
    each(n, [&](u64 i) { to[i] = from_f16(from[i]); });
}

__global__ void widen_bf16(const u16* __restrict__ from, float* __restrict__ to, u64 n) {
    each(n, [&](u64 i) { to[i] = from_bf16(from[i]); });
}

// What of a weight's gradient could only be had in bfloat16 is added to the rest of it.
__global__ void add_bf16(const u16* __restrict__ from, float* __restrict__ to, u64 n) {
    each(n, [&](u64 i) { to[i] += from_bf16(from[i]); });
}

__global__ void fill_normal(float* to, u64 n, u64 seed, const int* state, u32 stream) {
    const u32 step = (u32)state[0];
    EACH(block, (n + 3) / 4) {
        const Words words = philox(seed, (u32)block, step, stream, 5u);
        float values[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const double radius = sqrt(-2.0 * log(1.0 - (double)uniform(words.at[2 * half])));
            double sine, cosine;
            sincos(6.283185307179586476925286766559 * (double)uniform(words.at[2 * half + 1]), &sine, &cosine);
            values[2 * half] = (float)(radius * cosine);
            values[2 * half + 1] = (float)(radius * sine);
        }
        for (u32 j = 0; j < 4 && 4 * block + j < n; ++j) to[4 * block + j] = values[j];
    }
}

// One block; modified Gram-Schmidt, as the host's. `rows` ≥ `columns`, columns fastest. More than two columns have Householder reflections.
__global__ void __launch_bounds__(1024) gram_schmidt(float* matrix, u64 rows, u32 columns) {
    __shared__ double shared[32];
    auto dot = [&](u32 a, u32 b) {
        double total = 0.0;
        for (u64 r = threadIdx.x; r < rows; r += blockDim.x) total += (double)matrix[r * columns + a] * (double)matrix[r * columns + b];
        return (double)block_sum(total, shared);
    };
    for (u32 column = 0; column < columns; ++column) {
        const float norm = (float)sqrt(dot(column, column));
        // A thread's rows are its own throughout, so that only sums need the others.
        for (u64 r = threadIdx.x; r < rows; r += blockDim.x) matrix[r * columns + column] /= norm;
        for (u32 other = column + 1; other < columns; ++other) {
            const float part = (float)dot(column, other);
            for (u64 r = threadIdx.x; r < rows; r += blockDim.x) matrix[r * columns + other] -= part * matrix[r * columns + column];
        }
    }
}

// Applies reflection 1 − factor·v·vᵀ to the columns behind k; v[k] = 1, the rest of v is column k below the diagonal. A warp takes a column.
__device__ __forceinline__ void reflect(float* matrix, u64 rows, u32 columns, u32 k, float factor) {
    const u32 lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    __syncthreads();
    if (factor != 0.0f)
        for (u32 c = k + 1 + threadIdx.x / WARP; c < columns; c += warps) {
            double product = 0.0;
            for (u64 r = k + lane; r < rows; r += WARP)
                product += (r == k ? 1.0 : (double)matrix[r * columns + k]) * (double)matrix[r * columns + c];
            const float part = (float)warp_sum(product);
            for (u64 r = k + lane; r < rows; r += WARP) matrix[r * columns + c] -= factor * (r == k ? 1.0f : matrix[r * columns + k]) * part;
        }
    __syncthreads();
}

// One block; the orthonormal factor of a QR factorization, as the host's `householder`. workspace [columns] or more.
__global__ void __launch_bounds__(1024) householder(float* matrix, u64 rows, u32 columns, float* workspace) {
    __shared__ double shared[32];
    for (u32 k = 0; k < columns; ++k) {
        double below = 0.0;
        for (u64 r = k + 1 + threadIdx.x; r < rows; r += blockDim.x) below += (double)matrix[r * columns + k] * (double)matrix[r * columns + k];
        const double norm = sqrt(block_sum(below, shared)), alpha = matrix[(u64)k * columns + k];
        float factor = 0.0f;
        if (norm != 0.0) {
            const double beta = -copysign(hypot(alpha, norm), alpha);
            for (u64 r = k + 1 + threadIdx.x; r < rows; r += blockDim.x) matrix[r * columns + k] = (float)((double)matrix[r * columns + k] / (alpha - beta));
            factor = (float)((beta - alpha) / beta);
        }
        if (threadIdx.x == 0) workspace[k] = factor;
        reflect(matrix, rows, columns, k, factor);
    }
    // The reflections become the matrix itself: the last one first, each on the columns behind it.
    for (u32 k = columns; k-- > 0;) {
        const float factor = workspace[k];
        reflect(matrix, rows, columns, k, factor);
        for (u64 r = threadIdx.x; r < rows; r += blockDim.x) {
            const u64 at = r * columns + k;
            matrix[at] = r < k ? 0.0f : r == k ? 1.0f - factor : -factor * matrix[at];
        }
    }
}
}
