// Compression of gradients: rounding to half the bits, normal numbers, orthonormal columns.
// Reference: kernel.rs; philox.rs for what is drawn; PyTorch's PowerSGD hook.
#include "common.cuh"
#include <cuda_fp16.h>
#include <cuda_bf16.h>

extern "C" {

__global__ void narrow_f16(const float* from, __half* to, u64 n, float divisor) {
    EACH(i, n) to[i] = __float2half_rn(__half2float(__float2half_rn(from[i])) / divisor);
}

__global__ void narrow_bf16(const float* from, __nv_bfloat16* to, u64 n, float divisor) {
    EACH(i, n) to[i] = __float2bfloat16_rn(__bfloat162float(__float2bfloat16_rn(from[i])) / divisor);
}

__global__ void widen_f16(const __half* from, float* to, u64 n) { EACH(i, n) to[i] = __half2float(from[i]); }

__global__ void widen_bf16(const __nv_bfloat16* from, float* to, u64 n) { EACH(i, n) to[i] = __bfloat162float(from[i]); }

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
__device__ double column_dot(const float* matrix, u64 rows, u32 columns, u32 a, u32 b, double* shared) {
    double total = 0.0;
    for (u64 r = threadIdx.x; r < rows; r += blockDim.x) total += (double)matrix[r * columns + a] * (double)matrix[r * columns + b];
    __syncthreads();
    shared[threadIdx.x] = total;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    return shared[0];
}

__global__ void gram_schmidt(float* matrix, u64 rows, u32 columns) {
    __shared__ double shared[256];
    for (u32 column = 0; column < columns; ++column) {
        const float norm = (float)sqrt(column_dot(matrix, rows, columns, column, column, shared));
        for (u64 r = threadIdx.x; r < rows; r += blockDim.x) matrix[r * columns + column] /= norm;
        __syncthreads();
        for (u32 other = column + 1; other < columns; ++other) {
            const float part = (float)column_dot(matrix, rows, columns, column, other, shared);
            for (u64 r = threadIdx.x; r < rows; r += blockDim.x) matrix[r * columns + other] -= part * matrix[r * columns + column];
            __syncthreads();
        }
    }
}

// One block; factors and products as the host's `householder`, workspace [2, columns].
__global__ void householder(float* matrix, u64 rows, u32 columns, float* workspace) {
    __shared__ double shared[256];
    float* factors = workspace;
    for (u32 k = 0; k < columns; ++k) {
        double below = 0.0;
        for (u64 r = k + 1 + threadIdx.x; r < rows; r += blockDim.x) below += (double)matrix[r * columns + k] * (double)matrix[r * columns + k];
        shared[threadIdx.x] = below;
        __syncthreads();
        for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
            if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
            __syncthreads();
        }
        const double norm = sqrt(shared[0]), alpha = matrix[(u64)k * columns + k];
        __syncthreads();
        float factor = 0.0f;
        if (norm != 0.0) {
            const double beta = -copysign(hypot(alpha, norm), alpha);
            for (u64 r = k + 1 + threadIdx.x; r < rows; r += blockDim.x) matrix[r * columns + k] = (float)((double)matrix[r * columns + k] / (alpha - beta));
            factor = (float)((beta - alpha) / beta);
        }
        if (threadIdx.x == 0) factors[k] = factor;
        __syncthreads();
        if (factor != 0.0f)
            for (u32 c = k + 1; c < columns; ++c) {
                double product = 0.0;
                for (u64 r = k + threadIdx.x; r < rows; r += blockDim.x)
                    product += (r == k ? 1.0 : (double)matrix[r * columns + k]) * (double)matrix[r * columns + c];
                shared[threadIdx.x] = product;
                __syncthreads();
                for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
                    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
                    __syncthreads();
                }
                const float part = (float)(shared[0] * factor);
                __syncthreads();
                for (u64 r = k + threadIdx.x; r < rows; r += blockDim.x) matrix[r * columns + c] -= (r == k ? 1.0f : matrix[r * columns + k]) * part;
                __syncthreads();
            }
    }
    for (u32 k = columns; k-- > 0;) {
        const float factor = factors[k];
        if (factor != 0.0f)
            for (u32 c = k + 1; c < columns; ++c) {
                double product = 0.0;
                for (u64 r = k + threadIdx.x; r < rows; r += blockDim.x)
                    product += (r == k ? 1.0 : (double)matrix[r * columns + k]) * (double)matrix[r * columns + c];
                shared[threadIdx.x] = product;
                __syncthreads();
                for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
                    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
                    __syncthreads();
                }
                const float part = (float)(shared[0] * factor);
                __syncthreads();
                for (u64 r = k + threadIdx.x; r < rows; r += blockDim.x) matrix[r * columns + c] -= (r == k ? 1.0f : matrix[r * columns + k]) * part;
                __syncthreads();
            }
        for (u64 r = threadIdx.x; r < rows; r += blockDim.x) {
            const u64 at = r * columns + k;
            matrix[at] = r < k ? 0.0f : r == k ? 1.0f - factor : -factor * matrix[at];
        }
        __syncthreads();
    }
}
}
